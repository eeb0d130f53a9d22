"""CPU and memory limits as v1 and v2 control groups write them."""

import os
from pathlib import Path

import pytest

from millrace_server.engine import container

HOST_CPUS = len(os.sched_getaffinity(0))
GB = 10**9


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "self"
    file.write_text("3:cpu,cpuacct:/pod/server\n2:memory:/pod/server\n0::/pod/server\n")
    return file


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, HOST_CPUS),
        ({"pod/server/cpu.max": "max 100000\n"}, HOST_CPUS),
        ({"pod/server/cpu.max": "150000 100000\n"}, 1),
        ({"pod/cpu.max": "100000 100000\n", "pod/server/cpu.max": "max 100000\n"}, 1),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu/pod/server/cpu.cfs_quota_us": "100000\n", "cpu/pod/server/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/pod/server/cpu.cfs_quota_us": "-1\n", "cpu/pod/server/cpu.cfs_period_us": "100000\n"}, HOST_CPUS),
    ],
)
def test_threads_follow_the_quota_of_our_group_and_its_ancestors(tmp_path: Path, own: Path, files: dict[str, str], expected: int) -> None:
    write(tmp_path / "cgroup", files)
    assert container.cpu_count(root=tmp_path / "cgroup", own=own) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8 * GB),
        ({"pod/server/memory.max": "max\n", "pod/server/memory.current": "5\n"}, 8 * GB),
        ({"pod/server/memory.max": f"{2 * GB}\n", "pod/server/memory.current": f"{GB}\n"}, GB),
        (
            {
                "pod/memory.max": f"{2 * GB}\n",
                "pod/memory.current": f"{2 * GB}\n",
                "pod/memory.stat": f"anon 5\nactive_file {GB // 2}\ninactive_file {GB // 4}\n",
            },
            GB * 3 // 4,
        ),
        ({"memory/pod/server/memory.limit_in_bytes": f"{3 * GB}\n", "memory/pod/server/memory.usage_in_bytes": f"{GB}\n"}, 2 * GB),
        ({"pod/server/memory.max": "5\n", "pod/server/memory.current": "9\n"}, 0),
    ],
)
def test_free_memory_is_the_smallest_room_that_any_group_leaves(tmp_path: Path, own: Path, files: dict[str, str], expected: int) -> None:
    write(tmp_path / "cgroup", files)
    info = tmp_path / "meminfo"
    info.write_text(f"MemTotal: 1 kB\nMemAvailable: {8 * GB // 1024} kB\n")
    assert container.free_memory(root=tmp_path / "cgroup", own=own, info=info) == pytest.approx(expected, abs=1024)
