"""A model that computes what our attention or our batches do not is refused, at whatever distance the difference shows."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import fake_model
from millrace_server.engine.failure import CannotServe
from millrace_server.engine.proof import prove

LIMIT = 100_000
"""Tokens; far more than are computed."""
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}


def build(family: str, **fields: Any) -> Any:  # noqa: ANN401
    config = fake_model.config(family, **{"max_position_embeddings": LIMIT, **fields})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def refusal(model: Any) -> CannotServe:  # noqa: ANN401
    with pytest.raises(CannotServe) as caught:
        prove(model, limit=LIMIT)
    return caught.value


class Blur(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Every token learns a little of the one laid out before it, whosever that is."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows + 0.1 * rows.roll(1, dims=1)


class CountingRope(nn.Module):  # type: ignore[misc]
    """Positions in the order of the layout instead of those that it is told."""

    def __init__(self, told: nn.Module) -> None:
        super().__init__()
        self._told = told

    def forward(self, rows: Tensor, position_ids: Tensor) -> Any:  # noqa: ANN401
        return self._told(rows, torch.arange(position_ids.shape[1])[None])


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Gemma2", "GPT2", "OPT", "Mixtral"])
def test_what_we_compute_is_proven_and_left_as_it_was(family: str) -> None:
    model = build(family, max_position_embeddings=512)
    before = model.config._attn_implementation
    prove(model, limit=512)
    assert model.config._attn_implementation == before


def test_a_limit_of_a_few_tokens_is_proven_too() -> None:
    prove(build("Llama"), limit=5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_reason_to_refuse(dtype: torch.dtype) -> None:
    prove(build("Llama").to(dtype), limit=512)
    prove(build("Mixtral").to(dtype), limit=512)


def test_attention_sinks_are_refused_by_name() -> None:
    assert "s_aux" in refusal(build("GptOss", head_dim=8, **EXPERTS)).failed.hint


def test_attention_in_both_directions_is_refused() -> None:
    assert "causal mask" in refusal(build("Bert", max_position_embeddings=512)).failed.hint
    assert "mask" in refusal(build("Gemma3Text", head_dim=8, use_bidirectional_attention=True)).failed.hint
    assert "mask" in refusal(build("Llama", is_causal=False)).failed.hint


@pytest.mark.parametrize("window", [20, 5_000, LIMIT - 1])
def test_a_window_that_only_the_mask_tells_of_is_refused_however_far_it_reaches(window: int) -> None:
    assert "mask" in refusal(build("Phimoe", sliding_window=window, **EXPERTS)).failed.hint


def test_a_window_beyond_the_models_length_hides_nothing() -> None:
    prove(build("Phimoe", sliding_window=LIMIT, **EXPERTS), limit=LIMIT)


def test_chunks_that_only_the_mask_tells_of_are_refused() -> None:
    hint = refusal(build("Llama4Text", head_dim=8, intermediate_size_mlp=64, attention_chunk_size=3_000, num_local_experts=2)).failed.hint
    assert "mask" in hint


def test_an_architecture_that_subtracts_two_attentions_is_refused() -> None:
    assert "attend 4 times" in refusal(build("DiffLlama")).failed.hint


def test_a_layer_that_changes_its_own_attention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("Llama")
    module = transformers.models.llama.modeling_llama
    theirs = module.eager_attention_forward

    def with_a_bias(layer: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **told: Any) -> Any:  # noqa: ANN401
        return theirs(layer, query, key, value, mask - torch.arange(mask.shape[-1]), **told)

    monkeypatch.setattr(module, "eager_attention_forward", with_a_bias)
    assert "layer 0" in refusal(model).failed.hint


def test_tokens_that_meet_outside_attention_are_refused() -> None:
    model = build("Llama")
    model.model.layers[1].mlp = nn.Sequential(Blur(), model.model.layers[1].mlp)
    assert "outside attention" in refusal(model).failed.hint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_counts_positions_itself_is_refused(dtype: torch.dtype) -> None:
    model = build("Llama").to(dtype)
    model.model.rotary_emb = CountingRope(model.model.rotary_emb)
    assert "positions" in refusal(model).failed.hint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_that_hardly_count_count(dtype: torch.dtype) -> None:
    """Swapped, they change this model's logits by 2.5 %."""
    fields = {"decoder_layers": 4, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "d_model": 32, "max_position_embeddings": 512}
    config = transformers.BlenderbotSmallConfig(vocab_size=fake_model.VOCABULARY, num_hidden_layers=4, is_decoder=True, **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval().to(dtype)
    with pytest.raises(CannotServe, match="positions"):
        prove(model, limit=512)


def test_weights_that_are_not_numbers_are_called_damaged_and_not_unsupported() -> None:
    model = build("Llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    assert refusal(model).failed.cause == "InvalidModel"
