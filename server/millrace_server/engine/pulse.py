"""Whether an engine process is alive, seen from outside: by what it says, and by whether it computes."""

import signal
from dataclasses import dataclass

import psutil

from millrace_server.engine.failure import EXIT_DEVICE_LOST

LONGEST_STEP_SECONDS = 600
"""An engine that computes this long without a word computes nothing that anybody waits for."""
BUSY_SHARE = 0.1
"""Of one CPU: who takes more is at work. Waking up for nothing takes far less."""
TICKS = 4
"""Looks per `heartbeat_seconds`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the engine may be silent, and how often it may die. Seconds."""

    heartbeat_seconds: float = 30
    """A serving engine speaks at every step and each second while idle. When it is silent this long and does not compute, it hangs."""
    step_seconds: float = 30
    """When it is silent this long it hangs, even if it computes."""
    restarts: int = 3
    restarts_window_seconds: float = 600
    first_backoff_seconds: float = 1


def patience_for(request_timeout: float) -> Patience:
    """A step with hundreds of prompt tokens may take a slow CPU a minute, and a restart would only make it begin again. But a step that
    takes longer than requests may has no answer to lose."""
    default = Patience()
    return Patience(step_seconds=min(max(default.heartbeat_seconds, request_timeout), LONGEST_STEP_SECONDS))


class Pulse:
    """Felt every `seconds_per_tick`. Silence is counted in ticks, so that a watcher who was frozen himself blames nobody."""

    def __init__(self, patience: Patience) -> None:
        self.seconds_per_tick = patience.heartbeat_seconds / TICKS
        self._patience = patience
        self._heard: float | None = None
        self._computed = 0.0
        self._silence = 0.0

    def hangs(self, *, heard: float | None, cpu_seconds: float) -> str | None:
        """Why the process is taken for hung. `heard` changes with every message and is None while silence is allowed; `cpu_seconds` is
        what the process has computed since it began."""
        computed, self._computed = cpu_seconds - self._computed, cpu_seconds
        if heard is None or heard != self._heard:
            self._heard, self._silence = heard, 0.0
            return None
        self._silence += self.seconds_per_tick
        is_busy = computed > BUSY_SHARE * self.seconds_per_tick
        limit = self._patience.step_seconds if is_busy else self._patience.heartbeat_seconds
        if self._silence < limit:
            return None
        return f"hangs: no word for {self._silence:.0f} s, while it {'computes' if is_busy else 'does nothing'}"


def cpu_seconds(pid: int) -> float:
    """Of all its threads, since it began; 0 when it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def how_it_ended(exit_code: int | None) -> str:
    """`exit_code` is None for a process that has not ended, and negative for one that a signal ended."""
    if exit_code is None:
        return "fell silent"
    if exit_code == EXIT_DEVICE_LOST:
        return f"lost its device (exit code {exit_code}), which another process may have again"
    if exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code} and without a word"
