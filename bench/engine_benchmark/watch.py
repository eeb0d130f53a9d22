"""Whether the measured engine had the machine to itself: what everybody else took meanwhile, in cores (seconds per second)."""

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from engine_benchmark.engine import Engine

BUSY_CORES = 0.1
"""Others that take more slow two threads down by far more than their share: each waits for the other at every operation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """Who computed beside the measured engine."""

    client_cores: float
    """The benchmark's own process; the most of any run."""
    idle_engines_cores: float
    """The engines that were not measured, together: a waiting one must not spin. The most of any run."""
    strangers_cores: float
    """Everything else on the machine, and what its host took; the median of the runs."""

    @property
    def warning(self) -> str | None:
        """A sentence when the figures are not to be trusted."""
        if self.idle_engines_cores > BUSY_CORES:
            return f"engines that were not measured took up to {self.idle_engines_cores:.2f} cores"
        if self.strangers_cores > BUSY_CORES:
            return f"THE MACHINE WAS BUSY: other processes took {self.strangers_cores:.2f} cores in the median; do not quote these figures"
        return None


class Watch:
    def __init__(self, engines: Sequence[Engine]) -> None:
        self._processes = {engine.name: psutil.Process(engine.pid) for engine in engines}
        self._own = psutil.Process(os.getpid())
        self._client: list[float] = []
        self._idle: list[float] = []
        self._strangers: list[float] = []

    @contextmanager
    def only(self, engine: str) -> Iterator[None]:
        """The body measures this engine."""
        idle = [process for name, process in self._processes.items() if name != engine]
        groups = ([self._own], idle, [self._own, *self._processes.values()])
        started, machine, before = time.monotonic(), machine_seconds(), [_seconds(group) for group in groups]
        yield
        elapsed = time.monotonic() - started
        client, others, ours = (_seconds(group) - earlier for group, earlier in zip(groups, before, strict=True))
        self._client.append(client / elapsed)
        self._idle.append(others / elapsed)
        self._strangers.append(max(0.0, machine_seconds() - machine - ours) / elapsed)

    def company(self) -> Company:
        """Of all runs so far, at least one."""
        return Company(
            client_cores=max(self._client), idle_engines_cores=max(self._idle), strangers_cores=statistics.median(self._strangers)
        )


def _seconds(processes: Sequence[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(one.user + one.system for one in times)


def machine_seconds() -> float:
    """Processor time of the whole machine, what its host stole included (not again what guests took)."""
    now = psutil.cpu_times()
    return sum(getattr(now, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))
