"""A node that stands still, as a machine that hangs: its processes do nothing, and its kernel still accepts connections for them."""

from contextlib import suppress

import psutil

from cluster.local.outer import Outer
from cluster.process import wait_until

_NODE = "cluster.local.node"


def freeze(outer: Outer, index: int) -> None:
    """Stops every process of the node `index`: kubelet, runtime and pods. Returns when the last one stands still."""

    def all_stand() -> bool:
        moving = [process for process in _processes(outer, index) if _moves(process)]
        for process in moving:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        return not moving

    wait_until(all_stand, f"every process of node {index} stands still", seconds=30)


def thaw(outer: Outer, index: int) -> None:
    """They go on where they stopped."""
    for process in _processes(outer, index):
        with suppress(psutil.NoSuchProcess):
            process.resume()


def _processes(outer: Outer, index: int) -> list[psutil.Process]:
    """The node's first process and all that descend from it, which it would otherwise start again."""
    for process in psutil.Process(outer.process).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            command = process.cmdline()
            if _NODE in command and command[-2] == str(index):
                return [process, *process.children(recursive=True)]
    return []


def _moves(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    return False
