"""InferenceServices of the demo model, as the e2e tests apply them, and how to talk to one."""

import json
from dataclasses import dataclass
from typing import Any

import httpx

from kube import Kube, Manifest, condition, wait_for

READY_SECONDS = 180
"""A cold start on two busy cores: pull, import torch, load, warm up."""


@dataclass(frozen=True)
class Service:
    """A handle on one applied InferenceService."""

    kube: Kube
    namespace: str
    name: str
    node: str
    """An address of a node that this machine reaches."""

    def manifest(self) -> Manifest:
        return self.kube.get("infsvc", self.name, "-n", self.namespace)

    def wait_ready(self) -> "Service":
        """Until Ready at the present generation."""

        def is_ready() -> bool:
            manifest = self.manifest()
            ready, done = condition(manifest, "Ready"), condition(manifest, "Reconciling")
            generations = {manifest["metadata"]["generation"], manifest["status"].get("observedGeneration")}
            return len(generations) == 1 and ready.get("status") == "True" and done.get("status") == "False"

        wait_for(f"{self.namespace}/{self.name} is Ready", is_ready, seconds=READY_SECONDS, tell=self.describe)
        return self

    def describe(self) -> str:
        status = self.kube.kubectl("get", "infsvc", self.name, "-n", self.namespace, "-o", "yaml")
        pods = self.kube.kubectl("describe", "pods", "-n", self.namespace)
        operator = self.kube.kubectl("logs", "-n", "millrace-system", "deployment/millrace-operator", "--tail=30")
        return f"{status}\n{pods[-5000:]}\n{operator}"

    def replicas(self) -> int:
        """What the Deployment is asked for."""
        wanted: int = self.kube.get("deployment", self.name, "-n", self.namespace)["spec"]["replicas"]
        return wanted

    @property
    def url(self) -> str:
        port = self.kube.get("service", self.name, "-n", self.namespace)["spec"]["ports"][0]["nodePort"]
        return f"http://{self.node}:{port}"

    def infer(self, prompt: str, **fields: Any) -> Manifest:  # noqa: ANN401 - the request's own fields
        """The answer of POST /api/v1/infer, greedy unless told otherwise."""
        answer = httpx.post(f"{self.url}/api/v1/infer", json={"prompt": prompt, "temperature": 0, **fields}, timeout=60)
        answer.raise_for_status()
        body: Manifest = answer.json()
        return body

    def edit(self, **spec: Any) -> None:  # noqa: ANN401 - any part of the spec
        """Apply a change of some fields."""
        patch = {"apiVersion": "millrace.dev/v1alpha1", "kind": "InferenceService", "spec": spec}
        self.kube.kubectl(
            "patch", "infsvc", self.name, "-n", self.namespace, "--type=merge", "--patch-file=/dev/stdin", stdin=json.dumps(patch)
        )


def demo_service(name: str, *, namespace: str, model_image: str, **spec: Any) -> Manifest:  # noqa: ANN401 - any part of the spec
    """A service of the demo model, small enough for several on one machine."""
    return {
        "apiVersion": "millrace.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"name": "millrace-demo", "source": f"oci://{model_image}#/model", "dtype": "float32"},
            "device": "cpu",
            "batching": {"maxSize": 8},
            "drainSeconds": 30,
            "cache": {"type": "none"},
            "resources": {"requests": {"cpu": "200m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
            "service": {"type": "NodePort"},
            **spec,
        },
    }
