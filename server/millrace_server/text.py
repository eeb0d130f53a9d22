"""Between text and token ids, in the front, by the `tokenizers` library alone: no step of the engine ever waits for it.

Text that a client sends never becomes a special token, also when it spells one. What may become one is written as its *mark*: a
secret of this process, which nobody outside can spell.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from tokenizers import AddedToken, Tokenizer

from millrace_server.engine.failure import CannotServe
from millrace_server.spelling import UNFINISHED, Spelling

TOKENIZER_FILE = "tokenizer.json"
LONG_TEXT_CHARACTERS = 8192
"""Longer texts are read in a thread: the library lets go of the interpreter, and probes and streams go on. One after the other, which
is still far faster than the engine computes them, so that no number of them takes the processor from everybody else."""
CONTEXT_TOKENS = 8
"""Tokens before the new ones that come along when an answer is decoded: some tokenizers drop a leading space without. Special tokens
leave no text, hence do not count."""
MAX_UNFINISHED_TOKENS = 3
"""A character has at most 4 bytes, and a token at least one: what more tokens do not finish is no character."""
PRIVATE_USE = range(0xE000, 0xF900)
MARK_CHARACTERS = 8
"""About 100 bits of chance."""

Given = TypeVar("Given", str, list[int])
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class Text:
    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        special = {number: token for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self.marks = {token.content: random_mark() for token in special.values()}
        """Each special token's text, and what stands for it in `encode_marked`."""
        tokenizer.add_tokens([_marked(token, self.marks[token.content]) for token in special.values()])
        self._special_ids = {tokenizer.token_to_id(self.marks[token.content]): number for number, token in special.items()}
        # Models have more ids than tokenizers, and a client may bring a model to say the id that became a mark: nobody must see it.
        self._secret = frozenset(number for number in self._special_ids if number is not None)
        self._hidden = frozenset(special) | self._secret
        self.spelling = Spelling(tokenizer, special=frozenset(special), secret=self._secret)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    @classmethod
    def from_folder(cls, folder: Path) -> "Text":
        """Of a model. Raises CannotServe."""
        file = folder / TOKENIZER_FILE
        if not file.is_file():
            hint = f"{folder} has no {TOKENIZER_FILE}; save the model with a fast tokenizer (`tokenizer.save_pretrained`)"
            raise CannotServe("tokenizer", "TokenizerNotFound", hint)
        try:
            return cls(Tokenizer.from_file(str(file)))
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception; whatever it is, the file is to blame
            raise CannotServe("tokenizer", "InvalidTokenizer", f"{TOKENIZER_FILE} cannot be read: {error}") from None

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids, with or without the ones that the model expects in front (such as BOS)."""
        return await self._in_turn(partial(self._encode, add_special_tokens=add_special_tokens), text)

    async def encode_marked(self, text: str) -> list[int]:
        """Token ids of a text in which every mark stands for its special token; nothing is added in front."""
        return await self._in_turn(self._encode_marked, text)

    async def spell_out(self, tokens: list[int]) -> str:
        """The text of whole tokens, special ones by their names."""
        return await self._in_turn(self._spell_out, tokens)

    async def names(self, tokens: list[int]) -> list[str]:
        """Of tokens that came from a text, as the vocabulary has them."""
        return await self._in_turn(self._names, tokens)

    async def _in_turn(self, work: Callable[[Given], Result], given: Given) -> Result:
        if len(given) > LONG_TEXT_CHARACTERS:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, given)
        return work(given)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def _encode_marked(self, text: str) -> list[int]:
        return [self._special_ids.get(token, token) for token in self._tokenizer.encode(text, add_special_tokens=False).ids]

    def _spell_out(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode([token for token in tokens if token not in self._secret], skip_special_tokens=False))

    def _names(self, tokens: list[int]) -> list[str]:
        return [str(self._tokenizer.id_to_token(token)) for token in tokens]

    def decode(self, tokens: Iterable[int], *, with_specials: bool = False) -> str:
        """Special tokens leave no text, unless it is to be `with_specials`."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=not with_specials))

    def visible(self, tokens: Iterable[int], *, shown: frozenset[int] = frozenset()) -> list[int]:
        """Those that leave text, or are `shown` all the same."""
        return [token for token in tokens if token not in self._hidden or token in shown]

    def answer(self, prompt: list[int], *, shown: Iterable[str] = ()) -> "AnswerText":
        """`shown` are special tokens that leave text in this answer."""
        ids = (self._special_ids.get(self._tokenizer.token_to_id(self.marks[name])) for name in shown if name in self.marks)
        return AnswerText(self, prompt, shown=frozenset(number for number in ids if number is not None))


def random_mark() -> str:
    """Characters that no text uses, no template changes and no tokenizer joins to others."""
    return "".join(chr(secrets.choice(PRIVATE_USE)) for _ in range(MARK_CHARACTERS))


def _marked(token: AddedToken, mark: str) -> AddedToken:
    """Found like `token`, with the same claims on the spaces around. Not `special`, hence also found where special tokens are text."""
    return AddedToken(
        mark, special=False, normalized=token.normalized, lstrip=token.lstrip, rstrip=token.rstrip, single_word=token.single_word
    )


class AnswerText:
    """The text of one answer, as its tokens come: the same in total however they are divided into pushes. What it has given out never
    changes and ends with whole characters; bytes that are no character come out as U+FFFD, unless the answer ends with them."""

    def __init__(self, text: Text, prompt: list[int], *, shown: frozenset[int] = frozenset()) -> None:
        self._text = text
        self._shown = shown
        self._pending: list[int] = []
        """Tokens whose text is not out, because a character is unfinished."""
        self._context: list[int] = []
        self._before = ""
        """The context's text."""
        self._settle(text.visible(prompt))

    def push(self, tokens: list[int]) -> str:
        """The text that these tokens complete; empty while a character is unfinished."""
        tokens = self._text.visible(tokens, shown=self._shown)
        new = self._new_text([*self._pending, *tokens])
        if UNFINISHED in new:
            return "".join(self._push_one(token) for token in tokens)
        self._settle([*self._pending, *tokens])
        self._pending = []
        return new

    def finish(self) -> str:
        """What is left when no more tokens come, without the bytes of a character that never ended."""
        return self._new_text(self._pending).rstrip(UNFINISHED)

    def _push_one(self, token: int) -> str:
        self._pending.append(token)
        new = self._new_text(self._pending)
        if not new.endswith(UNFINISHED):
            self._settle(self._pending)
            self._pending = []
            return new
        return self._give_up() if len(self._pending) > MAX_UNFINISHED_TOKENS else ""

    def _give_up(self) -> str:
        """The first pending token begins no character. It goes, with those behind that belong to the same U+FFFD; the rest may be one."""
        lengths = [len(self._new_text(self._pending[: end + 1])) for end in range(MAX_UNFINISHED_TOKENS)]
        end = max(index for index, length in enumerate(lengths) if length == lengths[0]) + 1
        given, rest, self._pending = self._pending[:end], self._pending[end:], []
        return self._new_text(given) + "".join(self._push_one(token) for token in rest)

    def _settle(self, tokens: list[int]) -> None:
        """Take the end of these tokens, whose text is out, as the context of what comes. It must not begin inside a character."""
        context = tokens[-CONTEXT_TOKENS:]
        while UNFINISHED in (before := self._decode(context)):
            context = context[1:]
        if before:
            self._context, self._before = context, before
        elif not self._before:
            # Some tokenizers drop a space in front of a text: only once, hence these tokens stay.
            self._context = [*self._context, *tokens][-CONTEXT_TOKENS:]
            self._before = self._decode(self._context)

    def _new_text(self, tokens: list[int]) -> str:
        """What these tokens add to the context."""
        whole = self._decode([*self._context, *tokens])
        if whole.startswith(self._before):
            return whole[len(self._before) :]
        # Some tokenizers take all bytes in a row for garbage when one of them is; the context's are out already.
        return self._decode(tokens)

    def _decode(self, tokens: list[int]) -> str:
        return self._text.decode(tokens, with_specials=bool(self._shown))
