"""Packed linear layers compute what plain ones do, for every architecture, and take their place in memory."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import fake_model
from millrace_server.engine import native, packed
from millrace_server.engine.packed import NativeLinear, PackedLinear
from millrace_server.settings import DType
from small_engine import load

CPU = torch.device("cpu")
packs = pytest.mark.skipif(not packed.can_pack(torch.bfloat16, CPU), reason="this CPU has no bfloat16 instructions")
Packed = type[PackedLinear | NativeLinear]


@pytest.fixture(params=["by torch", "by the compiled library"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Packed:
    """What layers are packed into."""
    if request.param == "by torch":
        monkeypatch.setattr(native, "library", lambda: None)
        return PackedLinear
    if native.library() is None:
        pytest.skip("the compiled library does not serve this CPU")
    return NativeLinear


def build(family: str, **fields: Any) -> Any:  # noqa: ANN401
    config = fake_model.config(family, **fields)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def test_only_bfloat16_on_a_cpu_is_packed() -> None:
    assert not packed.can_pack(torch.float32, CPU)
    assert not packed.can_pack(torch.float16, CPU)
    assert not packed.can_pack(torch.bfloat16, torch.device("cuda"))


@packs
@pytest.mark.parametrize("shape", [(48,), (1, 48), (1, 0, 48), (1, 3, 48), (2, 70, 48)])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()  # type: ignore[untyped-decorator]
def test_rows_of_any_shape_give_the_plain_result(shape: tuple[int, ...], bias: bool) -> None:
    plain = nn.Linear(48, 40, bias=bias, dtype=torch.bfloat16)
    rows = torch.randn(shape, dtype=torch.bfloat16)
    torch.testing.assert_close(PackedLinear(plain.weight, plain.bias)(rows), plain(rows))


@packs
@torch.inference_mode()  # type: ignore[untyped-decorator]
def test_rows_that_are_a_view_give_the_plain_result() -> None:
    plain, rows = nn.Linear(48, 40, dtype=torch.bfloat16), torch.randn(96, 5, dtype=torch.bfloat16).t()[:, ::2]
    torch.testing.assert_close(PackedLinear(plain.weight, plain.bias)(rows), plain(rows))


@packs
@pytest.mark.parametrize("family", ["Llama", "GPT2", "Phi3", "Mixtral"])
@torch.inference_mode()  # type: ignore[untyped-decorator]
def test_a_packed_model_gives_the_plain_logits_and_holds_no_plain_layer(family: str, kind: Packed) -> None:
    model, ids = build(family), torch.arange(30)[None]
    plain = model(input_ids=ids).logits
    packed.pack(model)
    torch.testing.assert_close(model(input_ids=ids).logits, plain)
    assert not [layer for layer in model.modules() if isinstance(layer, nn.Linear | Conv1D)]
    assert any(isinstance(layer, kind) for layer in model.modules())


@packs
@pytest.mark.usefixtures("kind")
def test_what_is_kept_in_float32_stays_plain() -> None:
    model = build("Llama")
    model.model.layers[0].mlp.up_proj.float()
    packed.pack(model)
    assert [type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)] == [nn.Linear]


@packs
def test_a_tied_head_is_packed_and_its_embedding_stays(kind: Packed) -> None:
    model = build("Llama", tie_word_embeddings=True)
    embedding = model.model.embed_tokens.weight.clone()
    packed.pack(model)
    assert isinstance(model.lm_head, kind)
    assert torch.equal(model.model.embed_tokens.weight, embedding)


@packs
def test_a_layer_in_two_places_is_packed_once(kind: Packed) -> None:
    layer = nn.Linear(16, 16, dtype=torch.bfloat16)
    model = nn.ModuleList([nn.Sequential(layer), nn.Sequential(layer)])
    packed.pack(model)
    assert model[0][0] is model[1][0]
    assert isinstance(model[0][0], kind)


@packs
def test_each_plain_weight_is_released_before_the_next_layer_is_packed(kind: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("Llama")
    weights = [weakref.ref(layer.weight) for layer in model.modules() if isinstance(layer, nn.Linear)]
    alive: list[int] = []

    pack = packed._packed

    def watched(weight: Tensor, bias: Tensor | None) -> nn.Module:
        alive.append(sum(weight() is not None for weight in weights))
        layer: nn.Module = pack(weight, bias)
        assert isinstance(layer, kind)
        return layer

    monkeypatch.setattr(packed, "_packed", watched)
    packed.pack(model)
    assert alive == list(range(len(weights), 0, -1))


@packs
def test_bfloat16_on_a_cpu_is_served_packed_and_float32_plain(tmp_path: Path, kind: Packed) -> None:
    folder = fake_model.build(tmp_path)
    assert any(isinstance(layer, kind) for layer in load(folder, dtype=DType.bfloat16)._model.modules())
    assert not any(isinstance(layer, kind) for layer in load(folder)._model.modules())


@packs
def test_a_weight_that_the_library_cannot_take_is_packed_by_torch() -> None:
    layer = nn.Sequential(nn.Linear(24, 16, dtype=torch.bfloat16))
    packed.pack(layer)
    assert isinstance(layer[0], PackedLinear)
