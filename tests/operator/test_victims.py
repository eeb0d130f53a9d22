"""Who goes first when a service shrinks."""

from millrace_operator.manifest import Manifest
from millrace_operator.victims import DELETION_COST, FIRST, marks


def pod(name: str, address: str, *, born: int = 0, cost: str | None = None, leaving: bool = False) -> Manifest:
    metadata: Manifest = {"name": name, "creationTimestamp": f"2026-01-01T11:00:{born:02}Z"}
    if cost is not None:
        metadata["annotations"] = {DELETION_COST: cost}
    if leaving:
        metadata["deletionTimestamp"] = "2026-01-01T12:00:00Z"
    return {"metadata": metadata, "status": {"podIP": address} if address else {}}


def told(pods: list[Manifest], loads: dict[str, int], leaving: int) -> dict[str, str | None]:
    return {each["metadata"]["name"]: cost for each, cost in marks(pods, loads, leaving=leaving)}


BUSY, IDLE, MIDDLE = pod("busy", "10.0.0.1"), pod("idle", "10.0.0.2"), pod("middle", "10.0.0.3")
LOADS = {"10.0.0.1": 9, "10.0.0.2": 0, "10.0.0.3": 4}


def test_the_least_busy_go_and_nobody_else_is_touched() -> None:
    assert told([BUSY, IDLE, MIDDLE], LOADS, 1) == {"idle": FIRST}
    assert told([BUSY, IDLE, MIDDLE], LOADS, 2) == {"idle": FIRST, "middle": FIRST}


def test_of_equally_busy_ones_the_youngest_goes() -> None:
    old, young = pod("old", "10.0.0.1", born=1), pod("young", "10.0.0.2", born=2)
    for order in ([old, young], [young, old]):
        assert told(order, {"10.0.0.1": 3, "10.0.0.2": 3}, 1) == {"young": FIRST}


def test_a_mark_that_an_earlier_shrink_left_is_taken_away_and_one_that_fits_stays() -> None:
    left, fits = pod("left", "10.0.0.1", cost=FIRST), pod("fits", "10.0.0.2", cost=FIRST)
    assert told([left, fits, MIDDLE], LOADS, 1) == {"left": None}


def test_a_cost_that_is_not_ours_is_left_alone() -> None:
    assert told([pod("dear", "10.0.0.1", cost="100"), IDLE], LOADS, 1) == {"idle": FIRST}


def test_who_told_no_load_or_is_leaving_already_is_not_marked() -> None:
    silent, unborn, gone = pod("silent", "10.0.0.9"), pod("unborn", ""), pod("gone", "10.0.0.2", leaving=True)
    assert told([silent, unborn, gone, BUSY], LOADS, 2) == {"busy": FIRST}
    assert told([silent, unborn], {}, 1) == {}
