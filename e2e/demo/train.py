"""Trains the demo model: from its lessons to weights, on whatever CPU cores are there, with a fixed seed.

Held-out prompts decide when it is done: it trains in rounds until all checked answers are right by a margin, or gives up.
"""

import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from demo import prompts, tokenizer
from demo.data import SEED, Kind, Lessons
from demo.muon import Muon
from demo.prompts import Question

MAX_LENGTH = 512
BATCHES = {Kind.counting: 12, Kind.words: 8, Kind.alphabet: 4, Kind.sums: 96, Kind.questions: 8}
"""Documents per step; a batch per kind, because their lengths differ."""
BUCKETS = 3
"""Documents of a kind are batched with others of their length."""
ROUNDS = (360, 180, 180, 180)
"""Steps of each round; what one round leaves wrong the next may put right."""
WARM_UP_STEPS = 15
MUON_RATE = 0.02
ADAM_RATE = 3e-3
WEIGHT_DECAY = 0.1
REPORT_STEPS = 30
MIN_ACCURACY = 0.95
"""Share of all held-out prompts of a kind that must be answered to the letter."""
MIN_MARGIN = 1.0
"""Logits between the right byte and the next best one, at every position of every checked answer: other kernels, batch mates and
number formats must not change the text."""
IGNORED = -100


Encoded = tuple[list[int], list[int]]
"""Token ids of a prompt, with BEGIN, and of its answer, with END."""
Rows = tuple[torch.Tensor, torch.Tensor]
"""Inputs and targets, both [rows, longest]; targets are IGNORED in prompts and padding."""


class TrainingFailed(RuntimeError):
    """After the last round too many held-out prompts were answered wrongly."""


@dataclass(frozen=True)
class Score:
    """Greedy answers to held-out prompts of one kind."""

    accuracy: float
    """Share answered to the letter, to the end."""
    margin: float
    """Smallest distance of logits at which a right byte was chosen; negative when a wrong one was."""

    def __str__(self) -> str:
        return f"{self.accuracy:.0%} (margin {self.margin:.1f})"


@dataclass(frozen=True)
class Evaluation:
    held_out: dict[Kind, Score]
    checked: Score
    """Of the prompts that tests and the demo compare."""

    @property
    def is_good(self) -> bool:
        return self.checked.margin >= MIN_MARGIN and all(score.accuracy >= MIN_ACCURACY for score in self.held_out.values())

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind.value} {score}" for kind, score in self.held_out.items())
        return f"{kinds}; checked {self.checked}"


def configuration(tokens: Tokenizer) -> LlamaConfig:
    """About a million parameters, with grouped heads and tied embeddings."""
    return LlamaConfig(
        vocab_size=tokens.get_vocab_size(),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokens.token_to_id(tokenizer.BEGIN),
        eos_token_id=tokens.token_to_id(tokenizer.END),
        pad_token_id=tokens.token_to_id(tokenizer.PADDING),
        dtype="float32",
    )


def train(lessons: Lessons) -> LlamaForCausalLM:
    """The trained model, in evaluation mode. Prints its progress; raises TrainingFailed."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(SEED)
    tokens = tokenizer.build()
    model = LlamaForCausalLM(configuration(tokens))
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters, {torch.get_num_threads()} threads", flush=True)
    batches = _batches(lessons, tokens)
    started, worked = time.monotonic(), time.process_time()
    for number, steps in enumerate(ROUNDS, start=1):
        _round(model, batches, steps, f"round {number}", started)
        evaluation = evaluate(model, tokens, lessons)
        print(f"{time.monotonic() - started:.0f} s, {time.process_time() - worked:.0f} s of CPU: {evaluation}", flush=True)
        if evaluation.is_good:
            return model.eval()
    raise TrainingFailed(
        f"after {sum(ROUNDS)} steps the demo model answers held-out prompts thus: {evaluation}; "
        f"it must reach {MIN_ACCURACY:.0%} of each kind and a margin of {MIN_MARGIN} for the checked ones"
    )


def evaluate(model: LlamaForCausalLM, tokens: Tokenizer, lessons: Lessons) -> Evaluation:
    """Scores of greedy generation.

    One forward pass over prompt and right answer tells it: greedy text equals the answer exactly when, at each position after the
    right beginning, the right byte has the largest logit.
    """
    by_kind = {kind: [prompts.asked(document) for document in lessons.held_out if document.kind is kind] for kind in Kind}
    checked = [*prompts.CHECKED, *prompts.SHOWN, *prompts.CHATS[:: prompts.PER_KIND]]
    model.eval()
    return Evaluation({kind: _score(model, tokens, questions) for kind, questions in by_kind.items()}, _score(model, tokens, checked))


def _score(model: LlamaForCausalLM, tokens: Tokenizer, questions: Sequence[Question]) -> Score:
    inputs, targets = _rows([_encode(question, tokens) for question in questions])
    with torch.no_grad():
        logits = model(input_ids=inputs).logits[:, :-1]
    targets = targets[:, 1:]
    ignored = targets == IGNORED
    index = targets.clamp(min=0).unsqueeze(-1)
    right = logits.gather(-1, index).squeeze(-1)
    best_other = logits.scatter(-1, index, -math.inf).amax(-1)
    margins = (right - best_other).masked_fill(ignored, math.inf).amin(1)
    return Score(accuracy=(margins > 0).float().mean().item(), margin=margins.amin().item())


def _round(model: LlamaForCausalLM, batches: Iterator[list[Rows]], steps: int, name: str, started: float) -> None:
    """Warm-up, a plateau, and a linear way down over the second half."""
    model.train()
    hidden = [parameter for path, parameter in model.named_parameters() if parameter.ndim == 2 and "embed" not in path]
    others = [parameter for path, parameter in model.named_parameters() if parameter.ndim != 2 or "embed" in path]
    muon = Muon(hidden, weight_decay=WEIGHT_DECAY)
    adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0)
    for step in range(1, steps + 1):
        share = min(1.0, step / WARM_UP_STEPS, 2 * (steps - step + 1) / steps)
        losses = []
        for inputs, targets in next(batches):
            logits = model(input_ids=inputs).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORED)
            loss.backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step(MUON_RATE * share)
        for group in adam.param_groups:
            group["lr"] = ADAM_RATE * share
        adam.step()
        model.zero_grad()
        if step % REPORT_STEPS == 0:
            shown = " ".join(f"{kind.value} {loss:.3f}" for kind, loss in zip(BATCHES, losses, strict=True))
            print(f"{name}, step {step}/{steps}, {time.monotonic() - started:.0f} s: loss {shown}", flush=True)


def _batches(lessons: Lessons, tokens: Tokenizer) -> Iterator[list[Rows]]:
    """For ever: one batch of each kind, in the order of BATCHES."""
    chance = random.Random(SEED)
    buckets: dict[Kind, list[list[tuple[Encoded, float]]]] = {}
    for kind in Kind:
        rows = [(_encode(prompts.asked(each), tokens), each.weight) for each in lessons.training if each.kind is kind]
        rows.sort(key=lambda row: len(row[0][0]) + len(row[0][1]))
        size = math.ceil(len(rows) / BUCKETS)
        buckets[kind] = [rows[start : start + size] for start in range(0, len(rows), size)]
    while True:
        batch = []
        for kind, count in BATCHES.items():
            [bucket] = chance.choices(buckets[kind], [sum(weight for _, weight in bucket) for bucket in buckets[kind]])
            batch.append(_rows(chance.choices([row for row, _ in bucket], [weight for _, weight in bucket], k=count)))
        yield batch


def _encode(question: Question, tokens: Tokenizer) -> Encoded:
    prompt: list[int] = tokens.encode(question.prompt).ids
    answer: list[int] = tokens.encode(question.answer + tokenizer.END, add_special_tokens=False).ids
    return prompt, answer


def _rows(rows: Sequence[Encoded]) -> Rows:
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    inputs = torch.zeros(len(rows), longest, dtype=torch.long)
    targets = torch.full((len(rows), longest), IGNORED, dtype=torch.long)
    for index, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        inputs[index, :end] = torch.tensor(prompt + answer)
        targets[index, len(prompt) : end] = torch.tensor(answer)
    return inputs, targets
