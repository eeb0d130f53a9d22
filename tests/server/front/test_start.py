"""From nothing to a process that listens, loads, or says why not."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from millrace_server.app import liveness_failure
from millrace_server.engine.handle import Dead, Loading, Serving, State
from running_server import RunningServer
from server.front.scripted import READY, inference


@pytest.fixture
def loading(tmp_path: Path, tiny_model: Path) -> Iterator[RunningServer]:
    """A server that has only just begun to load its model."""
    with RunningServer(tmp_path, model=tiny_model) as server:
        yield server.wait_listening()


def test_http_answers_before_the_model_is_loaded_and_sigterm_ends_the_load(loading: RunningServer) -> None:
    health = loading.requests().get("/health")
    assert (health.status_code, health.json()["status"], health.json()["model_loaded"]) == (503, "loading", False)
    refused = loading.requests().infer("early")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_loading")
    assert int(refused.headers["retry-after"]) >= 1
    assert loading.internal().get("/livez").status_code == 200
    assert loading.internal().get("/readyz").status_code == 503
    load = loading.load()
    assert (load["ready"], load["arrivals"]) == (False, 0)
    began = time.monotonic()
    assert loading.terminate() == 0
    assert time.monotonic() - began < 2


def test_a_model_that_is_not_there_ends_the_server_with_the_reason(tmp_path: Path) -> None:
    with RunningServer(tmp_path, model=tmp_path / "absent") as server:
        assert server.process.wait(timeout=60) == 1
        message = json.loads(server.termination_log.read_bytes())
    assert message["cause"] == "ModelNotFound"
    assert str(tmp_path / "absent") in message["hint"]


def test_a_port_that_is_taken_ends_the_server_with_the_reason(tmp_path: Path, server: RunningServer) -> None:
    with RunningServer(tmp_path, model=tmp_path, settings={"PORT": str(server.port)}) as second:
        assert second.process.wait(timeout=60) == 1
        message = json.loads(second.termination_log.read_bytes())
    assert message["cause"] == "AddressUnavailable"
    assert str(server.port) in message["hint"]


def test_a_chat_template_that_never_ends_keeps_nobody_from_being_served(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(loop)
    with RunningServer(tmp_path, model=folder) as server:
        server.wait_ready()
        warning = server.wait_for(lambda: [line for line in server.log_lines() if line["message"] == "chat is unavailable"])
        assert warning[0]["why"] == "the model's chat template fails: the chat template takes too long"
        assert server.requests().infer("hello", max_tokens=1).status_code == 200
        assert server.terminate() == 0


def test_the_rendering_process_ends_with_the_server(tmp_path: Path, tiny_model: Path) -> None:
    with RunningServer(tmp_path, model=tiny_model) as server:
        server.wait_ready()
        children = psutil.Process(server.process.pid).children()
        assert sorted(child.cmdline()[2] for child in children) == ["millrace_server.chat.process", "millrace_server.engine.process"]
        server.process.kill()
        _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"MODEL_NAME": ""}, "MODEL_NAME is not set; it is required"),
        ({"MAX_BATCH_SIZE": "0"}, "MAX_BATCH_SIZE='0' is refused"),
        ({"DEVICE": "tpu"}, "DEVICE='tpu' is refused"),
    ],
)
def test_a_wrong_setting_is_named_in_one_sentence(tmp_path: Path, settings: dict[str, str], sentence: str) -> None:
    with RunningServer(tmp_path, model=None, settings=settings) as server:
        assert server.process.wait(timeout=60) == 2
        assert len(server.log().splitlines()) == 1
        assert sentence in server.log()
        message = json.loads(server.termination_log.read_bytes())
    assert (message["stage"], message["cause"]) == ("settings", "InvalidSettings")
    assert sentence in message["hint"]


def test_the_front_imports_neither_models_nor_templates() -> None:
    program = "import sys, millrace_server.lifecycle; print(sorted({'torch', 'transformers', 'numpy', 'jinja2'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_settings_are_documented_by_the_command_line() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "millrace_server", "--help"], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert "--model" in result.stdout
    assert "[MODEL_NAME, MODEL_PATH]" in result.stdout.replace("\n", " ")


@pytest.mark.parametrize(
    ("state", "failure"),
    [
        (Loading("read", 1, 9, changed_at=0), None),
        (Loading("read", 1, 9, changed_at=-11), "loading stands still at read 1 of 9 since 11 s (limit 10 s)"),
        (Serving(READY), None),
        (Dead(None, restarts=True), None),
        (Dead(None), "the engine is gone and does not come back"),
    ],
)
def test_liveness_fails_only_when_waiting_does_not_help(state: State, failure: str | None) -> None:
    server, _ = inference(state, LOAD_STALL_SECONDS="10")
    assert liveness_failure(server, now=0) == failure
