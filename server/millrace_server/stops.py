"""Stop strings: where an answer ends because its text says so. Pure, and knows no tokens.

Text is held back exactly as long as it may still become a stop string. The first stop string to be complete ends the answer; of several
that are complete with the same character the longest counts. Costs a few steps per character and stop string, however they overlap.
"""

from collections.abc import Iterable


class StopStrings:
    """One answer's stop strings, each at least a character long."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = [_StopString(stop) for stop in stops]
        self._held = ""
        self.matched = False
        """Whether the answer has ended: what is pushed from now on leaves nothing."""

    def push(self, text: str) -> str:
        """What is certain to belong to the answer. A stop string itself never does."""
        if self.matched:
            return ""
        known = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            complete = [len(stop.text) for stop in self._stops if stop.follow(character)]
            if complete:
                self.matched = True
                return known[: end - max(complete)]
        certain = len(known) - max((stop.matched for stop in self._stops), default=0)
        self._held = known[certain:]
        return known[:certain]

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        return "" if self.matched else self._held


class _StopString:
    """How much of one stop string the text ends with (Knuth, Morris and Pratt 1977)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        """Characters."""
        self._borders = [0]
        """For each beginning of `text`: the length of the longest shorter beginning that it ends with."""
        for character in text[1:]:
            self._borders.append(self._extend(self._borders[-1], character))

    def follow(self, character: str) -> bool:
        """Take the text's next character. Whether it completes the stop string, after which no more may follow."""
        self.matched = self._extend(self.matched, character)
        return self.matched == len(self.text)

    def _extend(self, matched: int, character: str) -> int:
        while matched and self.text[matched] != character:
            matched = self._borders[matched - 1]
        return matched + (self.text[matched] == character)
