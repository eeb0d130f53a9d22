"""What happened, for `kubectl describe` and `kubectl events`. A cause is told when it appears in the status, not while it lasts.

`news` decides and is pure. `Recorder` writes: equal Events become one with a count, and a failure to write one harms nothing else.
"""

import datetime
import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from millrace_operator.api import InferenceServiceStatus
from millrace_operator.cluster import Cluster
from millrace_operator.connection import AlreadyThere, ApiError, Conflict
from millrace_operator.manifest import Manifest
from millrace_operator.names import API_VERSION, FIELD_MANAGER, GROUP, KIND
from millrace_operator.ownership import Drift
from millrace_operator.status import NO_EVENT

logger = logging.getLogger(__name__)

DRIFT_CORRECTED = "DriftCorrected"
MAX_NOTE_BYTES = 1024
MAX_REMEMBERED = 4096
"""Events whose count is known; the API server itself forgets them after an hour."""


@dataclass(frozen=True, kw_only=True)
class Event:
    reason: str
    note: str
    type: Literal["Normal", "Warning"] = "Warning"


def news(before: InferenceServiceStatus, after: InferenceServiceStatus) -> tuple[Event, ...]:
    """One for each cause that the status did not name before."""
    known = _causes(before)
    return tuple(Event(reason=reason, note=message) for reason, message in _causes(after).items() if reason not in known)


def repaired(kind: str, name: str, drift: Drift) -> Event:
    words = f"{kind} {name!r}: {drift} was put back"
    if drift.is_undone:
        words += "; `kubectl rollout undo` does not last here: undo the edit of the InferenceService instead"
    return Event(reason=DRIFT_CORRECTED, note=f"{words}.", type="Normal")


def scaled(*, before: int, after: int, why: str) -> Event:
    reason = "ScaledUp" if after > before else "ScaledDown"
    return Event(reason=reason, note=f"from {before} to {after} replicas: {why}", type="Normal")


class Recorder:
    """`identity` names this process; `now` is the wall clock, for people."""

    def __init__(self, cluster: Cluster, *, identity: str, now: Callable[[], datetime.datetime]) -> None:
        self._cluster = cluster
        self._identity = identity
        self._now = now
        self._counts: dict[str, int] = {}

    async def tell(self, service: Manifest, events: Iterable[Event]) -> None:
        for event in events:
            try:
                await self._tell(service, event)
            except ApiError as error:
                logger.warning("the Event %s was not written: %s", event.reason, error)

    async def _tell(self, service: Manifest, event: Event) -> None:
        body = self._body(service, event)
        name = body["metadata"]["name"]
        count = self._counts.pop(name, 0) + 1
        try:
            await self._cluster.create_event(body) if count == 1 else await self._cluster.repeat_event(body, self._series(count))
        except AlreadyThere:
            count = 2
            await self._cluster.repeat_event(body, self._series(count))
        except Conflict:  # the API server has forgotten it
            count = 1
            await self._cluster.create_event(body)
        self._counts[name] = count
        if len(self._counts) > MAX_REMEMBERED:
            del self._counts[next(iter(self._counts))]

    def _body(self, service: Manifest, event: Event) -> Manifest:
        metadata = service["metadata"]
        told = hashlib.sha256(f"{metadata['uid']} {event.reason} {event.note}".encode()).hexdigest()[:16]
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name']}.{told}", "namespace": metadata["namespace"]},
            "eventTime": self._time(),
            "reportingController": f"{GROUP}/{FIELD_MANAGER}",
            "reportingInstance": self._identity[:128],
            "action": "Reconcile",
            "reason": event.reason,
            "type": event.type,
            "note": event.note.encode()[:MAX_NOTE_BYTES].decode(errors="ignore"),
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
        }

    def _series(self, count: int) -> Manifest:
        return {"count": count, "lastObservedTime": self._time()}

    def _time(self) -> str:
        return self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _causes(status: InferenceServiceStatus) -> dict[str, str]:
    """Reason → message of everything that is wrong, in the conditions' order."""
    wrong = {"Stalled": "True", "Reconciling": "True", "ModelLoaded": "False", "ScalingActive": "False"}
    found = [each for each in status.conditions if wrong.get(each.type) == each.status and each.reason not in NO_EVENT]
    return {each.reason: each.message for each in found}
