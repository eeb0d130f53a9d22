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
from demo.model import TrainingFailed
from demo.muon import Muon
from demo.prompts import Question

MAX_LENGTH = 512
MOST_THREADS = 4
"""More only wait for each other on matrices this small."""
BATCH = {Kind.counting: 18, Kind.words: 12, Kind.alphabet: 10, Kind.sums: 112, Kind.questions: 10}
"""Documents per step."""
ROW_LENGTH = 192
"""Tokens per row; documents are packed into rows and do not see each other."""
ROUNDS = (320, 320)
"""Steps of each round; there is a second one in case that rounding on another CPU leaves something wrong after the first."""
WARM_UP_STEPS = 15
DECAY_SHARE = 0.7
"""Of a round's steps, the rates fall to zero over the last."""
MUON_RATE = 0.02
ADAM_RATE = 3e-3
WEIGHT_DECAY = 0.1
REPORT_STEPS = 30
MIN_ACCURACY = 0.95
"""Share of all held-out prompts of a kind that must be answered to the letter."""
MIN_MARGIN = 0.5
"""Logits between the right byte and the next best one, at every position of every checked answer: other kernels, batch mates and
number formats must not change the text."""
IGNORED = -100

Encoded = tuple[list[int], list[int]]
"""Token ids of a prompt, with BEGIN, and of its answer, with END."""


@dataclass(frozen=True)
class Rows:
    """Documents packed one after another into rows."""

    inputs: torch.Tensor
    """Token ids, [rows, ROW_LENGTH]."""
    targets: torch.Tensor
    """The same ids, but IGNORED in prompts and padding."""
    positions: torch.Tensor
    """Each document begins at 0, [rows, ROW_LENGTH]."""
    documents: torch.Tensor
    """Number of the document that a token belongs to, 0 where none, [rows, ROW_LENGTH]."""

    def logits(self, model: LlamaForCausalLM) -> torch.Tensor:
        """[rows, ROW_LENGTH, vocabulary]."""
        causal = torch.ones(ROW_LENGTH, ROW_LENGTH, dtype=torch.bool).tril()
        visible = causal & (self.documents[:, None, :, None] == self.documents[:, None, None, :])
        result: torch.Tensor = model(input_ids=self.inputs, position_ids=self.positions, attention_mask=visible).logits
        return result


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
    torch.set_num_threads(min(MOST_THREADS, len(os.sched_getaffinity(0))))
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
    rows = _pack([_encode(question, tokens) for question in questions])
    with torch.no_grad():
        logits = rows.logits(model)[:, :-1]
    targets, documents = rows.targets[:, 1:], rows.documents[:, 1:]
    index = targets.clamp(min=0).unsqueeze(-1)
    margins = logits.gather(-1, index).squeeze(-1) - logits.scatter(-1, index, -math.inf).amax(-1)
    margins = margins.masked_fill(targets == IGNORED, math.inf)
    by_document = [margins[documents == number].amin().item() for number in range(1, len(questions) + 1)]
    return Score(accuracy=sum(margin > 0 for margin in by_document) / len(questions), margin=min(by_document))


def _round(model: LlamaForCausalLM, batches: Iterator[Rows], steps: int, name: str, started: float) -> None:
    """Warm-up, a plateau, and a linear way down."""
    model.train()
    hidden = [parameter for path, parameter in model.named_parameters() if parameter.ndim == 2 and "embed" not in path]
    others = [parameter for path, parameter in model.named_parameters() if parameter.ndim != 2 or "embed" in path]
    muon = Muon(hidden, weight_decay=WEIGHT_DECAY)
    adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0)
    for step in range(1, steps + 1):
        share = min(1.0, step / WARM_UP_STEPS, (steps - step + 1) / (DECAY_SHARE * steps))
        rows = next(batches)
        loss = torch.nn.functional.cross_entropy(
            rows.logits(model)[:, :-1].flatten(0, 1), rows.targets[:, 1:].flatten(), ignore_index=IGNORED
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step(MUON_RATE * share)
        for group in adam.param_groups:
            group["lr"] = ADAM_RATE * share
        adam.step()
        model.zero_grad()
        if step % REPORT_STEPS == 0:
            print(f"{name}, step {step}/{steps}, {time.monotonic() - started:.0f} s: loss {loss.item():.4f}", flush=True)


def _batches(lessons: Lessons, tokens: Tokenizer) -> Iterator[Rows]:
    """For ever: BATCH documents, packed."""
    chance = random.Random(SEED)
    encoded = {kind: [_encode(prompts.asked(each), tokens) for each in lessons.training if each.kind is kind] for kind in Kind}
    weights = {kind: [each.weight for each in lessons.training if each.kind is kind] for kind in Kind}
    while True:
        yield _pack([one for kind, count in BATCH.items() for one in chance.choices(encoded[kind], weights[kind], k=count)])


def _encode(question: Question, tokens: Tokenizer) -> Encoded:
    prompt: list[int] = tokens.encode(question.prompt).ids
    answer: list[int] = tokens.encode(question.answer + tokenizer.END, add_special_tokens=False).ids
    return prompt, answer


def _pack(documents: Sequence[Encoded]) -> Rows:
    """The longest first, each into the first row that has room."""
    used: list[int] = []
    places: dict[int, tuple[int, int]] = {}
    lengths = [len(prompt) + len(answer) for prompt, answer in documents]
    for number in sorted(range(len(documents)), key=lambda number: -lengths[number]):
        row = next((row for row, length in enumerate(used) if length + lengths[number] <= ROW_LENGTH), len(used))
        if row == len(used):
            used.append(0)
        places[number] = row, used[row]
        used[row] += lengths[number]
    shape = len(used), ROW_LENGTH
    rows = Rows(*(torch.full(shape, filling, dtype=torch.long) for filling in (0, IGNORED, 0, 0)))
    for number, (prompt, answer) in enumerate(documents):
        row, start = places[number]
        middle, end = start + len(prompt), start + lengths[number]
        rows.inputs[row, start:end] = torch.tensor(prompt + answer)
        rows.targets[row, middle:end] = torch.tensor(answer)
        rows.positions[row, start:end] = torch.arange(lengths[number])
        rows.documents[row, start:end] = number + 1
    return rows
