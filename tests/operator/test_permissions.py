"""The operator lives as the chart installs it, and everything that it was granted is used, and nothing else was asked for.

Used permissions are those in the API server's audit log, granted ones those in the chart's Roles.
"""

from collections.abc import Callable

import pytest

from millrace_operator.names import child_labels
from millrace_operator.victims import DELETION_COST, FIRST
from operators import FOREIGN, Api, Process, cpu_service, eventually, make_as_an_earlier_version_did
from rights import Right, granted, installed, kubeconfig, requests, used

pytestmark = pytest.mark.apiserver

Start = Callable[..., Process]
REDIS = {"type": "redis"}


def make_foreign(api: Api, kind: str, name: str) -> None:
    version, written_kind, spec = FOREIGN[kind]
    foreign = {"apiVersion": version, "kind": written_kind, "metadata": {"name": name}, "spec": spec}
    made = api.client.post(api.path(kind, ""), json=foreign)
    assert made.status_code == 201, made.text


def make_a_replica_that_was_to_go_first(api: Api, name: str) -> None:
    pod = {
        "metadata": {"name": name, "labels": child_labels("chat"), "annotations": {DELETION_COST: FIRST}},
        "spec": {"containers": [{"name": "x", "image": "x"}]},
    }
    made = api.client.post(f"/api/v1/namespaces/{api.namespace}/pods", json=pod)
    assert made.status_code == 201, made.text


def live_a_life(api: Api, operator: Process, start_next: Callable[[], Process]) -> None:
    """Every duty of an operator, once."""
    for kind in FOREIGN:
        make_foreign(api, kind, "taken")
    api.create(cpu_service("taken"))
    eventually(lambda: api.condition("Stalled", "taken") == ("True", "NameConflict"), "a name is taken")
    chat = api.create(cpu_service(cache=REDIS, apiKeysSecret="keys", autoscaling={"minReplicas": 2, "maxReplicas": 3}))
    eventually(lambda: api.is_complete() and api.has("deployments", "chat-redis") and api.is_replicas(2), "all children exist")
    for kind in FOREIGN:
        make_as_an_earlier_version_did(api, kind, "outlived", owner=chat)
        eventually(lambda kind=kind: not api.has(kind, "outlived"), f"what is no longer wished for goes: {kind}")  # type: ignore[misc]
    for _ in range(2):
        api.patch(api.path("services", "chat"), {"spec": {"selector": {"app": "evil"}}})
        eventually(lambda: "app" not in (api.get("services", "chat") or {})["spec"]["selector"], "it is put back, and told")
    api.edit({"spec": {"image": "other:1", "cache": {"type": "memory"}, "autoscaling": {"minReplicas": 3}}})
    eventually(lambda: api.image() == "other:1" and not api.has("deployments", "chat-redis") and api.is_replicas(3), "an edit")
    make_a_replica_that_was_to_go_first(api, "chat-1")
    api.edit({"spec": {"autoscaling": {"minReplicas": 1, "maxReplicas": 2}}})
    eventually(lambda: api.is_replicas(2), "it shrinks, and sees anew who goes first")
    following = start_next()
    assert operator.stop() == 0
    following.wait_until_it_leads()
    api.delete(f"{api.root}/chat")
    eventually(lambda: 'name="taken"' in following.get("/metrics").text and 'name="chat"' not in following.get("/metrics").text, "it goes")


@pytest.mark.parametrize("mode", ["everywhere", "in one namespace"])
def test_what_the_chart_grants_is_what_the_operator_uses(api: Api, service_monitors: None, start: Start, mode: str) -> None:
    namespaces = "" if mode == "everywhere" else api.namespace
    rights = granted(installed(api, *([f"watchNamespaces={{{namespaces}}}"] if namespaces else [])))
    assert all(right.namespace for right in rights) == bool(namespaces)

    def start_one() -> Process:
        return start(KUBECONFIG=kubeconfig(api), MILLRACE_NAMESPACES=namespaces)

    operator = start_one()
    operator.wait_until_it_leads()
    live_a_life(api, operator, start_one)

    def never_used() -> list[Right]:
        uses = used(requests(api))
        return sorted(right for right in rights if not any(right.covers(use) for use in uses))

    eventually(lambda: not never_used(), lambda: f"all that was granted is used, but {never_used()}")
    asked = requests(api)
    assert sorted(use for use in used(asked) if not any(right.covers(use) for right in rights)) == [], "asked for and not granted"
    # What tests before left in other namespaces is being deleted there.
    here = [each for each in asked if each.get("objectRef", {}).get("namespace") == api.namespace]
    assert [(each["requestURI"], each["responseStatus"]) for each in here if each.get("responseStatus", {}).get("code") == 403] == []
