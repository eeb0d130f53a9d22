"""Who may enter, and what the autoscaler is told, with time as an argument."""

import pytest

from millrace_server.admission import LONGEST_RETRY_SECONDS, Admission
from millrace_server.errors import QueueFull, WaitTooLong


def admission(*, slots: int = 2, max_queue: int = 3, max_concurrent: int = 100) -> Admission:
    return Admission(slots=slots, max_queue=max_queue, max_concurrent=max_concurrent, now=0.0)


def serve_one(system: Admission, *, start: float, seconds: float) -> None:
    """One request that runs alone from `start` on."""
    system.enter(now=start, timeout=30)
    system.engine_runs(1, now=start)
    system.leave(now=start + seconds)
    system.engine_runs(0, now=start + seconds)


@pytest.mark.parametrize(("max_concurrent", "capacity"), [(100, 5), (4, 4)])
def test_the_smaller_limit_wins(max_concurrent: int, capacity: int) -> None:
    system = admission(max_concurrent=max_concurrent)
    for _ in range(capacity):
        system.enter(now=0, timeout=30)
    with pytest.raises(QueueFull, match=f"{capacity} requests are already in the system") as refused:
        system.enter(now=0, timeout=30)
    assert refused.value.retry_after == 1
    assert system.in_system == capacity


def test_who_leaves_makes_room() -> None:
    system = admission(slots=1, max_queue=0)
    system.enter(now=0, timeout=30)
    system.leave(now=1)
    system.enter(now=1, timeout=30)
    assert system.in_system == 1


def test_a_wait_beyond_the_deadline_is_refused_at_once() -> None:
    system = admission(slots=1, max_queue=100)
    serve_one(system, start=0, seconds=4)
    for _ in range(3):
        system.enter(now=4, timeout=30)
    with pytest.raises(WaitTooLong, match=r"about 12.0 s for a slot and be answered after about 16.0 s.*deadline of 19.0 s") as refused:
        system.enter(now=4, timeout=19)
    assert refused.value.retry_after == 6
    system.enter(now=4, timeout=21)


def test_a_short_answer_is_taken_in_where_a_usual_one_would_come_too_late() -> None:
    system = admission(slots=1, max_queue=100)
    system.enter(now=0, timeout=30)
    system.engine_runs(1, now=0)
    system.generated(100)
    system.leave(now=10)
    system.engine_runs(0, now=10)
    system.enter(now=10, timeout=30)
    with pytest.raises(WaitTooLong, match=r"answered after about 20.0 s"):
        system.enter(now=10, timeout=16, max_tokens=100)
    system.enter(now=10, timeout=16, max_tokens=20)


def test_requests_that_waited_in_vain_do_not_make_requests_seem_short() -> None:
    system = admission(slots=1, max_queue=100)
    serve_one(system, start=0, seconds=4)
    for _ in range(9):
        system.enter(now=4, timeout=100)
        system.leave(now=4, has_run=False)
    assert system.service_seconds() == pytest.approx(4)
    assert (system.completed, system.in_system) == (1, 0)


def test_a_free_slot_is_given_however_long_requests_take() -> None:
    system = admission(slots=1, max_queue=100)
    serve_one(system, start=0, seconds=500)
    system.enter(now=500, timeout=10)
    assert system.in_system == 1


def test_nothing_is_refused_for_waiting_while_the_service_time_is_unknown() -> None:
    system = admission(slots=1, max_queue=100)
    for _ in range(100):
        system.enter(now=0, timeout=0.001)
    assert system.expected_wait() == 0


def test_retry_after_is_bounded() -> None:
    system = admission(slots=1, max_queue=1000, max_concurrent=1001)
    serve_one(system, start=0, seconds=20)
    for _ in range(1001):
        system.enter(now=20, timeout=1e9)
    assert system.retry_after() == LONGEST_RETRY_SECONDS


def test_the_service_time_is_what_a_slot_is_held_for_also_when_many_run_at_once() -> None:
    system = admission(slots=4)
    for _ in range(4):
        system.enter(now=0, timeout=30)
    system.engine_runs(4, now=0)
    for _ in range(4):
        system.leave(now=2)
    assert system.service_seconds() == pytest.approx(2, rel=0.05)


def test_the_engine_is_never_said_to_run_more_than_are_in_the_system() -> None:
    system = admission()
    system.enter(now=0, timeout=30)
    system.engine_runs(2, now=0)
    assert (system.running, system.queued) == (1, 0)
    system.leave(now=1)
    assert (system.running, system.queued) == (0, 0)


def test_refused_requests_are_arrivals_and_malformed_ones_never_were() -> None:
    system = admission(slots=1, max_queue=0)
    system.enter(now=0, timeout=30)
    assert (system.arrivals, system.in_system) == (0, 1), "it may be malformed still"
    with pytest.raises(QueueFull):
        system.enter(now=0, timeout=30)
    assert system.arrivals == 1
    system.confirm()
    assert system.arrivals == 2
    system.leave(now=1)
    system.enter(now=1, timeout=30)
    system.withdraw(now=1)
    assert (system.arrivals, system.completed, system.in_system) == (2, 1, 0)


def test_a_request_whose_wait_is_too_long_has_arrived() -> None:
    system = admission(slots=1, max_queue=100)
    serve_one(system, start=0, seconds=40)
    system.enter(now=40, timeout=30)
    with pytest.raises(WaitTooLong):
        system.enter(now=40, timeout=30, answers=2)
    assert system.arrivals == 2


def test_a_request_for_several_answers_enters_as_one_and_is_as_much_work_as_several() -> None:
    system = admission(slots=2, max_queue=1)
    for _ in range(2):
        system.enter(now=0, timeout=30)
        system.confirm()
    system.enter(now=0, timeout=30, answers=4)
    system.confirm(answers=4)
    system.engine_runs(2, now=0)
    assert (system.in_system, system.running, system.queued, system.arrivals) == (6, 2, 4, 6)
    with pytest.raises(QueueFull):
        system.enter(now=0, timeout=30)
    for _ in range(6):
        system.leave(now=3)
    assert (system.in_system, system.completed) == (0, 6)
    assert system.service_seconds() == pytest.approx(1.0)
    system.enter(now=3, timeout=30, answers=3)
    system.withdraw(now=3, answers=3)
    assert (system.in_system, system.arrivals) == (0, 7)


def test_several_answers_wait_until_the_last_of_them_has_a_slot() -> None:
    system = admission(slots=1, max_queue=100)
    serve_one(system, start=0, seconds=4)
    system.enter(now=4, timeout=21, answers=4)
    with pytest.raises(WaitTooLong, match=r"about 20.0 s"):
        system.enter(now=4, timeout=21, answers=2)


def test_a_cached_answer_arrives_and_completes_without_running() -> None:
    system = admission()
    system.answered_from_cache(1)
    load = system.load(boot_id="b", draining=False, ready=True, now=5)
    assert (load.arrivals, load.completed, load.running_seconds, load.uptime_seconds) == (1, 1, 0, 5)


def test_running_seconds_is_the_integral_of_running() -> None:
    system = admission(slots=2)
    system.enter(now=0, timeout=30)
    system.engine_runs(1, now=1)
    system.enter(now=2, timeout=30)
    system.engine_runs(2, now=2)
    system.leave(now=5)
    load = system.load(boot_id="b", draining=True, ready=False, now=7)
    assert load.running_seconds == pytest.approx(1 * 1 + 2 * 3 + 1 * 2)
    assert (load.draining, load.ready, load.slots, load.capacity) == (True, False, 2, 5)
