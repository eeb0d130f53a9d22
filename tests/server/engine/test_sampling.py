"""Sampling against its definition, against transformers' own steps, and against the company it keeps."""

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from millrace_server.engine import distribution, sampling
from millrace_server.engine.draw import uniform
from millrace_server.engine.sequence import INVALID_TOKEN, Sequence
from sampling_reference import BORDER, EOS, acceptable, choices, logits, sequence, tokens

SEGMENTED = distribution.SEGMENT * (distribution.CANDIDATES + 16)
"""A vocabulary that is ranked by segments first, and larger than MORE_CANDIDATES."""
VOCABULARIES = (5, 259, SEGMENTED)

cuts = some.fixed_dictionaries(
    {
        "temperature": some.sampled_from((0.3, 1.0, 2.5)),
        "top_k": some.sampled_from((0, 1, 3, 50, 100, 4500, 10**9)),
        "min_p": some.sampled_from((0.0, 0.02, 0.3, 1.0)),
        "top_p": some.sampled_from((0.05, 0.5, 0.9, 0.999, 1.0)),
    }
)


def test_greedy_takes_the_largest_logit_and_of_equal_ones_the_first() -> None:
    rows = logits(rows=5, vocabulary=1000)
    rows[4, [999, 17, 500]] = 100.0
    assert tokens(rows, [sequence()] * 5) == [*rows[:4].argmax(dim=-1).tolist(), 17]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 5])
def test_tokens_come_with_the_probabilities_of_the_softmax(temperature: float, top_k: int) -> None:
    row, draws = logits(rows=1, vocabulary=6), 4000
    kept = row[0].masked_fill(row[0] < row[0].topk(top_k or 6).values[-1], -math.inf)
    counts = Counter(tokens(row.expand(draws, -1), [sequence(seed=seed, temperature=temperature, top_k=top_k) for seed in range(draws)]))
    for token, probability in enumerate(torch.softmax(kept / temperature, dim=-1).tolist()):
        assert abs(counts[token] - draws * probability) <= 5 * math.sqrt(draws * probability)


@settings(max_examples=40)
@given(cuts, some.sampled_from(VOCABULARIES), some.integers(0, 2**32), some.sampled_from((0.3, 4.0)), some.booleans())
def test_a_draw_is_the_one_of_the_definition(asked: dict[str, Any], vocabulary: int, seed: int, scale: float, forbidden: bool) -> None:
    rows = (logits(rows=4, vocabulary=vocabulary, seed=seed, scale=scale) * 8).round() / 8  # many are equal
    if forbidden:
        rows[:, 1::3] = -math.inf
    drawing = [sequence(seed=seed + row, **asked) for row in range(4)]
    for row, token, each in zip(rows.tolist(), tokens(rows, drawing), drawing, strict=True):
        assert token in acceptable(row, each)


@settings(max_examples=80)
@given(cuts, some.sampled_from(VOCABULARIES), some.integers(0, 2**32))
def test_the_cuts_are_those_of_transformers(asked: dict[str, Any], vocabulary: int, seed: int) -> None:
    rows = logits(rows=4, vocabulary=vocabulary, seed=seed).double()
    steps: list[Any] = [TemperatureLogitsWarper(asked["temperature"]), MinPLogitsWarper(asked["min_p"])]
    if asked["top_k"]:
        steps.insert(1, TopKLogitsWarper(min(asked["top_k"], vocabulary)))
    if asked["top_p"] < 1:
        steps.append(TopPLogitsWarper(asked["top_p"]))
    kept = LogitsProcessorList(steps)(torch.zeros(4, 1, dtype=torch.long), rows.clone()).softmax(dim=-1)
    drawn = torch.tensor(tokens(rows.float(), [sequence(seed=seed + row, **asked) for row in range(4)]))[:, None]
    on_the_border = (asked["top_p"] < 1) & (rows.div(asked["temperature"]).softmax(dim=-1).gather(1, drawn) < BORDER)
    assert bool(((kept.gather(1, drawn) > 0) | on_the_border).all())


@settings(max_examples=25)
@given(cuts, some.integers(0, 2**32), some.sampled_from((0.1, 3.0)))
def test_how_many_tokens_are_ranked_first_changes_no_draw(asked: dict[str, Any], seed: int, scale: float) -> None:
    rows = logits(rows=8, vocabulary=SEGMENTED, seed=seed, scale=scale).bfloat16()
    drawing = [sequence(seed=seed + row, **asked) for row in range(8)]
    expected = tokens(rows, drawing)
    for candidates, more, segment in ((1, 2, 64), (7, 300, 10), (1000, 5000, 3), (SEGMENTED, SEGMENTED, 1)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distribution, "CANDIDATES", candidates)
            patch.setattr(distribution, "MORE_CANDIDATES", more)
            patch.setattr(distribution, "SEGMENT", segment)
            assert tokens(rows, drawing) == expected


def test_a_tiny_top_p_is_greedy() -> None:
    rows = logits(rows=3, vocabulary=100)
    assert tokens(rows, [sequence(seed=seed, temperature=1.0, top_p=1e-9) for seed in range(3)]) == rows.argmax(dim=-1).tolist()


def test_seed_and_position_both_matter() -> None:
    assert len({uniform(seed, position) for seed in range(50) for position in range(50)}) == 2500
    assert all(0 <= uniform(seed, 0) < 1 for seed in range(1000))
    row = torch.zeros(1, 100_000)
    drawing = [sequence([1] * length, seed=seed, temperature=1.0) for seed in range(4) for length in range(4)]
    assert len({*tokens(row.expand(16, -1), drawing)}) == 16


class OnlyEvenTokens:
    """A mask."""

    failure = None

    def __repr__(self) -> str:
        return "OnlyEvenTokens()"

    def forbid(self, logits: torch.Tensor) -> None:
        logits[1::2] = -math.inf

    def accept(self, token: int) -> bool:
        raise AssertionError(f"sampling says nothing of {token}: the sequence does")


def anything(seed: int, vocabulary: int) -> Sequence:
    """A sequence that asks for some of all features, in any combination."""
    draw = random.Random(seed)

    def maybe(value: object, otherwise: object) -> Any:  # noqa: ANN401
        return value if draw.random() < 0.4 else otherwise

    return sequence(
        [draw.randrange(vocabulary) for _ in range(draw.randrange(20))],
        seed=seed,
        prompt=[draw.randrange(vocabulary) for _ in range(5)],
        mask=maybe(OnlyEvenTokens(), None),
        repetition_penalty=maybe(1.3, 1.0),
        presence_penalty=maybe(0.5, 0.0),
        frequency_penalty=maybe(-0.25, 0.0),
        logit_bias=maybe({draw.randrange(vocabulary): 2.0 for _ in range(5)}, {}),
        min_tokens=maybe(10, 0),
        ignore_eos=maybe(True, False),
        stop_token_ids=maybe([0, 1], []),
        temperature=maybe(0.0, draw.choice((0.4, 1.0, 3.0))),
        top_k=maybe(draw.choice((4, 70)), 0),
        min_p=maybe(0.01, 0.0),
        top_p=maybe(draw.choice((0.3, 0.95)), 1.0),
        logprobs=maybe(draw.choice((0, 3, 80)), None),
    )


@settings(max_examples=15)
@given(some.integers(0, 2**32), some.sampled_from((37, 1001, SEGMENTED)), some.sampled_from((torch.bfloat16, torch.float32)))
def test_a_choice_is_bitwise_the_same_alone_and_among_any_batch_mates(seed: int, vocabulary: int, dtype: torch.dtype) -> None:
    rows = logits(rows=16, vocabulary=vocabulary, seed=seed).to(dtype)
    asking = [anything(seed + row, vocabulary) for row in range(16)]
    expected = [choices(rows[row : row + 1], asking[row : row + 1])[0] for row in range(16)]
    assert choices(rows, asking) == expected
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed)).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "CPU_LOGITS", vocabulary * 3)
        assert choices(rows[order], [asking[row] for row in order]) == [expected[row] for row in order]


@pytest.mark.gpu
@pytest.mark.parametrize("vocabulary", [1001, SEGMENTED])
def test_a_choice_on_a_gpu_does_not_depend_on_batch_mates(vocabulary: int) -> None:
    rows = logits(rows=32, vocabulary=vocabulary).bfloat16().cuda()
    asking = [anything(row, vocabulary) for row in range(32)]
    expected = [choices(rows[row : row + 1], asking[row : row + 1])[0] for row in range(32)]
    assert choices(rows, asking) == expected
    on_cpu = choices(rows.cpu(), asking)
    assert sum(here.token == there.token for here, there in zip(expected, on_cpu, strict=True)) >= 30


def test_the_logits_stay_as_they_are() -> None:
    rows = logits(rows=16, vocabulary=100)
    before = rows.clone()
    choices(rows, [anything(seed, 100) for seed in range(16)])
    assert torch.equal(rows, before)


HOSTILE: list[dict[str, Any]] = [
    {"temperature": 1e-308, "top_p": 0.9},
    {"temperature": 1e-9},
    {"temperature": 1e308, "mask": OnlyEvenTokens()},
    {"temperature": math.inf, "top_k": 5, "mask": OnlyEvenTokens()},
    {"temperature": math.nan},
    {"temperature": -1.0},
    {"temperature": 1.0, "top_k": 2**63},
    {"temperature": 1.0, "top_k": -1},
    {"temperature": 1.0, "top_p": 0.0},
    {"temperature": 1.0, "top_p": -1.0, "top_k": 3},
    {"temperature": 1.0, "top_p": math.nan},
    {"temperature": 1.0, "top_p": 2.0},
    {"temperature": 1.0, "min_p": 2.0},
    {"temperature": 1.0, "min_p": math.nan},
    {"temperature": 1.0, "seed": -1},
    {"temperature": 1.0, "seed": 2**64},
    {"logprobs": 10**9},
    {"logprobs": -1},
    {"repetition_penalty": 1e9},
    {"repetition_penalty": 1e-9},
    {"presence_penalty": 1e9, "frequency_penalty": 1e9},
    {"presence_penalty": -1e9, "temperature": 1.0, "top_p": 0.5},
    {"frequency_penalty": 1e308},
    {"logit_bias": {-1: 5.0, 100: 5.0, 2**31: 5.0, 2**63: 5.0, -(2**64): 5.0}},
    {"logit_bias": dict.fromkeys(range(100), -100.0)},
    {"logit_bias": {3: -1e308}},
    {"min_tokens": 2**63, "stop_token_ids": [-1, 100, 2**63]},
]


@pytest.mark.parametrize("asked", HOSTILE, ids=str)
def test_extreme_values_still_give_a_token_and_spare_the_others(asked: dict[str, Any]) -> None:
    rows = logits(rows=5, vocabulary=100)
    mates = [anything(seed, 100) for seed in range(4)]
    expected = choices(rows[:4], mates)
    hostile = sequence([1, 1, 2], **{"prompt": [5, 6], **asked})
    *others, choice = choices(rows, [*mates, hostile])
    assert others == expected
    assert 0 <= choice.token < 100
    assert choices(rows[4:], [hostile]) == [choice]


@pytest.mark.parametrize(
    ("beyond", "bound"),
    [
        ({"temperature": 1e-308}, {"temperature": 1e-5}),
        ({"temperature": math.nan}, {"temperature": 0.0}),
        ({"temperature": 1e308}, {"temperature": 1e20}),
        ({"top_k": 2**63}, {"top_k": 0}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_p": 0.0}, {"temperature": 0.0}),
        ({"top_p": 2.0}, {"top_p": 1.0}),
        ({"min_p": 2.0}, {"min_p": 1.0}),
    ],
    ids=str,
)
def test_a_value_beyond_a_bound_means_the_bound(beyond: dict[str, Any], bound: dict[str, Any]) -> None:
    rows = logits(rows=50, vocabulary=SEGMENTED)
    rows[25:] = rows[25:].sign()  # thousands are the likeliest
    drawn, expected = (
        tokens(rows, [sequence(seed=seed, **{"temperature": 1.0, **each}) for seed in range(50)]) for each in (beyond, bound)
    )
    assert drawn == expected


HOPELESS: list[dict[str, Any]] = [
    {"repetition_penalty": 0.0},
    {"repetition_penalty": math.nan},
    {"presence_penalty": -math.inf},
    {"presence_penalty": math.inf, "frequency_penalty": -math.inf},
    {"frequency_penalty": math.nan},
    {"logit_bias": dict.fromkeys(range(100), -math.inf)},
    {"logit_bias": {3: math.inf}},
    {"logit_bias": {3: math.nan}},
    {"logit_bias": {3: 1e308}},
    {"min_tokens": 9, "stop_token_ids": list(range(100))},
]


@pytest.mark.parametrize("others", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9, "logprobs": 3}], ids=str)
@pytest.mark.parametrize("asked", HOPELESS, ids=str)
def test_a_row_with_no_possible_choice_is_told_apart_and_spares_the_others(asked: dict[str, Any], others: dict[str, Any]) -> None:
    rows = logits(rows=5, vocabulary=100)
    rows[:, 1] = 2.0
    mates = [anything(seed, 100) for seed in range(4)]
    expected = choices(rows[:4], mates)
    *spared, choice = choices(rows, [*mates, sequence([1, 1, 2], prompt=[5, 6], **asked, **others)])
    assert spared == expected
    assert (choice.token, choice.logprobs) == (INVALID_TOKEN, None)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "asked", [{}, {"temperature": 0.8}, {"temperature": 0.8, "top_p": 0.5, "logprobs": 2}, {"mask": OnlyEvenTokens()}], ids=str
)
def test_a_row_without_numbers_is_told_apart_and_spares_the_others(bad: float, dtype: torch.dtype, asked: dict[str, Any]) -> None:
    rows = logits(rows=3, vocabulary=100).to(dtype)
    expected = choices(rows, [sequence(**asked)] * 3)
    rows[1, 7] = bad
    first, broken, last = choices(rows, [sequence(**asked)] * 3)
    assert (first, last) == (expected[0], expected[2])
    assert (broken.token, broken.logprobs) == (INVALID_TOKEN, None)


@pytest.mark.parametrize("asked", [{}, {"temperature": 1.0}, {"temperature": 1e30}, {"temperature": 1.0, "top_p": 0.9}], ids=str)
def test_forbidden_tokens_are_never_drawn(asked: dict[str, Any]) -> None:
    rows = torch.full((1, 100), -math.inf)
    assert tokens(rows, [sequence(**asked)]) == [INVALID_TOKEN]
    rows[0, 42] = 1.0
    assert tokens(rows, [sequence(**asked)]) == [42]


class Spelling:
    """A mask that allows one text."""

    failure = None

    def __init__(self, text: list[int]) -> None:
        self._rest = text

    def forbid(self, logits: torch.Tensor) -> None:
        allowed = logits[self._rest[0]].clone()
        logits[:] = -math.inf
        logits[self._rest[0]] = allowed

    def accept(self, token: int) -> bool:
        assert token == self._rest[0]
        self._rest = self._rest[1:]
        return False


@pytest.mark.parametrize("asked", [{}, {"temperature": 2.0, "top_p": 0.5, "logprobs": 3}], ids=str)
def test_a_mask_that_allows_one_text_gets_this_text(asked: dict[str, Any]) -> None:
    text = [7, 7, 3, 99, 0, 2]
    masked, free = sequence(mask=Spelling(text), ignore_eos=False, **asked), sequence(**asked)
    for step in range(len(text)):
        choice, _ = choices(logits(rows=2, vocabulary=100, seed=step), [masked, free])
        assert choice.logprobs is None or choice.logprobs.top == [(choice.token, 0.0)]
        masked.accept(choice.token, EOS)
    assert (masked.tokens[1:], masked.finish_reason) == (text[:-1], "stop")


class Broken:
    """A mask."""

    failure = None

    def forbid(self, logits: torch.Tensor) -> None:
        raise ArithmeticError(f"no rule for {len(logits)} tokens")

    def accept(self, token: int) -> bool:
        return False


def test_an_error_of_a_mask_reaches_the_caller() -> None:
    with pytest.raises(ArithmeticError, match="no rule for 50 tokens"):
        choices(logits(rows=2, vocabulary=50), [sequence(), sequence(mask=Broken())])
