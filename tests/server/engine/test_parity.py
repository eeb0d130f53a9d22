"""Greedy tokens equal transformers' own `generate`, whatever else runs in the batch. fp32, random weights with separated logits."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedConfig, Qwen2Config

import fake_model
from millrace_server.engine.messages import Submit
from millrace_server.engine.runner import Runner
from small_engine import SmallEngine, load, request

SMALL = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.4}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "qwen2": lambda: Qwen2Config(
        **SMALL, intermediate_size=64, num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=True
    ),
    "gpt2": lambda: GPT2Config(vocab_size=259, n_embd=32, n_layer=3, n_head=2, n_positions=512, initializer_range=0.4),
}


@pytest.fixture(scope="module", params=["llama", *CONFIGS])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp(request.param)
    return fake_model.build(folder) if request.param == "llama" else fake_model.save(CONFIGS[request.param](), folder)


@pytest.fixture(scope="module")
def runner(folder: Path) -> Runner:
    return load(folder)


@pytest.fixture(scope="module")
def expected(folder: Path) -> Callable[[Submit], list[int]]:
    """What transformers generates for one request alone."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    def generate(one: Submit) -> list[int]:
        ids = torch.tensor([one.prompt])
        whole: list[int] = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=one.max_tokens, do_sample=False)[
            0
        ].tolist()
        return whole[len(one.prompt) :]

    return generate


def ragged(count: int, *, seed: int, longest: int = 100) -> list[Submit]:
    """Requests of unlike prompt and answer lengths."""
    chance = random.Random(seed)
    return [
        request(f"r{index}", [chance.randrange(256) for _ in range(chance.randint(1, longest))], max_tokens=chance.randint(1, 40))
        for index in range(count)
    ]


def test_one_request_equals_generate(runner: Runner, expected: Callable[[Submit], list[int]]) -> None:
    engine, one = SmallEngine(runner), request("one", b"the quick brown fox", max_tokens=60)
    engine.submit(one)
    engine.finish()
    assert engine.tokens("one") == expected(one)
    assert engine.finish_reason("one") == "length"


def test_ragged_requests_that_join_and_leave_in_mid_generation_equal_generate(
    runner: Runner, expected: Callable[[Submit], list[int]]
) -> None:
    engine, requests = SmallEngine(runner, slots=5, tokens_per_step=48), ragged(14, seed=1)
    for each in requests:
        engine.submit(each)
        engine.step(3)
    engine.finish()
    assert {one.request_id: engine.tokens(one.request_id) for one in requests} == {one.request_id: expected(one) for one in requests}
    assert runner.bytes_held() == 0


def test_a_prompt_computed_in_chunks_equals_generate(runner: Runner, expected: Callable[[Submit], list[int]]) -> None:
    engine, long = SmallEngine(runner, tokens_per_step=16), request("long", [index * 7 % 256 for index in range(150)], max_tokens=20)
    engine.submit(long)
    engine.finish()
    assert len(engine.steps) == 10 + 19  # 150 prompt tokens in chunks of 16, then a token per step
    assert engine.tokens("long") == expected(long)


def test_an_answer_that_outgrows_its_lane_equals_generate(runner: Runner, expected: Callable[[Submit], list[int]]) -> None:
    engine = SmallEngine(runner)
    requests = [
        request("grows", b"x" * 60, max_tokens=80),
        request("stays", b"yz", max_tokens=50),
        request("last", b"a" * 63, max_tokens=3),
    ]
    engine.submit(*requests)
    engine.finish()
    assert [engine.tokens(one.request_id) for one in requests] == [expected(one) for one in requests]
