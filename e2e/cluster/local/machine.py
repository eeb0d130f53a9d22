"""The cluster's outermost namespaces: a bridge to the host, the control plane, the image registry, and the nodes. PID 1 in there.

Run by the provider as `unshare … python -m cluster.local.machine STATE SLOT NODES`; killing that process ends the cluster.
"""

import subprocess
import sys
from pathlib import Path

from cluster import cache
from cluster.control_plane import ControlPlane
from cluster.local.init import supervise, unshare
from cluster.local.network import has_interface, ip, link_into, only_child
from cluster.local.slot import NodeNames, Slot
from cluster.packages import tool
from cluster.process import Child, start, wait_until

BRIDGE = "cluster"
HOST_LINK = "host"


def main(state: Path, slot: Slot, nodes: int) -> None:
    """Starts everything in order, then watches over it."""
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    _wire(slot)
    control_plane = ControlPlane(state / "control-plane", place=slot.place, with_scheduler=True)
    running = {"registry": _start_registry(state, slot)}
    control_plane.start()
    running |= control_plane.children
    running["volumes"] = _start_volumes(state, slot)
    commands = control_plane.commands()
    names = [slot.node(index + 1) for index in range(nodes)]
    running |= {node.name: _start_node(state, node, nodes) for node in names}

    def restart(name: str) -> Child:
        if name == "registry":
            return _start_registry(state, slot)
        if name == "volumes":
            return _start_volumes(state, slot)
        if name in commands:
            return start(name, commands[name], log=control_plane.children[name].log)
        return _start_node(state, next(node for node in names if node.name == name), nodes)

    supervise(running, restart)


def _wire(slot: Slot) -> None:
    ip("link", "set", "lo", "up")
    ip("link", "add", BRIDGE, "type", "bridge")
    ip("addr", "add", f"{slot.control_plane_address}/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    wait_until(lambda: has_interface(HOST_LINK), "the host has plugged in its cable", seconds=30)
    _plug(HOST_LINK)


def _plug(interface: str) -> None:
    ip("link", "set", interface, "master", BRIDGE)
    ip("link", "set", interface, "up")


def _start_registry(state: Path, slot: Slot) -> Child:
    config = state / "registry.yaml"
    config.write_text(
        "version: 0.1\n"
        "log: {level: warn, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {cache.root() / 'registry'}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{slot.registry}'}}\n"
    )
    return start("registry", [tool("docker-registry"), "serve", config], log=state / "logs" / "registry.log")


def _start_volumes(state: Path, slot: Slot) -> Child:
    command = [sys.executable, "-m", "cluster.local.volumes", str(state), str(slot.number)]
    return start("volumes", command, log=state / "logs" / "volumes.log")


def _start_node(state: Path, node: NodeNames, nodes: int) -> Child:
    command = [*unshare(), sys.executable, "-m", "cluster.local.node", str(state), str(node.slot.number), str(node.index), str(nodes)]
    child = start(node.name, command, log=state / "logs" / f"{node.name}.log")
    cable = f"to-{node.name}"
    # `setpriv` becomes `unshare` in the same process, whose only child is the node.
    wait_until(lambda: only_child(child.process.pid) is not None, f"{node.name} has its namespaces", seconds=10, children=[child])
    inside = only_child(child.process.pid)
    if has_interface(cable):
        ip("link", "delete", cable)
    link_into(inside or 0, here=cable, there="eth0")
    _plug(cable)
    ip("route", "replace", node.pod_range, "via", node.address)
    return child


if __name__ == "__main__":
    main(Path(sys.argv[1]), Slot(int(sys.argv[2])), int(sys.argv[3]))
