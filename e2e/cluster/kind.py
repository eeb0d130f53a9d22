"""The provider `kind`: Kubernetes in Docker, where a Docker engine runs.

Not run yet: the machines this was written on have no Docker engine that could pull kind's node image. To run it where there is one:
`MILLRACE_PROVIDER=kind make cluster`, then `make e2e`.
"""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from cluster import versions
from cluster.binaries import binary
from cluster.local.slot import REGISTRY_NAME
from cluster.packages import tool
from cluster.progress import step
from cluster.provider import DEFAULT_NODES, NoCluster, docker_runs, forget, record, refuse_another_number
from cluster.push import content_tag

NODE_IMAGE = versions.KIND_NODE_IMAGE


class Kind:
    """One kind cluster for each checkout."""

    name = "kind"

    def __init__(self, folder: Path, *, nodes: int | None = None) -> None:
        self.folder = folder.resolve()
        self._wanted_nodes = nodes
        self.kubeconfig = self.folder / "kubeconfig"
        self.cluster = f"millrace-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]}"

    def up(self) -> Path:
        """`kind create cluster`, unless it is there; a half-made one is made again."""
        _needs_docker("`local` needs Linux and root only")
        clusters = self._kind("get", "clusters").split()
        record(self.folder, self.name)
        if self.cluster in clusters:
            if self._is_ready():
                refuse_another_number(wanted=self._wanted_nodes, present=self._nodes())
                return self.kubeconfig
            self._kind("delete", "cluster")
        with step(f"kind cluster {self.cluster}"):
            self._kind("create", "cluster", f"--image={NODE_IMAGE}", "--wait=180s", "--config=-", stdin=json.dumps(self._configuration()))
        return self.kubeconfig

    def down(self) -> None:
        """`kind delete cluster`."""
        # Without an engine its containers cannot be removed: forgotten now, they would be back with the next start of Docker.
        _needs_docker("start it, then take the cluster down")
        self._kind("delete", "cluster")
        self.kubeconfig.unlink(missing_ok=True)
        forget(self.folder)

    def load(self, image: str) -> str:
        """`kind load docker-image` under a tag that changes with the content."""
        name, tag = content_tag(image)
        reference = f"{REGISTRY_NAME}/{name}:{tag}"
        subprocess.run(["docker", "tag", image, reference], check=True, capture_output=True, text=True)
        # kind itself skips nodes that already have an image of this name and content.
        with step(f"load {image} into kind"):
            self._kind("load", "docker-image", reference)
        return reference

    def node_address(self) -> str:
        """The node container's address on Docker's network, which a Linux host reaches directly."""
        answer = subprocess.run(["docker", "inspect", f"{self.cluster}-control-plane"], check=True, capture_output=True, text=True)
        networks = json.loads(answer.stdout)[0]["NetworkSettings"]["Networks"]
        return str(networks["kind"]["IPAddress"])

    def freeze_node(self, name: str) -> None:
        """`docker pause` of the node's container."""
        subprocess.run(["docker", "pause", name], check=True, capture_output=True, text=True)

    def thaw_node(self, name: str) -> None:
        """`docker unpause`."""
        subprocess.run(["docker", "unpause", name], check=True, capture_output=True, text=True)

    def status(self) -> str:
        """One line on what runs."""
        return f"up as {self.cluster}, kubeconfig {self.kubeconfig}" if self._is_ready() else "down"

    def _configuration(self) -> dict[str, Any]:
        """Pods run on the control plane's node only while it is the only one."""
        nodes = self._wanted_nodes or DEFAULT_NODES
        workers = [{"role": "worker"}] * nodes if nodes > 1 else []
        return {"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "nodes": [{"role": "control-plane"}, *workers]}

    def _nodes(self) -> int:
        return max(1, len(self._kind("get", "nodes").split()) - 1)

    def _is_ready(self) -> bool:
        command = [str(tool("kubectl")), f"--kubeconfig={self.kubeconfig}", "get", "nodes"]
        return self.kubeconfig.exists() and subprocess.run(command, capture_output=True, check=False).returncode == 0

    def _kind(self, *arguments: str, stdin: str | None = None) -> str:
        named = [] if arguments[:2] == ("get", "clusters") else [f"--name={self.cluster}"]
        writes_kubeconfig = arguments[:2] in (("create", "cluster"), ("delete", "cluster"))
        written = [f"--kubeconfig={self.kubeconfig}"] if writes_kubeconfig else []
        # Not whatever `kind` is on PATH: a node image belongs to one release of kind.
        command = [str(binary("kind")), *arguments, *named, *written]
        return subprocess.run(command, input=stdin, check=True, capture_output=True, text=True).stdout


def _needs_docker(otherwise: str) -> None:
    if not docker_runs():
        raise NoCluster(f"the provider `kind` needs a Docker engine, and `docker info` does not answer; {otherwise}")
