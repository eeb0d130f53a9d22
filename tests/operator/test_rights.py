"""Rights that are taken from a running operator one by one, and given back."""

from collections.abc import Callable

import pytest
import yaml

from millrace_operator.manifest import Manifest
from operators import Api, Process, cpu_service, eventually
from services import CHECKOUT

pytestmark = pytest.mark.apiserver

REDIS, MEMORY = {"spec": {"cache": {"type": "redis"}}}, {"spec": {"cache": {"type": "memory"}}}
LEASES = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]}
RIGHTS: dict[tuple[str, str], Callable[[Api], object]] = {
    ("deployments/scale", "patch"): lambda api: api.edit({"spec": {"autoscaling": {"minReplicas": 2}}}),
    ("deployments", "patch"): lambda api: api.edit({"spec": {"image": "other:1"}}),
    ("services", "create"): lambda api: api.delete(api.path("services", "chat")),
    ("secrets", "create"): lambda api: api.edit(REDIS),
    ("networkpolicies", "delete"): lambda api: api.edit(MEMORY),
    ("poddisruptionbudgets", "list"): lambda _: None,
    ("servicemonitors", "list"): lambda _: None,
}
"""What makes the operator need a right that it lost; in this order."""


def rules() -> list[Manifest]:
    """What the installed operator may do to services and their children."""
    documents = yaml.safe_load_all((CHECKOUT / "manifests/install.yaml").read_text())
    return next(each["rules"] for each in documents if each["kind"] == "ClusterRole" and each["metadata"]["name"] == "millrace-operator")


def grant(api: Api, *, without: tuple[str, str] | None = None) -> None:
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
    process = start(KUBECONFIG=str(api.control_plane.kubeconfig_for(api.namespace)))
    process.wait_until_it_leads()
    return process


def test_a_right_that_is_missing_is_named_in_the_status_and_heals_when_it_is_back(api: Api, restricted: Process) -> None:
    for name in ("chat", "other"):
        api.create(cpu_service(name))
        eventually(lambda name=name: api.is_complete(name), "children exist")  # type: ignore[misc]
    for (resource, verb), need in RIGHTS.items():
        words = f'cannot {verb} resource "{resource}"'
        grant(api, without=(resource, verb))
        need(api)
        eventually(lambda words=words: denied(api, "chat", words), words)  # type: ignore[misc]
        assert verb == "list" or not denied(api, "other", words), "whoever does not need it does not notice"
        grant(api)
        eventually(lambda words=words: not denied(api, "chat", words), f"after {words}: it heals")  # type: ignore[misc]
    assert restricted.process.poll() is None
    assert not restricted.said("Traceback")
