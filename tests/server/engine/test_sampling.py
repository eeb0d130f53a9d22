"""Sampling against the definition of temperature and top_p, and against the company it keeps."""

import math
from collections import Counter

import pytest
import torch

from millrace_server.engine.sampling import CANDIDATES, sample, uniform
from millrace_server.engine.scheduler import INVALID_TOKEN
from millrace_server.engine.sequence import Sequence
from small_engine import request


def drawing(seed: int, *, temperature: float = 1.0, top_p: float = 1.0, position: int = 1) -> Sequence:
    return Sequence(request("r", [0] * position, temperature=temperature, top_p=top_p), seed=seed, arrived=0)


def logits(*, rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def frequencies(row: torch.Tensor, draws: int, *, temperature: float, top_p: float) -> Counter[int]:
    sequences = [drawing(seed, temperature=temperature, top_p=top_p) for seed in range(draws)]
    return Counter(sample(row.expand(draws, -1), sequences))


def test_greedy_takes_the_largest_logit() -> None:
    rows = logits(rows=5, vocabulary=1000)
    assert sample(rows, [drawing(0, temperature=0)] * 5) == rows.argmax(dim=-1).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_with_the_probabilities_of_the_softmax(temperature: float) -> None:
    row, draws = logits(rows=1, vocabulary=6), 4000
    expected = torch.softmax(row[0] / temperature, dim=-1).tolist()
    counts = frequencies(row, draws, temperature=temperature, top_p=1.0)
    for token, probability in enumerate(expected):
        assert abs(counts[token] - draws * probability) <= 5 * math.sqrt(draws * probability) + 3


@pytest.mark.parametrize("vocabulary", [50, 20 * CANDIDATES])
def test_top_p_keeps_the_fewest_tokens_that_reach_it(vocabulary: int) -> None:
    row = logits(rows=1, vocabulary=vocabulary) / 3
    probabilities = torch.softmax(row[0], dim=-1)
    ordered, indices = probabilities.sort(descending=True)
    nucleus = set(indices[: int((ordered.cumsum(0) < 0.6).sum()) + 1].tolist())
    counts = frequencies(row, 800, temperature=1.0, top_p=0.6)
    assert set(counts) <= nucleus
    assert len(counts) > 0.5 * min(len(nucleus), 300)
    assert (len(nucleus) > CANDIDATES) == (vocabulary > 50)


def test_a_tiny_top_p_is_greedy() -> None:
    rows = logits(rows=3, vocabulary=100)
    assert sample(rows, [drawing(seed, top_p=1e-9) for seed in range(3)]) == rows.argmax(dim=-1).tolist()


def test_a_draw_depends_on_seed_and_position_and_not_on_batch_mates() -> None:
    row, others = logits(rows=1, vocabulary=2000), logits(rows=7, vocabulary=2000, seed=5)
    kinds = [drawing(index, temperature=0.3 * index, top_p=0.2 + 0.1 * index) for index in range(7)]
    for one in (drawing(3), drawing(4, top_p=0.9), drawing(-1, temperature=5.0, top_p=0.99), drawing(2**64 - 1, position=40)):
        alone = sample(row, [one])
        assert sample(torch.cat([others, row]), [*kinds, one])[-1:] == alone
        assert sample(torch.cat([row, others]), [one, *kinds])[:1] == alone


def test_seed_and_position_both_matter() -> None:
    assert len({uniform(seed, position) for seed in range(50) for position in range(50)}) == 2500
    assert all(0 <= uniform(seed, 0) < 1 for seed in range(1000))


@pytest.mark.parametrize("temperature", [1e-308, 1e-9, 1e9])
def test_extreme_temperatures_still_yield_tokens(temperature: float) -> None:
    (token,) = sample(logits(rows=1, vocabulary=100), [drawing(1, temperature=temperature, top_p=0.9)])
    assert 0 <= token < 100


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_row_without_numbers_is_told_apart_and_spares_the_others(bad: float, temperature: float) -> None:
    rows = logits(rows=3, vocabulary=100)
    expected = sample(rows, [drawing(1, temperature=temperature)] * 3)
    rows[1, 7] = bad
    assert sample(rows, [drawing(1, temperature=temperature)] * 3) == [expected[0], INVALID_TOKEN, expected[2]]


def test_masked_tokens_are_never_drawn() -> None:
    rows = torch.full((1, 100), float("-inf"))
    rows[0, 42] = 1.0
    assert sample(rows, [drawing(9)]) == [42]
    assert sample(torch.full((1, 100), float("-inf")), [drawing(9)]) == [INVALID_TOKEN]
