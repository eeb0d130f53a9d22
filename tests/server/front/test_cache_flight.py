"""Equal questions at the same time are computed once, and nobody suffers for another's failure or departure."""

import asyncio
import time
from collections.abc import Callable

import pytest

from millrace_server.cache import flight
from millrace_server.cache.flight import SingleFlight

KEY = b"k"
LONG = 60.0


class Model:
    """Computes when it is told to; counts."""

    def __init__(self) -> None:
        self.runs = 0
        self.finish = asyncio.Event()
        self.failures: list[Exception] = []
        """Raised by the next runs."""

    async def compute(self) -> str:
        self.runs += 1
        run = self.runs
        await self.finish.wait()
        if self.failures:
            raise self.failures.pop(0)
        return f"answer {run}"


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


def ask(flights: SingleFlight[str], model: Model, count: int, *, key: bytes = KEY, timeout: float = LONG) -> list[asyncio.Task[str]]:
    return [asyncio.create_task(flights.run(key, model.compute, timeout=timeout)) for _ in range(count)]


def is_forgotten(flights: SingleFlight[str]) -> bool:
    return flights._flights == {} and flights._waiting == 0


async def test_a_thousand_equal_questions_are_one_run() -> None:
    flights, model = SingleFlight[str](), Model()
    calls = ask(flights, model, 1000)
    await until(lambda: flights._waiting == 999)
    model.finish.set()
    assert set(await asyncio.gather(*calls)) == {"answer 1"}
    assert model.runs == 1
    assert is_forgotten(flights)


async def test_different_questions_do_not_wait_for_each_other() -> None:
    flights, model = SingleFlight[str](), Model()
    calls = [*ask(flights, model, 2, key=b"a"), *ask(flights, model, 2, key=b"b")]
    await until(lambda: model.runs == 2)
    model.finish.set()
    assert [await call for call in calls] == ["answer 1", "answer 1", "answer 2", "answer 2"]


async def test_the_next_question_after_an_answer_is_computed_anew() -> None:
    flights, model = SingleFlight[str](), Model()
    model.finish.set()
    assert [await call for call in ask(flights, model, 1)] == ["answer 1"]
    assert [await call for call in ask(flights, model, 1)] == ["answer 2"]


async def test_when_the_first_fails_only_its_own_caller_hears_of_it() -> None:
    flights, model = SingleFlight[str](), Model()
    model.failures = [ValueError("mine alone")]
    first, *others = ask(flights, model, 1000)
    await until(lambda: flights._waiting == 999)
    model.finish.set()
    with pytest.raises(ValueError, match="mine alone"):
        await first
    assert set(await asyncio.gather(*others)) == {"answer 2"}
    assert model.runs == 2
    assert is_forgotten(flights)


async def test_when_the_first_leaves_the_next_one_computes() -> None:
    flights, model = SingleFlight[str](), Model()
    first, *others = ask(flights, model, 3)
    await until(lambda: flights._waiting == 2)
    first.cancel()
    await until(lambda: model.runs == 2)
    model.finish.set()
    assert await asyncio.gather(*others) == ["answer 2", "answer 2"]
    assert first.cancelled()


async def test_when_all_but_the_last_leave_the_last_is_answered() -> None:
    flights, model = SingleFlight[str](), Model()
    *leaving, last = ask(flights, model, 1000)
    await until(lambda: flights._waiting == 999)
    for call in leaving:
        call.cancel()
    await until(lambda: model.runs == 2)
    model.finish.set()
    assert await last == "answer 2"
    assert is_forgotten(flights)


async def test_whoever_leaves_in_the_moment_of_its_turn_passes_it_on() -> None:
    flights, model = SingleFlight[str](), Model()

    async def fail_as_the_second_leaves() -> str:
        await model.finish.wait()
        # Runs after the second one was given its turn, and before it takes it.
        asyncio.get_running_loop().call_soon(second.cancel)
        raise ValueError

    first = asyncio.create_task(flights.run(KEY, fail_as_the_second_leaves, timeout=LONG))
    await asyncio.sleep(0)
    second, third = ask(flights, model, 2)
    await until(lambda: flights._waiting == 2)
    model.finish.set()
    assert await third == "answer 1"
    assert second.cancelled()
    assert isinstance(first.exception(), ValueError)
    assert is_forgotten(flights)


async def test_whoever_leaves_in_the_moment_of_the_answer_takes_nobody_elses() -> None:
    flights, model = SingleFlight[str](), Model()

    async def answer_as_the_second_leaves() -> str:
        await model.finish.wait()
        second.cancel()
        return "answer"

    first = asyncio.create_task(flights.run(KEY, answer_as_the_second_leaves, timeout=LONG))
    await asyncio.sleep(0)
    second, third = ask(flights, model, 2)
    await until(lambda: flights._waiting == 2)
    model.finish.set()
    assert [await first, await third] == ["answer", "answer"]
    assert second.cancelled()
    assert is_forgotten(flights)


async def test_waiting_ends_with_the_waiters_own_deadline() -> None:
    flights, model = SingleFlight[str](), Model()
    (first,) = ask(flights, model, 1)
    await until(lambda: model.runs == 1)
    (hasty,) = ask(flights, model, 1, timeout=0.01)
    with pytest.raises(TimeoutError):
        await hasty
    model.finish.set()
    assert await first == "answer 1"
    assert model.runs == 1
    assert is_forgotten(flights)


async def test_a_deadline_that_has_passed_waits_for_nobody() -> None:
    flights, model = SingleFlight[str](), Model()
    (first,) = ask(flights, model, 1)
    await until(lambda: model.runs == 1)
    (late,) = ask(flights, model, 1, timeout=-1)
    with pytest.raises(TimeoutError):
        await late
    model.finish.set()
    await first


async def test_more_than_can_wait_compute_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "MAX_WAITING", 2)
    flights, model = SingleFlight[str](), Model()
    calls = ask(flights, model, 5)
    await until(lambda: model.runs == 3)
    model.finish.set()
    assert sorted(await asyncio.gather(*calls)) == ["answer 1", "answer 1", "answer 1", "answer 2", "answer 3"]
