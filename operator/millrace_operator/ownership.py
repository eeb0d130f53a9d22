"""Which fields of a live object are ours, read from its `managedFields`. Pure.

Server-side apply records per manager what it applied, and moves a field to whoever changes it. So a child has drifted exactly
when a field of the wish is no longer ours: no value is compared, and what the server defaults or rewrites (`1000m` → `1`) is no drift.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from millrace_operator.manifest import Manifest
from millrace_operator.names import FIELD_MANAGER, HASH_ANNOTATION

MAX_FIELDS_TOLD = 3
_UNTRACKED = {"apiVersion", "kind"}
_UNTRACKED_METADATA = {"name", "namespace"}


def wish_hash(wish: Manifest) -> str:
    return hashlib.sha256(json.dumps(wish, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def stamped(wish: Manifest) -> Manifest:
    """The wish with its own hash as an annotation: what is really applied."""
    metadata = wish["metadata"]
    annotations = {**(metadata.get("annotations") or {}), HASH_ANNOTATION: wish_hash(wish)}
    return {**wish, "metadata": {**metadata, "annotations": annotations}}


def is_as_wished(wish: Manifest, live: Manifest) -> bool:
    """`wish` is stamped. True when it was the last thing we applied and nobody has taken a field from us since."""
    annotations = live["metadata"].get("annotations") or {}
    if annotations.get(HASH_ANNOTATION) != wish["metadata"]["annotations"][HASH_ANNOTATION]:
        return False
    return next(lost_fields(wish, live), None) is None


@dataclass(frozen=True)
class Drift:
    """Fields of ours that somebody took or removed since we applied them, and who has them now."""

    fields: tuple[str, ...]
    managers: tuple[str, ...]
    is_undone: bool
    """Even the mark of what we applied was replaced, as `kubectl rollout undo` does."""

    def __str__(self) -> str:
        shown = ", ".join(self.fields[:MAX_FIELDS_TOLD]) + (" and more" if len(self.fields) > MAX_FIELDS_TOLD else "")
        return f"{shown}, changed by {' and '.join(map(repr, self.managers)) or 'somebody who left no name'},"


def drift(wish: Manifest, live: Manifest) -> Drift | None:
    """None when nothing was taken, and when the wish itself has changed since: then it is an edit that is on its way."""
    wish = stamped(wish)
    lost = tuple(lost_fields(wish, live))
    unmarked = not owns(live, "metadata", "annotations", HASH_ANNOTATION)
    applied = (live["metadata"].get("annotations") or {}).get(HASH_ANNOTATION)
    if not applied_fields(live) or not lost or (not unmarked and applied != wish["metadata"]["annotations"][HASH_ANNOTATION]):
        return None
    fields = tuple(sorted(path for path in lost if not path.startswith(".metadata.annotations"))) or lost
    return Drift(fields=fields, managers=_holders(wish, live, set(lost)), is_undone=unmarked and live.get("kind") == "Deployment")


def _holders(wish: Manifest, live: Manifest, lost: set[str]) -> tuple[str, ...]:
    """Managers that own at least one of the lost fields."""
    entries = [each for each in live["metadata"].get("managedFields") or () if each.get("fieldsV1")]
    return tuple(sorted({str(each.get("manager")) for each in entries if lost - set(_not_in(wish, each["fieldsV1"], live))}))


def lost_fields(wish: Manifest, live: Manifest) -> Iterator[str]:
    """Paths of the wish that another manager took, or that are gone."""
    yield from _not_in(wish, applied_fields(live), live)


def _not_in(wish: Manifest, fields: Manifest, live: Manifest) -> Iterator[str]:
    tracked = {key: value for key, value in wish.items() if key not in _UNTRACKED}
    tracked["metadata"] = {key: value for key, value in wish["metadata"].items() if key not in _UNTRACKED_METADATA}
    yield from _lost(tracked, fields, live, "")


def applied_fields(live: Manifest) -> Manifest:
    """Our FieldsV1 tree; empty when we never applied this object."""
    for entry in live["metadata"].get("managedFields") or ():
        if entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply" and not entry.get("subresource"):
            fields: Manifest = entry.get("fieldsV1") or {}
            return fields
    return {}


def owns(live: Manifest, *path: str) -> bool:
    fields = applied_fields(live)
    for name in path:
        if f"f:{name}" not in fields:
            return False
        fields = fields[f"f:{name}"]
    return True


def owner_uid(live: Manifest) -> str | None:
    """UID of the controller that owns this object."""
    for reference in live["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            return str(reference["uid"])
    return None


def _lost(wish: Manifest, fields: Manifest, live: Any, path: str) -> Iterator[str]:  # noqa: ANN401 - any JSON value
    for name, value in wish.items():
        here = live.get(name) if isinstance(live, dict) else None
        owned = fields.get(f"f:{name}")
        if owned is None:
            # The server drops empty values (false, "", [], {}) that mean "unset"; an empty map claims no key, whatever others put in it.
            if value or (here and not isinstance(value, dict)):
                yield f"{path}.{name}"
        elif not owned:
            continue  # a scalar, or a list or map that is owned as a whole
        elif isinstance(value, dict):
            yield from _lost(value, owned, here, f"{path}.{name}")
        elif isinstance(value, list):
            yield from _lost_items(value, owned, here if isinstance(here, list) else [], f"{path}.{name}")


def _lost_items(wish: list[Any], fields: Manifest, live: list[Any], path: str) -> Iterator[str]:
    """Items of a set are named `v:VALUE`, those of a map list `k:{KEYS}`, where the server has added defaulted keys."""
    maps = [(json.loads(name[2:]), owned) for name, owned in fields.items() if name.startswith("k:")]
    values = [json.loads(name[2:]) for name in fields if name.startswith("v:")]
    for item in wish:
        if not isinstance(item, dict):
            if item not in values:
                yield f"{path}[{item}]"
            continue
        matches = [(keys, owned) for keys, owned in maps if all(item.get(key, value) == value for key, value in keys.items())]
        if not matches:
            yield f"{path}[{item.get('name', '?')}]"
            continue
        keys, owned = matches[0]
        if not owned:
            continue  # an item that is owned as a whole, such as an owner reference
        here = next((each for each in live if isinstance(each, dict) and keys.items() <= each.items()), None)
        yield from _lost(item, owned, here, f"{path}[{item.get('name', '?')}]")
