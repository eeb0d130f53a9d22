"""Keys and values of the running sequences, and attention over them. Only the model runner knows this layout.

A prompt's keys and values grow in a `Row` of its own, chunk by chunk, behind copies of the stored blocks with which it begins. Once the
prompt is complete, one copy moves the row into the `Lane` of its capacity (64, 128, 256, … tokens), where sequences of similar length
decode together: one batched product per lane, over rows that are kept dense, so that nothing is gathered. A sequence that outgrows
its lane moves to the next. Therefore a row's attention costs what its own length costs (at most twice), and its shape does not
depend on the batch mates.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from millrace_server.engine.plan import Chunk
from millrace_server.engine.prefixes import BLOCK_TOKENS
from millrace_server.engine.sequence import Sequence

SMALLEST_CAPACITY = 64
"""Tokens of the first lane. Below this the calls cost more than the arithmetic."""
LANE_SLACK = 2
"""A lane never holds more than this many times the rows that are in use."""
SCORES_LIMIT = 1 << 24
"""Attention scores of a prompt that are held at once; longer ones are computed in blocks of queries."""

Layers = dict[int, Tensor]
"""One tensor per layer, [heads, capacity, size] in a row and [rows, heads, capacity, size] in a lane. Filled as layers first speak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a layer attends: scores are scaled, soft-capped when told, and see only the last `window` tokens when told."""

    scaling: float
    window: int | None = None
    softcap: float | None = None


class Span(NamedTuple):
    """Consecutive tokens of one sequence, and in which row of a place their keys and values stand."""

    tokens: int
    start: int
    row: int


class Place(NamedTuple):
    """Where a group's keys and values stand, of every layer, for whoever computes a whole step by himself."""

    keys: Layers
    values: Layers
    capacity: int
    spans: list[Span]


class Group(Protocol):
    """Tokens of a step that attend together."""

    tokens: int

    def place(self, shape: tuple[int, int], layers: int) -> Place:
        """With room for the new tokens; `shape` is heads and size of a key."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        """Stores key and value [tokens, kv_heads, size]; returns the attention of query [tokens, heads, size]."""


@dataclass(eq=False, slots=True)
class Row:
    """The keys and values of one sequence, or of a block of it. What is beyond its length was never written."""

    capacity: int
    keys: Layers = field(default_factory=dict)
    values: Layers = field(default_factory=dict)

    def block(self, index: int) -> "Row":
        """A copy of the block of that index."""
        part = slice(index * BLOCK_TOKENS, (index + 1) * BLOCK_TOKENS)
        keys, values = ({layer: tensor[:, part].clone() for layer, tensor in layers.items()} for layers in (self.keys, self.values))
        return Row(BLOCK_TOKENS, keys, values)

    def write(self, other: "Row", *, at: int) -> None:
        """Copy a shorter row in, from position `at`."""
        for layers, source in ((self.keys, other.keys), (self.values, other.values)):
            for layer, tensor in source.items():
                if layer not in layers:
                    layers[layer] = tensor.new_empty((tensor.shape[0], self.capacity, tensor.shape[2]))
                layers[layer][:, at : at + tensor.shape[1]] = tensor


class Lane:
    """The sequences of one capacity, dense in rows 0…n-1."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.owners: list[Sequence] = []
        self.keys: Layers = {}
        self.values: Layers = {}
        self._rows = 0

    def append(self, owner: Sequence, new: Row, *, length: int) -> None:
        """Take in the first `length` tokens of a row of this or a smaller capacity; the row may become a part of the lane."""
        if not self.owners:
            self._begin(new)
        if len(self.owners) == self._rows:
            self._resize(_roomy(self._rows + 1))
        for layers, source in ((self.keys, new.keys), (self.values, new.values)):
            for layer, tensor in source.items():
                row = layers[layer][len(self.owners)]
                if row.data_ptr() != tensor.data_ptr():
                    row[:, :length] = tensor[:, :length]
                # Masked keys weigh nothing, but nothing times a former owner's NaN is NaN.
                row[:, length:] = 0
        self.owners.append(owner)

    def remove(self, owner: Sequence) -> None:
        """Fill the gap with the last row; give memory back when half of it is not in use."""
        index, last = self.owners.index(owner), len(self.owners) - 1
        self.owners[index] = self.owners[last]
        self.owners.pop()
        if index != last:
            for layers in (self.keys, self.values):
                for tensor in layers.values():
                    tensor[index] = tensor[last]
        if last and last * LANE_SLACK <= self._rows:
            self._resize(_roomy(last))

    def row(self, owner: Sequence) -> Row:
        """One sequence's keys and values, as views."""
        index = self.owners.index(owner)
        keys, values = ({layer: tensor[index] for layer, tensor in layers.items()} for layers in (self.keys, self.values))
        return Row(self.capacity, keys, values)

    def _begin(self, row: Row) -> None:
        """With this row as the first one, if it is as long as the lane's, else with none."""
        self._rows = 1 if row.capacity == self.capacity else 0
        for layers, source in ((self.keys, row.keys), (self.values, row.values)):
            for layer, tensor in source.items():
                layers[layer] = tensor[None] if self._rows else tensor.new_empty((0, tensor.shape[0], self.capacity, tensor.shape[2]))

    def _resize(self, rows: int) -> None:
        """Layer by layer, so that no more than one of them is in memory twice."""
        used = len(self.owners)
        for layers in (self.keys, self.values):
            for layer in layers:
                resized = layers[layer].new_empty((rows, *layers[layer].shape[1:]))
                resized[:used] = layers[layer][:used]
                layers[layer] = resized
        self._rows = rows


def _roomy(rows: int) -> int:
    """So many rows, and half as many to grow into."""
    return rows + rows // 2


class LaneGroup:
    """One new token each of a lane's sequences."""

    def __init__(self, lane: Lane, chunks: list[Chunk], device: torch.device) -> None:
        self.tokens = len(chunks)
        self._lane = lane
        rows = [lane.owners.index(chunk.sequence) for chunk in chunks]
        self._spans = [Span(1, chunk.start, row) for chunk, row in zip(chunks, rows, strict=True)]
        self._all = rows == list(range(len(lane.owners)))
        self._device = device
        self._targets: dict[int, Tensor] = {}
        self._biases: dict[tuple[int | None, int], Tensor] = {}

    @cached_property
    def _rows(self) -> Tensor:
        return torch.tensor([span.row for span in self._spans], device=self._device)

    @cached_property
    def _positions(self) -> Tensor:
        return torch.tensor([span.start for span in self._spans], device=self._device)

    def place(self, shape: tuple[int, int], layers: int) -> Place:
        return Place(self._lane.keys, self._lane.values, self._lane.capacity, self._spans)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        heads = key.shape[1]
        keys = self._store(self._lane.keys[layer], key)
        values = self._store(self._lane.values[layer], value)
        grouped = (query * rules.scaling).reshape(self.tokens * heads, -1, query.shape[-1])
        attended = _attend(grouped, keys, values, self._bias(rules.window, heads, query.dtype), rules.softcap)
        return attended.view(self.tokens, -1, value.shape[-1])

    def _store(self, stored: Tensor, new: Tensor) -> Tensor:
        """Write the new tokens; returns the group's rows as [tokens * heads, capacity, size], without a copy when all take part."""
        heads, size = new.shape[1:]
        target = self._targets.get(heads)
        if target is None:
            first = (self._rows[:, None] * heads + torch.arange(heads, device=self._rows.device)) * self._lane.capacity
            target = self._targets[heads] = (first + self._positions[:, None]).view(-1)
        stored.view(-1, size).index_copy_(0, target, new.reshape(-1, size))
        rows = stored[: self.tokens] if self._all else stored.index_select(0, self._rows)
        return rows.view(-1, self._lane.capacity, size)

    def _bias(self, window: int | None, heads: int, dtype: torch.dtype) -> Tensor:
        bias = self._biases.get((window, heads))
        if bias is None:
            seen = torch.arange(self._lane.capacity, device=self._positions.device)
            bias = _bias(self._positions[:, None, None], seen, window, dtype).repeat_interleave(heads, dim=0)
            self._biases[window, heads] = bias
        return bias


class PromptGroup:
    """A chunk of one sequence's prompt."""

    def __init__(self, row: Row, chunk: Chunk) -> None:
        self.tokens = chunk.length
        self._row = row
        self._start, self._end = chunk.start, chunk.end
        self._biases: dict[int | None, Tensor] = {}

    def place(self, shape: tuple[int, int], layers: int) -> Place:
        heads, size = shape
        for stored in (self._row.keys, self._row.values):
            for layer in range(layers):
                if layer not in stored:
                    stored[layer] = torch.empty((heads, self._row.capacity, size), dtype=torch.bfloat16)  # as everything compiled
        return Place(self._row.keys, self._row.values, self._row.capacity, [Span(self.tokens, self._start, 0)])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        heads, groups = key.shape[1], query.shape[1] // key.shape[1]
        keys = self._store(self._row.keys, layer, key)
        values = self._store(self._row.values, layer, value)
        query = (query * rules.scaling).view(self.tokens, heads, groups, -1).permute(1, 2, 0, 3)
        bias = self._bias(rules.window, query)
        blocks: list[Tensor] = []
        size = max(1, SCORES_LIMIT // (heads * groups * self._end))
        for start in range(0, self.tokens, size):
            block = query[:, :, start : start + size]
            rows = block.shape[2]
            block_bias = bias[start : start + rows].repeat(groups, 1)
            attended = _attend_many(block.reshape(heads, groups * rows, -1), keys, values, block_bias, rules.softcap)
            blocks.append(attended.reshape(heads, groups, rows, -1))
        whole = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)
        return whole.permute(2, 0, 1, 3).reshape(self.tokens, heads * groups, -1)

    def _store(self, layers: Layers, layer: int, new: Tensor) -> Tensor:
        stored = layers.get(layer)
        if stored is None:
            stored = layers[layer] = new.new_empty((new.shape[1], self._row.capacity, new.shape[2]))
        stored[:, self._start : self._end] = new.transpose(0, 1)
        return stored[:, : self._end]

    def _bias(self, window: int | None, query: Tensor) -> Tensor:
        bias = self._biases.get(window)
        if bias is None:
            positions = torch.arange(self._start, self._end, device=query.device)[:, None]
            bias = self._biases[window] = _bias(positions, torch.arange(self._end, device=query.device), window, query.dtype)
        return bias


class KVCache:
    """Rows and lanes of all sequences, and the step that is being computed."""

    def __init__(self, max_length: int, device: torch.device) -> None:
        self._max_length = max_length
        self._device = device
        self._rows: dict[Sequence, Row] = {}
        self._lanes: dict[int, Lane] = {}
        self._homes: dict[Sequence, Lane] = {}
        self._blocks: dict[bytes, Row] = {}
        self._groups: list[Group] = []

    def capacity(self, tokens: int) -> int:
        """Tokens that a row of `tokens` occupies."""
        doubled = max(SMALLEST_CAPACITY, 1 << (tokens - 1).bit_length())
        return min(doubled, max(SMALLEST_CAPACITY, self._max_length))

    def begin(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """Make room for a step. Returns its chunks in the order in which their tokens must be laid out."""
        decoding: dict[int, list[Chunk]] = {}
        prompts: list[Chunk] = []
        for chunk in chunks:
            if chunk.sequence in self._homes:
                decoding.setdefault(self._home(chunk).capacity, []).append(chunk)
            else:
                prompts.append(chunk)
        self._groups = []
        for capacity, members in decoding.items():
            lane = self._lanes[capacity]
            order = {owner: index for index, owner in enumerate(lane.owners)}
            members.sort(key=lambda chunk: order[chunk.sequence])
            self._groups.append(LaneGroup(lane, members, self._device))
        for chunk in prompts:
            row = self._rows.get(chunk.sequence)
            if row is None:
                row = self._rows[chunk.sequence] = Row(self.capacity(len(chunk.sequence.tokens) + 1))
            for index, key in enumerate(chunk.reuse):
                row.write(self._blocks[key], at=index * BLOCK_TOKENS)
            self._groups.append(PromptGroup(row, chunk))
        return [*(chunk for members in decoding.values() for chunk in members), *prompts]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        """Attention of a whole step, tokens first: query [tokens, heads, size], key and value [tokens, kv_heads, size]."""
        if len(self._groups) == 1:
            return self._groups[0].attend(layer, query, key, value, rules)
        parts: list[Tensor] = []
        start = 0
        for group in self._groups:
            part = slice(start, start + group.tokens)
            parts.append(group.attend(layer, query[part], key[part], value[part], rules))
            start = part.stop
        return torch.cat(parts)

    def places(self, shape: tuple[int, int], layers: int) -> list[Place]:
        """Those of the step's tokens, in their order."""
        return [group.place(shape, layers) for group in self._groups]

    def end(self, chunks: Iterable[Chunk]) -> None:
        """A step was computed: completed blocks are stored, and sequences whose prompt is complete join a lane."""
        for chunk in chunks:
            for index, key in chunk.keep if chunk.is_last_part else ():
                self._blocks[key] = self._row(chunk.sequence).block(index)
            if chunk.samples and (row := self._rows.pop(chunk.sequence, None)):
                self._settle(chunk.sequence, row, length=chunk.end)

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence; unknown ones are fine (a request may end before its first step)."""
        self._rows.pop(sequence, None)
        lane = self._homes.pop(sequence, None)
        if lane:
            lane.remove(sequence)
            if not lane.owners:
                del self._lanes[lane.capacity]

    def forget(self, keys: Iterable[bytes]) -> None:
        """Drop stored blocks; unknown ones are fine (their step may have failed)."""
        for key in keys:
            self._blocks.pop(key, None)

    def clear(self) -> None:
        """Drop everything."""
        for holder in (self._rows, self._lanes, self._homes, self._blocks):
            holder.clear()
        self._groups = []

    def bytes_held(self) -> int:
        """Memory of all rows, lanes and blocks."""
        holders: list[Row | Lane] = [*self._rows.values(), *self._lanes.values(), *self._blocks.values()]
        return sum(tensor.nbytes for holder in holders for layers in (holder.keys, holder.values) for tensor in layers.values())

    def _row(self, sequence: Sequence) -> Row:
        """A sequence's keys and values, wherever they are."""
        return self._rows.get(sequence) or self._homes[sequence].row(sequence)

    def _home(self, chunk: Chunk) -> Lane:
        lane = self._homes[chunk.sequence]
        if chunk.end > lane.capacity:
            self._settle(chunk.sequence, lane.row(chunk.sequence), length=chunk.start)
            lane.remove(chunk.sequence)
            if not lane.owners:
                del self._lanes[lane.capacity]
        return self._homes[chunk.sequence]

    def _settle(self, sequence: Sequence, row: Row, *, length: int) -> None:
        """Into the lane where the next token fits too."""
        capacity = self.capacity(length + 1)
        lane = self._lanes.get(capacity)
        if lane is None:
            lane = self._lanes[capacity] = Lane(capacity)
        lane.append(sequence, row, length=length)
        self._homes[sequence] = lane


def _attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, softcap: float | None) -> Tensor:
    """query [n, rows, size] (scaled) on keys and values [n, length, size], with a bias that broadcasts over the scores."""
    scores = torch.bmm(query, keys.transpose(1, 2))
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    return torch.bmm(torch.softmax(scores.add_(bias), dim=-1), values)


def _attend_many(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, softcap: float | None) -> Tensor:
    """The same for a prompt's many queries: torch's own attention never holds all scores, and needs no copy of the keys so far.

    Half the time from 2 000 tokens on, and for a few queries on 6 000; for one query per row it takes three times as long.
    """
    if softcap is not None:
        return _attend(query, keys, values, bias, softcap)
    lone_heads = (tensor.unsqueeze(1) for tensor in (query, keys, values))
    return nn.functional.scaled_dot_product_attention(*lone_heads, attn_mask=bias, scale=1.0).squeeze(1)


def _bias(positions: Tensor, seen: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """0 where a query at `positions` sees a key, else -inf."""
    hidden = seen > positions
    if window is not None:
        hidden = hidden | (seen <= positions - window)
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
