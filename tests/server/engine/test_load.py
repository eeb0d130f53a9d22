"""What is refused at load, by name and with the numbers, and what is served instead of guessed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BloomConfig, GPTJConfig, PreTrainedConfig

import fake_model
from millrace_server.engine import checkpoint
from millrace_server.engine.failure import CannotServe
from millrace_server.engine.runner import Runner
from millrace_server.settings import DType
from small_engine import load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fake_model.build(tmp_path)


def refusal(folder: Path, *, max_length: int | None = None) -> CannotServe:
    with pytest.raises(CannotServe) as caught:
        load(folder, max_length=max_length)
    return caught.value


def test_max_length_lowers_the_models_limit_and_cannot_raise_it(folder: Path) -> None:
    assert load(folder, max_length=100).facts.max_length == 100
    failed = refusal(folder, max_length=fake_model.MAX_LENGTH + 1).failed
    assert failed.cause == "InvalidMaxLength"
    assert str(fake_model.MAX_LENGTH) in failed.hint


def test_too_little_memory_for_one_request_is_refused_with_a_length_that_fits(folder: Path) -> None:
    runner = load(folder)
    with pytest.raises(CannotServe, match=r"needs \d+ MB .* lower MAX_LENGTH to \d+") as caught:
        Runner(runner._model, facts=runner.facts, free_memory=200_000)
    assert caught.value.failed.cause == "OutOfMemory"


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=259, hidden_size=32, n_layer=2, n_head=4),
        GPTJConfig(vocab_size=259, n_embd=32, n_layer=2, n_head=4, rotary_dim=8, bos_token_id=0, eos_token_id=0),
    ],
)
def test_an_architecture_without_our_attention_is_refused_by_name(tmp_path: Path, config: PreTrainedConfig) -> None:
    failed = refusal(fake_model.save(config, tmp_path)).failed
    assert failed.cause == "UnsupportedArchitecture"


def test_code_that_a_repository_brings_is_never_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(folder / 'canary')!r}, 'w')")
    assert refusal(folder).failed.cause == "UnsupportedArchitecture"
    assert not (folder / "canary").exists()


def test_damaged_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert refusal(folder).failed.cause == "InvalidModel"


def test_missing_weights_are_refused_and_not_made_up(folder: Path) -> None:
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    failed = refusal(folder).failed
    assert failed.cause == "InvalidModel"
    assert "model.layers.1.mlp.up_proj.weight" in failed.hint


def test_auto_keeps_float32_weights_exact(folder: Path) -> None:
    assert load(folder, dtype=DType.auto).facts.dtype == "float32"
    assert load(folder, dtype=DType.bfloat16).facts.dtype == "bfloat16"


def test_auto_serves_half_weights_as_the_cpu_can_compute_them(tmp_path: Path) -> None:
    folder = fake_model.build(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert load(folder, dtype=DType.auto).facts.dtype == ("bfloat16" if native else "float32")


def test_the_revision_follows_every_byte_and_the_progress_ends_at_the_total(folder: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    found = checkpoint.inspect(folder)
    first = checkpoint.read(found, lambda *report: reports.append(report))
    assert reports[-1][1] == reports[-1][2] > 0
    assert checkpoint.read(found, lambda *_: None) == first
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert checkpoint.read(found, lambda *_: None) != first


def test_a_hub_model_that_was_never_downloaded_is_not_found() -> None:
    with pytest.raises(CannotServe, match="hub cache") as caught:
        checkpoint.find(name="nobody/nothing", path=None)
    assert caught.value.failed.cause == "ModelNotFound"


def test_the_revision_is_the_commit_that_a_download_noted(folder: Path) -> None:
    (folder / checkpoint.REVISION_FILE).write_text("c0ffee\n")
    assert checkpoint.read(checkpoint.inspect(folder), lambda *_: None) == "c0ffee"
