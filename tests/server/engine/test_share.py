"""The share of a long prompt, on machines whose cost per token is known."""

import pytest

from millrace_server.engine.share import SMALLEST_TOKENS, START_TOKENS, LongPromptShare

STEP = 0.05


def share_of(*, most: int = 512) -> LongPromptShare:
    """One that has seen steps without prompts."""
    share = LongPromptShare(most=most)
    share.observe(generating=4, long_tokens=0, other_tokens=0, seconds=STEP)
    return share


def settled(share: LongPromptShare, seconds_per_token: float, steps: int = 40) -> int:
    for _ in range(steps):
        share.observe(generating=4, long_tokens=share.tokens, other_tokens=0, seconds=STEP + share.tokens * seconds_per_token)
    return share.tokens


@pytest.mark.parametrize("seconds_per_token", [0.0005, 0.002, 0.008])
def test_a_step_beside_a_long_prompt_comes_to_take_twice_as_long_as_without_it(seconds_per_token: float) -> None:
    tokens = settled(share_of(), seconds_per_token)
    assert STEP + tokens * seconds_per_token == pytest.approx(2 * STEP, rel=0.2)


def test_the_share_shrinks_as_the_prompts_tokens_become_dearer_and_grows_again_for_the_next_prompt() -> None:
    share = share_of()
    near = settled(share, 0.0005)
    far = settled(share, 0.005)
    assert far < near / 5
    assert settled(share, 0.0005) == pytest.approx(near, rel=0.1)


def test_the_share_stays_within_its_bounds() -> None:
    assert settled(share_of(), 1.0) == SMALLEST_TOKENS
    assert settled(share_of(), 0.0) == 512
    assert LongPromptShare(most=8).tokens == 8


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
    assert settled(share, 0.002) == pytest.approx(STEP / 0.002, rel=0.2)


def test_the_short_end_of_a_prompt_does_not_collapse_the_share() -> None:
    share = share_of()
    tokens = settled(share, 0.0005)
    share.observe(generating=4, long_tokens=3, other_tokens=0, seconds=STEP)
    assert share.tokens == tokens
