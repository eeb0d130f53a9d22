"""Finished answers in the one form that is kept: told again whole, or in pieces like those of a stream. Pure."""

from bisect import bisect_left
from collections.abc import Iterator

import msgspec

from millrace_server.answer import LEAST_LOGPROB, WrittenToken
from millrace_server.answering import Piece, Whole
from millrace_server.engine.messages import Logprobs

PIECE_CHARACTERS = 64
"""Many clients read an event into a buffer of bounded size, hence a replayed stream comes in pieces, too."""


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """All answers to one question."""

    prompt_tokens: int
    """Of every prompt, once."""
    tokens: int
    """Of all answers."""
    wholes: list[Whole]

    def encode(self) -> bytes:
        return msgspec.json.encode(msgspec.structs.replace(self, wholes=[_finite(whole) for whole in self.wholes]))

    @classmethod
    def decode(cls, encoded: bytes) -> "Recording":
        """Raises msgspec.ValidationError for another form."""
        return msgspec.json.decode(encoded, type=cls)

    def pieces(self) -> Iterator[Piece]:
        """The answers one after the other. A token comes with the piece in which its text begins."""
        for index, whole in enumerate(self.wholes):
            told = 0
            last = max(0, len(whole.text) - 1) // PIECE_CHARACTERS * PIECE_CHARACTERS
            for end in range(PIECE_CHARACTERS, last + 1, PIECE_CHARACTERS):
                begun = bisect_left(whole.tokens, end, lo=told, key=lambda token: token.offset)
                yield Piece(index, whole.text[end - PIECE_CHARACTERS : end], whole.tokens[told:begun], None)
                told = begun
            yield Piece(index, whole.text[last:], whole.tokens[told:], whole.finish_reason)


FORM = msgspec.json.encode(msgspec.json.schema(Recording)).decode()
"""Changes with the encoded form. Part of every key, so that replicas of two versions may share a cache."""


def _finite(whole: Whole) -> Whole:
    """JSON has no infinity."""
    tokens = [
        WrittenToken(token, Logprobs(max(likelihood.logprob, LEAST_LOGPROB), likelihood.top), offset)
        for token, likelihood, offset in whole.tokens
    ]
    return Whole(text=whole.text, tokens=tokens, finish_reason=whole.finish_reason)
