"""Rights that are taken from a running operator one by one, and given back."""

from collections.abc import Callable

import pytest
import yaml

from millrace_operator.manifest import Manifest
from millrace_operator.names import MANAGED_BY_LABEL
from operators import FOREIGN, Api, Process, cpu_service, eventually, make_as_an_earlier_version_did
from services import CHECKOUT

pytestmark = pytest.mark.apiserver

Right = tuple[str, str]
"""Resource and verb."""
LEASES = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]}
IMPATIENT = {"MILLRACE_FIRST_RETRY_SECONDS": "0.2", "MILLRACE_LAST_RETRY_SECONDS": "0.5"}
UNTOLD: set[Right] = {
    ("inferenceservices", "get"),  # without it nothing is known of the service
    ("inferenceservices", "list"),  # those that are known go on
    ("inferenceservices/status", "update"),  # without it nothing can be told
    ("pods", "patch"),  # any replica goes first
    ("horizontalpodautoscalers", "list"),  # those that were seen are known
    ("events", "create"),
    ("events", "patch"),
}
"""Whose loss no status tells. The same is true of each `watch`: one that runs goes on, and full lists see what it would have shown."""


def take_a_label(api: Api, kind: str, label: str) -> None:
    """From our child `chat`. Without `managed-by` the child is not among ours any more."""
    api.patch(api.path(kind, "chat"), {"metadata": {"labels": {label: None}}})


def outlive(api: Api, kind: str) -> None:
    make_as_an_earlier_version_did(api, kind, "outlived", owner=api.service())


NEEDS: dict[str, Callable[[Api, str], None]] = {
    "create": lambda api, kind: api.delete(api.path(kind, "chat")),
    "delete": outlive,
    "get": lambda api, kind: take_a_label(api, kind, MANAGED_BY_LABEL),
    "list": lambda *_: None,
    "patch": lambda api, kind: take_a_label(api, kind, "app.kubernetes.io/name"),
}
"""By verb: what makes the operator need the right for a kind of child."""
OTHER_NEEDS: dict[Right, Callable[[Api, str], None]] = {
    ("deployments/scale", "patch"): lambda api, _: api.edit({"spec": {"autoscaling": {"minReplicas": 2}}}),
    ("secrets", "create"): lambda api, _: api.edit({"spec": {"cache": {"type": "redis"}}}),
}


def need(api: Api, right: Right) -> None:
    resource, verb = right
    OTHER_NEEDS.get(right, NEEDS[verb])(api, resource)


def rules() -> list[Manifest]:
    """What the installed operator may do to services and their children."""
    documents = yaml.safe_load_all((CHECKOUT / "manifests/install.yaml").read_text())
    return next(each["rules"] for each in documents if each["kind"] == "ClusterRole" and each["metadata"]["name"] == "millrace-operator")


def rights() -> list[Right]:
    return [(resource, verb) for rule in rules() for resource in rule["resources"] for verb in rule["verbs"]]


def grant(api: Api, *, without: Right | None = None) -> None:
    """In the test's namespace."""
    left = [
        {**rule, "verbs": [verb for verb in rule["verbs"] if (resource, verb) != without], "resources": [resource]}
        for rule in (*rules(), LEASES)
        for resource in rule["resources"]
    ]
    body = {"metadata": {"name": "operator"}, "rules": [rule for rule in left if rule["verbs"]]}
    answer = api.client.put(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{api.namespace}/roles/operator", json=body)
    assert answer.is_success, answer.text


def denied(api: Api, name: str, words: str) -> bool:
    return any(words in each["message"] for each in api.service(name).get("status", {}).get("conditions", []))


@pytest.fixture
def restricted(api: Api, start: Callable[..., Process]) -> Process:
    """An operator with the rights of the installed one, and no others."""
    grant(api)
    binding = {
        "metadata": {"name": "operator"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"},
        "subjects": [{"kind": "User", "name": api.namespace}],
    }
    made = api.client.post(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{api.namespace}/rolebindings", json=binding)
    assert made.status_code == 201, made.text
    process = start(KUBECONFIG=str(api.control_plane.kubeconfig_for(api.namespace)), **IMPATIENT)
    process.wait_until_it_leads()
    return process


def test_a_right_that_is_missing_is_named_in_the_status_and_heals_when_it_is_back(
    api: Api, service_monitors: None, restricted: Process
) -> None:
    for name in ("chat", "other"):
        api.create(cpu_service(name))
        eventually(lambda name=name: api.is_complete(name) and api.has("servicemonitors", name), "children exist")  # type: ignore[misc]
    for right in rights():
        resource, verb = right
        if right in UNTOLD or verb == "watch":
            continue
        words = f'cannot {verb} resource "{resource}"'
        grant(api, without=right)
        need(api, right)
        eventually(lambda words=words: denied(api, "chat", words), words)  # type: ignore[misc]
        assert verb == "list" or not denied(api, "other", words), "whoever does not need it does not notice"
        grant(api)
        eventually(lambda words=words: not denied(api, "chat", words), f"after {words}: it heals")  # type: ignore[misc]
    eventually(lambda: api.is_replicas(2) and all(api.has(kind, "chat") for kind in FOREIGN), "everything is there again")
    assert not any(api.has(kind, "outlived") for kind in FOREIGN)
    assert restricted.process.poll() is None
    assert not restricted.said("Traceback")


def test_without_a_right_that_no_status_can_tell_the_operator_lives_on_and_goes_on_when_it_is_back(api: Api, restricted: Process) -> None:
    api.create(cpu_service())
    eventually(api.is_complete, "children exist")
    untold = [right for right in rights() if right in UNTOLD or right[1] == "watch"]
    assert set(untold) >= UNTOLD
    for number, right in enumerate(untold):
        grant(api, without=right)
        api.edit({"spec": {"image": f"other:{number}"}})
        if right[0] != "inferenceservices" or right[1] != "get":
            eventually(lambda number=number: api.image() == f"other:{number}", f"it goes on without {right}")  # type: ignore[misc]
        grant(api)
        eventually(lambda number=number: api.image() == f"other:{number}" and api.is_complete(), f"it goes on after {right}")  # type: ignore[misc]
    assert restricted.process.poll() is None
    assert not restricted.said("Traceback")
