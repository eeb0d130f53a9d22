"""Which of the parallel clusters on this machine we are, and every name and address that follows from it."""

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from cluster import cache
from cluster.control_plane import Place
from cluster.provider import NoCluster

SLOTS = 16
MOST_NODES = 200
"""A cluster's network has addresses for some more."""
REGISTRY_PORT = 5000
REGISTRY_NAME = f"registry.millrace.local:{REGISTRY_PORT}"
"""What pods call the registry of every slot; containerd is told where it is."""


@dataclass(frozen=True)
class Slot:
    """Number → names. Two clusters never share one."""

    number: int

    @property
    def host_interface(self) -> str:
        """The host's end of the only link into the cluster."""
        return f"millrace{self.number}"

    @property
    def cgroup_prefix(self) -> str:
        """What the cgroups of every node begin with."""
        return f"millrace-{self.number}-"

    @property
    def network(self) -> str:
        """The link that host, control plane and nodes share, up to its last number."""
        return f"10.213.{self.number}"

    @property
    def host_address(self) -> str:
        """The host on that link."""
        return f"{self.network}.1"

    @property
    def control_plane_address(self) -> str:
        """API server and registry on that link."""
        return f"{self.network}.2"

    @property
    def registry(self) -> str:
        """The registry, as the host reaches it."""
        return f"{self.control_plane_address}:{REGISTRY_PORT}"

    @property
    def place(self) -> Place:
        """The control plane has its own network namespace: the usual ports are always free."""
        return Place(
            address=self.control_plane_address,
            api_port=6443,
            etcd_port=2379,
            etcd_peer_port=2380,
            controller_manager_port=10257,
            scheduler_port=10259,
        )

    def node(self, index: int) -> "NodeNames":
        """The names of the node `index`, counted from 1."""
        return NodeNames(slot=self, index=index)


@dataclass(frozen=True)
class NodeNames:
    """What one node is called and where it is."""

    slot: Slot
    index: int

    @property
    def name(self) -> str:
        """The node's name in Kubernetes and its host name."""
        return f"node-{self.index}"

    @property
    def address(self) -> str:
        """The node on the link."""
        return f"{self.slot.network}.{10 + self.index}"

    @property
    def pod_range(self) -> str:
        """The addresses of the node's pods; every other node has a route to them."""
        return f"10.244.{self.index}.0/24"

    @property
    def cgroup(self) -> str:
        """Kubelets that share one kill each other's pods as orphans."""
        return f"{self.slot.cgroup_prefix}{self.name}"

    @property
    def containerd_root(self) -> Path:
        """Images survive the cluster here, so that the next one need not pull gigabytes."""
        return cache.root() / "containerd" / f"slot-{self.slot.number}-{self.name}"


def take_free_slot() -> tuple[Slot, int]:
    """A slot and the file descriptor that holds it: whoever inherits the descriptor keeps the slot until it ends."""
    for slot in map(Slot, range(SLOTS)):
        held = _try_to_hold(slot)
        if held is not None:
            return slot, held
    raise NoCluster(f"{SLOTS} clusters already run on this machine; take one down with `python -m cluster down` in its checkout")


def has_free_lock(slot: Slot) -> bool:
    """No running cluster holds the slot: what bears its names may be removed."""
    held = _try_to_hold(slot)
    if held is not None:
        os.close(held)
    return held is not None


def is_alone(slot: Slot) -> bool:
    """No cluster runs in any other slot."""
    return all(has_free_lock(other) for other in map(Slot, range(SLOTS)) if other != slot)


def _try_to_hold(slot: Slot) -> int | None:
    # An abstract socket is a lock without a file: it is seen by exactly the processes that see the interface of the same name,
    # whatever cache they use, and goes with the last process that has it open.
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        lock.bind(f"\0{slot.host_interface}")
    except OSError as refusal:
        lock.close()
        if refusal.errno == errno.EADDRINUSE:
            return None
        raise
    return lock.detach()
