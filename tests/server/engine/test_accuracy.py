"""bfloat16 answers are as near to the float32 model as transformers' own bfloat16 is, chunked and batched as requests are.

The logits are compared along a given text (teacher forcing): two answers that once chose differently could not be compared at all.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import fake_model
from cluster import cache
from demo import tokenizer
from demo.data import lessons
from demo.model import sources_hash
from millrace_server.engine import native
from millrace_server.engine.messages import Sampling, Submit
from millrace_server.engine.plan import Chunk
from millrace_server.engine.runner import Runner
from millrace_server.engine.sequence import Sequence
from millrace_server.settings import DType
from small_engine import FAR, load

LENGTH = 90
TEXTS = 20
PROMPTS = (3, 20, 41, 60) * 5
"""Tokens of each text that come as a prompt, in chunks of CHUNK; the rest is fed token by token, all texts in one batch."""
CHUNK = 16
AS_GOOD_AS = 1.1
"""Our error may be so many times theirs: another order of sums rounds differently, by a few percent in the mean of these texts."""


@pytest.fixture(params=["random", "trained"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "random":
        return fake_model.build(tmp_path, hidden_size=64, head_dim=32, num_hidden_layers=4, initializer_range=0.1)
    trained = cache.root() / f"demo-model-{sources_hash()}"
    if not trained.is_dir():
        pytest.skip("the demo model is not trained yet; `python -m demo.model` does it")
    return trained


def texts(folder: Path) -> list[list[int]]:
    """What the trained model never saw in training; noise for the random one."""
    if folder.name.startswith("demo-model"):
        stream = tokenizer.build().encode("\n".join(lesson.prompt + lesson.answer for lesson in lessons().held_out)).ids
    else:
        stream = torch.randint(0, fake_model.BYTES, (TEXTS * LENGTH,), generator=torch.Generator().manual_seed(1)).tolist()
    return [stream[start : start + LENGTH] for start in range(0, TEXTS * LENGTH, LENGTH)]


def theirs(folder: Path, dtype: torch.dtype) -> list[Tensor]:
    """Log probabilities after each text's prompt, by transformers."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
    given = texts(folder)
    with torch.inference_mode():
        logits = [model(input_ids=torch.tensor([text])).logits[0] for text in given]
    return [rows[prompt - 1 :].float().log_softmax(-1) for rows, prompt in zip(logits, PROMPTS, strict=True)]


def ours(runner: Runner, folder: Path) -> list[Tensor]:
    """The same by the runner: prompts in chunks beside each other and beside texts that go on."""
    given = texts(folder)
    sequences = [
        Sequence(
            Submit(
                request_id="", prompt=text[:prompt], max_tokens=LENGTH, deadline=FAR, sampling=Sampling(logprobs=runner.facts.vocabulary)
            ),
            seed=0,
            arrived=0,
        )
        for text, prompt in zip(given, PROMPTS, strict=True)
    ]
    rows: dict[Sequence, list[Tensor]] = {sequence: [] for sequence in sequences}
    while any(sequence.pending for sequence in sequences):
        chunks = tuple(Chunk(one, one.computed, min(one.pending, CHUNK)) for one in sequences if one.pending)
        choices = iter(runner.run(chunks))
        for chunk in chunks:
            chunk.sequence.computed = chunk.end
            if chunk.samples:
                logprobs = next(choices).logprobs
                assert logprobs is not None
                rows[chunk.sequence].append(torch.tensor([value for _, value in sorted(logprobs.top)]))
                chunk.sequence.tokens += given[sequences.index(chunk.sequence)][chunk.end :][:1]
    for sequence in sequences:
        runner.release(sequence)
    return [torch.stack(rows[sequence]) for sequence in sequences]


def error(found: list[Tensor], exact: list[Tensor]) -> float:
    """Mean over all positions."""
    return float(torch.cat([(one - other).abs().mean(-1) for one, other in zip(found, exact, strict=True)]).mean())


@pytest.mark.parametrize("compiled", [True, False])
def test_our_bfloat16_is_as_near_to_float32_as_transformers_is(folder: Path, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("the compiled library does not serve this CPU")
    exact = theirs(folder, torch.float32)
    assert error(ours(load(folder), folder), exact) < 1e-4
    their_error = error(theirs(folder, torch.bfloat16), exact)
    our_error = error(ours(load(folder, dtype=DType.bfloat16), folder), exact)
    assert 0 < our_error < AS_GOOD_AS * their_error, f"{our_error:.5f} against {their_error:.5f}"
