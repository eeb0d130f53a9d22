"""Greedy tokens equal transformers' own `generate`, whatever else runs in the batch. fp32, random weights with separated logits."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import fake_model
from millrace_server.engine.messages import Submit
from millrace_server.engine.runner import Runner
from millrace_server.settings import Device
from small_engine import SmallEngine, load, request

ALTERNATING = ["sliding_attention", "full_attention"]
WINDOW = 20
"""Far shorter than the texts."""
ORIGINAL_LENGTH = 128


def rope(kind: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"rope_type": kind, "rope_theta": 10_000.0, **fields}


LLAMA3 = rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=ORIGINAL_LENGTH)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=ORIGINAL_LENGTH)
LONGROPE = rope("longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4, original_max_position_embeddings=ORIGINAL_LENGTH)
GEMMA = {"head_dim": 8, "sliding_window": WINDOW, "layer_types": ALTERNATING, "query_pre_attn_scalar": 4, "tie_word_embeddings": False}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied head": ("Llama", {"tie_word_embeddings": True}),
    "llama, one key head and a bias": ("Llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    "llama, llama3 rope": ("Llama", {"rope_parameters": LLAMA3}),
    "llama, linear rope": ("Llama", {"rope_parameters": rope("linear", factor=4.0)}),
    "llama, yarn rope": ("Llama", {"rope_parameters": YARN}),
    "mistral, window": ("Mistral", {"sliding_window": WINDOW}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3, wide heads": ("Qwen3", {"head_dim": 16}),
    "gemma2": ("Gemma2", {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 200.0}),
    "gemma3": ("Gemma3Text", GEMMA),
    "phi3, longrope": (
        "Phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": ORIGINAL_LENGTH, "tie_word_embeddings": False},
    ),
    "phi3, partial rope": ("Phi3", {"rope_parameters": rope("default", partial_rotary_factor=0.5)}),
    "gpt2": ("GPT2", {}),
    "gpt2, scaled by layer": ("GPT2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    "deepseek v3, values narrower than keys": (
        "DeepseekV3",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 12,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
    ),
    "jetmoe, takes attention apart by view": (
        "JetMoe",
        {"kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "num_attention_heads": 4},
    ),
    "gpt neox, partial rope": ("GPTNeoX", {"rope_parameters": rope("default", partial_rotary_factor=0.5)}),
    "opt": ("OPT", {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.4}),
    "stablelm": ("StableLm", {"qk_layernorm": True}),
    "olmo2": ("Olmo2", {}),
    "granite": ("Granite", {"attention_multiplier": 0.3, "residual_multiplier": 0.7, "logits_scaling": 3.0, "embedding_multiplier": 2.0}),
    "smollm3, layers without rope": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


def save(name: str, folder: Path) -> Path:
    family, fields = CONFIGS[name]
    return fake_model.save(fake_model.config(family, **fields), folder)


Expected = Callable[[Submit], list[int]]


def reference(folder: Path) -> Expected:
    """What transformers generates for one request alone."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    def generate(one: Submit) -> list[int]:
        ids = torch.tensor([one.prompt])
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": one.max_tokens, "do_sample": False}
        whole: list[int] = model.generate(ids, **options)[0].tolist()
        return whole[len(one.prompt) :]

    return generate


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def runner(folder: Path) -> Runner:
    return load(folder)


@pytest.fixture(scope="module")
def expected(folder: Path) -> Expected:
    return reference(folder)


def tokens_of(engine: SmallEngine, requests: list[Submit]) -> list[list[int]]:
    return [engine.tokens(one.request_id) for one in requests]


def random_prompt(length: int, *, seed: int) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(256) for _ in range(length)]


def test_requests_that_join_and_leave_in_mid_generation_equal_generate(runner: Runner, expected: Expected) -> None:
    """Ragged prompts, some in chunks, more requests than slots, and an answer that outgrows its lane of 64 tokens."""
    sizes = [(57, 14), (1, 9), (90, 6), (33, 3), (64, 2), (18, 12)]
    requests = [request(f"r{index}", random_prompt(size, seed=index), max_tokens=most) for index, (size, most) in enumerate(sizes)]
    engine = SmallEngine(runner, slots=3, tokens_per_step=24)
    for each in requests:
        engine.submit(each)
        engine.step(2)
    engine.finish()
    answers = [expected(one) for one in requests]
    assert len({token for answer in answers for token in answer}) > 10, "the same token again and again would prove nothing"
    assert tokens_of(engine, requests) == answers


@pytest.mark.parametrize("folder", ["llama", "mistral, window", "gpt2"], indirect=True, scope="module")
def test_a_prompt_computed_in_chunks_equals_generate(runner: Runner, expected: Expected) -> None:
    engine, long = SmallEngine(runner, tokens_per_step=16), request("long", random_prompt(150, seed=7), max_tokens=12)
    engine.submit(long)
    engine.finish()
    assert len(engine.steps) == 10 + 11  # 150 prompt tokens in chunks of 16, then a token per step
    assert engine.tokens("long") == expected(long)


@pytest.mark.parametrize("folder", ["llama", "gemma2"], indirect=True, scope="module")
def test_answers_that_outgrow_their_lanes_equal_generate_and_leave_nothing_behind(runner: Runner, expected: Expected) -> None:
    sizes = [(60, 80), (2, 50), (63, 3), (120, 20)]
    requests = [request(f"r{index}", random_prompt(size, seed=index), max_tokens=most) for index, (size, most) in enumerate(sizes)]
    engine = SmallEngine(runner)
    engine.submit(*requests)
    engine.finish()
    assert tokens_of(engine, requests) == [expected(one) for one in requests]


@pytest.mark.parametrize("folder", ["phi3, longrope"], indirect=True, scope="module")
def test_a_rope_that_changes_beyond_its_original_length_ends_there(runner: Runner) -> None:
    assert runner.facts.max_length == ORIGINAL_LENGTH


@pytest.mark.gpu
@pytest.mark.parametrize("folder", ["llama", "gemma2", "gpt2", "mixtral"], indirect=True, scope="module")
def test_tokens_on_a_gpu_equal_generate(folder: Path, expected: Expected) -> None:
    runner, requests = load(folder, device=Device.cuda), [request(str(size), random_prompt(size, seed=size)) for size in (3, 40, 90)]
    assert runner.facts.device == "cuda:0"
    engine = SmallEngine(runner, tokens_per_step=24)
    engine.submit(*requests)
    engine.finish()
    assert tokens_of(engine, requests) == [expected(one) for one in requests]
