"""What the figures were measured on."""

import datetime
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    cpu: str
    cores: int
    """That this process may use."""
    threads: int
    """That every engine computes with."""
    dtype: str
    model: str
    python: str
    torch: str
    transformers: str
    revision: str
    """Of the checkout; "+" when files differ from it."""
    date: str


def describe(*, dtype: str, model: str) -> Machine:
    cores = len(os.sched_getaffinity(0))
    return Machine(
        cpu=cpu_model(CPU_INFO.read_text()) if CPU_INFO.is_file() else platform.processor(),
        cores=cores,
        threads=cores,
        dtype=dtype,
        model=model,
        python=platform.python_version(),
        torch=version("torch"),
        transformers=version("transformers"),
        revision=revision(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def cpu_model(cpu_info: str) -> str:
    """The first "model name", with family and model numbers, which tell apart what hypervisors name alike."""
    lines = (line.partition(":") for line in cpu_info.split("\n\n")[0].splitlines())
    facts = {key.strip(): value.strip() for key, _, value in lines}
    name = facts.get("model name", platform.machine())
    return f"{name} (family {facts['cpu family']}, model {facts['model']})" if "cpu family" in facts and "model" in facts else name


def revision() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
