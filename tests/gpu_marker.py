"""Hooks for conftest.py: tests marked `gpu` run where there is a GPU, and are counted aloud where there is none."""

import datetime
import json
import subprocess
from pathlib import Path

import pytest

LAST_RUN = Path(__file__).with_name("gpu-last-run.json")
"""Written by a run on a GPU in which every test marked `gpu` passed; commit it."""

GPU = ("marked", "gpu")


def gpu_name() -> str | None:
    """The first GPU's name, by the driver's own tool; None where no driver answers."""
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    names = answer.stdout.splitlines() if answer.returncode == 0 else []
    return names[0] if names else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    for item in marked:
        item.user_properties.append(GPU)
    if marked and gpu_name() is None:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no GPU here"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    # By their reports: who collects may be another process.
    reports = [report for kind in terminalreporter.stats.values() for report in kind if isinstance(report, pytest.TestReport)]
    marked = len({report.nodeid for report in reports if GPU in map(tuple, report.user_properties)})
    name = gpu_name()
    if name is None:
        last = json.loads(LAST_RUN.read_text()) if LAST_RUN.exists() else None
        when = f"they last ran on {last['date']} on {last['gpu']} ({last['tests']} tests)" if last else "they have never run"
        terminalreporter.write_line(f"gpu: {marked} tests have not run here (no GPU); {when}", yellow=True)
    elif exitstatus == 0 and not config.option.keyword:
        today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        LAST_RUN.write_text(json.dumps({"date": today, "gpu": name, "tests": marked}, indent=2) + "\n")
