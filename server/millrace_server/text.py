"""Between text and token ids, in the front, by the `tokenizers` library alone: no step of the engine ever waits for it.

Text that a client sends never becomes a special token, also when it spells one.
"""

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer

from millrace_server.engine import checkpoint
from millrace_server.engine.failure import CannotServe
from millrace_server.settings import ServerSettings

TOKENIZER_FILE = "tokenizer.json"
LONG_TEXT_CHARACTERS = 8192
"""Longer texts are encoded in a thread: the library lets go of the interpreter, and probes and streams go on."""
CONTEXT_TOKENS = 8
"""Tokens of the prompt that come along when an answer is decoded: some tokenizers drop a leading space without."""
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
MAX_UNFINISHED_TOKENS = 8
"""A character has at most 4 bytes, hence tokens: what is unfinished after twice as many is no character."""

logger = logging.getLogger(__name__)


class Text:
    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, settings: ServerSettings) -> "Text":
        """From the model's folder. Raises CannotServe."""
        revision = None if settings.model_path else settings.model_revision
        return cls.from_folder(checkpoint.find(name=settings.model_name, path=settings.model_path, revision=revision))

    @classmethod
    def from_folder(cls, folder: Path) -> "Text":
        file = folder / TOKENIZER_FILE
        if not file.is_file():
            hint = f"{folder} has no {TOKENIZER_FILE}; save the model with a fast tokenizer (`tokenizer.save_pretrained`)"
            raise CannotServe("tokenizer", "TokenizerNotFound", hint)
        try:
            return cls(Tokenizer.from_file(str(file)))
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception; whatever it is, the file is to blame
            raise CannotServe("tokenizer", "InvalidTokenizer", f"{TOKENIZER_FILE} cannot be read: {error}") from None

    async def encode(self, text: str) -> list[int]:
        """Token ids, with the ones that the model expects in front (such as BOS)."""
        if len(text) > LONG_TEXT_CHARACTERS:
            return await asyncio.to_thread(self._encode, text)
        return self._encode(text)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def decode(self, tokens: Iterable[int]) -> str:
        """Special tokens leave no text."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def answer(self, prompt: list[int]) -> "AnswerText":
        return AnswerText(self, prompt)


class AnswerText:
    """The text of one answer, as its tokens come. What it has given out never changes and ends with whole characters."""

    def __init__(self, text: Text, prompt: list[int]) -> None:
        self._text = text
        self._tokens = list(prompt[-CONTEXT_TOKENS:])
        self._given = len(self._tokens)
        """Tokens, from the start of `_tokens`, whose text is out."""

    def push(self, tokens: list[int]) -> str:
        """The text that these tokens complete; empty while a character is unfinished."""
        self._tokens += tokens
        new = self._new_text()
        if new.endswith(UNFINISHED) and len(self._tokens) - self._given < MAX_UNFINISHED_TOKENS:
            return ""
        self._tokens = self._tokens[-CONTEXT_TOKENS:]
        self._given = len(self._tokens)
        return new

    def finish(self) -> str:
        """What is left when no more tokens come, without the bytes of a character that never ended."""
        return self._new_text().rstrip(UNFINISHED)

    def _new_text(self) -> str:
        before = self._text.decode(self._tokens[: self._given])
        return self._text.decode(self._tokens)[len(before) :]
