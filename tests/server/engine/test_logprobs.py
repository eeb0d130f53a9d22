"""Reported log probabilities against a log-softmax in float64."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from millrace_server.engine import distribution
from millrace_server.engine.messages import Logprobs
from sampling_reference import changed, choices, log_softmax, logits, sequence

TOLERANCE = 1e-4


def reported(row: torch.Tensor, answer: list[int] | None = None, **fields: Any) -> tuple[int, Logprobs]:  # noqa: ANN401
    (choice,) = choices(row, [sequence(answer or [], **fields)])
    assert choice.logprobs is not None
    return choice.token, choice.logprobs


@settings(max_examples=60)
@given(
    some.integers(0, 2**32),
    some.sampled_from((5, 259, 5120)),
    some.sampled_from((0, 1, 5, 64, 100, 10**6)),
    some.sampled_from((torch.bfloat16, torch.float32)),
    some.sampled_from(({}, {"temperature": 0.5}, {"temperature": 3.0, "top_k": 2}, {"temperature": 1.0, "top_p": 0.3, "min_p": 0.1})),
)
def test_they_are_those_of_the_softmax_before_temperature_and_cuts(
    seed: int, vocabulary: int, count: int, dtype: torch.dtype, asked: dict[str, Any]
) -> None:
    row = logits(rows=1, vocabulary=vocabulary, seed=seed).to(dtype)
    expected = log_softmax(row[0].tolist())
    token, found = reported(row, seed=seed, logprobs=count, **asked)
    assert found.logprob == pytest.approx(expected[token], abs=TOLERANCE)
    ranked = sorted(range(vocabulary), key=lambda each: -row[0, each].item())  # stable: equal ones stay in the order of their ids
    assert [each for each, _ in found.top] == ranked[:count]
    assert [value for _, value in found.top] == pytest.approx([expected[each] for each in ranked[:count]], abs=TOLERANCE)


def test_they_are_those_after_penalties_bias_and_min_tokens() -> None:
    row = logits(rows=1, vocabulary=40)
    fields: dict[str, Any] = {
        "repetition_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "logit_bias": {3: 4.0},
        "min_tokens": 10,
        "stop_token_ids": [5, 6],
    }
    expected = log_softmax(changed(row[0].tolist(), sequence([7, 8, 7], **fields)))
    _, found = reported(row, [7, 8, 7], logprobs=40, **fields)
    assert dict(found.top) == pytest.approx({token: value for token, value in enumerate(expected) if value > -math.inf}, abs=TOLERANCE)
    assert {*range(40)} - {*dict(found.top)} == {5, 6}


def test_the_token_and_its_place_among_the_likeliest_tell_one_number() -> None:
    token, found = reported(logits(rows=1, vocabulary=100), logprobs=1)
    assert found.top == [(token, found.logprob)]


def test_only_those_who_ask_get_them_and_as_many_as_they_ask_for() -> None:
    asked = [None, 0, 3, 70, None]
    found = choices(logits(rows=5, vocabulary=100), [sequence(logprobs=count) for count in asked])
    assert [choice.logprobs and len(choice.logprobs.top) for choice in found] == asked


def test_they_are_plain_numbers_for_the_wire() -> None:
    token, found = reported(logits(rows=1, vocabulary=100), logprobs=2)
    assert {type(value) for value in (found.logprob, *(value for _, value in found.top))} == {float}
    assert {type(value) for value in (token, *(each for each, _ in found.top))} == {int}


def test_equal_logits_are_listed_by_id_however_many_there_are() -> None:
    row = torch.zeros(1, distribution.MORE_CANDIDATES + 1000)
    row[0, 4000] = 1.0
    _, found = reported(row, logprobs=4)
    assert [token for token, _ in found.top] == [4000, 0, 1, 2]
