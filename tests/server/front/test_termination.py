"""The last words fit into what Kubernetes keeps, whatever they say."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_server import termination
from millrace_server.engine.messages import Failed


@given(st.text(max_size=3000), st.text(max_size=100))
def test_any_message_is_json_of_at_most_a_kilobyte(hint: str, stage: str) -> None:
    encoded = termination.encode(Failed(stage=stage, cause="DiskFull", hint=hint))
    assert len(encoded) <= termination.MAX_BYTES
    message = json.loads(encoded)
    assert set(message) == {"stage", "cause", "hint"}
    assert message["cause"] == "DiskFull"
    assert message["hint"] == hint or hint.startswith(message["hint"].rstrip("…")[:-1])


def test_without_a_path_nothing_is_written(tmp_path: Path) -> None:
    termination.write(None, Failed(stage="load", cause="OutOfMemory", hint="a hint"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_logged_and_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    termination.write(tmp_path / "absent" / "log", Failed(stage="load", cause="OutOfMemory", hint="a hint"))
    assert "the termination message was not written" in caplog.text
