"""One node: containerd, kubelet and kube-proxy in namespaces of their own. PID 1 in there.

Run by the machine as `unshare … python -m cluster.local.node STATE SLOT INDEX NODES`. It writes nothing outside the node's folder and
its store in the cache: /var is an overlay in memory, /run is empty, and the kernel settings that a kubelet insists on are files.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from cluster import cache
from cluster.control_plane import ControlPlane
from cluster.local import cgroups, node_files
from cluster.local.init import supervise
from cluster.local.network import has_interface, ip, set_kernel
from cluster.local.node_files import NodeFolder
from cluster.local.own_images import PAUSE_REFERENCE_FILE
from cluster.local.slot import REGISTRY_NAME, NodeNames, Slot
from cluster.packages import cni_folder, search_path, tool
from cluster.process import Child, start, wait_until

_KERNEL_WANTED_BY_KUBELET = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""They are the whole machine's, and we leave those alone: the kubelet is shown files with the values that it wants."""


def main(state: Path, node: NodeNames, nodes: int) -> None:
    """Starts everything in order, then watches over it."""
    folder = NodeFolder(state / "nodes" / node.name)
    _mount(folder, state)
    subprocess.run(["hostname", node.name], check=True)
    _wire(node, nodes)
    cgroups.make(node.cgroup)
    commands = _write(node, folder, state)
    _forget_containers(node, folder)
    running: dict[str, Child] = {}

    def run(name: str) -> Child:
        path = search_path("containerd", "runc", "iptables", "conntrack", "ip")
        return start(name, commands[name], log=folder.logs / f"{name}.log", environment={"PATH": path})

    for name in commands:
        running[name] = run(name)
        if name == "containerd":
            wait_until(Path(node_files.CONTAINERD_SOCKET).is_socket, "containerd listens", seconds=30, children=running.values())
    supervise(running, run)


def _mount(folder: NodeFolder, state: Path) -> None:
    _run("mount", "--make-rprivate", "/")
    _run("mount", "-t", "tmpfs", "tmpfs", "/run")
    _hide_writes_to_var(kept=[cache.root(), state])
    for source, target in ((folder.kubelet, Path("/var/lib/kubelet")), (folder.pod_logs, Path("/var/log/pods"))):
        source.mkdir(parents=True, exist_ok=True)
        target.mkdir(parents=True, exist_ok=True)
        _run("mount", "--bind", str(source), str(target))
    # Volumes that a kubelet mounts must be seen by the containers it has already started.
    _run("mount", "--make-rshared", "/var/lib/kubelet")
    for name, value in _KERNEL_WANTED_BY_KUBELET.items():
        shown = Path("/run/kernel") / name
        shown.parent.mkdir(parents=True, exist_ok=True)
        shown.write_text(value)
        _run("mount", "--bind", str(shown), f"/proc/sys/{name}")


def _hide_writes_to_var(*, kept: list[Path]) -> None:
    """/var becomes an overlay in memory; folders of ours that happen to lie in it stay themselves."""
    host = Path("/run/host-root")
    upper, work = Path("/run/var/upper"), Path("/run/var/work")
    for made in (host, upper, work):
        made.mkdir(parents=True)
    _run("mount", "--rbind", "/", str(host))
    _run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/var,upperdir={upper},workdir={work}", "/var")
    for each in kept:
        if each.is_relative_to("/var"):
            _run("mount", "--rbind", str(host / each.relative_to("/")), str(each))
    _run("umount", "--lazy", str(host))


def _wire(node: NodeNames, nodes: int) -> None:
    place = node.slot.place
    ip("link", "set", "lo", "up")
    wait_until(lambda: has_interface("eth0"), "the machine has plugged in a cable", seconds=30)
    ip("addr", "add", f"{node.address}/24", "dev", "eth0")
    ip("link", "set", "eth0", "up")
    # There is no default route, so the kernel would refuse to send to a Service before kube-proxy's rules could turn the packet.
    # A bridge without ports leads nowhere, and unlike a dummy device every kernel that can run us has one.
    ip("link", "add", "services", "type", "bridge")
    ip("link", "set", "services", "up")
    ip("route", "add", place.service_range, "dev", "services")
    for other in (node.slot.node(index + 1) for index in range(nodes)):
        if other != node:
            ip("route", "add", other.pod_range, "via", other.address)
    set_kernel("net/ipv4/ip_forward", "1")


def _write(node: NodeNames, folder: NodeFolder, state: Path) -> dict[str, list[str]]:
    """Writes the node's files and returns its processes' command lines, in the order of starting."""
    # The folder of the control plane is the authority's; nothing is started from this object.
    control_plane = ControlPlane(state / "control-plane", place=node.slot.place)
    authority, etc = control_plane.authority, folder.etc
    kubelet_identity = authority.issue(
        node.name, user=f"system:node:{node.name}", groups=("system:nodes",), hosts=(node.name, node.address, "127.0.0.1")
    )
    # A name for each node: two of them issue at the same moment.
    proxy_identity = authority.issue(f"kube-proxy-{node.name}", user="system:kube-proxy")
    registries = etc / "registries" / REGISTRY_NAME
    registries.mkdir(parents=True, exist_ok=True)
    (etc / "cni").mkdir(exist_ok=True)
    (registries / "hosts.toml").write_text(node_files.registry_hosts(node.slot.registry))
    addresses = Path("/run/pod-addresses")
    (etc / "cni" / "10-pods.conflist").write_text(node_files.cni(node, addresses=addresses))
    # Unreachable on purpose: what works here works air-gapped. Pods are given the cluster's DNS, not this.
    (etc / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    pause_image = (state / PAUSE_REFERENCE_FILE).read_text()
    for file, serves_kubelet in (("containerd.toml", True), ("containerd-store.toml", False)):
        text = node_files.containerd(node, etc=etc, plugins=cni_folder(), pause_image=pause_image, serves_kubelet=serves_kubelet)
        (etc / file).write_text(text)
    (etc / "kubelet.yaml").write_text(
        node_files.kubelet(
            node,
            ca=control_plane.ca,
            certificate=kubelet_identity.certificate,
            key=kubelet_identity.key,
            resolv_conf=etc / "resolv.conf",
        )
    )
    kubelet_config = authority.kubeconfig(etc / "kubeconfig-kubelet", url=control_plane.url, identity=kubelet_identity)
    proxy_config = authority.kubeconfig(etc / "kubeconfig-kube-proxy", url=control_plane.url, identity=proxy_identity)
    (etc / "kube-proxy.yaml").write_text(node_files.kube_proxy(node, node.slot.place, kubeconfig=proxy_config))
    return {
        "containerd": [str(tool("containerd")), "--config", str(etc / "containerd.toml")],
        "kubelet": [
            str(tool("kubelet")),
            f"--config={etc / 'kubelet.yaml'}",
            f"--kubeconfig={kubelet_config}",
            f"--node-ip={node.address}",
            f"--hostname-override={node.name}",
        ],
        "kube-proxy": [str(tool("kube-proxy")), f"--config={etc / 'kube-proxy.yaml'}"],
    }


def _forget_containers(node: NodeNames, folder: NodeFolder) -> None:
    """Drops the containers of an earlier cluster from containerd's store, and keeps its images."""
    if not node.containerd_root.exists():
        return
    socket = Path(node_files.CONTAINERD_SOCKET)
    command: list[str | Path] = [tool("containerd"), "--config", folder.etc / "containerd-store.toml"]
    store = start("containerd-store", command, log=folder.logs / "containerd-store.log")
    wait_until(socket.is_socket, "containerd opens its store", seconds=60, children=[store])
    ctr = [str(tool("ctr")), "--address", str(socket), "--namespace", "k8s.io", "containers"]
    remaining = subprocess.run([*ctr, "list", "--quiet"], capture_output=True, text=True, check=True).stdout.split()
    if remaining:
        subprocess.run([*ctr, "delete", *remaining], capture_output=True, check=True)
    store.stop()
    socket.unlink(missing_ok=True)
    shutil.rmtree(node.containerd_root / "io.containerd.grpc.v1.cri", ignore_errors=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Slot(int(sys.argv[2])).node(int(sys.argv[3])), int(sys.argv[4]))
