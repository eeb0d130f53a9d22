"""How often somebody else rewrites what is ours, and when repairing it at once has become a fight. Pure: time is an argument.

A field that is taken is repaired at once. One that is taken again and again is a fight between two writers, which neither wins:
it is told, and repaired only now and then, until nobody has touched it for a whole window.
"""

from dataclasses import dataclass, field

from millrace_operator.ownership import Drift

Child = tuple[str, str, str, str]
"""(namespace, service, kind, name)."""

LIMIT = 5
"""Repairs in one window that are still no fight."""


@dataclass
class _Repairs:
    drift: Drift
    seen_at: float
    at: list[float] = field(default_factory=list)
    fighting: bool = False


class Repairs:
    """Of every child. `window` and `pause` in seconds; `now` is monotonic."""

    def __init__(self, *, window: float, pause: float) -> None:
        self._window = window
        self._pause = pause
        self._children: dict[Child, _Repairs] = {}

    def may_repair(self, child: Child, drift: Drift, *, now: float) -> bool:
        """Somebody took fields: may they be taken back at once?"""
        known = self._children.setdefault(child, _Repairs(drift, now))
        known.drift, known.seen_at = drift, now
        known.at = [each for each in known.at if now - each < self._window]
        known.fighting = known.fighting or len(known.at) >= LIMIT
        return not known.fighting or not known.at or now - known.at[-1] >= self._pause

    def repaired(self, child: Child, *, now: float) -> None:
        self._children[child].at.append(now)

    def fight(self, child: Child, *, now: float) -> Drift | None:
        """What the fight is about, also in the moments when the field is ours; None when there is none."""
        known = self._children.get(child)
        if known is not None and now - known.seen_at >= self._window:
            del self._children[child]
            return None
        return known.drift if known is not None and known.fighting else None

    def forget(self, namespace: str, service: str) -> None:
        for child in [each for each in self._children if each[:2] == (namespace, service)]:
            del self._children[child]
