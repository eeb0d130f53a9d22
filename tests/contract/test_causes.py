"""Every cause that a status can name is made by a real fault in some test, or is known to be made by none."""

from pathlib import Path

import pytest
import yaml

from millrace_operator.status import NEXT_STEP

CHECKOUT = Path(__file__).parents[2]
STATUSES = CHECKOUT / "e2e/statuses"
"""Written by e2e/test_every_cause.py."""
ELSEWHERE = {
    "InvalidSpec": "tests/operator/test_operator_process.py",
    "FieldConflict": "tests/operator/test_events.py",
    "Forbidden": "tests/operator/test_operator.py",
    "CRDNotInstalled": "tests/operator/test_operator_monitoring.py",
    "RedisNotReady": "tests/operator/test_operator_redis.py",
    "ConflictingAutoscaler": "tests/operator/test_operator_rivals.py",
    "NodeLost": "e2e/test_node_is_lost.py",
    "NotResponding": "e2e/test_hang.py",
}
"""Made there on a real API server, or on a whole cluster."""
MADE_BY_NONE = {
    "ChildRefused": "the API server takes every child that a valid service has: it would be a defect",
    "ErrImageNeverPull": "the operator's own pull policy would have to be Never",
    "CreateContainerError": "the container runtime must fail",
    "RunContainerError": "the container runtime must fail",
    "Evicted": "a node must run out of memory or disk",
    "PodFailed": "a node must be shut down, or lose a device",
}
"""Only their texts are tested, in tests/operator/test_status.py."""


def in_golden_files() -> set[str]:
    statuses = [yaml.safe_load(file.read_text()) for file in STATUSES.glob("*.yaml")]
    return {each["reason"] for status in statuses for each in status["conditions"]}


def test_no_cause_is_forgotten_and_none_is_told_twice() -> None:
    produced = in_golden_files() & set(NEXT_STEP)
    assert produced | set(ELSEWHERE) | set(MADE_BY_NONE) == set(NEXT_STEP)
    assert not (produced | set(ELSEWHERE)) & set(MADE_BY_NONE)


@pytest.mark.parametrize(("cause", "file"), ELSEWHERE.items())
def test_what_is_made_elsewhere_is_named_there(cause: str, file: str) -> None:
    assert f'"{cause}"' in (CHECKOUT / file).read_text()
