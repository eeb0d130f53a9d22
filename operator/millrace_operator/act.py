"""Makes the children as wished, one by one: a child that is refused does not keep the others from being applied.

What a user can do something about becomes a Trouble for the status; what only time can heal is raised.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from millrace_operator.cluster import POD, Cluster, NameConflict, Observed
from millrace_operator.connection import Forbidden, NamespaceEnds, NotFound, Refused
from millrace_operator.desired import CHILD_KINDS, origin
from millrace_operator.drift import Repairs
from millrace_operator.manifest import Manifest
from millrace_operator.names import redis
from millrace_operator.ownership import Drift, drift
from millrace_operator.rollout import Rollout, Trouble, read_rollout
from millrace_operator.status import CHILD_REFUSED, CRD_NOT_INSTALLED, FIELD_CONFLICT, FORBIDDEN, INVALID_SPEC, NAME_CONFLICT

OPTIONAL = {kind.kind for kind in CHILD_KINDS if kind.optional}


@dataclass(frozen=True)
class Outcome:
    """The children as they now are, and what stood in the way."""

    service: Manifest
    live: tuple[Manifest, ...]
    problems: tuple[Trouble, ...]
    monitoring: Trouble | None
    """What stood in the way of a child that nobody is served by."""
    pods: tuple[Manifest, ...]
    before: Manifest | None = None
    """The server's Deployment as it was seen."""
    blind: Trouble | None = None
    """Why the pods could not be listed; it is among the problems. Those that were seen may be gone, and others there."""
    repaired: tuple[tuple[str, str, Drift], ...] = ()
    """(kind, name, what) of children that somebody had changed."""

    @property
    def deployment(self) -> Manifest | None:
        """The server's."""
        return self._deployment(self.service["metadata"]["name"])

    @property
    def redis_serves(self) -> bool | None:
        """None without a Redis of its own."""
        deployment = self._deployment(redis(self.service["metadata"]["name"]))
        return None if deployment is None else deployment.get("status", {}).get("readyReplicas", 0) > 0

    def _deployment(self, name: str) -> Manifest | None:
        return next((child for child in self.live if (child["kind"], child["metadata"]["name"]) == ("Deployment", name)), None)

    @property
    def rollout(self) -> Rollout | None:
        return read_rollout(self.deployment, self.pods, before=self.before) if self.deployment else None


async def act(
    cluster: Cluster, wish: Sequence[Manifest], seen: Observed, repairs: Repairs, *, secret: Manifest | None = None, now: float
) -> Outcome:
    """Apply every child of the wish, delete those that are not in it. `now` is monotonic seconds. Raises ApiError.

    `secret` is created, not applied, before its Redis; while it cannot be, Redis waits.
    """
    live: list[Manifest] = []
    blind = _blind(seen)
    problems = [blind] if blind else []
    aside: list[Trouble] = []
    repaired: list[tuple[str, str, Drift]] = []
    if secret is not None and (refused := await _create_secret(cluster, secret)):
        problems.append(refused)
        waits = redis(seen.manifest["metadata"]["name"])
        wish = [child for child in wish if child["metadata"]["name"] != waits]
    for child in wish:
        kind, name = child["kind"], child["metadata"]["name"]
        told = aside if kind in OPTIONAL else problems
        if kind in seen.out_of_reach:
            told.append(trouble(kind, name, seen.out_of_reach[kind]))
            continue
        place = (child["metadata"]["namespace"], seen.manifest["metadata"]["name"], kind, name)
        found = seen.child(kind, name)
        taken = drift(child, found) if found else None
        try:
            if found is not None and taken is not None and not repairs.may_repair(place, taken, now=now):
                live.append(found)
                continue
            live.append(await cluster.apply(child, found))
            if taken is not None:
                repairs.repaired(place, now=now)
                repaired.append((kind, name, taken))
        except NamespaceEnds:
            raise
        except (NameConflict, Refused, Forbidden) as error:
            told.append(trouble(kind, name, error))
        finally:
            if fight := repairs.fight(place, now=now):
                told.append(_fight(kind, name, fight))
    problems += await _prune(cluster, wish, seen)
    before = seen.child("Deployment", seen.manifest["metadata"]["name"])
    return Outcome(seen.manifest, tuple(live), tuple(problems), next(iter(aside), None), seen.pods, before, blind, tuple(repaired))


def _blind(seen: Observed) -> Trouble | None:
    if POD.kind not in seen.out_of_reach:
        return None
    sentence = f"its pods cannot be seen, so it is not scaled: {seen.out_of_reach[POD.kind].message}"
    return Trouble(cause=FORBIDDEN, sentence=sentence, needs_a_human=False, bars_serving=False)


async def _prune(cluster: Cluster, wish: Sequence[Manifest], seen: Observed) -> list[Trouble]:
    problems: list[Trouble] = []
    wanted = {(child["kind"], child["metadata"]["name"]) for child in wish}
    for child in seen.children:
        kind, name = child["kind"], child["metadata"]["name"]
        if (kind, name) in wanted or "deletionTimestamp" in child["metadata"]:
            continue
        try:
            await cluster.prune(child)
        except NamespaceEnds:
            raise
        except Forbidden as error:
            problems.append(replace(trouble(kind, name, error), bars_serving=False))
    return problems


async def _create_secret(cluster: Cluster, secret: Manifest) -> Trouble | None:
    try:
        await cluster.create_secret(secret)
    except NamespaceEnds:
        raise
    except (Refused, Forbidden) as error:
        return trouble("Secret", secret["metadata"]["name"], error)
    return None


def _fight(kind: str, name: str, fight: Drift) -> Trouble:
    sentence = f"{kind} {name!r}: {fight} is rewritten again and again, and now put back only every few minutes"
    return Trouble(cause=FIELD_CONFLICT, sentence=sentence, needs_a_human=True, bars_serving=False)


def trouble(kind: str, name: str, error: NameConflict | Refused | Forbidden | NotFound) -> Trouble:
    """What the status tells of a write to a child that was refused."""
    if isinstance(error, NameConflict):
        return Trouble(cause=NAME_CONFLICT, sentence=str(error), needs_a_human=True)
    if isinstance(error, NotFound):
        return Trouble(cause=CRD_NOT_INSTALLED, sentence=f"this cluster does not know the kind {kind}", needs_a_human=False)
    sentence = f"{kind} {name!r}: {error.message}"
    if isinstance(error, Refused):
        field = next(filter(None, (origin(kind, path) for path in error.fields)), None)
        if field is None:
            return Trouble(cause=CHILD_REFUSED, sentence=sentence, needs_a_human=True)
        return Trouble(cause=INVALID_SPEC, sentence=f"{field} is refused: {sentence}", needs_a_human=True)
    cause = "QuotaExceeded" if "exceeded quota" in error.message else FORBIDDEN
    return Trouble(cause=cause, sentence=sentence, needs_a_human=False)
