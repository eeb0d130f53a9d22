"""Who is refused after the engine died, for how long, and how much is kept in mind."""

import pytest

from millrace_server.engine.quarantine import Quarantine
from small_engine import request

KILLER = request("a", b"killer")


def struck(times: int) -> Quarantine:
    """At the times 0, 0.1, 0.2 …"""
    quarantine = Quarantine()
    for number in range(times):
        quarantine.strike(KILLER, now=number / 10)
    return quarantine


@pytest.mark.parametrize(("strikes", "refused"), [(0, False), (1, False), (2, True), (3, True)])
def test_the_second_strike_counts(strikes: int, refused: bool) -> None:
    assert struck(strikes).is_quarantined(KILLER, now=1) is refused


def test_a_retry_is_known_by_its_content_not_by_its_name() -> None:
    quarantine = struck(2)
    assert quarantine.is_quarantined(request("b", b"killer", deadline=5, tenant="other", priority=3), now=1)
    assert not quarantine.is_quarantined(request("a", b"killer!"), now=1)
    assert not quarantine.is_quarantined(request("a", b"killer", temperature=0.5), now=1)


def test_the_order_of_a_bias_is_no_difference() -> None:
    quarantine = Quarantine(strikes=1)
    quarantine.strike(request("a", b"a", logit_bias={1: 1.0, 2: 2.0}), now=0)
    assert quarantine.is_quarantined(request("a", b"a", logit_bias={2: 2.0, 1: 1.0}), now=0)


def test_many_equal_requests_at_one_death_are_struck_once() -> None:
    quarantine = Quarantine()
    for name in "abc":
        quarantine.strike(request(name, b"popular"), now=5)
    assert not quarantine.is_quarantined(request("d", b"popular"), now=5)


def test_strikes_are_forgotten_after_ten_minutes() -> None:
    quarantine = struck(1)
    quarantine.strike(KILLER, now=500)
    assert quarantine.is_quarantined(KILLER, now=599)
    assert not quarantine.is_quarantined(KILLER, now=601)
    assert len(quarantine) == 1, "the second strike is still fresh"
    assert not quarantine.is_quarantined(KILLER, now=1101)
    assert len(quarantine) == 0


def test_an_answer_clears_who_was_only_there() -> None:
    quarantine = struck(1)
    quarantine.clear(KILLER)
    quarantine.strike(KILLER, now=1)
    assert not quarantine.is_quarantined(KILLER, now=2)


def test_its_memory_is_bounded_and_the_latest_strikes_stay() -> None:
    quarantine = Quarantine(capacity=3)
    for number in range(10):
        for half in (0, 0.5):
            quarantine.strike(request("a", [number]), now=number + half)
    assert len(quarantine) == 3
    assert [quarantine.is_quarantined(request("a", [number]), now=10) for number in range(10)] == [False] * 7 + [True] * 3
