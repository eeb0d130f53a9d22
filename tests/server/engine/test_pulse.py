"""When a silent engine is taken for hung."""

import signal

import pytest

from millrace_server.engine.failure import EXIT_DEVICE_LOST
from millrace_server.engine.pulse import LONGEST_STEP_SECONDS, Patience, Pulse, how_it_ended, patience_for

PATIENCE = Patience(heartbeat_seconds=40, step_seconds=100)


def ticks_until_hung(pulse: Pulse, *, heard: float | None = 0.0, cpu_per_tick: float) -> tuple[int, str]:
    for tick in range(1000):
        if why := pulse.hangs(heard=heard, cpu_seconds=tick * cpu_per_tick):
            return tick, why
    return 1000, ""


@pytest.mark.parametrize(
    ("cpu_per_tick", "ticks", "why"),
    [
        (0.0, 4, "hangs: no word for 40 s, while it does nothing"),
        (0.5, 4, "hangs: no word for 40 s, while it does nothing"),
        (10.0, 10, "hangs: no word for 100 s, while it computes"),
    ],
)
def test_silence_is_a_hang_sooner_when_nothing_is_computed(cpu_per_tick: float, ticks: int, why: str) -> None:
    assert ticks_until_hung(Pulse(PATIENCE), cpu_per_tick=cpu_per_tick) == (ticks, why)


def test_every_word_starts_the_wait_anew() -> None:
    pulse = Pulse(PATIENCE)
    assert [pulse.hangs(heard=tick // 3, cpu_seconds=0) for tick in range(30)] == [None] * 30


def test_silence_while_loading_is_not_counted() -> None:
    assert ticks_until_hung(Pulse(PATIENCE), heard=None, cpu_per_tick=0) == (1000, "")


@pytest.mark.parametrize(("request_timeout", "step_seconds"), [(1, 30), (30, 30), (120, 120), (86_400, LONGEST_STEP_SECONDS)])
def test_a_step_may_take_as_long_as_a_request(request_timeout: float, step_seconds: float) -> None:
    assert patience_for(request_timeout).step_seconds == step_seconds
    assert patience_for(request_timeout).heartbeat_seconds == 30


@pytest.mark.parametrize(
    ("exit_code", "sentence"),
    [
        (None, "fell silent"),
        (-signal.SIGKILL, "was killed by SIGKILL"),
        (EXIT_DEVICE_LOST, "lost its device (exit code 70), which another process may have again"),
        (1, "ended with exit code 1 and without a word"),
    ],
)
def test_an_end_is_told_in_words(exit_code: int | None, sentence: str) -> None:
    assert how_it_ended(exit_code) == sentence
