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
DEFAULT_NODES = 2
_RECORD = "provider"
"""In the state folder: the name of the provider that made the cluster. The Makefile looks for it too."""


class NoCluster(Exception):
    """No cluster can be had this way; the message says why and which provider would work."""


class Provider(Protocol):
    """A cluster that can be brought up, given images, reached and taken down."""

    name: str

    def up(self) -> Path:
        """Brings the cluster up, or finds it up, and returns its kubeconfig; calls `record` before there is anything to take down."""

    def down(self) -> None:
        """Takes the cluster down, without a trace; does nothing when it is down. Calls `forget` last."""

    def load(self, image: str) -> str:
        """Makes an image of docker's or buildah's local store available to the nodes; returns the reference that pods use.

        The reference changes with the content, so that a pod never runs a stale image; an unchanged image takes no time.
        """

    def node_address(self) -> str:
        """An address of a node that this machine reaches, for NodePorts."""

    def freeze_node(self, name: str) -> None:
        """Stops every process of a node, as if the machine hung; raises NoCluster where the nodes are not ours to stop."""

    def thaw_node(self, name: str) -> None:
        """They go on where they stopped."""

    def status(self) -> str:
        """One line on what runs."""


def choose(environment: Mapping[str, str] = os.environ, *, state: Path = STATE, nodes: int | None = None) -> Provider:
    """The provider to bring a cluster up with, by `wanted`. Never whatever KUBECONFIG happens to point to.

    `nodes`: that many run pods; None is as many as the present cluster has, or DEFAULT_NODES. Raises NoCluster when it cannot have so many.
    """
    from cluster.kubeconfig import Kubeconfig

    name = wanted(environment, state=state)
    if name != Kubeconfig.name:
        return _of(name, state, nodes)
    if nodes is not None:
        raise NoCluster(f"{nodes} nodes are asked for, but the cluster of a kubeconfig has the nodes that it has: leave the number out")
    return Kubeconfig.named_on_purpose(environment, state)


def wanted(environment: Mapping[str, str] = os.environ, *, state: Path = STATE) -> str:
    """The name of the provider that MILLRACE_PROVIDER names; else of the one that made the present cluster; else kind or local.

    Raises NoCluster when one is named and another one's cluster is here: a second cluster in the same folder would hide the first.
    """
    named, made = environment.get("MILLRACE_PROVIDER"), recorded(state)
    if named and made and named != made:
        raise NoCluster(f"MILLRACE_PROVIDER={named}, but the cluster of this checkout was made by `{made}`: take it down first, make clean")
    return named or made or ("kind" if docker_runs() else "local")


def present(environment: Mapping[str, str] = os.environ, *, state: Path = STATE) -> Provider | None:
    """The provider that made this checkout's cluster, whatever would be chosen now; None when there is no cluster."""
    from cluster.kubeconfig import Kubeconfig

    made = recorded(state)
    if made is None:
        return None
    return Kubeconfig.adopted(environment, state) if made == Kubeconfig.name else _of(made, state)


def refuse_another_number(*, wanted: int | None, present: int) -> None:
    """Raises NoCluster when the cluster that is up has another number of nodes than is asked for."""
    if wanted not in (None, present):
        raise NoCluster(f"the cluster of this checkout has {present} nodes, not {wanted}: take it down first, make clean")


def record(state: Path, name: str) -> None:
    """From now on the cluster of this folder belongs to the provider of this name."""
    state.mkdir(parents=True, exist_ok=True)
    (state / _RECORD).write_text(f"{name}\n")


def recorded(state: Path) -> str | None:
    """What `record` wrote and `forget` has not removed."""
    file = state / _RECORD
    return file.read_text().strip() if file.exists() else None


def forget(state: Path) -> None:
    """There is no cluster any more."""
    (state / _RECORD).unlink(missing_ok=True)


def _of(name: str, state: Path, nodes: int | None = None) -> Provider:
    from cluster.kind import Kind
    from cluster.local.provider import Local

    if name == Local.name:
        return Local(state, nodes=nodes)
    if name == Kind.name:
        return Kind(state, nodes=nodes)
    raise NoCluster(f"MILLRACE_PROVIDER={name} is none of local, kind, kubeconfig")


def docker_runs() -> bool:
    """A Docker engine answers; the client alone is not enough."""
    docker = shutil.which("docker")
    if docker is None:
        return False
    try:
        return subprocess.run([docker, "info"], capture_output=True, timeout=20, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False
