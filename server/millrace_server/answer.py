"""One answer as it grows: tokens in, text up to a stop string out."""

from millrace_server.stops import StopStrings
from millrace_server.text import AnswerText


class Answer:
    def __init__(self, text: AnswerText, stop: tuple[str, ...]) -> None:
        self.tokens = 0
        """Tokens taken, also those whose text became part of a stop string."""
        self._text = text
        self._stops = StopStrings(stop)
        self._reads_at_once = bool(stop)
        """Without stop strings all is read at the end, which costs a tenth."""
        self._unread: list[int] = []
        self._written: list[str] = []

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string is complete, so that no more tokens are needed."""
        return self._stops.matched

    def take(self, tokens: list[int]) -> None:
        self.tokens += len(tokens)
        self._unread += tokens
        if self._reads_at_once:
            self._read()

    def finish(self) -> str:
        """The whole text, when no more tokens come. The last of it may complete a stop string, too."""
        self._read()
        return "".join([*self._written, self._stops.push(self._text.finish()), self._stops.finish()])

    def _read(self) -> None:
        self._written.append(self._stops.push(self._text.push(self._unread)))
        self._unread = []
