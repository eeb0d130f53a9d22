"""The provider `local`: Kubernetes from its Go modules on this Linux machine, without Docker. Needs root."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, flock
from pathlib import Path

import httpx

from cluster import binaries, cache, packages
from cluster.local import cgroups, dns, own_images, standstill, volumes
from cluster.local.init import unshare
from cluster.local.machine import HOST_LINK
from cluster.local.network import WiringFailed, has_interface, ip, link_into
from cluster.local.outer import Outer
from cluster.local.slot import MOST_NODES, REGISTRY_NAME, Slot, has_free_lock, is_alone, take_free_slot
from cluster.packages import tool
from cluster.process import NotReady, tail, wait_until
from cluster.progress import say, step
from cluster.provider import DEFAULT_NODES, NoCluster, forget, record, refuse_another_number
from cluster.push import content_tag, push_from_local_store
from cluster.scratch_image import ScratchImage, is_pushed

READY_SECONDS = 180
_STORE_LIMIT_BYTES = 14 * 2**30
"""The registry and each node's image store are emptied before a start when they have outgrown this."""
_NODE_TOOLS = ("etcd", "containerd", "runc", "iptables", "conntrack", "ip", "docker-registry", "busybox")


class Local:
    """One cluster of this machine, with its state in one folder."""

    name = "local"

    def __init__(self, folder: Path, *, nodes: int | None = None) -> None:
        if nodes is not None and not 1 <= nodes <= MOST_NODES:
            raise NoCluster(f"{nodes} nodes cannot be had: a cluster has 1 to {MOST_NODES}")
        self.folder = folder.resolve()
        self.state = self.folder / "local"
        self.kubeconfig = self.folder / "kubeconfig"
        self._wanted_nodes = nodes

    @property
    def nodes(self) -> int:
        """What runs; else what was asked for."""
        outer = self._alive()
        return outer.nodes if outer else self._wanted_nodes or DEFAULT_NODES

    def up(self) -> Path:
        """Brings the cluster up; a second call finds it, and one after an interrupted call goes on or starts over."""
        _refuse_where_impossible()
        with self._locked():
            refuse_another_number(wanted=self._wanted_nodes, present=self.nodes)
            outer = self._alive()
            if outer is None:
                _fetch_programs()
                self._sweep()
                record(self.folder, self.name)
                outer = self._start()
            if not self._is_ready():
                with step(f"control plane and {self.nodes} node{'s' * (self.nodes > 1)}"):
                    self._plug_in_host(outer)
                    self._wait(outer)
        return self.kubeconfig

    def down(self) -> None:
        """Ends every process and removes interface, cgroups and state; the caches stay."""
        if not self.folder.exists():
            return
        with self._locked():
            if outer := self._alive():
                with step("cluster down"):
                    outer.kill()
            self._sweep()

    def load(self, image: str) -> str:
        """Pushes the image into the cluster's registry, if that lacks it."""
        registry = self._slot().registry
        name, tag = content_tag(image)
        if not is_pushed(registry, name, tag):
            with step(f"push {image}"):
                push_from_local_store(image, f"{registry}/{name}:{tag}", plain_http=True)
        return f"{REGISTRY_NAME}/{name}:{tag}"

    def load_scratch(self, image: ScratchImage) -> str:
        """The same for an image made of a few files."""
        image.push(self._slot().registry)
        return image.reference(REGISTRY_NAME)

    def node_address(self, index: int = 1) -> str:
        """The first node, or another one."""
        return self._slot().node(index).address

    def freeze_node(self, name: str) -> None:
        """Stops every process of the node where it is, pods included."""
        standstill.freeze(*self._node(name))

    def thaw_node(self, name: str) -> None:
        """They go on."""
        standstill.thaw(*self._node(name))

    def status(self) -> str:
        """One line on what runs."""
        outer = self._alive()
        if outer is None:
            return "down"
        addresses = ", ".join(self.node_address(index + 1) for index in range(outer.nodes))
        return f"up in slot {outer.slot}: process {outer.process}, nodes {addresses}, kubeconfig {self.kubeconfig}"

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What `kubectl …` prints, as administrator; raises CalledProcessError when it fails."""
        command = [str(tool("kubectl")), f"--kubeconfig={self.kubeconfig}", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout

    def _start(self) -> Outer:
        """Starts the outer process in a free slot and plugs the host in."""
        self.state.mkdir(parents=True, exist_ok=True)
        (self.state / own_images.PAUSE_REFERENCE_FILE).write_text(own_images.pause().reference(REGISTRY_NAME))
        nodes = self.nodes
        with cache.locked("room"):
            slot, held = take_free_slot()
            # Nobody holds the slot, so whatever still bears its names is left from a cluster that was killed.
            wait_until(lambda: _is_swept(slot), f"what an earlier cluster left in slot {slot.number} is gone", seconds=30)
            _make_room(slot, nodes)
        command = [*unshare(with_hostname=False), sys.executable, "-m", "cluster.local.machine", str(self.state), str(slot.number)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"}
        try:
            with (self.state / "machine.log").open("ab") as log:
                # The descriptor keeps the slot for exactly as long as this process lives.
                process = subprocess.Popen(
                    [*command, str(nodes)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=[held],
                    env=environment,
                    cwd="/",
                )
        finally:
            os.close(held)
        # From here on it has a life of its own: Popen would otherwise warn that nobody waited for it.
        process.returncode = 0
        outer = Outer.of(process.pid, slot=slot.number, nodes=nodes)
        outer.record(self.state)
        return outer

    def _plug_in_host(self, outer: Outer) -> None:
        """Wires the host to the cluster; goes on where an interrupted call stopped."""
        slot = Slot(outer.slot)
        self._wait_until(outer, lambda: outer.inside is not None, "the cluster has its namespaces")
        if not has_interface(slot.host_interface):
            link_into(outer.inside or 0, here=slot.host_interface, there=HOST_LINK)
        ip("addr", "replace", f"{slot.host_address}/24", "dev", slot.host_interface)
        ip("link", "set", slot.host_interface, "up")

    def _wait(self, outer: Outer) -> None:
        slot = Slot(outer.slot)
        self._wait_until(outer, lambda: _registry_answers(slot), "the registry answers")
        references = {image.name: self.load_scratch(image) for image in (own_images.pause(), own_images.coredns())}
        created = self.state / "control-plane" / "kubeconfig"
        self._wait_until(outer, lambda: created.exists() and self._api_answers(created), "the API server answers")
        shutil.copy(created, self.kubeconfig)
        manifests = {"apiVersion": "v1", "kind": "List", "items": [*dns.manifests(references["millrace/coredns"]), volumes.storage_class()]}
        self.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifests))
        self._wait_until(outer, self._is_ready, "every node is Ready and has its DNS")

    def _wait_until(self, outer: Outer, condition: Callable[[], bool], what: str) -> None:
        def holds() -> bool:
            if not outer.is_alive:
                log = self.state / "machine.log"
                raise NoCluster(f"the cluster ended before {what}; the end of {log}:\n{tail(log)}")
            return condition()

        try:
            wait_until(holds, what, seconds=READY_SECONDS)
        except NotReady as late:
            logs = [self.state / "machine.log", *sorted((self.state / "logs").glob("*.log"))]
            ends = "\n".join(f"--- {log}\n{tail(log)}" for log in logs if log.exists())
            raise NotReady(f"{late}\n{ends}\nmore logs: {self.state}; to start over: python -m cluster down") from late

    def _api_answers(self, kubeconfig: Path) -> bool:
        command = [str(tool("kubectl")), f"--kubeconfig={kubeconfig}", "get", "serviceaccount/default"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def _is_ready(self) -> bool:
        if not self.kubeconfig.exists():
            return False
        try:
            nodes = self.kubectl("get", "nodes", '-o=jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}')
            ready = self.kubectl("get", f"daemonset/{dns.NAME}", f"-n={dns.NAMESPACE}", "-o=jsonpath={.status.numberReady}")
        except subprocess.CalledProcessError:
            return False
        return nodes.split().count("True") == self.nodes and ready == str(self.nodes)

    def _alive(self) -> Outer | None:
        outer = Outer.recorded(self.state)
        return outer if outer is not None and outer.is_alive else None

    def _node(self, name: str) -> tuple[Outer, int]:
        outer = self._alive()
        if outer is not None:
            for index in range(1, outer.nodes + 1):
                if Slot(outer.slot).node(index).name == name:
                    return outer, index
        raise NoCluster(f"the cluster of this checkout has no node {name}")

    def _slot(self) -> Slot:
        outer = self._alive()
        if outer is None:
            raise NoCluster("the local cluster is down; start it with `python -m cluster up`")
        return Slot(outer.slot)

    def _sweep(self) -> None:
        """Removes what a cluster that has ended leaves: the host's interface, empty cgroups, and our own state."""
        outer = Outer.recorded(self.state)
        if outer is not None and has_free_lock(Slot(outer.slot)):
            slot = Slot(outer.slot)
            # The kernel takes the interface away with the namespace of its other end, at its leisure.
            wait_until(lambda: _is_swept(slot), "interface and cgroups of the cluster are gone", seconds=30)
        shutil.rmtree(self.state, ignore_errors=True)
        self.kubeconfig.unlink(missing_ok=True)
        forget(self.folder)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as handle:
            flock(handle, LOCK_EX)
            yield


def why_not() -> str | None:
    """Why a local cluster cannot run here, or None when it can."""
    if sys.platform != "linux":
        return f"its nodes are Linux namespaces, and this is {sys.platform}"
    if os.geteuid() != 0:
        return "namespaces, mounts and bridges need root, and this is not root"
    missing = [name for name in ("unshare", "setpriv", "mount", "hostname") if shutil.which(name) is None]
    return f"{', '.join(missing)} not on PATH (util-linux, hostname)" if missing else None


def _refuse_where_impossible() -> None:
    reason = why_not()
    if reason:
        raise NoCluster(
            f"the provider `local` cannot run here: {reason}. "
            "With a Docker engine the provider `kind` works; or name a cluster of yours: "
            "MILLRACE_PROVIDER=kubeconfig KUBECONFIG=… MILLRACE_CONTEXT=… REGISTRY=…"
        )


def _fetch_programs() -> None:
    for name in (*_NODE_TOOLS, *binaries.KUBERNETES.commands, "coredns"):
        tool(name)
    packages.cni_folder()


def _make_room(slot: Slot, nodes: int) -> None:
    """Other clusters serve their images from the registry's store too: it is emptied only while there are none."""
    stores = [slot.node(index + 1).containerd_root for index in range(nodes)]
    for store in [*stores, *([cache.root() / "registry"] if is_alone(slot) else [])]:
        if store.exists() and _size(store) > _STORE_LIMIT_BYTES:
            say(f"{store} has outgrown {_STORE_LIMIT_BYTES // 2**30} GiB of images: emptied")
            shutil.rmtree(store)


def _registry_answers(slot: Slot) -> bool:
    try:
        return httpx.get(f"http://{slot.registry}/v2/", timeout=2).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _is_swept(slot: Slot) -> bool:
    with suppress(WiringFailed):
        ip("link", "delete", slot.host_interface)
    for name in {path.name for path in cgroups.existing(slot.cgroup_prefix)}:
        cgroups.remove(name)
    return not cgroups.existing(slot.cgroup_prefix) and not has_interface(slot.host_interface)


def _size(folder: Path) -> int:
    answer = subprocess.run(["du", "--summarize", "--block-size=1", str(folder)], capture_output=True, text=True, check=False)
    return int(answer.stdout.split()[0])
