"""Which Kubernetes the demo and the tests run on: one small interface, and the choice."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

CHECKOUT = Path(__file__).resolve().parents[2]
STATE = CHECKOUT / ".cluster"
"""What belongs to this checkout's cluster; ignored by git, gone after `down`."""


class NoCluster(Exception):
    """No cluster can be had this way; the message says why and which provider would work."""


class Provider(Protocol):
    """A cluster that can be brought up, given images, reached and taken down."""

    name: str

    def up(self) -> Path:
        """Brings the cluster up, or finds it up, and returns its kubeconfig."""

    def down(self) -> None:
        """Takes the cluster down, without a trace; does nothing when it is down."""

    def load(self, image: str) -> str:
        """Makes an image of docker's or buildah's local store available to the nodes; returns the reference that pods use.

        The reference changes with the content, so that a pod never runs a stale image; an unchanged image takes no time.
        """

    def node_address(self) -> str:
        """An address of a node that this machine reaches, for NodePorts."""

    def status(self) -> str:
        """One line on what runs."""


def choose(environment: Mapping[str, str] = os.environ, *, state: Path = STATE) -> Provider:
    """The provider named by MILLRACE_PROVIDER; else kind where Docker runs, else local. Never whatever KUBECONFIG happens to point to."""
    from cluster.kind import Kind
    from cluster.kubeconfig import Kubeconfig
    from cluster.local.provider import Local

    named = environment.get("MILLRACE_PROVIDER") or ("kind" if docker_runs() else "local")
    if named == "local":
        return Local(state)
    if named == "kind":
        return Kind(state)
    if named == "kubeconfig":
        return Kubeconfig.named_on_purpose(environment, state)
    raise NoCluster(f"MILLRACE_PROVIDER={named} is none of local, kind, kubeconfig")


def docker_runs() -> bool:
    """A Docker engine answers; the client alone is not enough."""
    docker = shutil.which("docker")
    if docker is None:
        return False
    try:
        return subprocess.run([docker, "info"], capture_output=True, timeout=20, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False
