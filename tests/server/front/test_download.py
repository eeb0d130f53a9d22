"""The download command against a hub on loopback: what it takes, what it leaves, how it resumes and how it says why not."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fake_hub import COMMIT, REPO, FakeHub
from millrace_server.download import Snapshot, check_room, is_wanted
from millrace_server.engine.checkpoint import REVISION_FILE
from millrace_server.engine.failure import CannotServe

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": bytes(range(256)) * 400,
}
LEFT = {
    "pytorch_model.bin": b"pickle",
    "modeling_evil.py": b"import os",
    "consolidated.safetensors": b"again",
    "onnx/model.json": b"{}",
    "README.md": b"hello",
}


@dataclass(frozen=True)
class Run:
    code: int
    log: str
    message: dict[str, str] | None
    """What the termination log holds."""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub({**FILES, **LEFT}) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


def run(hub: FakeHub, folder: Path, *flags: str, repo: str = REPO, token: str | None = None, endpoint: str | None = None) -> Run:
    log = folder.parent / "termination-log"
    log.unlink(missing_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy") and not name.startswith("HF_")}
    environment = {
        **kept,
        "HF_ENDPOINT": endpoint or hub.url,
        "HF_HOME": str(folder.parent / "home"),
        "TERMINATION_LOG": str(log),
        **({"HF_TOKEN": token} if token else {}),
    }
    command = [sys.executable, "-m", "millrace_server.download", "--repo", repo, "--to", str(folder), *flags]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return Run(result.returncode, result.stderr, json.loads(log.read_bytes()) if log.exists() else None)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_the_model_arrives_whole_and_nothing_else_does(hub: FakeHub, folder: Path) -> None:
    result = run(hub, folder)
    assert (result.code, result.message) == (0, None)
    assert '"message":"complete"' in result.log
    assert contents(folder) == {**FILES, REVISION_FILE: f"{COMMIT}\n".encode()}
    assert hub.downloads() == sorted(FILES)


def test_a_complete_folder_at_a_commit_needs_no_hub(hub: FakeHub, folder: Path) -> None:
    assert run(hub, folder, "--revision", COMMIT).code == 0
    hub.requests.clear()
    hub.is_broken = True
    assert run(hub, folder, "--revision", COMMIT).code == 0
    assert hub.requests == []


def test_a_complete_folder_is_not_downloaded_again(hub: FakeHub, folder: Path) -> None:
    assert run(hub, folder).code == 0
    hub.requests.clear()
    assert run(hub, folder).code == 0
    assert hub.downloads() == []


def test_a_failed_download_goes_on_with_the_files_that_are_missing(hub: FakeHub, folder: Path) -> None:
    hub.broken_file = "model.safetensors"
    assert run(hub, folder).code == 1
    assert not (folder / REVISION_FILE).exists()
    leftover = folder / ".cache" / "huggingface" / "download" / "killed.incomplete"
    leftover.write_bytes(bytes(10))
    hub.broken_file = ""
    hub.requests.clear()
    assert run(hub, folder).code == 0
    assert hub.downloads() == ["model.safetensors"]
    assert contents(folder) == {**FILES, REVISION_FILE: f"{COMMIT}\n".encode()}
    assert not leftover.exists()


def failed(result: Run, cause: str) -> str:
    """The hint of a failure."""
    assert result.code == 1
    assert result.message is not None
    assert (result.message["stage"], result.message["cause"]) == ("download", cause)
    assert result.message["hint"] in result.log
    assert "Traceback" not in result.log
    return result.message["hint"]


def test_a_model_larger_than_the_limit_is_refused_before_the_first_byte(hub: FakeHub, folder: Path) -> None:
    size = sum(len(content) for content in FILES.values())
    hint = failed(run(hub, folder, "--max-bytes", str(size - 1)), "DiskFull")
    assert f"has {size} bytes, the folder's limit is {size - 1}" in hint
    assert hub.downloads() == []
    assert run(hub, folder, "--max-bytes", str(size)).code == 0


def test_a_missing_model_is_named(hub: FakeHub, folder: Path) -> None:
    assert "acme/absent does not exist" in failed(run(hub, folder, repo="acme/absent"), "ModelNotFound")


def test_a_missing_revision_is_named(hub: FakeHub, folder: Path) -> None:
    assert "no revision 'v9'" in failed(run(hub, folder, "--revision", "v9"), "ModelNotFound")


def test_a_name_that_is_none_is_named(hub: FakeHub, folder: Path) -> None:
    assert "must look like OWNER/NAME" in failed(run(hub, folder, repo="../../etc"), "ModelNotFound")


def test_a_private_model_needs_its_token(hub: FakeHub, folder: Path) -> None:
    hub.token = "hf_right"
    assert "give a token" in failed(run(hub, folder), "ModelNotFound")
    wrong = run(hub, folder, token="hf_wrong")
    assert "refuses the token" in failed(wrong, "BadToken")
    assert "hf_wrong" not in wrong.log
    assert run(hub, folder, token="hf_right").code == 0


def test_a_gated_model_says_to_accept_its_licence(hub: FakeHub, folder: Path) -> None:
    hub.is_gated = True
    assert "accept its licence" in failed(run(hub, folder, token="hf_right"), "BadToken")


def test_a_model_without_safetensors_is_refused(hub: FakeHub, folder: Path) -> None:
    del hub.files["model.safetensors"]
    failed(run(hub, folder), "NoSafetensors")


def test_a_hub_that_is_not_there_is_told_from_a_missing_model(hub: FakeHub, folder: Path) -> None:
    failed(run(hub, folder, endpoint="http://127.0.0.1:9"), "NetworkUnreachable")


def test_a_folder_that_cannot_be_written_is_named(hub: FakeHub, folder: Path) -> None:
    folder.write_text("a file")
    assert str(folder) in failed(run(hub, folder), "FolderNotWritable")


def test_wrong_arguments_exit_with_2(hub: FakeHub, folder: Path) -> None:
    assert run(hub, folder, "--max-bytes", "many").code == 2


@pytest.mark.parametrize(("present", "free", "fits"), [(0, 100, True), (0, 99, False), (60, 40, True), (60, 39, False), (500, 0, True)])
def test_room_is_checked_for_what_is_still_missing(present: int, free: int, fits: bool) -> None:
    snapshot = Snapshot(repo=REPO, commit=COMMIT, files={"a.safetensors": 90, "config.json": 10})
    if fits:
        check_room(snapshot, present=present, free=free, max_bytes=None)
    else:
        with pytest.raises(CannotServe, match=f"the disk has {free} left"):
            check_room(snapshot, present=present, free=free, max_bytes=None)


@pytest.mark.parametrize(("name", "wanted"), [*((name, True) for name in FILES), *((name, False) for name in LEFT), ("vocab.txt", True)])
def test_what_is_wanted(name: str, wanted: bool) -> None:
    assert is_wanted(name) is wanted
