"""One answer as it grows: tokens in, text up to a stop string out."""

from collections.abc import Sequence
from typing import NamedTuple

from millrace_server.engine.messages import Logprobs
from millrace_server.stops import StopStrings
from millrace_server.text import AnswerText

LEAST_LOGPROB = -9999.0
"""JSON has no infinity."""


class WrittenToken(NamedTuple):
    token: int
    likelihood: Logprobs
    offset: int
    """Characters of the answer that were complete before the token came."""


class Answer:
    def __init__(self, text: AnswerText, stop: tuple[str, ...], *, is_streamed: bool) -> None:
        self.tokens = 0
        """Tokens taken, also those whose text became part of a stop string."""
        self._text = text
        self._stops = StopStrings(stop)
        self._reads_at_once = is_streamed or bool(stop)
        """Otherwise all is read at the end, which costs a tenth."""
        self._unread: list[int] = []
        self._certain: list[str] = []
        """Text that is not given out yet."""
        self._read_characters = 0
        self._certain_characters = 0
        self._written: list[WrittenToken] = []
        """Not given out yet; only with log probabilities."""

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string is complete, so that no more tokens are needed."""
        return self._stops.matched

    def read_at_once(self) -> None:
        """From the next token on, text comes out as soon as it is certain."""
        self._reads_at_once = True

    def take(self, tokens: list[int], likelihoods: Sequence[Logprobs] = ()) -> None:
        self.tokens += len(tokens)
        if likelihoods:
            for token, likelihood in zip(tokens, likelihoods, strict=True):
                self._written.append(WrittenToken(token, likelihood, self._read_characters))
                self._read([token])
            return
        self._unread += tokens
        if self._reads_at_once:
            self._read_all()

    def finish(self) -> None:
        """No more tokens come. The last of the text may complete a stop string, too."""
        self._read_all()
        self._push(self._text.finish())
        if not self.is_stopped:
            held = self._stops.finish()
            self._certain.append(held)
            self._certain_characters += len(held)

    def news(self, *, is_over: bool) -> tuple[str, list[WrittenToken]]:
        """What is certain since the last call: text, and the tokens whose text has begun to come out. When the answer `is_over` without
        a stop string, the tokens that left no text as well."""
        text, self._certain = "".join(self._certain), []
        out = len(self._written)
        if not is_over or self.is_stopped:
            out = sum(token.offset < self._certain_characters for token in self._written)
        tokens, self._written = self._written[:out], self._written[out:]
        return text, tokens

    def _read_all(self) -> None:
        self._read(self._unread)
        self._unread = []

    def _read(self, tokens: list[int]) -> None:
        self._push(self._text.push(tokens))

    def _push(self, text: str) -> None:
        self._read_characters += len(text)
        certain = self._stops.push(text)
        self._certain.append(certain)
        self._certain_characters += len(certain)
