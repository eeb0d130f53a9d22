"""The KV cache's own promises, seen from inside: how much memory a lane holds, and that rows keep what they hold."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from millrace_server.engine.kv import LANE_SLACK, Lane, Row
from millrace_server.engine.sequence import Sequence
from small_engine import request

CAPACITY = 4


def row(mark: int, capacity: int) -> Row:
    return Row(capacity, {0: torch.full((1, capacity, 2), float(mark))}, {0: torch.full((1, capacity, 3), -float(mark))})


def held(lane: Lane) -> int:
    return sum(tensor.nbytes for layers in (lane.keys, lane.values) for tensor in layers.values())


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 63), st.sampled_from([CAPACITY // 2, CAPACITY])), max_size=60))
def test_a_lane_holds_no_more_than_it_says_and_every_row_what_it_took_in(steps: list[tuple[bool, int, int]]) -> None:
    lane = Lane(CAPACITY)
    marks: dict[Sequence, tuple[int, int]] = {}
    for number, (joins, which, length) in enumerate(steps, 1):
        if joins or not marks:
            owner = Sequence(request(str(number), [1]), seed=0, arrived=0)
            lane.append(owner, row(number, length), length=length)
            marks[owner] = (number, length)
        else:
            owner = lane.owners[which % len(lane.owners)]
            lane.remove(owner)
            del marks[owner]
        if not marks:
            lane = Lane(CAPACITY)  # as the cache does
            continue
        assert held(lane) <= LANE_SLACK * len(marks) * CAPACITY * (2 + 3) * 4
        for each, (mark, taken) in marks.items():
            found = lane.row(each)
            assert found.keys[0][:, :taken].eq(mark).all()
            assert found.values[0][:, :taken].eq(-mark).all()
            assert found.keys[0][:, taken:].eq(0).all()
