"""Operators for tests: processes beside a real API server without nodes, and what a user does and sees there."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from cluster import versions
from cluster.binaries import module_folder
from cluster.control_plane import ControlPlane
from millrace_operator.manifest import Manifest
from millrace_operator.names import FIELD_MANAGER, child_labels
from services import manifest

DEADLINE = 20.0
"""Generous: two cores may be busy with other tests. What is promised is measured by tests/bench."""
FAST = {
    "MILLRACE_SERVER_IMAGE": "millrace/server:test",
    "MILLRACE_PORT": "0",
    "MILLRACE_LEASE_SECONDS": "4",
    "MILLRACE_LEASE_RENEW_SECONDS": "2.5",
    "MILLRACE_LEASE_RETRY_SECONDS": "0.3",
    "MILLRACE_WRITE_SECONDS": "1.5",
    "MILLRACE_RESYNC_SECONDS": "0.5",
    "MILLRACE_LOAD_INTERVAL_SECONDS": "0.5",
    "MILLRACE_COALESCE_SECONDS": "0.05",
    "MILLRACE_OPTIONAL_INTERVAL_SECONDS": "0.3",
    "MILLRACE_RIVAL_INTERVAL_SECONDS": "0.3",
    "MILLRACE_LAST_RETRY_SECONDS": "2",
}


GROUPS = {
    "configmaps": "api/v1",
    "deployments": "apis/apps/v1",
    "horizontalpodautoscalers": "apis/autoscaling/v2",
    "networkpolicies": "apis/networking.k8s.io/v1",
    "poddisruptionbudgets": "apis/policy/v1",
    "secrets": "api/v1",
    "servicemonitors": "apis/monitoring.coreos.com/v1",
    "services": "api/v1",
}
FOREIGN_PODS = {"selector": {"matchLabels": {"app": "theirs"}}}
FOREIGN_TEMPLATE = {"metadata": {"labels": {"app": "theirs"}}, "spec": {"containers": [{"name": "x", "image": "x"}]}}
FOREIGN = {
    "deployments": ("apps/v1", "Deployment", {**FOREIGN_PODS, "template": FOREIGN_TEMPLATE}),
    "networkpolicies": ("networking.k8s.io/v1", "NetworkPolicy", {"podSelector": {"matchLabels": {"app": "theirs"}}}),
    "poddisruptionbudgets": ("policy/v1", "PodDisruptionBudget", {**FOREIGN_PODS, "maxUnavailable": 0}),
    "servicemonitors": ("monitoring.coreos.com/v1", "ServiceMonitor", {**FOREIGN_PODS, "endpoints": [{"port": "theirs"}]}),
    "services": ("v1", "Service", {"ports": [{"port": 1}], "selector": {"app": "theirs"}}),
}
"""What somebody else made: plural → apiVersion, kind, spec."""
SERVICE_MONITORS = "servicemonitors.monitoring.coreos.com"


def eventually(condition: Callable[[], object], what: str | Callable[[], str], *, seconds: float = DEADLINE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds:g} s still not true: {what if isinstance(what, str) else what()}"
        time.sleep(0.02)


class Process:
    """`python -m millrace_operator`, with its log."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.log = log
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MILLRACE_", "KUBE"))}
        clean["TMPDIR"] = str(log.parent)  # kopf writes the client's key there, and one that is killed leaves it
        with log.open("wb") as output:
            self.process = subprocess.Popen([sys.executable, "-m", "millrace_operator"], env={**clean, **environment}, stderr=output)

    def said(self, words: str) -> bool:
        return words in self.log.read_text()

    def failures(self) -> list[str]:
        """What our own code logged as an error. kopf's says so of every watch that is cut in the middle of a line."""
        lines = map(json.loads, self.log.read_text().splitlines())
        return [line["message"] for line in lines if line["level"] == "error" and line["logger"].startswith("millrace_operator")]

    def wait_until_it_leads(self) -> None:
        def leads() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self.said("leading as")

        eventually(leads, f"the operator leads; its log: {self.log}")

    def get(self, path: str) -> httpx.Response:
        found = re.search(r"probes and metrics on port (\d+)", self.log.read_text())
        assert found, "the probes are not up yet"
        assert self.process.poll() is None, self.log.read_text()
        return httpx.get(f"http://127.0.0.1:{found[1]}{path}", timeout=5)

    def metric(self, name: str) -> float:
        """Of the whole series: `name{label="value"}`, labels in the order of the alphabet."""
        return float(next(line.split()[-1] for line in self.get("/metrics").text.splitlines() if line.startswith(f"{name} ")))

    def total(self, name: str) -> float:
        """Over all labels."""
        return sum(float(line.split()[-1]) for line in self.get("/metrics").text.splitlines() if line.startswith(f"{name}{{"))

    def wait_for_passes(self, count: int) -> None:
        """Until `count` more passes have ended well."""
        wanted = self.passes() + count
        eventually(lambda: self.passes() >= wanted, f"{count} more passes")

    def passes(self) -> float:
        return self.metric('millrace_passes_total{outcome="ok"}')

    def wait_for_lists(self, count: int) -> None:
        """Until `count` more full lists were taken and everything they asked for is done."""
        for _ in range(count):
            before = self.metric("millrace_last_full_list_timestamp_seconds")
            eventually(lambda before=before: self.metric("millrace_last_full_list_timestamp_seconds") > before, "a full list")  # type: ignore[misc]
        eventually(lambda: self.metric("millrace_queue_depth") == 0, "the queue is empty")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=10)


class Api:
    """What a user does and sees in one namespace."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self.control_plane = control_plane
        self.namespace = namespace
        self.client = control_plane.client()
        self.root = f"/apis/millrace.dev/v1alpha1/namespaces/{namespace}/inferenceservices"

    def path(self, kind: str, name: str) -> str:
        group = GROUPS[kind]
        return f"/{group}/namespaces/{self.namespace}/{kind}/{name}"

    def create(self, wanted: Manifest) -> Manifest:
        answer = self.client.post(self.root, json=wanted)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def service(self, name: str = "chat") -> Manifest:
        return dict(self.client.get(f"{self.root}/{name}").json())

    def edit(self, body: Manifest, name: str = "chat") -> None:
        self.patch(f"{self.root}/{name}", body)

    def get(self, kind: str, name: str) -> Manifest | None:
        answer = self.client.get(self.path(kind, name))
        return dict(answer.json()) if answer.status_code == 200 else None

    def has(self, kind: str, name: str) -> bool:
        return self.get(kind, name) is not None

    def delete(self, path: str) -> None:
        assert self.client.delete(path).status_code == 200

    def clear(self) -> None:
        """No controller deletes what a namespace holds: an operator of every namespace would work on what all earlier tests left."""
        for collection in (self.root, *(self.path(kind, "") for kind in GROUPS)):
            answer = self.client.delete(collection.rstrip("/"))
            assert answer.status_code in (200, 404), answer.text

    def patch(self, path: str, body: Manifest, *, manager: str = "somebody") -> None:
        headers = {"Content-Type": "application/merge-patch+json"}
        answer = self.client.patch(path, content=json.dumps(body), headers=headers, params={"fieldManager": manager})
        assert answer.status_code == 200, answer.text

    def condition(self, type: str, name: str = "chat") -> tuple[str, str]:  # noqa: A002 - the field's own name
        for each in self.service(name).get("status", {}).get("conditions", []):
            if each["type"] == type:
                return each["status"], each["reason"]
        return "", ""

    def since(self, type: str) -> str:  # noqa: A002 - the field's own name
        return next(str(each["lastTransitionTime"]) for each in self.service()["status"]["conditions"] if each["type"] == type)

    def message(self, type: str) -> str:  # noqa: A002 - the field's own name
        return next(str(each["message"]) for each in self.service()["status"]["conditions"] if each["type"] == type)

    def is_complete(self, name: str = "chat") -> bool:
        """All children are there and the status tells them."""
        return all(self.has(*child) for child in (("deployments", name), ("services", name), ("services", f"{name}-metrics"))) and (
            self.service(name).get("status", {}).get("observedGeneration") == self.service(name)["metadata"]["generation"]
        )

    def is_replicas(self, count: int) -> bool:
        deployment = self.get("deployments", "chat")
        return deployment is not None and deployment["spec"]["replicas"] == count

    def image(self) -> str:
        deployment = self.get("deployments", "chat")
        assert deployment is not None
        return str(deployment["spec"]["template"]["spec"]["containers"][0]["image"])


def make_as_an_earlier_version_did(api: Api, kind: str, name: str, *, owner: Manifest) -> None:
    """A child that this version does not wish for."""
    version, written_kind, spec = FOREIGN[kind]
    reference = {**{field: owner[field] for field in ("apiVersion", "kind")}, "name": "chat", "uid": owner["metadata"]["uid"]}
    metadata = {"name": name, "labels": child_labels("chat"), "ownerReferences": [{**reference, "controller": True}]}
    answer = api.client.patch(
        api.path(kind, name),
        content=json.dumps({"apiVersion": version, "kind": written_kind, "metadata": metadata, "spec": spec}),
        headers={"Content-Type": "application/apply-patch+yaml"},
        params={"fieldManager": FIELD_MANAGER, "force": "true"},
    )
    assert answer.status_code == 201, answer.text


def writes(control_plane: ControlPlane) -> dict[tuple[str, ...], float]:
    """Requests by which an operator changes something, as the API server counts them: (verb, resource, subresource, status code).

    The Lease apart. Of the others in this cluster, nobody applies, scales or writes InferenceServices while a test waits.
    """
    counts: dict[tuple[str, ...], float] = {}
    with control_plane.client() as client:
        for line in client.get("/metrics").text.splitlines():
            if not line.startswith("apiserver_request_total{"):
                continue
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            ours = labels["verb"] == "APPLY" or labels["subresource"] == "scale" or labels["resource"] in ("inferenceservices", "secrets")
            if ours and labels["verb"] in ("APPLY", "POST", "PUT", "PATCH"):
                key = (labels["verb"], labels["resource"], labels["subresource"], labels["code"])
                counts[key] = counts.get(key, 0) + float(line.rpartition(" ")[2])
    return counts


def install_service_monitors(control_plane: ControlPlane) -> None:
    """The definition that the Prometheus operator itself installs."""
    folder = module_folder("github.com/prometheus-operator/prometheus-operator", versions.PROMETHEUS_OPERATOR)
    file = folder / "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml"
    control_plane.kubectl("apply", "--server-side", "-f", str(file))
    control_plane.kubectl("wait", "--for=condition=Established", f"crd/{SERVICE_MONITORS}", "--timeout=20s")


def remove_service_monitors(control_plane: ControlPlane) -> None:
    control_plane.kubectl("delete", "crd", SERVICE_MONITORS, "--ignore-not-found", "--timeout=60s")


def cpu_service(name: str = "chat", **spec: Any) -> Manifest:  # noqa: ANN401 - fields of a spec
    return manifest(name, device="cpu", **spec)
