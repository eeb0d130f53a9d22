"""The share of a long prompt, on machines whose cost per token is known."""

import pytest

from millrace_server.engine.share import AIM, SMALLEST_TOKENS, START_TOKENS, STEPS_TO_REST, LongPromptShare

STEP = 0.05


def share_of(*, most: int = 512, stages: int = 1) -> LongPromptShare:
    """One that has seen steps without prompts."""
    share = LongPromptShare(most=most, stages=stages)
    rest(share)
    return share


def rest(share: LongPromptShare, seconds: float = STEP) -> None:
    share.observe(generating=4, long_tokens=0, other_tokens=0, seconds=seconds)


def settled(share: LongPromptShare, seconds_per_token: float, steps: int = 40) -> float:
    """The work of a step in the end, in tokens."""
    for _ in range(steps):
        length = share.length
        work = share.stages_of(length) / share.stages * length if length else 0
        share.observe(generating=4, long_tokens=work, other_tokens=0, seconds=STEP + work * seconds_per_token)
    return share.tokens


@pytest.mark.parametrize("seconds_per_token", [0.0005, 0.002, 0.008])
@pytest.mark.parametrize("stages", [1, 30])
def test_a_share_comes_to_cost_what_is_aimed_at(seconds_per_token: float, stages: int) -> None:
    tokens = settled(share_of(stages=stages), seconds_per_token)
    assert tokens * seconds_per_token == pytest.approx(AIM * STEP, rel=0.35)


def test_a_token_that_costs_more_than_a_share_is_computed_stage_by_stage() -> None:
    share = share_of(stages=30)
    tokens = settled(share, STEP)
    assert tokens == pytest.approx(AIM, rel=0.2)
    assert share.length > 1
    assert share.stages_of(share.length) / 30 * share.length * STEP <= STEP


def test_the_share_shrinks_as_the_prompts_tokens_become_dearer_and_grows_again_for_the_next_prompt() -> None:
    share = share_of()
    near = settled(share, 0.0005)
    far = settled(share, 0.005)
    assert far < near / 5
    assert settled(share, 0.0005) == pytest.approx(near, rel=0.1)


def test_the_share_stays_within_its_bounds() -> None:
    assert settled(share_of(), 1.0) == SMALLEST_TOKENS
    assert settled(share_of(), 0.0) == 512
    assert LongPromptShare(most=8).length == 8
    least = share_of(stages=30)
    settled(least, 100.0)
    assert (least.length, least.stages_of(least.length)) == (1, 2)


def test_what_a_step_costs_without_a_prompt_is_looked_at_now_and_then() -> None:
    share = share_of()
    for _ in range(STEPS_TO_REST):
        assert share.length
        share.observe(generating=4, long_tokens=share.length, other_tokens=0, seconds=2 * STEP)
    assert share.length == 0
    rest(share)
    assert share.length


def test_a_prompt_does_not_pay_for_answers_that_grow_longer() -> None:
    share, usual = share_of(), STEP
    before = settled(share, 0.001)
    for step in range(1000):
        usual = min(5 * STEP, STEP * (1 + step / 100))
        share.observe(generating=4, long_tokens=share.length, other_tokens=0, seconds=usual + share.length * 0.001)
    assert share.tokens > 3 * before


def test_steps_with_other_prompts_or_without_company_teach_nothing() -> None:
    share = share_of()
    share.observe(generating=4, long_tokens=16, other_tokens=100, seconds=9)
    share.observe(generating=0, long_tokens=16, other_tokens=0, seconds=9)
    assert share.tokens == START_TOKENS


def test_what_a_step_usually_takes_is_learned_from_steps_without_prompts() -> None:
    share = LongPromptShare(most=512)
    share.observe(generating=4, long_tokens=16, other_tokens=0, seconds=1)
    assert share.tokens == START_TOKENS  # nothing to compare with yet
    for _ in range(20):
        share.observe(generating=4, long_tokens=0, other_tokens=0, seconds=STEP)
    assert settled(share, 0.002) == pytest.approx(AIM * STEP / 0.002, rel=0.2)


def test_the_short_end_of_a_prompt_does_not_collapse_the_share() -> None:
    share = share_of()
    tokens = settled(share, 0.0005)
    share.observe(generating=4, long_tokens=3, other_tokens=0, seconds=2 * STEP)
    assert share.tokens == tokens
