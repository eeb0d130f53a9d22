"""Children and pods as the watches have shown them, so that a pass asks the API server for no list. No I/O; it decides nothing.

An older version never takes the place of a newer one, whatever order they come in. Objects are kept as JSON: a fifth of the
memory that parsed ones take, and nobody can change what another will see.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from millrace_operator.manifest import Manifest
from millrace_operator.names import INSTANCE_LABEL

Key = tuple[str, str]
"""(namespace, name) of an InferenceService."""
Place = tuple[str, str, str]
"""(kind, namespace, name)."""


def differing(before: Mapping[Key, object], now: Mapping[Key, object]) -> set[Key]:
    """Of what came, went or changed."""
    return {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}


@dataclass(frozen=True)
class _Seen:
    version: int
    key: Key
    content: str


class View:
    """Resource versions are compared as the numbers that they are, within one kind."""

    def __init__(self) -> None:
        self._seen: dict[Place, _Seen] = {}
        self._of: dict[Key, set[Place]] = {}
        self._last_removal: dict[str, int] = {}

    def of(self, key: Key) -> list[Manifest]:
        """What belongs to this service by its label, as the caller's own copies."""
        return [json.loads(self._seen[place].content) for place in sorted(self._of.get(key, ()))]

    def put(self, thing: Manifest) -> set[Key]:
        """Returns the services to which this is news: none when it, or something newer, has been seen."""
        place, version, seen = _place(thing), _version(thing), self._seen.get(_place(thing))
        if seen is not None and seen.version >= version:
            return set()
        key = place[1], (thing["metadata"].get("labels") or {}).get(INSTANCE_LABEL, "")
        self._drop(place)
        self._seen[place] = _Seen(version, key, json.dumps(thing, separators=(",", ":")))
        self._of.setdefault(key, set()).add(place)
        return {each for each in (key, seen and seen.key) if each and each[1]}

    def learn(self, thing: Manifest, *, as_of: int | None = None) -> set[Key]:
        """As `put`, of what an answer said, which may be late: what has gone since must not come back.

        `as_of` is the version of the list that it stood in; an answer with one object is as old as the object.
        """
        late = (_version(thing) if as_of is None else as_of) < self._last_removal.get(thing["kind"], 0)
        return set() if late and _place(thing) not in self._seen else self.put(thing)

    def remove(self, thing: Manifest) -> set[Key]:
        """It has gone, at the version that it now has."""
        place, version = _place(thing), _version(thing)
        self._last_removal[place[0]] = max(version, self._last_removal.get(place[0], 0))
        seen = self._seen.get(place)
        if seen is None or seen.version > version:
            return set()
        self._drop(place)
        return {seen.key} if seen.key[1] else set()

    def keep(self, kind: str, present: Collection[Place], *, as_of: int) -> set[Key]:
        """A list of that version had no others of this kind: what is missing went unseen."""
        gone = [place for place, seen in self._seen.items() if place[0] == kind and place not in present and seen.version <= as_of]
        keys = {self._seen[place].key for place in gone}
        for place in gone:
            self._drop(place)
        return keys

    def _drop(self, place: Place) -> None:
        seen = self._seen.pop(place, None)
        if seen is not None:
            self._of[seen.key].discard(place)
            if not self._of[seen.key]:
                del self._of[seen.key]


def _place(thing: Manifest) -> Place:
    return thing["kind"], thing["metadata"]["namespace"], thing["metadata"]["name"]


def _version(thing: Mapping[str, Manifest]) -> int:
    return int(thing["metadata"]["resourceVersion"])
