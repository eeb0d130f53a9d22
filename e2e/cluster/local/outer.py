"""The one process that every other process of a local cluster descends from: how it is remembered, found again and ended."""

import contextlib
import json
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.local.network import only_child
from cluster.process import wait_until

_FILE = "outer.json"
_FIELD_AFTER_NAME = 19
"""In /proc/PID/stat, counted from the closing bracket of the name: when the process started, in ticks since boot."""


@dataclass(frozen=True)
class Outer:
    """A process, told from a later one with the same number by when it started."""

    process: int
    started: int
    slot: int
    nodes: int = 1

    @classmethod
    def of(cls, process: int, *, slot: int, nodes: int) -> "Outer":
        """The running process of this number."""
        started = _started(process)
        if started is None:
            raise ProcessLookupError(f"process {process} has already ended")
        return cls(process, started, slot, nodes)

    @classmethod
    def recorded(cls, state: Path) -> "Outer | None":
        """The one that `record` wrote into this state folder."""
        file = state / _FILE
        return cls(**json.loads(file.read_text())) if file.exists() else None

    def record(self, state: Path) -> None:
        """Writes it into the state folder, whole or not at all."""
        partial = state / f"{_FILE}.partial"
        partial.write_text(json.dumps(asdict(self)))
        partial.rename(state / _FILE)

    @property
    def is_alive(self) -> bool:
        """It still runs."""
        return _started(self.process) == self.started

    @property
    def inside(self) -> int | None:
        """The first process of the cluster's namespaces, by its number out here."""
        return only_child(self.process) if self.is_alive else None

    def kill(self) -> None:
        """Ends it, and with it every process of the cluster; returns when the last one is gone."""
        inside = self.inside
        inside_started = _started(inside) if inside else None
        if self.is_alive:
            os.kill(self.process, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                # It is our own child when the same process said `up` before.
                os.waitpid(self.process, 0)
        wait_until(lambda: not self.is_alive, "the cluster's outer process is gone", seconds=30)
        if inside:
            # The first process of a PID namespace goes last.
            wait_until(lambda: _started(inside) != inside_started, "the cluster's processes are gone", seconds=60)


def _started(process: int) -> int | None:
    """When it started; None when it does not run (a zombie does not)."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[_FIELD_AFTER_NAME])
