"""Who leads. Exactly one operator writes; the others wait with a warm process.

`Election` decides and is pure: it trusts only the monotonic time at which *this* process saw the record change, never the
times written in it, so that no wall clock matters. `Leadership` acts on the Lease object. `guard()` is called before every
write: it refuses from `renew_deadline` after the last renewal began, while the others respect the Lease until `duration`;
the gap covers a write in flight. On loss the process ends at once: whatever it still believes is stale.

The Lease names the version of the operator that leads or led last. An older one never takes it: it would give every service the pods
of its time, and end those that serve. Who wants to go back deletes the Lease (README, Going back).
"""

import asyncio
import datetime
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from millrace_operator.connection import AlreadyThere, ApiError, Conflict, Connection, NotFound
from millrace_operator.manifest import Manifest
from millrace_operator.names import RELEASE_ANNOTATION
from millrace_operator.release import is_newer

logger = logging.getLogger(__name__)


class NotLeader(Exception):
    """Raised by guard(): this process may not write (any more)."""


@dataclass(frozen=True)
class Term:
    """Durations in seconds."""

    duration: float
    renew_deadline: float
    retry: float


@dataclass(frozen=True)
class Record:
    """The Lease as read: who holds it, and a version that changes with every renewal."""

    holder: str
    version: str
    transitions: int = 0
    release: str = ""
    """Of the operator that wrote it; empty where it did not say."""


class Election:
    """When may this candidate take the Lease, and until when may it write? `now` is monotonic seconds."""

    def __init__(self, identity: str, term: Term, *, release: str) -> None:
        self.identity = identity
        self.release = release
        self._term = term
        self._seen: Record | None = None
        self._seen_at = 0.0
        self._renewed_at: float | None = None

    @property
    def newer(self) -> str | None:
        """The version of the operator that leads or led last, as the record said when it was looked at, if it is newer than this one."""
        return self._seen.release if self._seen and is_newer(self._seen.release, than=self.release) else None

    def may_take(self, record: Record | None, *, now: float) -> bool:
        """Look at the record; True when it is free, released, or has not changed for a whole duration, and no newer operator's."""
        if record != self._seen:
            self._seen, self._seen_at = record, now
        if self.newer:
            return False
        if record is None or not record.holder or record.holder == self.identity:
            return True
        return now - self._seen_at >= self._term.duration

    def renewed(self, *, began: float) -> None:
        """A renewal whose request began at `began` was accepted."""
        self._renewed_at = began

    def lost(self) -> None:
        self._renewed_at = None

    def leads(self, *, now: float) -> bool:
        return self._renewed_at is not None and now - self._renewed_at < self._term.renew_deadline


class LeaseStore(Protocol):
    """Where the record lives. Raises ApiError."""

    async def read(self) -> Record | None: ...

    async def write(self, holder: str, *, release: str, over: Record | None) -> Record: ...


class Leadership:
    """Takes, renews and releases. `on_loss` must end the process; it is called at most once."""

    def __init__(
        self,
        store: LeaseStore,
        identity: str,
        term: Term,
        *,
        release: str,
        on_loss: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._election = Election(identity, term, release=release)
        self._term = term
        self._on_loss = on_loss
        self._clock = clock
        self._sleep = sleep
        self._record: Record | None = None
        self._heard_at = -math.inf

    @property
    def unable(self) -> str | None:
        """Why this process neither leads nor could; None when it does, or could."""
        if self._clock() - self._heard_at >= self._term.duration:
            return "the Lease cannot be read, so this operator could not take over"
        if self.newer:
            return f"version {self.newer} has led, and this is {self._election.release}: it would take the services back, and does not lead"
        return None

    @property
    def newer(self) -> str | None:
        """The version of a newer operator that keeps this one from leading."""
        return None if self.leads else self._election.newer

    @property
    def leads(self) -> bool:
        return self._election.leads(now=self._clock())

    def guard(self) -> None:
        """Raises NotLeader when a write of ours could meet another leader's."""
        if not self.leads:
            raise NotLeader(f"the Lease was not renewed within {self._term.renew_deadline:g} s; nothing is written")

    async def acquire(self) -> None:
        """Returns when this process leads."""
        told: str | None = None
        while not await self._try_to_take():
            if self.newer != told and self.unable:
                logger.warning("%s; to go back on purpose, end every operator and delete the Lease", self.unable)
            told = self.newer
            await self._sleep(self._term.retry)
        logger.info("leading as %s", self._election.identity)

    async def keep(self) -> None:
        """Renew until the Lease is lost; ends by on_loss."""
        while True:
            await self._sleep(self._term.retry)
            holder = await self._renew()
            if holder is not None and holder != self._election.identity:
                self._lose(f"the Lease is now held by {holder!r}")
                return
            if not self.leads:
                self._lose(f"the Lease could not be renewed for {self._term.renew_deadline:g} s")
                return

    async def release(self) -> None:
        """Let the next candidate take over at once. Called after the last write, when `keep` has ended."""
        if not self.leads:
            return
        self._election.lost()
        try:
            record = await self._store.read()
            if record is not None and record.holder == self._election.identity:
                await self._store.write("", release=self._election.release, over=record)
        except ApiError as error:
            logger.warning("the Lease was not released: %s; the next leader waits until it expires", error)

    async def _try_to_take(self) -> bool:
        try:
            record = await self._store.read()
            began = self._heard_at = self._clock()
            if not self._election.may_take(record, now=began):
                return False
            self._record = await self._write(over=record)
        except (Conflict, AlreadyThere):
            return False
        except ApiError as error:
            logger.warning("the Lease cannot be taken: %s", error)
            return False
        self._election.renewed(began=began)
        return True

    async def _write(self, *, over: Record | None) -> Record:
        return await self._store.write(self._election.identity, release=self._election.release, over=over)

    async def _renew(self) -> str | None:
        """Returns the holder as far as known; None when the API server did not answer."""
        began = self._clock()
        try:
            self._record = await self._write(over=self._record)
        except (Conflict, AlreadyThere, NotFound):
            return await self._look_again()
        except ApiError as error:
            logger.warning("the Lease was not renewed: %s", error)
            return None
        self._heard_at = began
        self._election.renewed(began=began)
        return self._election.identity

    async def _look_again(self) -> str | None:
        """Someone edited or deleted the Lease: take what is there, and renew over it next time if it is still ours."""
        try:
            self._record = await self._store.read()
        except ApiError as error:
            logger.warning("the Lease cannot be read: %s", error)
            return None
        return self._record.holder if self._record else None

    def _lose(self, reason: str) -> None:
        self._election.lost()
        logger.error("leadership lost: %s; the process ends", reason)
        self._on_loss(reason)


class LeaseObject:
    """The coordination.k8s.io/v1 Lease. Its times are for people: nothing here reads them."""

    def __init__(self, connection: Connection, *, namespace: str, name: str, term: Term) -> None:
        self._connection = connection
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._name = name
        self._duration = math.ceil(term.duration)
        self._seconds = max(0.1, term.duration - term.renew_deadline)

    async def read(self) -> Record | None:
        try:
            lease = await self._connection.get(f"{self._collection}/{self._name}", seconds=self._seconds)
        except NotFound:
            return None
        return _record(lease)

    async def write(self, holder: str, *, release: str, over: Record | None) -> Record:
        """PUT over the version that was read, POST when there was none. Raises Conflict, AlreadyThere or ApiError."""
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        transitions = 0 if over is None else over.transitions + (over.holder != holder)
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": self._name,
                "annotations": {RELEASE_ANNOTATION: release},
                **({"resourceVersion": over.version} if over else {}),
            },
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": self._duration,
                "renewTime": now,
                "leaseTransitions": transitions,
            },
        }
        if over is None:
            return _record(await self._connection.send("POST", self._collection, body=lease, seconds=self._seconds))
        return _record(await self._connection.send("PUT", f"{self._collection}/{self._name}", body=lease, seconds=self._seconds))


def _record(lease: Manifest) -> Record:
    match lease:
        case {"metadata": {"resourceVersion": str(version)} as metadata, "spec": dict(spec)}:
            holder, transitions = spec.get("holderIdentity") or "", spec.get("leaseTransitions") or 0
            release = (metadata.get("annotations") or {}).get(RELEASE_ANNOTATION) or ""
            if isinstance(holder, str) and isinstance(transitions, int) and isinstance(release, str):
                return Record(holder=holder, version=version, transitions=transitions, release=release)
    raise ApiError(500, "InvalidLease", "what was read is no Lease that this operator can hold; delete it, it is made anew")
