"""The figures of the scaling benchmark, from looks that the test makes up."""

from scaling_benchmark.figures import Cycle, Pod, Sample, cycle, table

OLD, STARTING, READY, BUSY = Pod(ready=True, completed=9), Pod(ready=False, completed=None), Pod(ready=True, completed=0), Pod(True, 1)


def seen() -> list[Sample]:
    return [
        Sample(0, 1, {"a": OLD}),
        Sample(2, 2, {"a": OLD}),
        Sample(4, 2, {"a": OLD, "b": STARTING}),
        Sample(9, 2, {"a": OLD, "b": READY}),
        Sample(10, 2, {"a": OLD, "b": BUSY}),
        Sample(30, 1, {"a": OLD, "b": BUSY}),
        Sample(32, 1, {"a": OLD}),
    ]


def measured(samples: list[Sample]) -> Cycle:
    return cycle("ours", samples, {"200 six": 7, "200 seven": 1, "503": 2, "ReadError": 3}, load_seconds=20)


def test_each_stage_of_a_step_is_the_first_look_that_shows_it() -> None:
    found = measured(seen())
    assert (found.decision_seconds, found.ready_seconds, found.answer_seconds) == (2, 9, 10)
    assert found.down_seconds == 10


def test_what_a_replica_of_before_does_is_no_stage() -> None:
    found = measured([each for each in seen() if each.wanted == 1])
    assert (found.decision_seconds, found.ready_seconds, found.answer_seconds) == (None, None, None)


def test_pods_count_for_as_long_as_they_are_there_wanted_or_not() -> None:
    assert measured(seen()).pod_seconds == 32 + 28


def test_only_whole_answers_are_answers_and_refusals_are_no_failures() -> None:
    found = measured(seen())
    assert (found.answered, found.refused, found.failed) == (8, 2, 3)


def test_the_table_says_what_never_came() -> None:
    head, _, row = table([measured(seen()[:3])]).splitlines()
    assert head.startswith("| autoscaler | decision | replica ready |")
    assert row == "| ours | 2.0 s | never | never | never | 4 | 8 | 2 | 3 |"
