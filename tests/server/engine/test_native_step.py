"""The compiled step computes what the model computes, nearer to float32 than torch's bfloat16, and every row as if it were alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import fake_model
from millrace_server.engine import native, native_step
from millrace_server.engine.kv import Span
from millrace_server.engine.plan import Chunk, Stages
from millrace_server.engine.runner import Runner
from millrace_server.engine.sequence import Sequence
from millrace_server.engine.share import LongPromptShare
from millrace_server.settings import DType
from small_engine import SmallEngine, load, request

SHAPE = {"hidden_size": 64, "intermediate_size": 112, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
KIND: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, one query per key": ("Llama", {"num_key_value_heads": 4}),
    "llama, six queries per key": ("Llama", {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 1}),
    "llama, large heads": ("Llama", {"head_dim": 128}),
    "llama, scaled rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral, window": ("Mistral", {"sliding_window": 21}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3, norms of queries and keys": ("Qwen3", {}),
}
OTHER_KIND: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("Gemma2", {}),
    "gpt2": ("GPT2", {"n_embd": 64, "n_head": 2}),
    "granite": ("Granite", {"attention_multiplier": 0.3, "residual_multiplier": 0.7, "logits_scaling": 3.0, "embedding_multiplier": 2.0}),
    "olmo2": ("Olmo2", {}),
    "phi3": ("Phi3", {}),
    "smollm3, layers without rope": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "ministral3, queries that grow far out": (
        "Ministral3",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "llama_4_scaling_beta": 0.1,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "llama, another activation": ("Llama", {"hidden_act": "gelu"}),
    "llama, heads of another size": ("Llama", {"head_dim": 24}),
}

pytestmark = pytest.mark.skipif(not native.pays(), reason="the compiled library does not serve this CPU")


def save(kind: tuple[str, dict[str, Any]], folder: Path) -> Path:
    family, fields = kind
    torch.manual_seed(1)
    return fake_model.save(fake_model.config(family, **{**SHAPE, "initializer_range": 0.15, **fields}), folder)


@pytest.fixture(scope="module", params=KIND)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(KIND[request.param], tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def runner(folder: Path) -> Iterator[Runner]:
    runner = load(folder, dtype=DType.bfloat16)
    assert runner._step is not None
    yield runner
    assert runner.bytes_held() == 0


def sequence(length: int, *, seed: int) -> Sequence:
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(0, fake_model.BYTES, (length,), generator=generator).tolist()
    return Sequence(request(f"s{seed}", prompt), seed=0, arrived=0)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def logits(runner: Runner, chunks: tuple[Chunk, ...]) -> dict[Sequence, Tensor]:
    """Of the chunks that sample, by one step."""
    laid_out, found, begun = runner._compute(chunks)
    runner._kv.end(laid_out)
    runner._begun |= begun
    return dict(zip([chunk.sequence for chunk in laid_out if chunk.samples], found, strict=True))


def walk(runner: Runner, sequences: list[Sequence], *, size: int, tokens: int = 6) -> list[list[Tensor]]:
    """Logits of each sequence's prompt and of `tokens` more tokens: prompts in chunks of `size`, all sequences side by side."""
    found: dict[Sequence, list[Tensor]] = {each: [] for each in sequences}
    done = dict.fromkeys(sequences, 0)
    while any(len(rows) <= tokens for rows in found.values()):
        chunks = tuple(
            Chunk(each, done[each], min(size, len(each.tokens) - done[each])) for each in sequences if len(found[each]) <= tokens
        )
        for chunk in chunks:
            done[chunk.sequence] = chunk.end
        for each, row in logits(runner, chunks).items():
            found[each].append(row)
            each.tokens.append(len(each.tokens) * 31 % fake_model.BYTES)
    for each in sequences:
        runner.release(each)
    return list(found.values())


def error(found: list[list[Tensor]], sequences: list[Sequence], model: Any) -> float:  # noqa: ANN401
    """Against a model of transformers, relative, in the mean over all positions."""
    errors: list[float] = []
    for rows, each in zip(found, sequences, strict=True):
        expected = model(input_ids=torch.tensor([each.tokens[:-1]])).logits[0, -len(rows) :].float()
        errors += [((row - right).norm() / right.norm()).item() for row, right in zip(rows, expected, strict=True)]
    return sum(errors) / len(errors)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def test_prompts_and_answers_are_nearer_to_float32_than_torch(runner: Runner, folder: Path) -> None:
    sequences = [sequence(length, seed=length) for length in (1, 5, 64, 30, 130)]
    found = walk(runner, sequences, size=48)
    stored: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager").eval()
    theirs = [
        list(stored(input_ids=torch.tensor([each.tokens[:-1]])).logits[0, -len(rows) :].float())
        for rows, each in zip(found, sequences, strict=True)
    ]
    exact = stored.float()
    assert 0 < error(found, sequences, exact) < 0.7 * error(theirs, sequences, exact)


def test_a_sequence_does_not_depend_on_its_batch_mates_nor_on_its_chunks(runner: Runner) -> None:
    lengths = (3, 17, 64, 65, 90)
    together = walk(runner, [sequence(length, seed=length) for length in lengths], size=200)
    for size in (1, 7, 64):
        alone = [walk(runner, [sequence(length, seed=length)], size=size)[0] for length in lengths]
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(torch.stack(one), torch.stack(other))


def test_a_prompt_does_not_depend_on_the_steps_that_its_layers_are_computed_in(runner: Runner) -> None:
    mate, divided = sequence(30, seed=1), sequence(90, seed=2)
    expected = [walk(runner, [sequence(length, seed=seed)], size=200, tokens=20)[0] for length, seed in ((30, 1), (90, 2))]
    found: dict[Sequence, list[Tensor]] = {mate: [], divided: []}
    layers = runner.stages
    chunks = [(start, min(32, 90 - start)) for start in range(0, 90, 32)]
    parts = [(chunk, layer) for chunk in chunks for layer in range(layers)]
    for step, ((start, length), layer) in enumerate(parts):
        beside = Chunk(mate, 0, 30) if step == 0 else Chunk(mate, 29 + step, 1)
        part = Chunk(divided, start, length, stages=Stages(layer, layer + 1, layers))
        runner._compute((beside, part))  # as of a step that fails afterwards
        for each, row in logits(runner, (beside, part)).items():
            found[each].append(row)
            each.tokens.append(len(each.tokens) * 31 % fake_model.BYTES)
    assert (len(found[mate]), len(found[divided])) == (len(parts), 1)
    for each, whole in ((mate, expected[0]), (divided, expected[1])):
        assert torch.equal(torch.stack(found[each]), torch.stack(whole[: len(found[each])]))
        runner.release(each)
    assert not runner._begun


def test_long_prompts_beside_others_are_answered_as_if_they_were_alone(tmp_path: Path) -> None:
    """By the whole engine: computed layer by layer, one of them left in between, with a beginning that others reuse."""
    runner = load(save(("Llama", {"num_hidden_layers": 6}), tmp_path), dtype=DType.bfloat16)
    assert runner.stages == 6
    shared = sequence(70, seed=1).tokens
    asked = [
        request("short", sequence(9, seed=2).tokens, max_tokens=200),
        request("long", [*shared, *sequence(50, seed=3).tokens], max_tokens=20),
        request("left", sequence(100, seed=4).tokens),
        request("alike", [*shared, *sequence(40, seed=5).tokens], max_tokens=20),
    ]
    alone = {}
    for each in asked:
        solo = SmallEngine(runner, tokens_per_step=16)
        solo.submit(each)
        solo.finish()
        alone[each.request_id] = solo.tokens(each.request_id)
    engine = SmallEngine(runner, tokens_per_step=16, prefix_tokens=500, share=LongPromptShare(most=3, stages=6))
    engine.submit(asked[0])
    engine.step(2)
    engine.submit(*asked[1:])
    engine.step(5)
    assert runner._begun, "nothing is computed stage by stage"
    engine.cancel("left")
    engine.finish()
    assert {name: engine.tokens(name) for name in alone if name != "left"} == {name: alone[name] for name in alone if name != "left"}
    assert not runner._begun
    runner.reset()


def test_more_threads_than_cores_compute_the_same(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = walk(runner, [sequence(40, seed=1), sequence(9, seed=2)], size=16)
    library = runner._step._library
    monkeypatch.setattr(library, "threads", 7)
    monkeypatch.setattr(library._team, "threads", 7)
    found = walk(runner, [sequence(40, seed=1), sequence(9, seed=2)], size=16)
    assert all(torch.equal(torch.stack(one), torch.stack(other)) for one, other in zip(found, expected, strict=True))


@torch.inference_mode()  # type: ignore[untyped-decorator]
def test_what_is_no_number_stays_in_its_sequence(runner: Runner) -> None:
    good, bad = sequence(20, seed=1), sequence(20, seed=2)
    [expected] = walk(runner, [sequence(20, seed=1)], size=64)
    logits(runner, (Chunk(good, 0, 20), Chunk(bad, 0, 20)))
    runner._kv._homes[bad].row(bad).values[0].fill_(float("nan"))
    for each in (good, bad):
        each.tokens.append(20 * 31 % fake_model.BYTES)
    found = logits(runner, (Chunk(bad, 20, 1), Chunk(good, 20, 1)))
    assert found[bad].isnan().all()
    assert torch.equal(found[good], expected[1])
    runner.release(good)
    runner.release(bad)


def test_places_that_would_not_hold_the_tokens_are_refused(runner: Runner) -> None:
    """The library trusts the numbers that it is given."""
    ids = torch.zeros(9, dtype=torch.long)
    step, kv, mine = runner._step, runner._kv, sequence(9, seed=1)
    kv.begin((Chunk(mine, 0, 9),))
    [place] = kv.places(step.kv_shape, step.layers)
    beyond = place._replace(spans=[Span(9, place.capacity - 8, 0)])
    for places, why in (([beyond], "a place of 64 tokens"), ([], "places for 0 tokens"), ([place, place], "places for 18 tokens")):
        with pytest.raises(ValueError, match=why):
            step.run(step.embed(ids), torch.arange(9), ids[:1], places)
    runner.release(mine)


def test_the_last_token_of_the_longest_context_is_computed(tmp_path: Path) -> None:
    """A context that is no whole number of anything, by prompts and token by token."""
    runner = load(save(KIND["llama"], tmp_path), dtype=DType.bfloat16, max_length=101)
    [whole] = walk(runner, [sequence(101, seed=1)], size=101, tokens=0)
    parts = [walk(runner, [sequence(101, seed=1)], size=size, tokens=0)[0] for size in (1, 50, 100)]
    assert all(torch.equal(part[0], whole[0]) for part in parts)
    told = walk(runner, [sequence(90, seed=1), sequence(96, seed=2)], size=128, tokens=5)
    alone = walk(runner, [sequence(96, seed=2)], size=128, tokens=5)
    assert torch.equal(torch.stack(told[1]), torch.stack(alone[0]))


@pytest.mark.parametrize("name", OTHER_KIND)
def test_models_of_another_kind_are_computed_layer_by_layer(name: str, tmp_path: Path) -> None:
    runner = load(save(OTHER_KIND[name], tmp_path), dtype=DType.bfloat16)
    assert runner._step is None
    assert runner.bytes_held() == 0


def test_float32_is_computed_by_torch(tmp_path: Path) -> None:
    assert load(save(KIND["llama"], tmp_path))._step is None


def test_without_the_library_torch_computes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    runner = load(save(KIND["llama"], tmp_path), dtype=DType.bfloat16)
    assert runner._step is None
    assert walk(runner, [sequence(9, seed=1)], size=4)


@pytest.mark.parametrize("forgotten", ["rope", "epsilon", "bias", "norm"])
def test_the_proof_refuses_a_step_that_forgets_something(forgotten: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = native_step.NativeStep._read

    def forget(step: native_step.NativeStep, *arguments: Any) -> native.Model:  # noqa: ANN401
        model = read(step, *arguments)
        layer = model.layer[1]
        if forgotten == "rope":
            rotate = step._rotate
            step._rotate = lambda x, positions: rotate(x, torch.zeros_like(positions))
        elif forgotten == "epsilon":
            model.epsilon = 1.0
        elif forgotten == "bias":
            layer.key.bias = None
        else:
            layer.query_norm, layer.key_norm = None, None
        return model

    family = "Qwen3" if forgotten == "norm" else "Qwen2"
    folder = save((family, {}), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "bias" in name or "_norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 2)
    model.save_pretrained(folder)
    assert load(folder, dtype=DType.bfloat16)._step is not None
    monkeypatch.setattr(native_step.NativeStep, "_read", forget)
    assert load(folder, dtype=DType.bfloat16)._step is None
