"""Drift is a field that is no longer ours. The trees are as the API server writes them; test_operator.py asks a real one."""

from typing import Any

import pytest

from millrace_operator.manifest import Manifest
from millrace_operator.names import FIELD_MANAGER
from millrace_operator.ownership import drift, is_as_wished, lost_fields, owns, stamped

WISH: Manifest = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {
        "name": "chat",
        "namespace": "demo",
        "labels": {"a": "b"},
        "annotations": {},
        "ownerReferences": [{"uid": "1", "kind": "X"}],
    },
    "spec": {
        "ports": [{"port": 80, "name": "http"}, {"port": 81, "name": "other", "protocol": "TCP"}],
        "finalizers": ["x"],
        "selector": {"app": "chat"},
        "publishNotReadyAddresses": False,
        "command": ["a", "b"],
    },
}
PORT: Manifest = {".": {}, "f:port": {}, "f:name": {}}
OWNED: Manifest = {
    "f:metadata": {
        "f:labels": {"f:a": {}},
        "f:annotations": {"f:millrace.dev/applied-hash": {}},
        "f:ownerReferences": {'k:{"uid":"1"}': {}},
    },
    "f:spec": {
        "f:ports": {'k:{"port":80,"protocol":"TCP"}': PORT, 'k:{"port":81,"protocol":"TCP"}': {**PORT, "f:protocol": {}}},
        "f:finalizers": {'v:"x"': {}},
        "f:selector": {},
        "f:command": {},
    },
}


def live(owned: Manifest, wish: Manifest = WISH, **entry: Any) -> Manifest:  # noqa: ANN401
    managed = {"manager": FIELD_MANAGER, "operation": "Apply", "fieldsV1": owned, **entry}
    wish = stamped(wish)
    return {**wish, "metadata": {**wish["metadata"], "managedFields": [managed]}}


def without(tree: Manifest, *path: str) -> Manifest:
    """As the API server does, a parent that has nothing left goes too."""
    rest = {key: value for key, value in tree.items() if key != path[0]}
    if len(path) == 1:
        return rest
    smaller = without(tree[path[0]], *path[1:])
    return {**rest, path[0]: smaller} if smaller else rest


def test_what_was_applied_and_left_alone_is_as_wished() -> None:
    assert list(lost_fields(stamped(WISH), live(OWNED))) == []
    assert is_as_wished(stamped(WISH), live(OWNED))


@pytest.mark.parametrize(
    ("path", "lost"),
    [
        (("f:metadata", "f:labels", "f:a"), ".metadata.labels"),
        (("f:metadata", "f:ownerReferences", 'k:{"uid":"1"}'), ".metadata.ownerReferences"),
        (("f:spec", "f:ports", 'k:{"port":80,"protocol":"TCP"}', "f:name"), ".spec.ports[http].name"),
        (("f:spec", "f:ports", 'k:{"port":81,"protocol":"TCP"}'), ".spec.ports[other]"),
        (("f:spec", "f:finalizers", 'v:"x"'), ".spec.finalizers"),
        (("f:spec", "f:selector"), ".spec.selector"),
        (("f:spec", "f:command"), ".spec.command"),
    ],
)
def test_a_field_that_another_manager_took_is_named(path: tuple[str, ...], lost: str) -> None:
    assert list(lost_fields(stamped(WISH), live(without(OWNED, *path)))) == [lost]


def test_a_changed_wish_is_seen_by_its_hash_also_when_it_only_drops_a_field() -> None:
    smaller = {**WISH, "spec": {key: value for key, value in WISH["spec"].items() if key != "command"}}
    assert not is_as_wished(stamped(smaller), live(OWNED))


@pytest.mark.parametrize("entry", [{"manager": "kubectl"}, {"operation": "Update"}, {"subresource": "status"}])
def test_an_object_that_we_never_applied_is_not_ours(entry: Manifest) -> None:
    assert not is_as_wished(stamped(WISH), live(OWNED, **entry))
    assert not owns(live(OWNED, **entry), "spec")


def test_an_empty_value_that_somebody_filled_is_lost() -> None:
    filled = live(OWNED)
    filled["spec"] = {**filled["spec"], "publishNotReadyAddresses": True}
    assert list(lost_fields(stamped(WISH), filled)) == [".spec.publishNotReadyAddresses"]


def test_an_empty_map_claims_nothing_that_others_put_in_it() -> None:
    """A restarted rollout annotates the pod template: repairing that would never come to an end."""
    wish = {**WISH, "spec": {**WISH["spec"], "annotations": {}}}
    filled = live(OWNED)
    filled["spec"] = {**filled["spec"], "annotations": {"kubectl.kubernetes.io/restartedAt": "now"}}
    assert list(lost_fields(stamped(wish), filled)) == []


def test_drift_names_the_fields_and_whoever_has_them_now() -> None:
    taken = live(without(OWNED, "f:spec", "f:selector"))
    thief = {"manager": "meddler", "operation": "Update", "fieldsV1": {"f:spec": {"f:selector": {}}}}
    bystander = {"manager": "scaler", "operation": "Update", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    taken["metadata"]["managedFields"] += [thief, bystander]
    found = drift(WISH, taken)
    assert found is not None
    assert (found.fields, found.managers, found.is_undone) == ((".spec.selector",), ("meddler",), False)


def test_an_edit_on_its_way_is_no_drift() -> None:
    edited = {**WISH, "spec": {**WISH["spec"], "new": "field"}}
    assert drift(edited, live(OWNED)) is None
    assert drift(WISH, live(OWNED)) is None
    assert drift(WISH, live(OWNED, manager="kubectl")) is None, "it was never ours"
