"""The next token of each row of logits.

A choice depends on the row's logits, the request's Sampling, its seed and the token's position, and on nothing else, bit by bit: one
uniform number per row comes from a hash of seed and position, and picks among weights whose sums are exact. So batch mates never
change an answer.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Ordered

import torch
from torch import Tensor

from millrace_server.engine import logprobs, penalties
from millrace_server.engine.draw import draw
from millrace_server.engine.messages import Logprobs
from millrace_server.engine.sequence import INVALID_TOKEN, Choice, Sequence

CPU_LOGITS = 1 << 19
"""Logits that are worked on at once: on a CPU what its caches hold, for memory fresh from the system costs more than the work."""
GPU_LOGITS = 1 << 24
"""On a GPU enough to fill it, with temporary tensors that its spare memory surely holds."""


def sample(logits: Tensor, sequences: Ordered[Sequence], *, eos_token_ids: frozenset[int]) -> list[Choice]:
    """One choice per row of logits [rows, vocabulary], which stay as they are.

    A token is INVALID_TOKEN in a row that has NaN or no finite maximum, be it the model's doing or that of the request's own penalties,
    bias and mask. Raises what a mask raises.
    """
    best, tokens = logits.max(dim=-1)  # argmax is slow for bfloat16 on a CPU
    tokens = tokens.masked_fill(~best.isfinite(), INVALID_TOKEN)
    reports: dict[int, Logprobs] = {}
    for rows in _blocks([row for row, sequence in enumerate(sequences) if _is_special(sequence)], logits):
        index = torch.tensor(rows, device=logits.device)
        block = [sequences[row] for row in rows]
        private = logits[index].float()
        tokens[index], likely = _choose(private, best[index].float(), tokens[index], block, eos_token_ids)
        reports |= {rows[place]: report for place, report in likely.items()}
    return [Choice(token, reports.get(row)) for row, token in enumerate(tokens.tolist())]


def _is_special(sequence: Sequence) -> bool:
    """Whether more is asked than the likeliest token."""
    sampling = sequence.request.sampling
    return sampling.temperature > 0 or sampling.logprobs is not None or penalties.concerns(sequence)


def _blocks(rows: list[int], logits: Tensor) -> Iterator[list[int]]:
    size = max(1, (CPU_LOGITS if logits.device.type == "cpu" else GPU_LOGITS) // logits.shape[1])
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _choose(
    logits: Tensor, best: Tensor, tokens: Tensor, sequences: Ordered[Sequence], eos_token_ids: frozenset[int]
) -> tuple[Tensor, dict[int, Logprobs]]:
    """Tokens [rows], and the Logprobs of those rows that asked for them. Takes the greedy choice and its logit; changes the logits."""
    broken = tokens == INVALID_TOKEN
    if any(penalties.concerns(sequence) for sequence in sequences):
        penalties.apply(logits, sequences, eos_token_ids)
        best, tokens = logits.max(dim=-1)
        broken |= ~best.isfinite()
    warm = [row for row, sequence in enumerate(sequences) if sequence.request.sampling.temperature > 0]
    if warm:
        index = torch.tensor(warm, device=logits.device)
        tokens[index] = draw(logits[index], best[index], [sequences[row] for row in warm])
    tokens = tokens.masked_fill(broken, INVALID_TOKEN)
    return tokens, _report(logits, best, tokens, sequences)


def _report(logits: Tensor, best: Tensor, tokens: Tensor, sequences: Ordered[Sequence]) -> dict[int, Logprobs]:
    counts = {row: max(0, count) for row, sequence in enumerate(sequences) if (count := sequence.request.sampling.logprobs) is not None}
    if not counts:
        return {}
    valid = (tokens != INVALID_TOKEN).tolist()
    rows = [row for row in counts if valid[row]]
    if not rows:
        return {}
    index = torch.tensor(rows, device=logits.device)
    return dict(zip(rows, logprobs.report(logits[index], best[index], tokens[index], [counts[row] for row in rows]), strict=True))
