"""Penalties, bias and min_tokens against their definition and against transformers."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from transformers.generation import RepetitionPenaltyLogitsProcessor

from millrace_server.engine import penalties
from millrace_server.engine.sequence import Sequence
from sampling_reference import EOS, changed, choices, logits, sequence, tokens

VOCABULARY = 30
ids = some.integers(0, VOCABULARY - 1)
asked = some.fixed_dictionaries(
    {
        "prompt": some.lists(ids, min_size=1, max_size=20),
        "repetition_penalty": some.sampled_from((0.5, 1.0, 1.7)),
        "presence_penalty": some.sampled_from((-2.0, 0.0, 1.5)),
        "frequency_penalty": some.sampled_from((-0.5, 0.0, 0.25)),
        "logit_bias": some.dictionaries(some.integers(-3, VOCABULARY + 3), some.sampled_from((-5.0, 0.0, 3.0)), max_size=6),
        "min_tokens": some.integers(0, 6),
        "ignore_eos": some.booleans(),
        "stop_token_ids": some.lists(some.integers(-1, VOCABULARY), max_size=3),
    }
)


def applied(rows: torch.Tensor, *sequences: Sequence) -> torch.Tensor:
    rows = rows.clone()
    penalties.apply(rows, sequences, EOS)
    return rows


@given(some.lists(some.tuples(some.lists(ids, max_size=10), asked), min_size=1, max_size=4), some.integers(0, 2**32))
def test_all_together_change_the_logits_in_the_documented_order(requests: list[tuple[list[int], dict[str, Any]]], seed: int) -> None:
    rows = logits(rows=len(requests), vocabulary=VOCABULARY, seed=seed)
    sequences = [sequence(answer, **fields) for answer, fields in requests]
    expected = torch.tensor([changed(row, each) for row, each in zip(rows.tolist(), sequences, strict=True)])
    torch.testing.assert_close(applied(rows, *sequences), expected)
    unconcerned = torch.tensor([not penalties.concerns(each) for each in sequences])
    assert torch.equal(expected[unconcerned], rows[unconcerned])


@given(some.lists(ids, min_size=1, max_size=40), some.sampled_from((0.3, 1.2, 2.0)), some.integers(0, 2**32))
def test_the_repetition_penalty_is_that_of_transformers(seen: list[int], penalty: float, seed: int) -> None:
    rows = logits(rows=1, vocabulary=VOCABULARY, seed=seed)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen]), rows.clone())
    for answered in (0, len(seen) // 2, len(seen) - 1):
        prompt, answer = seen[: len(seen) - answered], seen[len(seen) - answered :]
        torch.testing.assert_close(applied(rows, sequence(answer, prompt=prompt, repetition_penalty=penalty)), expected)


def test_presence_and_frequency_count_the_answer_and_not_the_prompt() -> None:
    row = torch.zeros(1, 10)
    found = applied(row, sequence([4, 4, 5], prompt=[3, 4], presence_penalty=1.0, frequency_penalty=0.25))
    assert found.tolist() == [[0, 0, 0, 0, -1.5, -1.25, 0, 0, 0, 0]]


def test_tokens_of_the_prompt_outside_the_logits_harm_no_other_row() -> None:
    rows = logits(rows=3, vocabulary=10)
    found = applied(rows, sequence(), sequence(prompt=[10, 11, 3], repetition_penalty=2.0), sequence())
    assert torch.equal(found[::2], rows[::2])
    assert (found != rows).nonzero().tolist() == [[1, 3]]


def test_a_bias_makes_a_token_certain_or_impossible() -> None:
    rows = logits(rows=2, vocabulary=VOCABULARY)
    assert tokens(rows, [sequence(logit_bias={7: 100.0}, temperature=1.0), sequence(logit_bias={9: 100.0})]) == [7, 9]
    best = int(rows[0].argmax())
    drawing = [sequence(seed=seed, logit_bias={best: -100.0}, temperature=1.0) for seed in range(50)]
    assert best not in tokens(rows[:1].expand(50, -1), drawing)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_neither_eos_nor_a_stop_token_comes_before_min_tokens(temperature: float) -> None:
    row = torch.zeros(1, 10)
    row[0, 2], row[0, 5], row[0, 8] = 50.0, 49.0, 25.0  # eos, a stop token, the best of the others
    fields: dict[str, Any] = {"min_tokens": 3, "stop_token_ids": [5], "ignore_eos": False, "temperature": temperature}
    assert tokens(row.expand(4, -1), [sequence([1] * length, **fields) for length in range(4)])[:3] == [8, 8, 8]
    assert tokens(row, [sequence([1] * 3, **{**fields, "temperature": 0.0})]) == [2]


def test_eos_is_a_token_like_any_other_to_a_request_that_ignores_it() -> None:
    row = torch.zeros(1, 10)
    row[0, 2] = 50.0
    assert tokens(row, [sequence(min_tokens=3, ignore_eos=True)]) == [2]


class Forbidding:
    """A mask that sees the logits after everything else has changed them."""

    failure = None

    def __init__(self) -> None:
        self.seen: list[float] = []

    def forbid(self, logits: torch.Tensor) -> None:
        self.seen = logits.tolist()
        logits[int(logits.argmax())] = -math.inf

    def accept(self, token: int) -> bool:
        return False


def test_the_mask_comes_last() -> None:
    mask, row = Forbidding(), logits(rows=1, vocabulary=10).bfloat16()
    asking = sequence([1, 4], mask=mask, logit_bias={4: 60.0, 5: 50.0}, presence_penalty=1.0, min_tokens=9, stop_token_ids=[6])
    (choice,) = choices(row, [asking])
    assert choice.token == 5
    assert mask.seen == pytest.approx(changed(row[0].tolist(), asking))
