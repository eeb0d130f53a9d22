"""Who leads, on clocks that the test turns: every candidate has its own, and they need not agree."""

from pathlib import Path

import pytest

from fake_api import FakeApi
from millrace_operator.connection import ApiError, Conflict, Connection, NotFound, Unreachable, configuration
from millrace_operator.lease import Leadership, LeaseObject, NotLeader, Record, Term
from millrace_operator.manifest import Manifest
from millrace_operator.names import RELEASE_ANNOTATION
from millrace_operator.release import is_newer

TERM = Term(duration=15, renew_deadline=10, retry=2)


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Store:
    """The API server's side of a Lease: versions and refusals. `fault` is raised instead of an answer."""

    def __init__(self) -> None:
        self.record: Record | None = None
        self.fault: ApiError | None = None
        self._version = 0

    async def read(self) -> Record | None:
        if self.fault:
            raise self.fault
        return self.record

    async def write(self, holder: str, *, release: str, over: Record | None) -> Record:
        if self.fault:
            raise self.fault
        if over is not None and self.record is None:
            raise NotFound(404, "NotFound", "no lease")
        if (over.version if over else None) != (self.record.version if self.record else None):
            raise Conflict(409, "Conflict", "modified")
        self._version += 1
        self.record = Record(holder, str(self._version), release=release)
        return self.record


class Candidate:
    """One process: its own clock, which starts anywhere."""

    def __init__(self, store: Store, name: str, *, clock_starts_at: float, release: str = "1.0") -> None:
        self.clock = Clock(clock_starts_at)
        self.losses: list[str] = []
        self.steps: list[float] = []
        self.leadership = Leadership(store, name, TERM, release=release, on_loss=self.losses.append, clock=self.clock, sleep=self._sleep)

    async def _sleep(self, seconds: float) -> None:
        """Turns this clock; stops the loop under test when the planned steps are used up."""
        if not self.steps:
            raise EndOfScript
        self.clock.now += self.steps.pop(0)

    async def try_to_lead(self) -> bool:
        self.steps = []
        try:
            await self.leadership.acquire()
        except EndOfScript:
            return False
        return True

    async def renew(self, times: int, *, every: float = 2) -> None:
        self.steps = [every] * times
        try:
            await self.leadership.keep()
        except EndOfScript:
            return


class EndOfScript(Exception):
    pass


def two() -> tuple[Store, Candidate, Candidate]:
    store = Store()
    return store, Candidate(store, "a", clock_starts_at=5), Candidate(store, "b", clock_starts_at=1_000_000)


def may_write(candidate: Candidate) -> bool:
    try:
        candidate.leadership.guard()
    except NotLeader:
        return False
    return True


async def test_only_one_of_two_candidates_leads() -> None:
    _, a, b = two()
    assert await a.try_to_lead()
    assert not await b.try_to_lead()
    assert may_write(a)
    assert not may_write(b)


async def test_a_dead_leader_is_followed_after_one_duration_by_the_follower_s_own_clock() -> None:
    _, a, b = two()
    await a.try_to_lead()
    assert not await b.try_to_lead()
    b.clock.now += 14.9
    assert not await b.try_to_lead()
    b.clock.now += 0.2
    assert await b.try_to_lead()


async def test_a_leader_that_renews_is_never_followed() -> None:
    _, a, b = two()
    await a.try_to_lead()
    for _ in range(20):
        await a.renew(1)
        b.clock.now += 14
        assert not await b.try_to_lead()


async def test_the_old_leader_stops_writing_before_the_new_one_may_begin() -> None:
    _, a, b = two()
    await a.try_to_lead()
    await b.try_to_lead()
    for _ in range(160):
        a.clock.now += 0.1
        b.clock.now += 0.1
        leads = await b.try_to_lead()
        assert not (may_write(a) and leads)
    assert leads


async def test_a_frozen_leader_finds_itself_replaced_and_ends() -> None:
    _, a, b = two()
    await a.try_to_lead()
    await b.try_to_lead()
    a.clock.now += 30
    b.clock.now += 30
    assert await b.try_to_lead()
    assert not may_write(a)
    await a.renew(1)
    assert a.losses == ["the Lease is now held by 'b'"]
    assert not may_write(a)


async def test_a_leader_without_an_api_server_ends_after_the_renew_deadline() -> None:
    store, a, _ = two()
    await a.try_to_lead()
    store.fault = Unreachable(0, "Timeout", "no answer")
    await a.renew(4)
    assert a.losses == []
    await a.renew(1)
    assert a.losses == ["the Lease could not be renewed for 10 s"]


async def test_a_short_outage_costs_nothing() -> None:
    store, a, _ = two()
    await a.try_to_lead()
    store.fault = Unreachable(0, "Timeout", "no answer")
    await a.renew(4)
    store.fault = None
    await a.renew(1)
    assert a.losses == []
    a.clock.now += 9
    assert may_write(a)


async def test_a_deleted_lease_is_made_again() -> None:
    store, a, _ = two()
    await a.try_to_lead()
    store.record = None
    await a.renew(2)
    assert store.record == Record("a", "2", release="1.0")
    assert a.losses == []


async def test_an_edit_by_hand_to_a_foreign_holder_ends_the_leader() -> None:
    store, a, _ = two()
    await a.try_to_lead()
    store.record = Record("somebody", "99")
    await a.renew(1)
    assert a.losses == ["the Lease is now held by 'somebody'"]


async def test_an_edit_by_hand_that_leaves_the_holder_is_renewed_over() -> None:
    store, a, _ = two()
    await a.try_to_lead()
    store.record = Record("a", "99")
    await a.renew(2)
    assert a.losses == []
    assert may_write(a)


async def test_a_released_lease_is_taken_at_once() -> None:
    store, a, b = two()
    await a.try_to_lead()
    await b.try_to_lead()
    await a.leadership.release()
    assert not may_write(a)
    assert store.record is not None
    assert store.record.holder == ""
    assert await b.try_to_lead()


async def test_a_late_release_does_not_touch_the_next_leader() -> None:
    store, a, _ = two()
    await a.try_to_lead()
    store.record = Record("b", "7")
    await a.leadership.release()
    assert store.record == Record("b", "7")


async def test_of_two_that_take_an_expired_lease_together_one_wins() -> None:
    store, a, b = two()
    seen = await store.read()
    await store.write("b", release="1.0", over=seen)
    with pytest.raises(Conflict):
        await store.write("a", release="1.0", over=seen)
    assert not await a.try_to_lead()
    assert not may_write(b)


@pytest.mark.parametrize(
    "nonsense",
    [
        {},
        {"metadata": {}, "spec": {}},
        {"metadata": {"resourceVersion": "1"}},
        {"metadata": {"resourceVersion": "1"}, "spec": {"holderIdentity": ["a"]}},
        {"metadata": {"resourceVersion": "1"}, "spec": {"leaseTransitions": "many"}},
        {"metadata": {"resourceVersion": "1", "annotations": {RELEASE_ANNOTATION: 2}}, "spec": {}},
    ],
)
async def test_what_is_no_lease_is_an_error_that_the_loop_survives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nonsense: Manifest
) -> None:
    with FakeApi(lambda *_: (200, nonsense)) as api:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
        connection = Connection(await configuration())
        with pytest.raises(ApiError, match="InvalidLease"):
            await LeaseObject(connection, namespace="default", name="chat", term=TERM).read()
        await connection.close()


async def test_who_cannot_reach_the_lease_is_not_ready_to_lead_and_a_standby_is() -> None:
    store = Store()
    leader, standby = Candidate(store, "a", clock_starts_at=0), Candidate(store, "b", clock_starts_at=500)
    assert standby.leadership.unable, "it has not looked yet"
    assert await leader.try_to_lead()
    assert not await standby.try_to_lead()
    assert leader.leadership.unable is None
    assert standby.leadership.unable is None
    store.fault = Unreachable(0, "Timeout", "nobody")
    standby.clock.now += TERM.duration
    assert not await standby.try_to_lead()
    assert standby.leadership.unable
    store.fault = None
    await leader.renew(3)
    assert leader.leadership.unable is None


async def test_an_older_operator_never_follows_a_newer_one_until_the_lease_is_deleted() -> None:
    store = Store()
    newer, older = (Candidate(store, name, clock_starts_at=0, release=name) for name in ("1.10.0", "1.9.1"))
    assert await older.try_to_lead()
    await older.leadership.release()
    assert await newer.try_to_lead(), "an upgrade"
    assert not await older.try_to_lead()
    await newer.leadership.release()
    older.clock.now += 10 * TERM.duration
    assert not await older.try_to_lead(), "it is free, and expired"
    assert older.leadership.newer == "1.10.0"
    assert older.leadership.unable is not None
    assert "1.10.0" in older.leadership.unable
    store.record = None
    assert await older.try_to_lead()
    assert older.leadership.newer is None
    assert older.leadership.unable is None


async def test_a_lease_without_a_version_may_be_taken() -> None:
    store, a, _ = two()
    store.record = Record("", "7")
    assert await a.try_to_lead()


@pytest.mark.parametrize(
    ("release", "than", "newer"),
    [
        ("0.10.0", "0.9.0", True),
        ("0.9.0", "0.10.0", False),
        ("1.0", "1.0.0", False),
        ("1.0.0", "1.0", False),
        ("1.0.1", "1.0", True),
        ("1.0.0rc1", "1.0.0", False),
        ("latest", "0.1", False),
        ("", "0.0", False),
        ("0.1", "", True),
    ],
)
def test_versions_are_compared_by_their_numbers(release: str, than: str, newer: bool) -> None:
    assert is_newer(release, than=than) == newer
