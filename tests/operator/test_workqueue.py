"""When a key is reconciled: bursts, failures, deadlines and the rate of writes. Time is a number here."""

import asyncio

import pytest

from millrace_operator.workqueue import Pace, RetryLater, Schedule, TokenBucket, WorkQueue

PACE = Pace(coalesce=0.1, first_retry=1, last_retry=300)
CERTAIN = 1.0


def schedule(chance: float = CERTAIN) -> Schedule[str]:
    return Schedule(PACE, lambda: chance)


def test_a_burst_becomes_one_pass() -> None:
    keys = schedule()
    for tick in range(10):
        keys.add("a", now=tick * 0.01)
    assert keys.take(now=0.05) is None
    assert keys.take(now=0.1) == "a"
    assert keys.take(now=10) is None


def test_a_steady_stream_of_events_does_not_postpone_the_pass() -> None:
    keys = schedule()
    passes = 0
    for tick in range(1000):
        keys.add("a", now=tick * 0.01)
        if keys.take(now=tick * 0.01):
            passes += 1
            keys.succeeded("a")
    assert 80 <= passes <= 100


def test_the_key_that_is_due_longest_goes_first() -> None:
    keys = schedule()
    keys.add("late", now=1)
    keys.add("early", now=0)
    assert [keys.take(now=5), keys.take(now=5)] == ["early", "late"]


def test_a_running_key_is_not_taken_again_but_runs_once_more_afterwards() -> None:
    keys = schedule()
    keys.add("a", now=0)
    assert keys.take(now=1) == "a"
    keys.add("a", now=1)
    keys.add("a", now=1.05)
    assert keys.take(now=5) is None
    keys.succeeded("a")
    assert keys.take(now=5) == "a"
    keys.succeeded("a")
    assert keys.take(now=50) is None


def test_each_failure_doubles_the_window_up_to_its_limit() -> None:
    keys = schedule()
    now, delays = 0.0, []
    keys.add("a", now=now)
    for _ in range(12):
        now = (keys.next_due() or 0) + 0.001
        assert keys.take(now=now) == "a"
        delays.append(keys.failed("a", now=now))
    assert delays == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]


def test_retries_are_spread_over_the_whole_window() -> None:
    keys = schedule(chance=0.25)
    keys.add("a", now=0)
    keys.take(now=1)
    assert keys.failed("a", now=1) == 0.25


def test_a_server_that_asks_to_wait_is_obeyed() -> None:
    keys = schedule(chance=0)
    keys.add("a", now=0)
    keys.take(now=1)
    assert keys.failed("a", now=1, at_least=7) == 7


def test_success_forgets_the_failures() -> None:
    keys = schedule()
    keys.add("a", now=0)
    keys.take(now=1)
    keys.failed("a", now=1)
    keys.take(now=2)
    keys.succeeded("a")
    keys.add("a", now=3)
    keys.take(now=4)
    assert keys.failed("a", now=4) == 1


def test_an_event_shortens_a_long_back_off_but_not_below_the_first_retry() -> None:
    keys = schedule()
    keys.add("a", now=0)
    for now in (1, 2, 4, 8, 16):
        keys.take(now=now)
        keys.failed("a", now=now)
    keys.add("a", now=16.01)
    assert keys.take(now=16.9) is None
    assert keys.take(now=17) == "a"


def test_an_event_in_mid_pass_does_not_hurry_the_retry_below_the_first_one() -> None:
    keys = schedule()
    keys.add("a", now=0)
    for now in (1, 2, 4, 8):
        keys.take(now=now)
        keys.failed("a", now=now)
    keys.take(now=16)
    keys.add("a", now=16)
    keys.failed("a", now=16)
    assert keys.take(now=16.9) is None
    assert keys.take(now=17) == "a"


def test_the_age_of_the_oldest_due_key_is_known() -> None:
    keys = schedule()
    assert keys.waited(now=5) == 0
    keys.add("a", now=0)
    assert keys.waited(now=3) == pytest.approx(2.9)


def test_writes_beyond_the_burst_wait_for_the_rate() -> None:
    bucket = TokenBucket(per_second=10, burst=2)
    assert [round(bucket.reserve(now=0), 3) for _ in range(4)] == [0, 0, 0.1, 0.2]
    assert bucket.reserve(now=10) == 0


async def test_a_hanging_pass_is_ended_and_hurts_no_other_key() -> None:
    done = asyncio.Event()

    async def work(key: str) -> None:
        if key == "hangs":
            await asyncio.Event().wait()
        done.set()

    queue = WorkQueue(work, pace=Pace(coalesce=0, first_retry=100, last_retry=100), deadline=0.02, chance=lambda: CERTAIN)
    running = asyncio.create_task(queue.run(1))
    queue.add("hangs")
    queue.add("works")
    async with asyncio.timeout(5):
        await done.wait()
    queue.stop()
    await running
    assert queue.schedule.depth == 1, "the hanging key waits for its retry"


async def test_one_key_never_runs_twice_at_once_while_others_run_beside_it() -> None:
    running: set[str] = set()
    most = 0
    passes = 0
    finished = asyncio.Event()

    async def work(key: str) -> None:
        nonlocal most, passes
        assert key not in running
        running.add(key)
        most = max(most, len(running))
        queue.add(key)
        await asyncio.sleep(0)
        running.discard(key)
        passes += 1
        if passes == 60:
            finished.set()

    queue = WorkQueue(work, pace=Pace(coalesce=0, first_retry=1, last_retry=1), deadline=5)
    workers = asyncio.create_task(queue.run(4))
    for key in ("a", "b", "c"):
        queue.add(key)
    async with asyncio.timeout(5):
        await finished.wait()
    queue.stop()
    await workers
    assert 1 < most <= 3


async def test_a_pass_that_breaks_is_retried(caplog: pytest.LogCaptureFixture) -> None:
    attempts = 0
    healed = asyncio.Event()

    async def work(_: str) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise ValueError("a defect")
        if attempts == 2:
            raise RetryLater("not yet", seconds=0.01)
        healed.set()

    queue = WorkQueue(work, pace=Pace(coalesce=0, first_retry=0.01, last_retry=0.01), deadline=5)
    workers = asyncio.create_task(queue.run(2))
    queue.add("a")
    async with asyncio.timeout(5):
        await healed.wait()
    queue.stop()
    await workers
    assert "a defect" in caplog.text
    assert "not yet" in caplog.text


class Turned:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_pass_that_its_deadline_cannot_end_shows_by_its_age() -> None:
    clock, release = Turned(), asyncio.Event()

    async def stubborn(_: str) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                cancelled.set()

    cancelled = asyncio.Event()
    queue: WorkQueue[str] = WorkQueue(stubborn, pace=Pace(coalesce=0, first_retry=1, last_retry=1), deadline=0.01, clock=clock)
    running = asyncio.create_task(queue.run(2))
    queue.add("a")
    async with asyncio.timeout(10):
        await cancelled.wait()
    clock.now = 700
    assert queue.longest == 700
    queue.stop()
    release.set()
    async with asyncio.timeout(10):
        await running
    assert queue.longest == 0


@pytest.mark.parametrize(("error", "fruitless"), [(None, 0), (ValueError("a defect"), 0), (RetryLater("later"), 0), (TimeoutError(), 50)])
async def test_only_a_pass_that_never_ends_is_fruitless(error: Exception | None, fruitless: float) -> None:
    clock, ended = Turned(), asyncio.Event()

    async def work(_: str) -> None:
        clock.now += 50
        ended.set()
        if error:
            raise error

    queue: WorkQueue[str] = WorkQueue(work, pace=Pace(coalesce=0, first_retry=1e6, last_retry=1e6), deadline=5, clock=clock)
    running = asyncio.create_task(queue.run(1))
    queue.add("a")
    async with asyncio.timeout(10):
        await ended.wait()
        queue.stop()
        await running
    assert queue.fruitless == fruitless
