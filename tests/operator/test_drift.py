"""When repairing what others change becomes a fight. Time is a number here."""

from millrace_operator.drift import LIMIT, Repairs
from millrace_operator.ownership import Drift

CHAT = ("default", "chat", "Service", "chat")
OTHER = ("default", "chat", "Deployment", "chat")
DRIFT = Drift(fields=(".spec.selector.app",), managers=("somebody",), is_undone=False)


def rewritten(repairs: Repairs, *, times: int, now: float, child: tuple[str, str, str, str] = CHAT) -> None:
    for _ in range(times):
        assert repairs.may_repair(child, DRIFT, now=now)
        repairs.repaired(child, now=now)


def test_the_first_repairs_of_a_window_are_made_at_once_and_the_next_one_waits() -> None:
    repairs = Repairs(window=600, pause=300)
    rewritten(repairs, times=LIMIT, now=100)
    assert repairs.fight(CHAT, now=100) is None
    assert not repairs.may_repair(CHAT, DRIFT, now=101)
    assert repairs.fight(CHAT, now=101) == DRIFT
    assert not repairs.may_repair(CHAT, DRIFT, now=399)
    rewritten(repairs, times=1, now=400)
    assert not repairs.may_repair(CHAT, DRIFT, now=401)
    assert repairs.fight(CHAT, now=402) == DRIFT, "told on, also while the field is ours for a moment"


def test_a_fight_is_over_when_nobody_has_changed_the_child_for_a_window() -> None:
    repairs = Repairs(window=600, pause=300)
    rewritten(repairs, times=LIMIT, now=0)
    assert not repairs.may_repair(CHAT, DRIFT, now=1)
    rewritten(repairs, times=1, now=300)
    assert repairs.fight(CHAT, now=899) == DRIFT
    assert repairs.fight(CHAT, now=900) is None
    rewritten(repairs, times=LIMIT, now=900)


def test_changes_that_come_now_and_then_are_no_fight() -> None:
    repairs = Repairs(window=600, pause=300)
    for hour in range(20):
        rewritten(repairs, times=1, now=hour * 150)
    assert repairs.fight(CHAT, now=19 * 150) is None


def test_a_fight_over_one_child_holds_up_no_other_and_goes_with_its_service() -> None:
    repairs = Repairs(window=600, pause=300)
    rewritten(repairs, times=LIMIT, now=0)
    assert not repairs.may_repair(CHAT, DRIFT, now=1)
    rewritten(repairs, times=LIMIT, now=1, child=OTHER)
    repairs.forget("default", "chat")
    rewritten(repairs, times=LIMIT, now=2)
