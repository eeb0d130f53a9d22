"""One line per long step, on stderr: what is being done, and how many seconds it took."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_open_lines: list[str] = []
"""Steps that run now; a step that begins inside another one breaks its line, and the outer one then reports on a line of its own."""


def say(text: str) -> None:
    """One line of news."""
    _break_line()
    print(text, file=sys.stderr, flush=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Shows `text …` while the body runs and the seconds when it ends."""
    _break_line()
    print(f"{text} …", end="", file=sys.stderr, flush=True)
    _open_lines.append(text)
    started = time.monotonic()
    outcome = "failed after "
    try:
        yield
        outcome = ""
    finally:
        broken = _open_lines.pop() == ""
        prefix = f"{text} …" if broken else ""
        print(f"{prefix} {outcome}{time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


def _break_line() -> None:
    if _open_lines and _open_lines[-1]:
        print(file=sys.stderr)
        _open_lines[-1] = ""
