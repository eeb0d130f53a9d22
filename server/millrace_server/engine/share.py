"""How much of a step a long prompt may take while others generate. Learns from the steps themselves; pure: seconds are arguments.

Those who generate shall not wait more than about twice as long for their next token because of somebody's long prompt. What a prompt
token costs depends on the machine, the model and how far the prompt has come (each token attends to all before it), so the share is
corrected after every step that held one.
"""

START_TOKENS = 16
SMALLEST_TOKENS = 2
"""Fewer would cost nearly as much time."""
LEARNING = 0.2
"""Weight of the newest step in the mean time of steps without prompts."""
FASTEST_GROWTH = 1.25
FASTEST_FALL = 0.5


class LongPromptShare:
    """At most `most` tokens. A number of sequences that was never seen generating is taken for the nearest one that was."""

    def __init__(self, *, most: int) -> None:
        self._seconds: dict[int, float] = {}
        """What a step without prompts takes, by the number of sequences that generate."""
        self._most = most
        self._tokens = float(START_TOKENS)

    @property
    def tokens(self) -> int:
        return min(self._most, int(self._tokens))

    def observe(self, *, generating: int, long_tokens: int, other_tokens: int, seconds: float) -> None:
        """A step took so long: of so many sequences that generate, and of so many tokens of long prompts and of others."""
        if not generating or other_tokens:
            return
        usual = self._usual(generating)
        if not long_tokens:
            self._seconds[generating] = seconds if usual is None else usual + LEARNING * (seconds - usual)
        elif usual:
            extra = max(seconds - usual, usual / 100)
            change = min(FASTEST_GROWTH, max(FASTEST_FALL, usual / extra))
            if change > 1 and long_tokens < self.tokens:
                return  # the end of a prompt does not show what a whole share costs
            self._tokens = min(float(self._most), max(SMALLEST_TOKENS, long_tokens * change))

    def _usual(self, generating: int) -> float | None:
        nearest = min(self._seconds, key=lambda count: abs(count - generating), default=None)
        return None if nearest is None else self._seconds[nearest]
