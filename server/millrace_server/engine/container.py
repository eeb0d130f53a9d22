"""What this container may use: CPUs and memory by its control group (v1 and v2), never by the host's size.

Every group from our own up to the root limits us, so the smallest limit counts. Missing files mean no limit.
"""

import os
from collections.abc import Iterator
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
MEMORY_INFO = Path("/proc/meminfo")


def cpu_count(*, root: Path = CGROUP_ROOT, own: Path = OWN_GROUPS) -> int:
    """Whole CPUs of time per second, at least one: more threads than that would only be throttled."""
    quotas: list[float] = []
    for group in _groups("cpu", root, own):
        v2 = _words(group / "cpu.max")
        v1 = _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
        for quota, period in (pair for pair in (v2, v1) if len(pair) == 2):
            if quota.isdecimal() and int(period) > 0:
                quotas.append(int(quota) / int(period))
    return max(1, int(min([*quotas, len(os.sched_getaffinity(0))])))


def free_memory(*, root: Path = CGROUP_ROOT, own: Path = OWN_GROUPS, info: Path = MEMORY_INFO) -> int:
    """Bytes that this process may still take: the machine's available memory and every group's limit less its use.

    The page cache of files (such as the model's, read a moment ago) counts as a group's use, but is given back under pressure.
    """
    free = [int(line.split()[1]) * 1024 for line in info.read_text().splitlines() if line.startswith("MemAvailable:")]
    for group in _groups("memory", root, own):
        limit = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
        usage = _words(group / "memory.current") or _words(group / "memory.usage_in_bytes")
        if limit and usage and limit[0].isdecimal():
            free.append(int(limit[0]) - int(usage[0]) + _file_cache(group))
    return max(0, min(free))


def _file_cache(group: Path) -> int:
    words = _words(group / "memory.stat")
    counts = dict(zip(words[::2], words[1::2], strict=False))
    names = ("total_active_file", "total_inactive_file") if "total_active_file" in counts else ("active_file", "inactive_file")
    return sum(int(counts.get(name, 0)) for name in names)


def _groups(controller: str, root: Path, own: Path) -> Iterator[Path]:
    """Our group of the controller and its ancestors, in v1's tree and in v2's."""
    lines = own.read_text().splitlines() if own.exists() else []
    for line in lines:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            top = root
        elif controller in controllers.split(","):
            top = root / controller
        else:
            continue
        # In a container the path may name the host's group, which is not mounted here; the top then is our own group.
        group = top / path.lstrip("/")
        while group != top and top in group.parents:
            yield group
            group = group.parent
        yield top


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
