"""A model's chat template: from messages to token ids, in which only the template's own special tokens are special.

Who writes `<|im_start|>` into a message writes text. The template is compiled with every special token in its own literals replaced by
a *mark*, a secret of this process (see text.py), and only marks become special tokens afterwards. The messages themselves reach the
template unchanged, so that it may trim, measure, compare and cut them. The text between two special tokens is tokenised in one piece: where
a message begins and ends leaves no trace, and honest messages become the very ids of transformers.

Some templates put special tokens together while they run (`'<|' + role + '|>'`). Which ones is learned from a few harmless conversations
when the model is loaded. These may be special without a mark, and so no message may spell them: a *break* is put behind the first
character of what could become one, and taken out again when the template is done. A template that composes tokens and also cuts pieces
out of messages could still be made to spell one; so such a conversation is rendered twice, the second time with a break behind
everything that is no letter, and refused if that makes a difference to the special tokens. Roles are a fixed few words, hence harmless.
"""

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from millrace_server.chat.messages import Template
from millrace_server.chat.renderer import Renderer, RenderFailed
from millrace_server.confined.parent import Confined, ConfinedFailed
from millrace_server.errors import BadRequest, ChatUnavailable
from millrace_server.text import Text, random_mark
from millrace_server.tools.calls import CallParser, HermesParser, LlamaParser
from millrace_server.tools.forms import Form, OwnParser, form_of
from millrace_server.tools.messages import Answered

ROLES = ("system", "developer", "user", "assistant", "tool")
ALLOWED: dict[str, tuple[object, ...]] = {
    "enable_thinking": (True, False),
    "thinking": (True, False),
    "reasoning_effort": ("low", "medium", "high"),
}
"""What a client may tell the template beside the messages."""
MAX_MESSAGES = 2048
MAX_FILE_BYTES = 16 * 1024 * 1024
"""Some tokenizers describe thousands of tokens."""
TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The tokens that a template may ask for by name."""

Message = Mapping[str, object]
"""A role and what belongs to it, as JSON."""

TOOL: Message = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look it up",
        "parameters": {"type": "object", "properties": {"what": {"type": "string", "description": "What"}}, "required": ["what"]},
    },
}
CALL: Message = {"id": "call000000", "type": "function", "function": {"name": "look", "arguments": {"what": "it"}}}
SAMPLES: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "Hello"},),
    tuple({"role": role, "content": "Hello"} for role in ("system", "user", "assistant", "user")),
    tuple({"role": role, "content": "Hello"} for role in ("developer", "user")),
    tuple({"role": role, "content": "Hello"} for role in ("user", "assistant", "tool")),
    (
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "Hello", "tool_call_id": "call000000"},
    ),
)
"""Conversations with all roles; a template need only take the first one."""

logger = logging.getLogger(__name__)


class ChatTemplate:
    """`failure` says why the model has no conversations; text it completes all the same."""

    def __init__(self, text: Text, source: str, tokens: Mapping[str, str], *, parser: Mapping[str, object] | None = None) -> None:
        """`tokens` are those that the template may ask for by name, as they are spelt; `parser` is the tokenizer's own of responses."""
        self.failure: str | None = None
        self.fingerprint = hashlib.sha256(source.encode(errors="surrogatepass")).hexdigest()[:8]
        """Changes with the template."""
        self._text = text
        self._source = source
        self._tokens = dict(tokens)
        self._renderer = Renderer(Template(source=source, marks=text.marks))
        self._form = form_of(source, has_parser=parser is not None)
        self._own_parser = Confined("millrace_server.tools.process", first=msgspec.json.encode(parser), subject="the model's own parser")
        self._composed: frozenset[str] = frozenset()
        """Special tokens that the template puts together while it runs."""
        self._break = random_mark()

    @classmethod
    async def load(cls, folder: Path, text: Text) -> "ChatTemplate":
        """From the model's folder, tried out. Raises nothing: whatever is wrong with it is its `failure`."""
        try:
            source, tokens, parser = await asyncio.to_thread(read, folder)
        except (OSError, ValueError, RecursionError) as error:
            template = cls(text, "", {})
            template.failure = f"the model has no usable chat template: {error}"
        else:
            template = cls(text, source, tokens, parser=parser)
            try:
                await template._try_out()
                await template._try_own_parser()
            except OSError as error:
                template.failure = f"the process that renders chat templates cannot be started: {error}"
        if template.failure:
            logger.warning("chat is unavailable", extra={"why": template.failure})
        return template

    @property
    def markers(self) -> frozenset[str]:
        """Special tokens that a model's calls are told by, if they are special."""
        return frozenset(self._text.marks) if self._form is Form.own else self._form.value if self._form else frozenset()

    def call_parser(self, messages: Sequence[Message], tools: Sequence[Message], /, **allowed: object) -> CallParser:
        """For one answer to what `render` makes of the same."""

        async def prompt() -> str:
            return self._text.decode(await self.render(messages, tools, add_generation_prompt=True, **allowed), with_specials=True)

        match self._form:
            case Form.hermes:
                return HermesParser()
            case Form.llama:
                return LlamaParser()
            case _:
                return OwnParser(self._own_parser, prompt=prompt, tools=tools, specials=self.markers)

    async def render(
        self, messages: Sequence[Message], tools: Sequence[Message] = (), /, *, add_generation_prompt: bool = True, **allowed: object
    ) -> list[int]:
        """The prompt's token ids, up to where the assistant's answer begins, or that beginning not included. Raises BadRequest,
        ChatUnavailable among them."""
        if self.failure:
            raise ChatUnavailable(f"{self.failure}; send a prompt to be completed instead")
        check(messages, allowed)
        if tools:
            self._check_tools()
        variables = self._variables(self._text.marks, tools) | allowed | {"add_generation_prompt": add_generation_prompt}
        try:
            if not self._composed:
                return await self._text.encode_marked(await self._renderer.render(messages, variables))
            rendered = await self._render_broken(messages, variables, self._beginnings(r"(?={second}|\s*\Z)"))
            strictly = await self._render_broken(messages, variables, rf"{self._beginnings('')}|[^\w\s]")
        except RenderFailed as error:
            raise BadRequest(f"messages cannot be rendered by the model's chat template: {error}", param="messages") from None
        if any(rendered.count(token) != strictly.count(token) for token in self._composed):
            raise BadRequest("messages would become special tokens of this model by its chat template; leave them out", param="messages")
        for token in sorted(self._composed, key=len, reverse=True):
            rendered = rendered.replace(token, self._text.marks[token])
        return await self._text.encode_marked(rendered.replace(self._break, ""))

    async def close(self) -> None:
        await self._renderer.close()
        await self._own_parser.close()

    def _check_tools(self) -> None:
        """Raises BadRequest."""
        if not re.search(r"\btools\b", self._source):
            why = "the model's chat template knows none"
        elif self._form is None:
            why = "the model writes its calls in no form that is known here (its tokenizer's response template, Hermes, or Llama 3.1)"
        else:
            return
        raise BadRequest(f"tools is refused: {why}; describe them in a system message", param="tools")

    async def _try_out(self) -> None:
        """Render the samples with and without marks, which must make no other difference; learn `_composed`, or note the failure."""
        plain = Renderer(Template(source=self._source, marks={}))
        self.failure = "the model's chat template was not tried out"
        try:
            self._composed, self.failure = await self._compare(plain)
        finally:
            await plain.close()
            if self.failure:
                await self._renderer.close()

    async def _try_own_parser(self) -> None:
        """Do without one that does not work."""
        if self._form is not Form.own:
            return
        nothing = Answered(prompt="", text="", tools=[])
        try:
            await self._own_parser.ask(msgspec.json.encode(nothing))
        except ConfinedFailed as error:
            logger.warning("the tokenizer's response_template does not work", extra={"why": str(error)})
            self._form = form_of(self._source, has_parser=False)
        finally:
            await self._own_parser.close()

    async def _compare(self, plain: Renderer) -> tuple[frozenset[str], str | None]:
        """The composed tokens, and the failure."""
        composed: set[str] = set()
        for number, sample in enumerate(SAMPLES):
            try:
                tools = (TOOL,) if "tool_calls" in sample[min(1, len(sample) - 1)] else ()
                expected = await plain.render(sample, self._variables({}, tools))
                rendered = await self._renderer.render(sample, self._variables(self._text.marks, tools))
            except RenderFailed as error:
                if number == 0:
                    return frozenset(), f"the model's chat template fails: {error}"
                continue  # not every template takes every role
            composed |= {token for token in self._text.marks if token in rendered}
            for token, mark in self._text.marks.items():
                rendered = rendered.replace(mark, token)
            if rendered != expected:
                return frozenset(), "the model's chat template looks into its own special tokens, which are secret here"
        return frozenset(composed), None

    def _variables(self, marks: Mapping[str, str], tools: Sequence[Message]) -> dict[str, object]:
        named = {name: marks.get(token, token) for name, token in self._tokens.items()}
        return {**named, "add_generation_prompt": True, "tools": list(tools) or None, "documents": None}

    async def _render_broken(self, messages: Sequence[Message], variables: Mapping[str, object], where: str) -> str:
        """Rendered with a break in messages and tools behind everything that matches the pattern `where`."""
        breaking = re.compile(where)

        def broken(values: object) -> list[Message]:
            given = values if isinstance(values, list | tuple) else ()
            return [_rewritten(value, lambda text: breaking.sub(lambda found: found[0] + self._break, text)) for value in given]

        return await self._renderer.render(broken(messages), {**variables, "tools": broken(variables["tools"]) or None})

    def _beginnings(self, behind: str) -> str:
        """A pattern of the first characters of composed tokens, where `behind` follows."""
        return "|".join(sorted({re.escape(token[0]) + behind.format(second=re.escape(token[1:2])) for token in self._composed}))


def _rewritten(message: Message, rewrite: Callable[[str], str]) -> Message:
    """With every string in it rewritten, the names of fields below the message's own too."""

    def visit(value: object) -> object:
        match value:
            case str():
                return rewrite(value)
            case Mapping():
                return {visit(name): visit(each) for name, each in value.items()}
            case list() | tuple():
                return [visit(each) for each in value]
            case _:
                return value

    return {name: visit(value) for name, value in message.items()}


def check(messages: Sequence[Message], allowed: Mapping[str, object]) -> None:
    """Raises BadRequest."""
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise BadRequest(f"messages is refused: {len(messages)} messages, from 1 to {MAX_MESSAGES} are allowed", param="messages")
    for message in messages:
        if message.get("role") not in ROLES:
            raise BadRequest(f"messages is refused: a role is one of {', '.join(ROLES)}", param="messages")
    for name, value in allowed.items():
        if not any(type(value) is type(possible) and value == possible for possible in ALLOWED.get(name, ())):
            known = "; ".join(f"{known}: {json.dumps(values)[1:-1]}" for known, values in ALLOWED.items())
            raise BadRequest(f"chat_template_kwargs is refused: it may hold {known}", param="chat_template_kwargs")


def read(folder: Path) -> tuple[str, dict[str, str], dict[str, object] | None]:
    """The template's source, the tokens it may ask for by name, and the tokenizer's own parser of responses. Raises OSError, or
    ValueError with what is wrong."""
    settings = _json(folder / "tokenizer_config.json")
    source = settings.get("chat_template")
    if isinstance(source, list):
        source = next((each.get("template") for each in source if isinstance(each, dict) and each.get("name") == "default"), None)
    file = folder / "chat_template.jinja"
    if file.is_file():
        _check_size(file)
        source = file.read_text(encoding="utf-8")
    if not isinstance(source, str):
        raise ValueError("its folder has neither chat_template.jinja nor a chat_template in tokenizer_config.json")  # noqa: TRY004
    parser = settings.get("response_template")
    tokens = dict(_named_tokens([_json(folder / "special_tokens_map.json"), settings]))
    return source, tokens, parser if isinstance(parser, dict) else None


def _named_tokens(descriptions: Iterable[dict[str, object]]) -> Iterable[tuple[str, str]]:
    for description in descriptions:
        for name in TOKEN_NAMES:
            token = description.get(name)
            spelling = token.get("content") if isinstance(token, dict) else token
            if isinstance(spelling, str):
                yield name, spelling


def _json(file: Path) -> dict[str, object]:
    if not file.is_file():
        return {}
    _check_size(file)
    content = json.loads(file.read_bytes())
    return content if isinstance(content, dict) else {}


def _check_size(file: Path) -> None:
    if file.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{file.name} is larger than {MAX_FILE_BYTES} bytes")
