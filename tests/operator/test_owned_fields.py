"""Every field that the operator applies, in every child: changed by somebody else, it is as wished again within seconds.

Exhaustive: the fields are read from the live children's `managedFields`, so that a new one is covered by itself.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from millrace_operator.manifest import Manifest
from millrace_operator.ownership import applied_fields
from operators import Api, Process, cpu_service, eventually

pytestmark = pytest.mark.apiserver

Step = str | tuple[tuple[str, Any], ...]
"""A field's name, or the keys and values by which an item of a list is found."""
CHILDREN = (
    ("services", "chat"),
    ("services", "chat-metrics"),
    ("networkpolicies", "chat"),
    ("poddisruptionbudgets", "chat"),
    ("servicemonitors", "chat"),
    ("deployments", "chat"),
)
NOT_EDITED = {"ownerReferences"}
"""A child that has lost its owner is somebody else's, and is not adopted again: see test_foreign_objects.py."""
HELD = {
    ("services", ".spec.clusterIP"),
    ("deployments", ".spec.selector"),
    ("deployments", ".spec.template.metadata.labels.app.kubernetes.io/instance"),
    ("deployments", ".spec.template.metadata.labels.app.kubernetes.io/name"),
    ("deployments", ".spec.strategy.type"),
}
"""What the API server itself lets nobody change alone: immutable, bound to the selector, or of one piece with a field beside it."""
WORDS = ("Always", "Never", "NodePort", "Unconfined", "model", "cache", "tmp")
"""What some fields may say."""
MISSING = object()


def leaves(fields: Manifest, path: tuple[Step, ...] = ()) -> Iterator[tuple[Step, ...]]:
    """Of a FieldsV1 tree: scalars, and what is owned as a whole."""
    for name, inner in fields.items():
        if name == "." or name[2:] in NOT_EDITED or (path and name[2:] in dict(path[-1] if isinstance(path[-1], tuple) else ())):
            continue  # whoever changes an item's key makes another item, which is theirs
        step: Step = name[2:] if name.startswith("f:") else tuple(json.loads(name[2:]).items())
        if inner:
            yield from leaves(inner, (*path, step))
        else:
            yield (*path, step)


def index(value: Any, step: Step) -> str | int | None:  # noqa: ANN401 - any JSON value
    """Where a step leads; None when there is nothing."""
    if isinstance(step, str):
        return step if isinstance(value, dict) and step in value else None
    return next((at for at, item in enumerate(value) if dict(step).items() <= item.items()), None)


def find(live: Manifest, path: tuple[Step, ...]) -> Any:  # noqa: ANN401 - any JSON value
    value: Any = live
    for step in path:
        at = index(value, step)
        if at is None:
            return MISSING
        value = value[at]
    return value


def pointer(live: Manifest, path: tuple[Step, ...]) -> str:
    """RFC 6901."""
    value: Any = live
    parts = []
    for step in path:
        at = index(value, step)
        assert at is not None, path
        value = value[at]
        parts.append(str(at).replace("~", "~0").replace("/", "~1"))
    return "/" + "/".join(parts)


def other(value: Any) -> list[Any]:  # noqa: ANN401 - any JSON value
    """Values that somebody might write in its place, of which the API server takes one or none."""
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1, 0]
        case str():
            return [f"{value}x", "theirs", "7", "7%", "7s", *WORDS]
        case list():
            return [value[:1], []]
        case dict():
            return [{"matchLabels": {"app": "theirs"}}]
    return []


def edited(api: Api, kind: str, name: str, path: tuple[Step, ...]) -> bool:
    """Whether the API server took any change of this field."""
    live = api.get(kind, name)
    assert live is not None
    value, place = find(live, path), pointer(live, path)
    edits: list[Manifest] = [{"op": "replace", "path": place, "value": each} for each in other(value)]
    for edit in (*edits, {"op": "remove", "path": place}):
        answer = api.client.patch(
            api.path(kind, name),
            content=json.dumps([edit]),
            headers={"Content-Type": "application/json-patch+json"},
            params={"fieldManager": "somebody"},
        )
        assert answer.status_code in (200, 422), answer.text
        if answer.status_code == 200 and find(answer.json(), path) != value:
            return True
    return False


def readable(path: tuple[Step, ...]) -> str:
    return "".join(f".{step}" if isinstance(step, str) else str([value for _, value in step]) for step in path)


def test_every_owned_field_that_somebody_changes_is_as_wished_again(
    api: Api, service_monitors: None, start: Callable[..., Process]
) -> None:
    # A window in which nothing is a fight; the number of repairs is what is tested here.
    operator = start(MILLRACE_FIGHT_WINDOW_SECONDS="0.001", MILLRACE_FIRST_RETRY_SECONDS="0.2")
    operator.wait_until_it_leads()
    api.create(cpu_service())
    eventually(lambda: api.is_complete() and all(api.has(*child) for child in CHILDREN), "children exist")
    refused: set[tuple[str, str]] = set()
    for kind, name in CHILDREN:
        child = api.get(kind, name)
        assert child is not None
        for path in leaves(applied_fields(child)):
            before = find(child, path)
            if before is MISSING:
                continue  # an empty map, which the API server leaves out
            if not edited(api, kind, name, path):
                refused.add((kind, readable(path)))
                continue
            eventually(
                lambda before=before, path=path, kind=kind, name=name: find(api.get(kind, name) or {}, path) == before,  # type: ignore[misc]
                f"{kind} {name}: {readable(path)} is as wished",
                seconds=10,
            )
    assert refused == HELD
    assert operator.failures() == []
