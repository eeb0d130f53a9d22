"""Exact weights, an order without ties, and places drawn from them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from millrace_server.engine.distribution import CANDIDATES, SEGMENT, UNIT, pick, rank, weights, widths
from sampling_reference import logits

SEGMENTED = SEGMENT * (CANDIDATES + 10)


def test_sums_of_weights_do_not_depend_on_the_order_of_adding() -> None:
    row = logits(rows=1, vocabulary=150_000)
    weighed = weights(row, row.amax(dim=-1, keepdim=True), 1.0)
    expected = math.fsum(weighed[0].tolist())
    assert weighed[0].sum().item() == expected
    assert weighed[0].cumsum(0)[-1].item() == expected
    assert weighed[0].flip(0).cumsum(0)[-1].item() == expected
    assert weighed.max().item() == UNIT


def test_weights_are_shares_of_the_likeliest_token() -> None:
    row = torch.tensor([[3.0, 2.0, 1.0, -math.inf, 3.0]])
    found = weights(row, torch.tensor([[3.0]]), torch.tensor([[0.5]]), torch.tensor([[0.02]])) / UNIT
    assert found[0].tolist() == pytest.approx([1, math.exp(-2), 0, 0, 1], abs=1e-7)


@settings(max_examples=50)
@given(some.integers(0, 2**32), some.sampled_from((70, 333, SEGMENTED)), some.sampled_from((1, 5, CANDIDATES)), some.booleans())
def test_the_certain_ones_are_the_first_of_the_sorted_row(seed: int, vocabulary: int, width: int, equal: bool) -> None:
    rows = logits(rows=3, vocabulary=vocabulary, seed=seed)
    rows = rows.round() if equal else rows
    values, ids, certain = rank(rows, width)
    for row in range(3):
        count = int(certain[row])
        expected = sorted(range(vocabulary), key=lambda token: -rows[row, token].item())
        assert ids[row, :count].tolist() == expected[:count]
        assert values[row].tolist() == [rows[row, token].item() for token in expected[:width]]
        assert count == (rows[row] > values[row, -1]).sum()


def test_the_last_attempt_ranks_the_whole_vocabulary() -> None:
    for vocabulary in (1, CANDIDATES, CANDIDATES + 1, 150_000):
        *few, last = widths(vocabulary)
        assert last == vocabulary
        assert all(width < vocabulary for width in few)
    values, ids, certain = rank(torch.tensor([[1.0, 5.0, 1.0]]), 3)
    assert (values.tolist(), ids.tolist(), certain.tolist()) == ([[5, 1, 1]], [[1, 0, 2]], [[3]])


def test_places_without_weight_are_never_picked() -> None:
    weighed = torch.tensor([[0.0, 2.0, 0.0, 1.0, 0.0]], dtype=torch.float64) * UNIT
    chances = [0.0, 0.3, 0.66, 0.67, 1 - 2**-53]
    found = pick(weighed.expand(5, -1), torch.tensor(chances, dtype=torch.float64)[:, None])
    assert found[:, 0].tolist() == [1, 1, 1, 3, 3]


@pytest.mark.parametrize("row", [[0.0, 0.0], [math.nan, 1.0], [math.nan, math.nan]])
def test_a_row_without_weights_still_picks_a_place(row: list[float]) -> None:
    assert pick(torch.tensor([row], dtype=torch.float64), torch.tensor([[0.5]], dtype=torch.float64)).item() in (0, 1)
