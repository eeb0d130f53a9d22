"""The cgroup that holds a node's pods, on cgroup v1 and v2."""

import contextlib
import os
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids")


def make(name: str) -> None:
    """Creates the cgroup under each hierarchy, ready for children with limits."""
    for parent in _hierarchies():
        if parent.name == "unified":
            continue  # version 2 beside version 1 has no controllers; container runtimes put processes there nevertheless
        child = parent / name
        child.mkdir(exist_ok=True)
        if (parent / "cgroup.controllers").exists() and not (parent / "memory.limit_in_bytes").exists():
            available = (parent / "cgroup.controllers").read_text().split()
            for folder in (parent, child):
                wanted = " ".join(f"+{each}" for each in _CONTROLLERS if each in available)
                (folder / "cgroup.subtree_control").write_text(wanted)
        for file in ("cpuset.cpus", "cpuset.mems"):
            # On v1 an empty set admits no process at all.
            if (parent / file).exists() and (child / file).exists() and not (child / file).read_text().strip():
                (child / file).write_text((parent / file).read_text())


def remove(name: str) -> None:
    """Removes the cgroup and those below it, as far as nothing runs in them any more."""
    for parent in _hierarchies():
        for folder, _, _ in os.walk(parent / name, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


def existing(prefix: str) -> list[Path]:
    """The top cgroups whose name begins with `prefix`."""
    return [found for parent in _hierarchies() for found in sorted(parent.glob(f"{prefix}*"))]


def _hierarchies() -> list[Path]:
    """Version 2 has one; version 1 has a folder for each controller (some are links), and perhaps version 2 beside them as `unified`."""
    if (MOUNT / "cgroup.controllers").exists():
        return [MOUNT]
    return [folder for folder in sorted(MOUNT.iterdir()) if folder.is_dir() and not folder.is_symlink()]
