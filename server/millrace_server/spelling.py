"""How a single token is written, alone: what log probabilities are reported under.

A token may be part of a character only, hence bytes. What a tokenizer writes of it depends on its decoder: pieces of byte-level and
byte-fallback tokenizers are read directly when the token alone is no text.
"""

import functools
import re
from collections.abc import Collection

from tokenizers import Tokenizer

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
NEIGHBOUR = "a"
"""Some tokenizers drop a space at the beginning of a text, hence a token is read behind another one."""
REMEMBERED = 32_768
"""Tokens."""


class Spelling:
    def __init__(self, tokenizer: Tokenizer, *, special: Collection[int], secret: Collection[int]) -> None:
        """`special` tokens are written as their names, `secret` ones never."""
        self._tokenizer = tokenizer
        self._special = special
        self._secret = secret
        self._neighbour: list[int] = list(tokenizer.encode(NEIGHBOUR, add_special_tokens=False).ids)
        self._before = str(tokenizer.decode(self._neighbour))
        self.of = functools.lru_cache(REMEMBERED)(self._of)

    def _of(self, token: int) -> bytes:
        """Empty for an id that the tokenizer does not know: models have more ids than tokenizers."""
        piece: str | None = self._tokenizer.id_to_token(token)
        if piece is None or token in self._secret:
            return b""
        if token in self._special:
            return piece.encode()
        text = self._alone(token)
        return _bytes_of(piece) if UNFINISHED in text else text.encode()

    def _alone(self, token: int) -> str:
        whole = str(self._tokenizer.decode([*self._neighbour, token]))
        return whole.removeprefix(self._before) if whole.startswith(self._before) else str(self._tokenizer.decode([token]))


def _bytes_of(piece: str) -> bytes:
    if found := BYTE_PIECE.fullmatch(piece):
        return bytes.fromhex(found[1])
    letters = _byte_letters()
    if all(letter in letters for letter in piece):
        return bytes(letters[letter] for letter in piece)
    return piece.encode()


@functools.cache
def _byte_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for: printable Latin-1 for itself, the rest is shifted past 255."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and not chr(byte).isspace()]
    shifted = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + number): byte for number, byte in enumerate(shifted)}
