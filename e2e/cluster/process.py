"""Child processes that never outlive us, and waiting for a condition with a deadline."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.05
_LOG_TAIL_BYTES = 3000


class NotReady(Exception):
    """Something did not come up in time, or died on the way; the message holds the end of its log."""


@dataclass(frozen=True)
class Child:
    """A running process and the file that it writes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self, *, grace_seconds: float = 5) -> None:
        """Asks it to end, then kills it; returns when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            self.process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start(name: str, command: Iterable[str | Path], *, log: Path, environment: dict[str, str] | None = None) -> Child:
    """Starts `command` with its output appended to `log`. The kernel kills it when the thread that called this ends."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise NotReady("`setpriv` (util-linux) is not on PATH; it ties child processes to this one")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [setpriv, "--pdeathsig", "KILL", "--", *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
        )
    return Child(name, process, log)


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float, children: Iterable[Child] = ()) -> None:
    """Returns when `condition` holds; raises NotReady after `seconds`, or at once when one of `children` has ended."""
    children = list(children)
    deadline = time.monotonic() + seconds
    while not condition():
        for child in children:
            if (status := child.process.poll()) is not None:
                raise NotReady(f"{child.name} ended with {status} before {what}; the end of {child.log}:\n{tail(child.log)}")
        if time.monotonic() > deadline:
            logs = "\n".join(f"--- {child.log}\n{tail(child.log)}" for child in children)
            raise NotReady(f"after {seconds:.0f} s still waiting until {what}\n{logs}")
        time.sleep(_POLL_SECONDS)


def tail(log: Path) -> str:
    """The end of a log file."""
    with log.open("rb") as handle:
        handle.seek(0, os.SEEK_END)
        handle.seek(max(0, handle.tell() - _LOG_TAIL_BYTES))
        return handle.read().decode(errors="replace")
