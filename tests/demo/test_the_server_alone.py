"""`make run`: a model of the hub is downloaded once, then no network is needed; a folder is served as it is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.provider import CHECKOUT
from fake_hub import REPO, FakeHub

FILES = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "model.safetensors": b"weights"}
NOT_A_PORT = {"PORT": "nowhere"}
"""The server refuses it at once: what it says proves that it was started, without a model to load."""
REFUSED_SETTINGS = 2


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def run(model: str, cache: Path, *, endpoint: str = "http://127.0.0.1:1") -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy") and not name.startswith("HF_")}
    folders = {"MILLRACE_CACHE": str(cache), "HF_HOME": str(cache.parent / "home"), "PYTHONPATH": str(CHECKOUT / "e2e")}
    environment = {**kept, **folders, **NOT_A_PORT, "HF_ENDPOINT": endpoint}
    command = [sys.executable, "-m", "demo.alone", model]
    return subprocess.run(command, env=environment, cwd=cache.parent, capture_output=True, text=True, timeout=120, check=False)


def test_a_model_of_the_hub_is_downloaded_before_the_server_starts_and_only_once(cache: Path) -> None:
    with FakeHub({**FILES, "pytorch_model.bin": b"pickle"}) as hub:
        first = run(REPO, cache, endpoint=hub.url)
    assert first.returncode == REFUSED_SETTINGS, first.stderr
    assert "PORT" in first.stderr
    downloaded = {file.name: file.read_bytes() for file in (cache / "hub" / REPO).iterdir() if file.name in FILES}
    assert downloaded == FILES
    assert hub.downloads() == sorted(FILES)
    without_a_hub = run(REPO, cache)
    assert without_a_hub.returncode == REFUSED_SETTINGS, without_a_hub.stderr


def test_a_model_that_cannot_be_had_starts_no_server(cache: Path) -> None:
    with FakeHub(FILES) as hub:
        unknown = run("acme/unknown", cache, endpoint=hub.url)
    assert unknown.returncode == 1
    assert "acme/unknown does not exist" in unknown.stderr
    assert "PORT" not in unknown.stderr


def test_a_folder_is_served_without_a_download(cache: Path) -> None:
    folder = cache.parent / "own"
    folder.mkdir()
    served = run("own", cache)
    assert served.returncode == REFUSED_SETTINGS, served.stderr
    assert not cache.exists()


def test_a_run_without_a_model_says_what_to_type(cache: Path) -> None:
    done = run("", cache)
    assert done.returncode == 1
    assert done.stderr == "run: MODEL is not said: make run MODEL=Qwen/Qwen2.5-0.5B-Instruct, or a folder\n"
