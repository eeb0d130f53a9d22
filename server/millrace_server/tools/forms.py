"""In which form a model writes its calls, told from its folder: by the parser that its tokenizer brings, else by its chat template."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum

import msgspec

from millrace_server.confined.parent import Confined, ConfinedFailed
from millrace_server.tools.calls import HERMES_CLOSE, HERMES_OPEN, LLAMA_TAG, Part, ToolCall
from millrace_server.tools.messages import Answered, Parsed

LLAMA_INSTRUCTION = '"parameters": dictionary of argument name'
"""What the templates of Llama 3.1 and 3.2 tell the model."""
OTHER_FORM = "<function="
"""Calls in XML between Hermes' markers, as some later models write them."""


class Form(Enum):
    hermes = frozenset({HERMES_OPEN, HERMES_CLOSE})
    llama = frozenset({LLAMA_TAG})
    own = frozenset[str]()
    """By the tokenizer's `response_template`, the only schema of responses that transformers still reads."""


def form_of(template: str, *, has_parser: bool) -> Form | None:
    """None for a model that writes calls in no form that is known here."""
    if has_parser:
        return Form.own
    if HERMES_OPEN in template and OTHER_FORM not in template:
        return Form.hermes
    if LLAMA_TAG in template or LLAMA_INSTRUCTION in template:
        return Form.llama
    return None


class OwnParser:
    """Asks the model's own parser when the answer is complete: until then nothing is certain."""

    def __init__(
        self, process: Confined, *, prompt: Callable[[], Awaitable[str]], tools: Sequence[Mapping[str, object]], specials: frozenset[str]
    ) -> None:
        """`prompt` gives it with its special tokens, for it may begin the answer; `specials` are how they are spelt."""
        self._process = process
        self._prompt = prompt
        self._tools = tools
        self._specials = specials
        self._held = ""

    def push(self, text: str) -> list[Part]:
        self._held += text
        return []

    async def finish(self) -> list[Part]:
        answered = Answered(prompt=await self._prompt(), text=self._held, tools=[dict(tool) for tool in self._tools])
        try:
            parsed = msgspec.json.decode(await self._process.ask(msgspec.json.encode(answered)), type=Parsed)
        except (ConfinedFailed, msgspec.MsgspecError):
            parsed = Parsed(content="", calls=[])
        if parsed.calls:
            calls = [ToolCall(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in parsed.calls]
            return [*([parsed.content] if parsed.content else []), *calls]
        text = self._held
        for special in self._specials:
            text = text.replace(special, "")
        return [text] if text else []
