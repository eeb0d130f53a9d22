"""When each alert of the chart fires, and when it does not, by Prometheus' own promtool. It needs no cluster."""

import subprocess

import pytest

from cluster.packages import tool
from cluster.provider import CHECKOUT

pytestmark = pytest.mark.long

RULES = CHECKOUT / "charts/millrace/rules/millrace.yaml"
CASES = CHECKOUT / "e2e/alerts.yaml"


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(tool("promtool")), *words], capture_output=True, text=True, check=False)


def test_promtool_has_nothing_to_say_against_the_rules() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_in_its_case_and_no_other_one_does() -> None:
    done = promtool("test", "rules", str(CASES))
    assert done.returncode == 0, done.stdout + done.stderr
