"""Which beginnings of sequences are in the KV cache already, and who is computing which. Pure: keys only, the tensors are the runner's.

A sequence's tokens are cut into blocks; a block's key is the hash of its tokens and of everything before it (sha256, begun with the
model's revision and the tenant), so that equal keys mean equal keys and values. Blocks are forgotten in the order of their last use.
"""

from array import array
from collections import OrderedDict
from hashlib import sha256

from millrace_server.engine.sequence import Sequence

BLOCK_TOKENS = 32
"""Shorter shared beginnings are computed anew: a copy of so few tokens costs what computing them costs."""


class PrefixIndex:
    def __init__(self, *, revision: str) -> None:
        self._revision = revision
        self._stored: OrderedDict[bytes, None] = OrderedDict()
        self._computing: dict[bytes, Sequence] = {}

    @property
    def tokens(self) -> int:
        """Tokens in stored blocks."""
        return len(self._stored) * BLOCK_TOKENS

    def reuse(self, sequence: Sequence) -> tuple[bytes, ...]:
        """The stored blocks with which a sequence begins. At least one token is left, whose logits give the next one."""
        found: list[bytes] = []
        for key in self._keys(sequence, len(sequence.tokens) - 1):
            if key not in self._stored:
                break
            found.append(key)
        for key in reversed(found):  # a block is of no use without those before it, so those are forgotten later
            self._stored.move_to_end(key)
        return tuple(found)

    def awaited(self, sequence: Sequence) -> Sequence | None:
        """The other sequence that is just computing the block that this one needs next."""
        for key in self._keys(sequence, len(sequence.tokens) - 1):
            if key not in self._stored:
                leader = self._computing.get(key)
                return None if leader is sequence else leader
        return None

    def announce(self, sequence: Sequence) -> None:
        """The sequence starts to compute; others may wait for its blocks."""
        for key in self._keys(sequence, len(sequence.tokens)):
            if key not in self._stored:
                self._computing.setdefault(key, sequence)

    def withdraw(self, sequence: Sequence) -> None:
        """The sequence stops before its end, or has ended."""
        for key in sequence.block_keys:
            if self._computing.get(key) is sequence:
                del self._computing[key]

    def completed(self, sequence: Sequence, *, start: int, end: int) -> tuple[tuple[int, bytes], ...]:
        """Index and key of every block that is complete once tokens `start` to `end` are computed, and is not stored yet."""
        keys = self._keys(sequence, end)
        return tuple((index, keys[index]) for index in range(start // BLOCK_TOKENS, len(keys)) if keys[index] not in self._stored)

    def store(self, key: bytes) -> None:
        self._stored[key] = None
        self._stored.move_to_end(key)
        self._computing.pop(key, None)

    def shrink(self, tokens: int) -> tuple[bytes, ...]:
        """Forget what was used least lately, until at most so many tokens are stored. Returns the forgotten keys."""
        forgotten: list[bytes] = []
        while self._stored and self.tokens > tokens:
            forgotten.append(self._stored.popitem(last=False)[0])
        return tuple(forgotten)

    def discard(self, sequence: Sequence) -> tuple[bytes, ...]:
        """Forget a sequence's own blocks, because they are not to be trusted. Returns those that were stored."""
        stored = tuple(key for key in sequence.block_keys if key in self._stored)
        for key in stored:
            del self._stored[key]
        return stored

    def clear(self) -> None:
        self._stored.clear()
        self._computing.clear()

    def _keys(self, sequence: Sequence, tokens: int) -> list[bytes]:
        """Keys of the whole blocks among the first `tokens` tokens."""
        keys, wanted = sequence.block_keys, tokens // BLOCK_TOKENS
        while len(keys) < wanted:
            start = len(keys) * BLOCK_TOKENS
            before = keys[-1] if keys else f"{self._revision}\0{sequence.request.tenant}".encode()
            keys.append(sha256(before + array("q", sequence.tokens[start : start + BLOCK_TOKENS]).tobytes()).digest())
        return keys[:wanted]
