"""The warnings before an edit that replaces GPU replicas (exactly those edits), and of shared accelerators. They refuse nothing."""

import itertools
import json
import re
from typing import Any

import pytest
import yaml

from cluster.packages import tool
from millrace_operator import generate
from millrace_operator.api import InferenceServiceSpec
from millrace_operator.desired import children
from millrace_operator.manifest import Manifest
from operators import Api, eventually
from services import CHECKOUT, PLATFORM, manifest, service

EDITS: dict[str, Any] = {
    "model": {"name": "owner/other"},
    "device": "cpu",
    "accelerators": {"resource": "amd.com/gpu"},
    "batching": {"maxSize": 4},
    "queue": {"maxSize": 7},
    "maxConcurrentRequests": 7,
    "requestTimeoutSeconds": 7,
    "drainSeconds": 7,
    "cache": {"type": "none"},
    "autoscaling": {"maxReplicas": 7},
    "replicas": 3,
    "resources": {"requests": {"cpu": "7"}},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
    "priorityClassName": "high",
    "runtimeClassName": "nvidia",
    "image": "server:7",
    "imagePullSecrets": [{"name": "registry"}],
    "podLabels": {"team": "a"},
    "podAnnotations": {"team": "a"},
    "apiKeysSecret": "keys",
    "service": {"type": "NodePort"},
    "monitoring": {"enabled": False},
    "rollout": {"maxSurge": 1},
}
"""One of each field of a spec."""


def policies() -> list[Manifest]:
    text = generate.render(CHECKOUT / "charts/millrace", helm=str(tool("helm")), namespace="millrace-system", values=())
    return [each for each in yaml.safe_load_all(text) if each and each["kind"].startswith("ValidatingAdmissionPolicy")]


def warned() -> set[str]:
    (policy,) = [
        each for each in policies() if each["kind"] == "ValidatingAdmissionPolicy" and each["metadata"]["name"].startswith("restarts")
    ]
    (check,) = policy["spec"]["validations"]
    return set(re.findall(r"oldObject\.spec\.\?(\w+)", check["expression"]))


def template(**spec: Any) -> Manifest:  # noqa: ANN401 - fields of a spec
    made = children(service(**spec), platform=PLATFORM)
    (server,) = [each for each in made if each["kind"] == "Deployment" and each["metadata"]["name"] == "chat"]
    return dict(server["spec"]["template"])


def test_every_field_has_an_edit() -> None:
    assert set(EDITS) == {field.alias or name for name, field in InferenceServiceSpec.model_fields.items()}


@pytest.mark.parametrize("field", EDITS)
def test_a_field_is_warned_of_when_its_edit_changes_the_pods(field: str) -> None:
    changed = template(**{field: EDITS[field]}) != template()
    assert changed == (field in warned())


@pytest.mark.apiserver
def test_the_api_server_warns_and_takes_the_edit(api: Api) -> None:
    def edit(spec: Manifest) -> str:
        headers = {"Content-Type": "application/merge-patch+json"}
        answer = api.client.patch(f"{api.root}/chat", json={"spec": spec}, headers=headers)
        assert answer.status_code == 200, answer.text
        return str(answer.headers.get("warning", ""))

    for policy in policies():
        api.control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(policy))
    api.create({**manifest(device="cuda"), "metadata": {"name": "chat", "namespace": api.namespace}})
    # A policy is looked at a moment after it was made.
    sizes = itertools.cycle((5, 6))
    eventually(lambda: "each loads the model again" in edit({"batching": {"maxSize": next(sizes)}}), "the warning")
    assert "each loads the model again" in edit({"batching": {"maxSize": 7}})
    assert edit({"autoscaling": {"maxReplicas": 9}}) == ""
    assert edit({"batching": {"maxSize": 7}}) == "", "nothing changes"
    edit({"device": "cpu", "accelerators": None})
    assert edit({"batching": {"maxSize": 3}}) == "", "replicas on CPUs start quickly"


@pytest.mark.apiserver
def test_the_api_server_warns_of_shared_accelerators_and_of_no_others(api: Api) -> None:
    def warning(resource: str) -> str:
        body = manifest(device="cuda", accelerators={"resource": resource})
        answer = api.client.post(api.root, json=body, params={"dryRun": "All"})
        assert answer.status_code == 201, answer.text
        return str(answer.headers.get("warning", ""))

    for policy in policies():
        api.control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(policy))
    eventually(lambda: "share its memory" in warning("nvidia.com/gpu.shared"), "the warning")
    assert [warning(resource) for resource in ("nvidia.com/gpu", "nvidia.com/mig-1g.10gb")] == ["", ""]
