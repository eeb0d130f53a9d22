"""Whether an idle engine waits for more requests before its first step. Pure: `now` is an argument."""


class Company:
    """How many requests an idle engine expects to arrive together.

    As many as came within the timeout the last time that it was idle: clients who send in waves are batched from their first step,
    while a lone client after lone clients never waits. A wrong guess costs one timeout and corrects itself.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout = timeout_seconds
        self._first_arrived = float("-inf")
        self._wave = 1
        self._expected = 1

    def arrived(self, now: float, *, idle: bool) -> None:
        if idle:
            self._expected, self._wave, self._first_arrived = self._wave, 1, now
        elif now < self._first_arrived + self._timeout:
            self._wave += 1

    def wait_until(self, now: float, *, waiting: int) -> float | None:
        """When to start at the latest; None: now."""
        start_at = self._first_arrived + self._timeout
        return None if waiting >= self._expected or now >= start_at else start_at
