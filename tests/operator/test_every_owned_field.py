"""Whatever field of a child the operator owns: who edits it by hand finds it as it was a moment later."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from millrace_operator.manifest import Manifest
from millrace_operator.names import FIELD_MANAGER
from operators import Api, Process, cpu_service, eventually

pytestmark = pytest.mark.apiserver

CHILDREN = [
    ("deployments", "chat"),
    ("deployments", "chat-redis"),
    ("services", "chat"),
    ("services", "chat-metrics"),
    ("services", "chat-redis"),
    ("poddisruptionbudgets", "chat"),
    ("networkpolicies", "chat"),
    ("networkpolicies", "chat-redis"),
]
IDENTITY = "/metadata/ownerReferences"
"""Without it a child is no longer the service's: then it is garbage, or a name that is taken."""


def owned(fields: Manifest, value: Any, pointer: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - any part of a manifest
    """JSON pointer and value of every leaf of a FieldsV1."""
    for key, below in fields.items():
        if key.startswith("f:") and key[2:] in value:
            place, found = key[2:].replace("~", "~0").replace("/", "~1"), value[key[2:]]
        elif key.startswith("k:"):
            wanted = json.loads(key[2:])
            place = next(index for index, each in enumerate(value) if wanted.items() <= each.items())
            found = value[place]
            below = {name: each for name, each in below.items() if name[2:] not in wanted}  # who renames an entry adds one
        else:
            continue
        if below:
            yield from owned(below, found, f"{pointer}/{place}")
        else:
            yield f"{pointer}/{place}", found


def other(value: Any) -> Any:  # noqa: ANN401 - any part of a manifest
    """Something else of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    return [] if isinstance(value, list) else {}


def at(manifest: Manifest, pointer: str) -> Any:  # noqa: ANN401 - any part of a manifest
    """None where there is nothing."""
    found: Any = manifest
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        found = dict(enumerate(found)).get(int(name)) if isinstance(found, list) else (found or {}).get(name)
    return found


@pytest.fixture
def unwearied(start: Callable[..., Process]) -> Process:
    """An operator to whom nothing is a fight."""
    process = start(MILLRACE_FIGHT_WINDOW_SECONDS="0.01")
    process.wait_until_it_leads()
    return process


def test_every_owned_field_that_is_edited_is_put_back(api: Api, unwearied: Process) -> None:
    spec = {
        "cache": {"type": "redis"},
        "apiKeysSecret": "keys",
        "resources": {"limits": {"memory": "2Gi"}},
        "nodeSelector": {"disk": "ssd"},
    }
    api.create(cpu_service(**spec, autoscaling={"minReplicas": 2, "maxReplicas": 3}))
    eventually(lambda: api.is_complete() and all(api.has(*child) for child in CHILDREN), "all children exist")
    for kind, name in CHILDREN:
        path = api.path(kind, name)

        def send(edits: list[Manifest], path: str = path, **query: str) -> bool:
            headers = {"Content-Type": "application/json-patch+json"}
            return api.client.patch(path, content=json.dumps(edits), headers=headers, params=query).status_code == 200

        live = api.client.get(path).json()
        [ours] = [each["fieldsV1"] for each in live["metadata"]["managedFields"] if each["manager"] == FIELD_MANAGER]
        leaves = [leaf for leaf in owned(ours, live) if not leaf[0].startswith(IDENTITY)]
        edits = [{"op": "replace", "path": pointer, "value": other(value)} for pointer, value in leaves]
        possible = [each for each in edits if each["value"] != at(live, each["path"]) and send([each], dryRun="All")]
        assert len(possible) >= len(edits) / 2, f"of {kind} {name} the API server refuses nearly everything"
        for edit in possible:
            was = at(live, edit["path"])
            if not send([edit]):
                continue  # refused beside what the operator has just put back
            eventually(lambda path=path, edit=edit, was=was: at(api.client.get(path).json(), edit["path"]) == was, f"{path}: {edit}")  # type: ignore[misc]
