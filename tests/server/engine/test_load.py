"""What is refused at load, by name and with the numbers, and what is served instead of guessed."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, BloomConfig, FalconConfig, GPTJConfig, MambaConfig, MptConfig, PreTrainedConfig

import fake_model
from millrace_server.engine import checkpoint, container, model
from millrace_server.engine.failure import CannotServe
from millrace_server.engine.runner import ATTENTION, Runner
from millrace_server.settings import DType
from small_engine import SmallEngine, load, request


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fake_model.build(tmp_path)


def refusal(folder: Path, *, max_length: int | None = None) -> CannotServe:
    with pytest.raises(CannotServe) as caught:
        load(folder, max_length=max_length)
    return caught.value


def edit_config(folder: Path, **fields: Any) -> None:  # noqa: ANN401
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


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


def test_weights_that_do_not_fit_are_refused_before_they_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "free_memory", lambda: 100_000)
    failed = refusal(folder).failed
    assert (failed.stage, failed.cause) == ("load", "OutOfMemory")
    assert re.search(r"take 0.\d MB as float32, and 0.1 MB are free in memory; raise the memory limit or set DTYPE=bfloat16", failed.hint)


def test_the_memory_for_keys_and_values_is_what_the_weights_leave(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([10**9, 10**8])
    monkeypatch.setattr(container, "free_memory", lambda: next(free))
    few = load(folder).kv_tokens
    monkeypatch.setattr(container, "free_memory", lambda: 10**9)
    assert load(folder).kv_tokens == pytest.approx(10 * few, rel=0.01)


def test_no_weight_stays_a_view_of_its_file(folder: Path) -> None:
    runner = load(folder)
    weights = folder / "model.safetensors"
    with weights.open("r+b") as stream:
        stream.seek(-1000, os.SEEK_END)
        stream.write(b"\xff" * 1000)
    assert all(parameter.isfinite().all() for parameter in runner._model.parameters())


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=259, hidden_size=32, n_layer=2, n_head=4),
        GPTJConfig(vocab_size=259, n_embd=32, n_layer=2, n_head=4, rotary_dim=8, bos_token_id=0, eos_token_id=0),
        FalconConfig(vocab_size=259, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True),
        MptConfig(vocab_size=259, d_model=32, n_layers=2, n_heads=4),
        MambaConfig(vocab_size=259, hidden_size=32, num_hidden_layers=2),
        fake_model.config("Bert"),
        fake_model.config("GptOss", head_dim=8, num_local_experts=2, num_experts_per_tok=1),
        fake_model.config("Llama4Text", head_dim=8, intermediate_size_mlp=64, num_local_experts=2),
        fake_model.config("Lfm2", layer_types=["conv", "full_attention"]),
    ],
    ids=lambda config: config.model_type,
)
def test_an_architecture_that_we_would_compute_wrongly_is_refused_with_a_hint(tmp_path: Path, config: PreTrainedConfig) -> None:
    failed = refusal(fake_model.save(config, tmp_path)).failed
    assert failed.cause == "UnsupportedArchitecture"
    assert "choose a decoder-only model" in failed.hint


@pytest.mark.parametrize("family", ["T5", "Bart", "Whisper", "Vit"])
def test_a_model_that_is_no_decoder_alone_is_refused_by_its_config(folder: Path, family: str) -> None:
    AutoConfig.for_model(family.lower()).save_pretrained(folder)
    failed = refusal(folder).failed
    assert failed.cause == "UnsupportedArchitecture"
    assert repr(family.lower()) in failed.hint


def test_code_that_a_repository_brings_is_never_run(folder: Path) -> None:
    code = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "evil.py").write_text(f"open({str(folder / 'canary')!r}, 'w')")
    edit_config(folder, **code)
    load(folder)
    edit_config(folder, model_type="evil")
    failed = refusal(folder).failed
    assert failed.cause == "UnsupportedArchitecture"
    assert "never run" in failed.hint
    assert not (folder / "canary").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_a_config_cannot_choose_the_implementation(folder: Path, key: str) -> None:
    edit_config(folder, **{key: "evil/kernel"})
    assert load(folder)._model.config._attn_implementation == ATTENTION


@pytest.mark.parametrize(
    ("fields", "method"),
    [
        ({"quantization_config": {"quant_method": method}}, method)
        for method in ("bitsandbytes", "gptq", "awq", "fp8", "mxfp4", "compressed-tensors")
    ]
    + [
        ({"quantization_config": {"bits": 4}}, "unknown"),
        ({"quantization_config": [1]}, "unknown"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "awq"),
    ],
)
def test_quantised_weights_are_refused_by_their_method(folder: Path, fields: dict[str, Any], method: str) -> None:
    edit_config(folder, **fields)
    failed = refusal(folder).failed
    assert failed.cause == "UnsupportedQuantization"
    assert f"({method}); choose the unquantised" in failed.hint


def test_eight_bit_floats_without_a_word_in_the_config_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name].to(torch.float8_e4m3fn)}, weights, metadata={"format": "pt"})
    assert refusal(folder).failed.cause == "UnsupportedQuantization"


@pytest.mark.parametrize("limit", [0, -1, True, 1e30, 10**30, "many", [512], {}])
def test_a_length_that_no_model_has_is_refused(folder: Path, limit: object) -> None:
    edit_config(folder, max_position_embeddings=limit)
    failed = refusal(folder).failed
    assert failed.cause == "InvalidModel"
    assert "max_position_embeddings" in failed.hint


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": 10**12},
        {"vocab_size": -5},
        {"num_hidden_layers": "two"},
        {"num_attention_heads": 0},
        {"rope_parameters": {"rope_type": "spiral"}},
        {"hidden_act": "os.system"},
        {"layer_types": ["full_attention"]},
        {"num_hidden_layers": 0},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": "big"}},
        {"text_config": {"vocab_size": 1}},
        {"eos_token_id": ["</s>"]},
        {"vocab_size": "many"},
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_refused(folder: Path, fields: dict[str, Any]) -> None:
    edit_config(folder, **fields)
    assert refusal(folder).failed.cause == "InvalidModel"


def test_weights_that_are_pickles_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "convert them to safetensors" in refusal(folder).failed.hint


def test_an_adapter_is_no_model(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    assert "merged into its base model" in refusal(folder).failed.hint


@pytest.mark.parametrize("start", [b"", b"\x05", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{}x"])
def test_weights_without_a_header_are_refused(folder: Path, start: bytes) -> None:
    (folder / "model.safetensors").write_bytes(start)
    failed = refusal(folder).failed
    assert (failed.stage, failed.cause) == ("inspect", "InvalidModel")


def test_a_shard_that_is_missing_is_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert "model-00002-of-00002.safetensors" in refusal(folder).failed.hint


@pytest.mark.parametrize("places", [{"a": "../other/model.safetensors"}, {"a": "/etc/passwd"}, {}, [], None])
def test_an_index_cannot_name_files_elsewhere(folder: Path, places: object) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert "no files of this folder" in refusal(folder).failed.hint


def test_files_that_no_index_names_are_not_read(folder: Path) -> None:
    (folder / "consolidated.safetensors").write_bytes(b"the same weights for another program")
    assert checkpoint.inspect(folder).weights == (folder / "model.safetensors",)


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


@pytest.mark.parametrize(
    ("stored", "cuda", "native_bfloat16", "chosen"),
    [
        (torch.float32, False, True, torch.float32),
        (torch.float32, False, False, torch.float32),
        (torch.bfloat16, False, True, torch.bfloat16),
        (torch.bfloat16, False, False, torch.float32),
        (torch.float16, False, True, torch.bfloat16),
        (torch.float16, False, False, torch.float32),
        (None, False, True, torch.float32),
        (torch.float32, True, True, torch.bfloat16),
        (torch.float16, True, True, torch.bfloat16),
        (torch.bfloat16, True, False, torch.float16),
        (None, True, False, torch.float16),
    ],
)
def test_auto_takes_the_fastest_type_that_the_device_computes_well(
    stored: torch.dtype | None, cuda: bool, native_bfloat16: bool, chosen: torch.dtype
) -> None:
    assert model.choose_dtype(DType.auto, stored, cuda=cuda, native_bfloat16=native_bfloat16) is chosen


@pytest.mark.parametrize("wanted", [DType.float32, DType.bfloat16, DType.float16])
def test_a_type_that_is_asked_for_is_served(folder: Path, wanted: DType) -> None:
    engine = SmallEngine(load(folder, dtype=wanted))
    engine.submit(request("one", b"hello", max_tokens=3))
    engine.finish()
    assert engine.finish_reason("one") == "length"


def test_auto_keeps_float32_weights_exact(folder: Path) -> None:
    assert load(folder, dtype=DType.auto).facts.dtype == "float32"


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


def test_the_commit_is_the_one_that_a_download_noted_or_whose_snapshot_it_is(folder: Path, tmp_path: Path) -> None:
    assert checkpoint.commit(folder) is None
    (folder / checkpoint.REVISION_FILE).write_text("c0ffee\n")
    assert checkpoint.commit(folder) == "c0ffee"
    assert checkpoint.commit(tmp_path / "snapshots" / "decaf") == "decaf"


def test_the_end_of_an_answer_may_be_token_0(tmp_path: Path) -> None:
    assert load(fake_model.build(tmp_path, eos_token_id=0)).facts.eos_token_ids == frozenset([0])


def test_an_end_that_is_no_token_never_comes(folder: Path) -> None:
    (folder / "generation_config.json").unlink(missing_ok=True)
    edit_config(folder, eos_token_id=[7, 2**70, -1])
    assert load(folder).facts.eos_token_ids == {7}
