"""InferenceServices of the demo model, as the e2e tests apply them, and how to talk to one."""

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from kube import Kube, Manifest, Refused, condition, wait_for

READY_SECONDS = 300
"""A cold start on two busy cores: pull (each node its own), import torch, load, warm up."""
PROXY_SECONDS = 30
"""kube-proxy programs a node's rules within a second of an endpoint's readiness, later on a busy machine."""
CONNECT_SECONDS = 2
PATIENT = {"requestTimeoutSeconds": 120, "drainSeconds": 120}
"""Nothing meets its deadline, or is refused because it would: how long an answer takes on a busy machine is not what is tested."""
QUIET_SECONDS = 60
"""The operator tells of a smaller load once in 30 s."""


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

    def wait_ready(self, *, seconds: float = READY_SECONDS, show: Callable[[str], None] = lambda news: None) -> "Service":
        """Until Ready at the present generation, and reachable; `show` is told of every change on the way. Raises Late."""
        shown = ""

        def is_ready() -> bool:
            nonlocal shown
            manifest = self.manifest()
            ready, done = condition(manifest, "Ready"), condition(manifest, "Reconciling")
            news = f"Ready={ready['status']} {ready['reason']}: {ready['message']}" if ready else "no status yet"
            if news != shown:
                show(news)
                shown = news
            generations = {manifest["metadata"]["generation"], manifest.get("status", {}).get("observedGeneration")}
            return len(generations) == 1 and ready.get("status") == "True" and done.get("status") == "False"

        wait_for(f"{self.namespace}/{self.name} is Ready", is_ready, seconds=seconds, tell=self.describe)
        self.wait_reachable()
        return self

    def wait_reachable(self, *, seconds: float = PROXY_SECONDS) -> None:
        """Until the node's proxy passes a connection on to a pod: Kubernetes lets Ready come first. Raises Late."""
        port = self._node_port()
        refusals = []

        def accepts() -> bool:
            try:
                socket.create_connection((self.node, port), timeout=CONNECT_SECONDS).close()
            except OSError as refusal:
                refusals.append(refusal)
                return False
            return True

        wait_for(
            f"the node's proxy passes on {self.node}:{port} of {self.namespace}/{self.name}, which is Ready",
            accepts,
            seconds=seconds,
            tell=lambda: f"the last of {len(refusals)} refusals: {refusals[-1]}\n{self.describe()}",
        )

    def wait_idle(self) -> None:
        """Until the status tells that nobody asks, and so has nothing left to tell of earlier traffic. Raises Late."""

        def nobody_asks() -> bool:
            told: object = self.manifest()["status"].get("autoscaling", {}).get("load")
            return told == 0

        wait_for(f"{self.namespace}/{self.name} tells that nobody asks", nobody_asks, seconds=QUIET_SECONDS, tell=self.describe)

    def describe(self) -> str:
        """The state of the service, its pods and the operator, as far as there is any."""
        status = self._told("get", "infsvc", self.name, "-n", self.namespace, "-o", "yaml")
        pods = self._told("describe", "pods", "-n", self.namespace)
        operator = self._told("logs", "-n", "millrace-system", "deployment/millrace-operator", "--tail=30")
        return f"{status}\n{pods[-5000:]}\n{operator}"

    def replicas(self) -> int:
        """What the Deployment is asked for."""
        wanted: int = self.kube.get("deployment", self.name, "-n", self.namespace)["spec"]["replicas"]
        return wanted

    @property
    def url(self) -> str:
        return f"http://{self.node}:{self._node_port()}"

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

    def _node_port(self) -> int:
        port: int = self.kube.get("service", self.name, "-n", self.namespace)["spec"]["ports"][0]["nodePort"]
        return port

    def _told(self, *arguments: str) -> str:
        try:
            return self.kube.kubectl(*arguments)
        except Refused as refusal:
            return f"kubectl {' '.join(arguments)}: {refusal}"


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
