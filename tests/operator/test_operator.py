"""What the operator does for a service, against a real API server with garbage collection. There are no nodes."""

import json
import time
from typing import Any

import pytest

from millrace_operator.manifest import Manifest
from millrace_operator.names import FIELD_MANAGER
from operators import FOREIGN, Api, Process, cpu_service, eventually

pytestmark = pytest.mark.apiserver


def test_an_applied_service_gets_its_children_and_a_status(api: Api, shared_operator: Process) -> None:
    began = time.monotonic()
    uid = api.create(cpu_service(autoscaling={"minReplicas": 2}))["metadata"]["uid"]
    eventually(api.is_complete, "children and status exist")
    print(f"children and status after {time.monotonic() - began:.2f} s")  # noqa: T201 - a figure to report
    eventually(lambda: api.is_replicas(2), "the minimum is asked for")
    eventually(lambda: api.service()["status"].get("replicas") == 2, "the status tells the replicas")
    status = api.service()["status"]
    assert api.condition("Ready") == ("False", "Starting")
    assert api.condition("Reconciling") == ("True", "Starting")
    assert status["url"] == f"http://chat.{api.namespace}.svc"
    for kind, name in (("deployments", "chat"), ("poddisruptionbudgets", "chat"), ("services", "chat"), ("services", "chat-metrics")):
        child = api.get(kind, name)
        assert child is not None
        assert [owner["uid"] for owner in child["metadata"]["ownerReferences"]] == [uid]
    assert "finalizers" not in api.service()["metadata"]
    assert "annotations" not in api.service()["metadata"]


CHILDREN = [
    ("deployments", "chat"),
    ("deployments", "chat-redis"),
    ("networkpolicies", "chat"),
    ("networkpolicies", "chat-redis"),
    ("poddisruptionbudgets", "chat"),
    ("services", "chat"),
    ("services", "chat-metrics"),
    ("services", "chat-redis"),
]
REDIS = {"type": "redis"}


def has_children(api: Api) -> bool:
    return all(api.has(*child) for child in CHILDREN) and api.is_complete()


@pytest.mark.parametrize(("kind", "name"), CHILDREN)
def test_a_deleted_child_comes_back(api: Api, shared_operator: Process, kind: str, name: str) -> None:
    api.create(cpu_service(cache=REDIS))
    eventually(lambda: has_children(api), "children exist")
    child = api.get(kind, name)
    assert child is not None
    began = time.monotonic()
    api.delete(api.path(kind, name))

    def is_new() -> bool:
        now = api.get(kind, name)
        return now is not None and bool(now["metadata"]["uid"] != child["metadata"]["uid"])

    eventually(is_new, "a new child")
    print(f"repaired after {time.monotonic() - began:.2f} s")  # noqa: T201 - a figure to report


def test_an_edited_field_is_restored_and_a_foreign_one_is_left_alone(api: Api, shared_operator: Process) -> None:
    api.create(cpu_service())
    eventually(api.is_complete, "children exist")
    path = api.path("services", "chat")
    api.patch(
        path, {"metadata": {"annotations": {"someone.else/note": "mine"}, "labels": {"team": "a"}}, "spec": {"selector": {"app": "evil"}}}
    )

    def selector() -> Manifest:
        live = api.get("services", "chat")
        assert live is not None
        return dict(live["spec"]["selector"])

    eventually(lambda: "app" not in selector() and len(selector()) == 2, "the selector is ours again")
    live = api.get("services", "chat")
    assert live is not None
    assert live["metadata"]["annotations"]["someone.else/note"] == "mine"
    assert live["metadata"]["labels"]["team"] == "a"


@pytest.mark.parametrize(
    ("kind", "place", "key"),
    [("services", "/spec/ports", "port"), ("deployments", "/spec/template/spec/containers/0/ports", "containerPort")],
)
def test_a_port_that_was_given_another_number_gets_its_own_again(
    api: Api, shared_operator: Process, kind: str, place: str, key: str
) -> None:
    api.create(cpu_service())
    eventually(api.is_complete, "children exist")

    def ports() -> list[Manifest]:
        found: Any = api.get(kind, "chat")
        for step in place.split("/")[1:]:
            found = found[int(step) if step.isdigit() else step]
        return list(found)

    before = ports()
    edit = [{"op": "replace", "path": f"{place}/0/{key}", "value": 4711}]
    headers = {"Content-Type": "application/json-patch+json"}
    assert api.client.patch(api.path(kind, "chat"), content=json.dumps(edit), headers=headers).status_code == 200
    eventually(lambda: ports() == before, "its number is ours again, and no other port is there")


def test_a_label_that_is_taken_away_is_put_back(api: Api, shared_operator: Process) -> None:
    """Without it the child leaves the watch, which says so as if it were deleted, and it is found by its name."""
    api.create(cpu_service())
    eventually(api.is_complete, "children exist")
    api.patch(api.path("services", "chat"), {"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}})

    def label() -> bool:
        live = api.get("services", "chat")
        return live is not None and live["metadata"]["labels"].get("app.kubernetes.io/managed-by") == FIELD_MANAGER

    eventually(label, "the label is back")


@pytest.mark.parametrize(("kind", "name"), CHILDREN)
def test_a_foreign_object_with_a_child_s_name_is_never_adopted(api: Api, shared_operator: Process, kind: str, name: str) -> None:
    version, written_kind, spec = FOREIGN[kind]
    foreign = {"apiVersion": version, "kind": written_kind, "metadata": {"name": name}, "spec": spec}
    made = api.client.post(api.path(kind, ""), json=foreign)
    assert made.status_code == 201, made.text
    api.create(cpu_service(cache=REDIS))
    eventually(lambda: api.condition("Stalled") == ("True", "NameConflict"), "the conflict is told")
    assert f"{written_kind} {name!r} exists and does not belong to this InferenceService" in api.message("Stalled")
    assert all(api.has(*child) for child in CHILDREN), "the other children are made"
    live = api.get(kind, name)
    assert live is not None
    assert live["spec"] == made.json()["spec"]
    assert "ownerReferences" not in live["metadata"]
    api.delete(api.path(kind, name))
    eventually(lambda: api.condition("Stalled")[0] == "False", "it heals without an edit")
    assert api.has(kind, name)


def test_a_deleted_service_takes_its_children_along(api: Api, shared_operator: Process) -> None:
    api.create(cpu_service(cache=REDIS))
    eventually(lambda: has_children(api), "children exist")
    secret = f"chat-redis-{api.service()['metadata']['uid'][:8]}"
    api.delete(f"{api.root}/chat")
    everything = [*CHILDREN, ("secrets", secret)]
    # Kubernetes' collector looks for new definitions, such as ours, every 30 s, and is patient with what it does not know yet.
    eventually(lambda: not any(api.has(*child) for child in everything), "the children are collected", seconds=120)


def test_a_service_that_is_deleted_and_made_again_gets_children_of_its_own(api: Api, shared_operator: Process) -> None:
    api.create(cpu_service())
    eventually(api.is_complete, "children exist")
    api.delete(f"{api.root}/chat")
    uid = api.create(cpu_service(image="other:1"))["metadata"]["uid"]

    def is_of_the_new_one() -> bool:
        deployment = api.get("deployments", "chat")
        return deployment is not None and bool(deployment["metadata"]["ownerReferences"][0]["uid"] == uid)

    eventually(is_of_the_new_one, "the children belong to the new service", seconds=40)
    assert api.image() == "other:1"


def test_an_edit_of_the_image_reaches_the_pods(api: Api, shared_operator: Process) -> None:
    api.create(cpu_service())
    eventually(api.is_complete, "children exist")
    assert api.image() == "millrace/server:test"
    api.edit({"spec": {"image": "registry.example/own:2"}})
    eventually(lambda: api.image() == "registry.example/own:2", "the new image")
    eventually(lambda: api.service()["status"]["observedGeneration"] == 2, "the status is about the edit")
    api.edit({"spec": {"image": None}})
    eventually(lambda: api.image() == "millrace/server:test", "an unset field falls back")


def test_a_replica_count_changed_by_hand_is_clamped(api: Api, shared_operator: Process) -> None:
    api.create(cpu_service(autoscaling={"minReplicas": 2, "maxReplicas": 3}))
    eventually(lambda: api.is_replicas(2), "the minimum")
    api.patch(f"{api.path('deployments', 'chat')}/scale", {"spec": {"replicas": 9}})
    eventually(lambda: api.is_replicas(3), "the maximum")


def test_the_count_stays_when_its_owner_changes(api: Api, shared_operator: Process) -> None:
    """A fixed count becomes ours to scale, then somebody else's, then fixed again: no step passes through 1."""
    api.create(cpu_service(autoscaling={"mode": "None"}, replicas=3))
    eventually(lambda: api.is_replicas(3), "the fixed count")
    seen: list[int] = []

    def settles(generation: int) -> bool:
        deployment = api.get("deployments", "chat")
        assert deployment is not None
        seen.append(deployment["spec"]["replicas"])
        return bool(api.service()["status"]["observedGeneration"] == generation)

    api.edit({"spec": {"autoscaling": {"mode": "Embedded"}, "replicas": None}})
    eventually(lambda: settles(2), "mode Embedded")
    api.edit({"spec": {"autoscaling": {"mode": "None"}}})
    eventually(lambda: settles(3), "mode None without a count")
    api.patch(f"{api.path('deployments', 'chat')}/scale", {"spec": {"replicas": 5}})
    shared_operator.wait_for_passes(1)
    assert api.is_replicas(5), "somebody else's count is left alone"
    assert set(seen) == {3}
    api.edit({"spec": {"replicas": 2}})
    eventually(lambda: api.is_replicas(2), "a fixed count again")


def test_scaling_the_service_itself_scales_its_deployment(api: Api, shared_operator: Process) -> None:
    """As `kubectl scale infsvc/chat` does, and an HPA that is pointed at it."""
    api.create(cpu_service(autoscaling={"mode": "None"}, replicas=1))
    eventually(lambda: api.is_replicas(1), "the fixed count")
    api.patch(f"{api.root}/chat/scale", {"spec": {"replicas": 4}})
    eventually(lambda: api.is_replicas(4), "the count of the scale subresource")
    eventually(lambda: api.client.get(f"{api.root}/chat/scale").json()["status"]["replicas"] == 4, "the scale tells the count")
    selector = api.client.get(f"{api.root}/chat/scale").json()["status"]["selector"]
    deployment = api.get("deployments", "chat")
    assert deployment is not None
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert {label: labels[label] for label in (pair.split("=")[0] for pair in selector.split(","))} == dict(
        pair.split("=") for pair in selector.split(",")
    )


def make_ready(api: Api) -> None:
    """Every pod, as a kubelet would say it; there is none."""
    pods = f"/api/v1/namespaces/{api.namespace}/pods"
    ready = {"conditions": [{"type": "Ready", "status": "True"}], "phase": "Running"}
    for pod in api.client.get(pods).json()["items"]:
        api.patch(f"{pods}/{pod['metadata']['name']}/status", {"status": ready})


def test_scaling_a_service_that_serves_leaves_it_ready(api: Api, shared_operator: Process) -> None:
    api.create(cpu_service(autoscaling={"mode": "None"}, replicas=1))
    eventually(lambda: api.client.get(f"/api/v1/namespaces/{api.namespace}/pods").json()["items"], "a replica")
    make_ready(api)
    eventually(lambda: api.condition("Ready") == ("True", "Serving"), "it serves")
    since = api.since("Ready")
    eventually(lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()) > since, "another second has come")
    api.patch(f"{api.root}/chat/scale", {"spec": {"replicas": 3}})
    eventually(lambda: api.condition("Reconciling") == ("True", "Starting"), "it is on its way to three")
    eventually(lambda: api.service()["status"]["replicas"] == 3, "there are three")
    assert (api.condition("Ready"), api.since("Ready")) == (("True", "Serving"), since)


def test_mode_none_from_the_start_leaves_the_count_to_kubernetes_and_to_others(api: Api, shared_operator: Process) -> None:
    api.create(cpu_service(autoscaling={"mode": "None"}))
    eventually(api.is_complete, "children exist")
    assert api.is_replicas(1)
    api.patch(f"{api.path('deployments', 'chat')}/scale", {"spec": {"replicas": 0}}, manager="hpa")
    api.edit({"spec": {"image": "other:1"}})
    eventually(lambda: api.image() == "other:1", "an edit is applied")
    assert api.is_replicas(0)


def test_a_misspelt_field_of_a_child_is_refused(api: Api) -> None:
    """Strict validation is what makes a defect of ours an error and not silence."""
    body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"ports": [{"port": 1}], "slector": {}}}
    answer = api.client.patch(
        api.path("services", "x"),
        content=json.dumps(body),
        headers={"Content-Type": "application/apply-patch+yaml"},
        params={"fieldManager": FIELD_MANAGER, "force": "true", "fieldValidation": "Strict"},
    )
    assert answer.status_code >= 400
    assert ".spec.slector: field not declared in schema" in answer.text


def test_what_cannot_be_created_is_told_and_does_not_stop_the_rest(api: Api, shared_operator: Process) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}, "spec": {"hard": {"services": "1"}}}
    assert api.client.post(f"/api/v1/namespaces/{api.namespace}/resourcequotas", json=quota).status_code == 201

    def is_known() -> bool:
        answer = api.client.get(f"/api/v1/namespaces/{api.namespace}/resourcequotas/small")
        return bool(answer.json().get("status", {}).get("hard"))

    eventually(is_known, "the quota is enforced")
    api.create(cpu_service())
    eventually(lambda: api.condition("Ready") == ("False", "QuotaExceeded"), "the quota is named")
    assert api.condition("Stalled")[0] == "False"
    assert api.has("deployments", "chat")
    api.delete(f"/api/v1/namespaces/{api.namespace}/resourcequotas/small")
    eventually(lambda: api.condition("Ready") == ("False", "Starting"), "it heals without an edit")


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"service": {"type": "NodePort", "nodePort": 1}}, "spec.service.nodePort"),
        (
            {"service": {"type": "LoadBalancer", "annotations": {"service.beta.kubernetes.io/load-balancer-source-ranges": "here"}}},
            "spec.service.annotations",
        ),
        ({"podAnnotations": {"seccomp.security.alpha.kubernetes.io/pod": "none"}}, "spec.podAnnotations"),
    ],
)
def test_a_value_that_only_the_api_server_can_judge_is_told_by_the_user_s_own_field(
    api: Api, shared_operator: Process, spec: Manifest, field: str
) -> None:
    api.create(cpu_service(**spec))
    eventually(lambda: api.condition("Stalled") == ("True", "InvalidSpec"), "the refusal is told")
    assert api.message("Stalled").startswith(f"{field} is refused: ")
    assert "Correct the field" in api.message("Stalled")
    assert "defect" not in api.message("Stalled")
    api.edit({"spec": {field.split(".")[1]: None}})
    eventually(lambda: api.condition("Stalled")[0] == "False", "the correction heals it")


def test_a_policy_that_denies_a_child_is_no_defect_and_heals_by_itself(api: Api, shared_operator: Process) -> None:
    policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
    rules = [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["services"]}]
    here = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": api.namespace}}, "resourceRules": rules}
    policy = {"matchConstraints": here, "validations": [{"expression": "false", "message": "no Services here"}]}
    binding = {"policyName": api.namespace, "validationActions": ["Deny"]}
    name = {"metadata": {"name": api.namespace}}
    assert api.client.post(policies, json={**name, "spec": policy}).status_code == 201
    assert api.client.post(f"{policies.removesuffix('ies')}ybindings", json={**name, "spec": binding}).status_code == 201
    probe = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "probe"}, "spec": {"ports": [{"port": 1}]}}
    dry = {"dryRun": "All"}
    eventually(lambda: api.client.post(api.path("services", ""), json=probe, params=dry).status_code == 422, "the policy is in force")
    api.create(cpu_service())
    eventually(lambda: api.condition("Ready") == ("False", "Forbidden"), "the policy is named")
    assert "no Services here" in api.message("Ready")
    assert api.condition("Stalled")[0] == "False"
    api.delete(f"{policies}/{api.namespace}")
    eventually(lambda: api.condition("Ready") == ("False", "Starting"), "it heals without an edit")
    api.delete(f"{policies.removesuffix('ies')}ybindings/{api.namespace}")


def test_only_a_child_that_is_ours_by_owner_and_by_manager_is_pruned(api: Api, shared_operator: Process) -> None:
    uid = api.create(cpu_service())["metadata"]["uid"]
    eventually(api.is_complete, "children exist")
    live = api.get("services", "chat")
    assert live is not None
    owned = {"labels": live["metadata"]["labels"], "ownerReferences": live["metadata"]["ownerReferences"]}
    assert owned["ownerReferences"][0]["uid"] == uid

    def apply(name: str, *, manager: str, **metadata: Any) -> None:  # noqa: ANN401 - fields of metadata
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, **metadata}, "spec": {"ports": [{"port": 1}]}}
        headers, query = {"Content-Type": "application/apply-patch+yaml"}, {"fieldManager": manager, "force": "true"}
        answer = api.client.patch(api.path("services", name), content=json.dumps(service), headers=headers, params=query)
        assert answer.status_code == 201, answer.text

    apply("labelled-only", manager=FIELD_MANAGER, labels=owned["labels"])
    apply("of-another-manager", manager="somebody", **owned)
    apply("of-an-older-version", manager=FIELD_MANAGER, **owned)
    eventually(lambda: not api.has("services", "of-an-older-version"), "the child that is no longer wanted goes")
    assert api.has("services", "labelled-only")
    assert api.has("services", "of-another-manager")


def test_a_namespace_that_is_deleted_goes_quietly(api: Api, shared_operator: Process) -> None:
    api.create(cpu_service())
    eventually(api.is_complete, "children exist")
    api.delete(f"/api/v1/namespaces/{api.namespace}")
    eventually(lambda: api.client.get(f"/api/v1/namespaces/{api.namespace}").status_code == 404, "the namespace is gone", seconds=60)
    assert [line for line in shared_operator.log.read_text().splitlines() if api.namespace in line and "retried" in line] == []
