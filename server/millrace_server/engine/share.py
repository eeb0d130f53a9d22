"""How much of a step a long prompt may take while others generate. Learns from the steps themselves; pure: seconds are arguments.

Those who generate shall hardly ever wait more than twice as long for their next token because of somebody's long prompt. What a prompt
token costs depends on the machine, the model and how far the prompt has come (each token attends to all before it), so the share is
corrected after every step that held one.
"""

START_TOKENS = 16
SMALLEST_TOKENS = 2
"""Fewer would cost nearly as much time, when they are computed from the first stage to the last."""
AIM = 0.7
"""Of the time of a step without prompts, that a share shall cost. Some steps take longer than others that do the same."""
LONGEST_DIVIDED = 64
"""Tokens of a chunk that is computed in stages. More would cost each of them no less."""
FEWEST_STAGES = 2
"""Of a chunk, that a share should have room for: a step computes a whole number of them."""
STEPS_TO_REST = 16
"""After so many steps with a share there is one without: a step costs more and more as the others' answers grow, too."""
LEARNING = 0.2
"""Weight of the newest step in the mean time of steps without prompts."""
FASTEST_GROWTH = 1.25
FASTEST_FALL = 0.5


class LongPromptShare:
    """The work of at most `most` tokens. A number of sequences that was never seen generating is taken for the nearest one that was.

    Where a chunk of tokens can be computed in `stages`, one after the other in different steps, it may be less than the work of one.
    """

    def __init__(self, *, most: int, stages: int = 1) -> None:
        self._seconds: dict[int, float] = {}
        """What a step without prompts takes, by the number of sequences that generate."""
        self.stages = stages
        self.tokens = min(float(most), START_TOKENS)
        self._most = most
        self._shared = 0
        """Steps in a row."""

    @property
    def length(self) -> int:
        """Tokens of a chunk of which the next step computes a share; 0 when that step shall rest."""
        if self._shared >= STEPS_TO_REST:
            return 0
        return max(int(self.tokens), min(LONGEST_DIVIDED, int(self.tokens * self.stages / FEWEST_STAGES)))

    def stages_of(self, length: int) -> int:
        """How many stages of a chunk of so many tokens make up a share: one at least."""
        return min(self.stages, max(1, int(self.tokens * self.stages / length)))

    def observe(self, *, generating: int, long_tokens: float, other_tokens: int, seconds: float) -> None:
        """A step took so long: of so many sequences that generate, and of so many tokens' work on long prompts and on others."""
        self._shared = self._shared + 1 if long_tokens else 0
        if not generating or other_tokens:
            return
        usual = self._usual(generating)
        if not long_tokens:
            self._seconds[generating] = seconds if usual is None else usual + LEARNING * (seconds - usual)
        elif usual and long_tokens > self.tokens / 2:  # the end of a prompt does not show what a whole share costs
            extra = max(seconds - usual, usual / 100)
            right = min(self.tokens * FASTEST_GROWTH, max(self.tokens * FASTEST_FALL, long_tokens * AIM * usual / extra))
            self.tokens = min(self._most, max(SMALLEST_TOKENS / self.stages, right))

    def _usual(self, generating: int) -> float | None:
        nearest = min(self._seconds, key=lambda count: abs(count - generating), default=None)
        return None if nearest is None else self._seconds[nearest]
