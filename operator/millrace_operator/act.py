"""Makes the children as wished, one by one: a child that is refused does not keep the others from being applied.

What a user can do something about becomes a Trouble for the status; what only time can heal is raised.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from millrace_operator.cluster import Cluster, NameConflict, Observed
from millrace_operator.connection import Forbidden, NamespaceEnds, Refused
from millrace_operator.desired import origin
from millrace_operator.drift import Repairs
from millrace_operator.manifest import Manifest
from millrace_operator.ownership import Drift, drift
from millrace_operator.rollout import Rollout, Trouble, read_rollout
from millrace_operator.status import CHILD_REFUSED, FIELD_CONFLICT, FORBIDDEN, INVALID_SPEC, NAME_CONFLICT


@dataclass(frozen=True)
class Outcome:
    """The children as they now are, and what stood in the way."""

    live: tuple[Manifest, ...]
    problems: tuple[Trouble, ...]
    pods: tuple[Manifest, ...]
    repaired: tuple[tuple[str, str, Drift], ...] = ()
    """(kind, name, what) of children that somebody had changed."""

    @property
    def deployment(self) -> Manifest | None:
        return next((child for child in self.live if child["kind"] == "Deployment"), None)

    @property
    def rollout(self) -> Rollout | None:
        return read_rollout(self.deployment, self.pods) if self.deployment else None


async def act(cluster: Cluster, wish: Sequence[Manifest], seen: Observed, repairs: Repairs, *, now: float) -> Outcome:
    """Apply every child of the wish, delete those that are not in it. `now` is monotonic seconds. Raises ApiError."""
    live: list[Manifest] = []
    problems: list[Trouble] = []
    repaired: list[tuple[str, str, Drift]] = []
    for child in wish:
        name = child["metadata"]["name"]
        place = (child["metadata"]["namespace"], seen.manifest["metadata"]["name"], child["kind"], name)
        found = seen.child(child["kind"], name)
        taken = drift(child, found) if found else None
        try:
            if found is not None and taken is not None and not repairs.may_repair(place, taken, now=now):
                live.append(found)
                continue
            live.append(await cluster.apply(child, found))
            if taken is not None:
                repairs.repaired(place, now=now)
                repaired.append((child["kind"], name, taken))
        except NamespaceEnds:
            raise
        except (NameConflict, Refused, Forbidden) as error:
            problems.append(_trouble(child["kind"], name, error))
        finally:
            if fight := repairs.fight(place, now=now):
                problems.append(_fight(child["kind"], name, fight))
    wanted = {(child["kind"], child["metadata"]["name"]) for child in wish}
    for child in seen.children:
        if (child["kind"], child["metadata"]["name"]) not in wanted and "deletionTimestamp" not in child["metadata"]:
            await cluster.prune(child)
    return Outcome(tuple(live), tuple(problems), seen.pods, tuple(repaired))


def _fight(kind: str, name: str, fight: Drift) -> Trouble:
    sentence = f"{kind} {name!r}: {fight} is rewritten again and again, and now put back only every few minutes"
    return Trouble(cause=FIELD_CONFLICT, sentence=sentence, needs_a_human=True, bars_serving=False)


def _trouble(kind: str, name: str, error: NameConflict | Refused | Forbidden) -> Trouble:
    if isinstance(error, NameConflict):
        return Trouble(cause=NAME_CONFLICT, sentence=str(error), needs_a_human=True)
    sentence = f"{kind} {name!r}: {error.message}"
    if isinstance(error, Refused):
        field = next(filter(None, (origin(kind, path) for path in error.fields)), None)
        if field is None:
            return Trouble(cause=CHILD_REFUSED, sentence=sentence, needs_a_human=True)
        return Trouble(cause=INVALID_SPEC, sentence=f"{field} is refused: {sentence}", needs_a_human=True)
    cause = "QuotaExceeded" if "exceeded quota" in error.message else FORBIDDEN
    return Trouble(cause=cause, sentence=sentence, needs_a_human=False)
