"""What the operator process is told."""

import os
import subprocess
import sys

import pytest

from millrace_operator.settings import OperatorSettings
from millrace_server.settings import InvalidSettings

REQUIRED = {"MILLRACE_SERVER_IMAGE": "server:1"}


def test_the_image_alone_is_enough() -> None:
    settings = OperatorSettings.from_environment(REQUIRED)
    assert settings.server_image == "server:1"
    assert settings.namespaces == ()
    assert (settings.lease_duration, settings.lease_renew_deadline, settings.lease_retry) == (15, 10, 2)


def test_namespaces_are_separated_by_commas() -> None:
    assert OperatorSettings.from_environment({**REQUIRED, "MILLRACE_NAMESPACES": "a, b,"}).namespaces == ("a", "b")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MILLRACE_SERVER_IMAGE", ""),
        ("MILLRACE_PORT", "70000"),
        ("MILLRACE_PORT", "http"),
        ("MILLRACE_RESYNC_SECONDS", "0"),
        ("MILLRACE_RESYNC_SECONDS", "-1"),
        ("MILLRACE_WORKERS", "many"),
        ("MILLRACE_LEASE_SECONDS", "12"),
        ("MILLRACE_LEASE_RETRY_SECONDS", "9"),
        ("MILLRACE_FIRST_RETRY_SECONDS", "301"),
        ("MILLRACE_LOG_LEVEL", "LOUD"),
        ("MILLRACE_SERVER_IMAGE_PULL_POLICY", "Sometimes"),
    ],
)
def test_a_bad_value_is_refused_by_the_variable_s_name(variable: str, value: str) -> None:
    with pytest.raises(InvalidSettings, match=variable):
        OperatorSettings.from_environment({**REQUIRED, variable: value})


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [({}, "MILLRACE_SERVER_IMAGE is not set; it is required"), (REQUIRED, "no way to the API server")],
)
def test_the_process_ends_with_one_sentence_and_2(environment: dict[str, str], sentence: str) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MILLRACE_", "KUBE"))}
    ended = subprocess.run([sys.executable, "-m", "millrace_operator"], env={**clean, **environment}, capture_output=True, text=True)
    assert ended.returncode == 2
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
