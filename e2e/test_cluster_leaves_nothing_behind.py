"""After `down`, and after the loss of the outer process, the machine is as it was: a cluster may run on anybody's computer."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from cluster.local.network import has_interface
from cluster.local.outer import Outer
from cluster.local.provider import Local, why_not
from cluster.local.slot import Slot
from cluster.packages import tool
from cluster.process import wait_until

KERNEL_SETTINGS = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "net/ipv4/ip_forward")
SYSTEM_FOLDERS = ("/etc/cni", "/etc/containerd", "/opt/cni", "/run", "/var/lib", "/var/log", "/var/run")
BUILDERS_FOLDER = "millrace-containers"
"""In /run, of image builds, which other tests may start at any time."""


@pytest.fixture
def cluster(tmp_path: Path) -> Local:
    """A cluster of its own, whatever else runs on this machine."""
    assert why_not() is None, why_not()
    return Local(tmp_path, nodes=2)


def test_down_leaves_no_trace(cluster: Local) -> None:
    before = _machine()
    cluster.up()
    outer, processes = _running(cluster)
    cluster.down()
    _assert_nothing_left(cluster, outer, processes)
    assert _machine() == before
    assert not cluster.state.exists()
    assert not cluster.kubeconfig.exists()


def test_killing_the_outer_process_ends_everything_and_up_starts_over(cluster: Local) -> None:
    try:
        cluster.up()
        outer, processes = _running(cluster)
        os.kill(outer.process, signal.SIGKILL)
        wait_until(lambda: not any(map(_runs, processes)), "every process of the cluster is gone", seconds=30)
        cluster.up()
        assert cluster.kubectl("get", "nodes", "-o=name").split() == ["node/node-1", "node/node-2"]
        outer, processes = _running(cluster)
    finally:
        cluster.down()
    _assert_nothing_left(cluster, outer, processes)


def test_down_of_a_cluster_that_never_was_does_nothing(tmp_path: Path) -> None:
    Local(tmp_path / "absent").down()
    assert not (tmp_path / "absent").exists()


def _running(cluster: Local) -> tuple[Outer, list[tuple[int, str]]]:
    """The outer process, and it with all its descendants, each with the time of its start."""
    outer = Outer.recorded(cluster.state)
    assert outer is not None
    processes = _tree(outer.process)
    minimum = 18
    assert len(processes) > minimum, "etcd, API server, two controllers, registry, two kubelets, … are children of the outer process"
    return outer, [(each, _started(each)) for each in processes]


def _assert_nothing_left(cluster: Local, outer: Outer, processes: list[tuple[int, str]]) -> None:
    slot = Slot(outer.slot)
    assert [each for each in processes if _runs(each)] == []
    assert not has_interface(slot.host_interface)
    assert list(Path("/sys/fs/cgroup").glob(f"**/{slot.cgroup_prefix}*")) == []
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    places = [cluster.folder, *(slot.node(index).containerd_root for index in (1, 2))]
    assert [line for line in mounts if any(str(place) in line for place in places)] == []


def _machine() -> dict[str, object]:
    """What a careless cluster would change: firewall, kernel settings, folders of the system."""
    rules = subprocess.run([tool("iptables").with_name("iptables-save")], capture_output=True, text=True, check=True)
    return {
        "rules": [line for line in rules.stdout.splitlines() if line.startswith("-")],
        "settings": {name: Path(f"/proc/sys/{name}").read_text() for name in KERNEL_SETTINGS},
        "folders": {name: sorted(set(os.listdir(name)) - {BUILDERS_FOLDER}) for name in SYSTEM_FOLDERS if Path(name).is_dir()},
    }


def _tree(process: int) -> list[int]:
    """The process and everything that descends from it."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [process, *(each for child in children for each in _tree(int(child)))]


def _started(process: int) -> str:
    """When it started; a zombie runs no more, and who reaps it is not our affair."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return "never"
    return "never" if fields[0] == "Z" else fields[19]


def _runs(process: tuple[int, str]) -> bool:
    number, started = process
    return _started(number) == started
