"""The `ip` commands that wire host, control plane and nodes."""

import subprocess
from pathlib import Path

from cluster.packages import tool


class WiringFailed(Exception):
    """`ip` refused; the message has its reason."""


def ip(*arguments: str) -> None:
    """Runs `ip …` in the current network namespace; raises WiringFailed with its answer."""
    done = subprocess.run([str(tool("ip")), *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise WiringFailed(f"`ip {' '.join(arguments)}`: {done.stderr.strip()}")


def has_interface(name: str) -> bool:
    """The current network namespace has this interface. /sys would answer for the namespace that mounted it."""
    return subprocess.run([str(tool("ip")), "link", "show", "dev", name], capture_output=True, check=False).returncode == 0


def link_into(process: int, *, here: str, there: str) -> None:
    """A cable between this network namespace and that of `process`."""
    ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", str(process))


def set_kernel(name: str, value: str) -> None:
    """A sysctl of the current network namespace, such as `net/ipv4/ip_forward`."""
    (Path("/proc/sys") / name).write_text(value)


def only_child(process: int) -> int | None:
    """The process that `unshare --fork` started, or None before it did."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return int(children[0]) if children else None
