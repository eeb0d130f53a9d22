"""What is asked: lengths are fixed, tokens are random but seeded, and no prompt is ever asked twice of an engine (prefix caches)."""

import random
from dataclasses import dataclass

from engine_benchmark.engine import Request

VOCABULARY = 49152


@dataclass(frozen=True, slots=True)
class Series:
    """Requests of the given lengths (prompt, answer), in turn."""

    name: str
    lengths: tuple[tuple[int, int], ...]

    def requests(self, count: int, *, seed: str) -> list[Request]:
        """The same seed gives the same requests. The lengths come in a shuffled order, each equally often as far as count allows."""
        chance = random.Random(f"{self.name} {seed}")
        lengths = [self.lengths[index % len(self.lengths)] for index in range(count)]
        chance.shuffle(lengths)
        return [Request(tokens(chance, prompt), answer) for prompt, answer in lengths]


EQUAL = Series("equal", ((64, 64),))
MIXED = Series("mixed", ((16, 16), (32, 128), (128, 48), (384, 16)))
"""Short and long prompts, short and long answers: 140 tokens in and 52 out on average."""


def tokens(chance: random.Random, count: int) -> tuple[int, ...]:
    return tuple(chance.choices(range(VOCABULARY), k=count))


def with_prefixes(count: int, *, prefix: int, rest: int, answer: int, shared: bool, seed: str) -> list[Request]:
    """Prompts of `prefix` + `rest` tokens; `shared`: they all begin alike."""
    chance = random.Random(f"prefix {shared} {seed}")
    common = tokens(chance, prefix)
    return [Request((common if shared else tokens(chance, prefix)) + tokens(chance, rest), answer) for _ in range(count)]
