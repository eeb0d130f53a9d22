"""What a request changes of its logits before a token is chosen: penalties, bias, tokens that may not come yet, its mask.

Each change reads and writes the places it concerns, so an infinite one stays with those tokens and that row. What it makes of them
may be NaN or infinite; the row then has no choice, and its batch mates have theirs.
"""

import struct
from array import array
from collections.abc import Iterable, Sized
from collections.abc import Sequence as Ordered

import torch
from torch import Tensor

from millrace_server.engine.sequence import Sequence

FORBIDDEN = float("-inf")


def concerns(sequence: Sequence) -> bool:
    """Whether `apply` may change this sequence's logits."""
    sampling = sequence.request.sampling
    return (
        sampling.repetition_penalty != 1
        or sampling.presence_penalty != 0
        or sampling.frequency_penalty != 0
        or bool(sampling.logit_bias)
        or sequence.generated < sampling.min_tokens
        or sequence.mask is not None
    )


def apply(logits: Tensor, sequences: Ordered[Sequence], eos_token_ids: frozenset[int]) -> None:
    """Change float32 logits [rows, vocabulary] in place, in the order of Sampling's fields, then by the mask.

    Token ids outside the vocabulary change nothing. Raises what a mask raises.
    """
    _repetition(logits, sequences)
    _presence_and_frequency(logits, sequences)
    _bias(logits, sequences)
    _min_tokens(logits, sequences, eos_token_ids)
    for row, sequence in zip(logits, sequences, strict=True):
        if sequence.mask is not None:
            sequence.mask.forbid(row)


def _repetition(logits: Tensor, sequences: Ordered[Sequence]) -> None:
    rows = [row for row, sequence in enumerate(sequences) if sequence.request.sampling.repetition_penalty != 1]
    tokens = [sequences[row].tokens for row in rows]
    if not any(tokens):
        return
    places, inside = _places(logits, rows, tokens)
    penalty = _per_token((sequences[row].request.sampling.repetition_penalty for row in rows), tokens)[inside].to(logits.device)
    flat = logits.view(-1)
    values = flat[places]
    flat[places] = torch.where(values > 0, values / penalty, values * penalty)  # a token that occurs twice writes the same value twice


def _presence_and_frequency(logits: Tensor, sequences: Ordered[Sequence]) -> None:
    samplings = [sequence.request.sampling for sequence in sequences]
    rows = [row for row, sampling in enumerate(samplings) if sampling.presence_penalty != 0 or sampling.frequency_penalty != 0]
    answers = [sequences[row].tokens[len(sequences[row].request.prompt) :] for row in rows]
    if not any(answers):
        return
    places, inside = _places(logits, rows, answers)
    presence = _per_token((samplings[row].presence_penalty for row in rows), answers)[inside].to(logits.device)
    frequency = _per_token((samplings[row].frequency_penalty for row in rows), answers)[inside].to(logits.device)
    flat = logits.view(-1)
    counts = torch.zeros_like(flat).index_add_(0, places, torch.ones_like(presence))
    flat[places] = flat[places] - presence - frequency * counts[places]


def _bias(logits: Tensor, sequences: Ordered[Sequence]) -> None:
    vocabulary = logits.shape[1]
    places, values = array("q"), array("d")
    for row, sequence in enumerate(sequences):
        for token, bias in sequence.request.sampling.logit_bias.items():
            if 0 <= token < vocabulary:
                places.append(row * vocabulary + token)
                values.append(bias)
    if places:
        index = torch.frombuffer(places, dtype=torch.int64).to(logits.device)
        logits.view(-1)[index] += torch.frombuffer(values, dtype=torch.float64).float().to(logits.device)


def _min_tokens(logits: Tensor, sequences: Ordered[Sequence], eos_token_ids: frozenset[int]) -> None:
    vocabulary = logits.shape[1]
    places = array("q")
    for row, sequence in enumerate(sequences):
        if sequence.generated < sequence.request.sampling.min_tokens:
            ends = sequence.request.stop_token_ids if sequence.request.ignore_eos else {*sequence.request.stop_token_ids, *eos_token_ids}
            places.extend(row * vocabulary + token for token in ends if 0 <= token < vocabulary)
    if places:
        logits.view(-1)[torch.frombuffer(places, dtype=torch.int64).to(logits.device)] = FORBIDDEN


def _places(logits: Tensor, rows: Ordered[int], tokens: Ordered[list[int]]) -> tuple[Tensor, Tensor]:
    """Where the rows' tokens lie in the flat logits, and a bool per token: whether it is in the vocabulary, and so among the places."""
    vocabulary = logits.shape[1]
    size = struct.calcsize("q")
    buffer, end = bytearray(size * sum(map(len, tokens))), 0
    for each in tokens:
        struct.pack_into(f"{len(each)}q", buffer, end, *each)  # a tenth of the time of torch.tensor
        end += size * len(each)
    ids = torch.frombuffer(buffer, dtype=torch.int64)
    inside = (ids >= 0) & (ids < vocabulary)
    places = (_per_token((row * vocabulary for row in rows), tokens, torch.int64) + ids)[inside]
    return places.to(logits.device), inside


def _per_token(values: Iterable[float], tokens: Iterable[Sized], dtype: torch.dtype = torch.float32) -> Tensor:
    """Each row's value once for each of its tokens."""
    return torch.tensor(list(values), dtype=dtype).repeat_interleave(torch.tensor([len(each) for each in tokens]))
