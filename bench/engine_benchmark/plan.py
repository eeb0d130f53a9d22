"""What is measured, with how many requests, and which goals there are."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from engine_benchmark.clients import drive
from engine_benchmark.engine import OURS, Engine, Request
from engine_benchmark.experiment import Arm, Experiment, Goal, Pair
from engine_benchmark.figures import Figures, measure
from engine_benchmark.long_prompt import LongPrompt
from engine_benchmark.workload import EQUAL, MIXED, Series, with_prefixes

STATIC = "transformers"
CONTINUOUS = "transformers-cb"
FORWARD = "transformers-forward"
KINDS = ("peers", "batching", "prefix", "light_ttft", "long_prompt")

THROUGHPUT = "output_tokens_per_second"
PEER_GOALS = {EQUAL.name: Goal(at_least=3.0), MIXED.name: Goal(at_least=2.0)}
BATCHING_GOAL = Goal(at_least=3.0)
PREFIX_GOAL = Goal(at_least=3.0)
LIGHT_TTFT_GOAL = Goal(at_most=1.3)
LONG_PROMPT_GOAL = Goal(at_most=2.0)

PREFIX_TOKENS = 512
PREFIX_REST_TOKENS = 16
PREFIX_ANSWER_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of it."""

    rounds: int
    concurrencies: Sequence[int]
    requests_per_client: Mapping[int, int]
    """Concurrency → requests that each client makes."""
    batching_answer_tokens: int
    prefix_requests: int
    light_requests: int
    long_prompt_tokens: int


FULL = Size(
    rounds=3,
    concurrencies=(1, 8, 32),
    requests_per_client={1: 4, 8: 2, 32: 1},
    batching_answer_tokens=64,
    prefix_requests=16,
    light_requests=12,
    long_prompt_tokens=8192,
)
"""At most a quarter of an hour on two cores."""
QUICK = Size(
    rounds=1,
    concurrencies=(1, 8),
    requests_per_client={1: 1, 8: 1},
    batching_answer_tokens=16,
    prefix_requests=6,
    light_requests=4,
    long_prompt_tokens=2048,
)
"""At most two minutes: shows that everything works, and roughly where things stand."""


def plan(engines: Mapping[str, Engine], size: Size, kinds: Sequence[str]) -> list[Experiment]:
    """The experiments of the given kinds, over the engines by name."""
    ours = engines[OURS]
    experiments: list[Experiment] = []
    if "peers" in kinds:
        contenders = [engines[name] for name in (OURS, STATIC, CONTINUOUS)]
        for series in (EQUAL, MIXED):
            experiments += [_peers(contenders, series, clients, size) for clients in size.concurrencies]
    if "batching" in kinds:
        experiments.append(_batching(ours, size))
    if "prefix" in kinds:
        experiments += [_prefix(ours, clients, size) for clients in (1, size.prefix_requests)]
    if "light_ttft" in kinds:
        experiments += [_light(ours, engines[FORWARD], length, size) for length in (64, PREFIX_TOKENS)]
    if "long_prompt" in kinds:
        experiments.append(_long_prompt(ours, size))
    return experiments


def _driven(engine: Engine, requests: Callable[[str], list[Request]], concurrency: int) -> Callable[[str], Awaitable[Figures]]:
    async def run(seed: str) -> Figures:
        return measure(await drive(engine, requests(seed), concurrency=concurrency))

    return run


def _peers(engines: Sequence[Engine], series: Series, clients: int, size: Size) -> Experiment:
    count = clients * size.requests_per_client[clients]

    def requests(seed: str) -> list[Request]:
        return series.requests(count, seed=f"{clients} {seed}")

    arms = [Arm(engine=engine.name, series=series.name, run=_driven(engine, requests, clients)) for engine in engines]
    pairs = [Pair(above=0, below=place, figure=THROUGHPUT, goal=PEER_GOALS[series.name]) for place in range(1, len(arms))]
    return Experiment(kind="peers", concurrency=clients, arms=arms, pairs=pairs)


def _batching(ours: Engine, size: Size) -> Experiment:
    clients = 8
    series = Series("batching", ((64, size.batching_answer_tokens),))
    together = _driven(ours, lambda seed: series.requests(clients, seed=f"together {seed}"), clients)
    alone = _driven(ours, lambda seed: series.requests(clients, seed=f"alone {seed}"), 1)
    arms = [Arm(engine=ours.name, series="8 at once", run=together), Arm(engine=ours.name, series="8 one by one", run=alone)]
    pair = Pair(above=0, below=1, figure=THROUGHPUT, goal=BATCHING_GOAL)
    return Experiment(kind="batching", concurrency=clients, arms=arms, pairs=[pair])


def _prefix(ours: Engine, clients: int, size: Size) -> Experiment:
    def run(*, shared: bool) -> Callable[[str], Awaitable[Figures]]:
        def requests(seed: str) -> list[Request]:
            return with_prefixes(
                size.prefix_requests,
                prefix=PREFIX_TOKENS,
                rest=PREFIX_REST_TOKENS,
                answer=PREFIX_ANSWER_TOKENS,
                shared=shared,
                seed=f"{clients} {seed}",
            )

        return _driven(ours, requests, clients)

    arms = [
        Arm(engine=ours.name, series="distinct prefixes", run=run(shared=False)),
        Arm(engine=ours.name, series="shared prefix", run=run(shared=True)),
    ]
    pair = Pair(above=0, below=1, figure="ttft_p50_seconds", goal=PREFIX_GOAL)
    return Experiment(kind="prefix", concurrency=clients, arms=arms, pairs=[pair])


def _light(ours: Engine, forward: Engine, length: int, size: Size) -> Experiment:
    series = Series(f"prompt of {length}", ((length, 1),))

    def requests(seed: str) -> list[Request]:
        return series.requests(size.light_requests, seed=seed)

    arms = [Arm(engine=engine.name, series=series.name, run=_driven(engine, requests, 1)) for engine in (ours, forward)]
    pair = Pair(above=0, below=1, figure="ttft_p50_seconds", goal=LIGHT_TTFT_GOAL)
    return Experiment(kind="light_ttft", concurrency=1, arms=arms, pairs=[pair])


def _long_prompt(ours: Engine, size: Size) -> Experiment:
    long = LongPrompt(ours, prompt_tokens=size.long_prompt_tokens)
    arms = [
        Arm(engine=ours.name, series="beside a long prompt", run=long.beside),
        Arm(engine=ours.name, series="alone", run=long.alone),
    ]
    pair = Pair(above=0, below=1, figure="itl_p99_seconds", goal=LONG_PROMPT_GOAL)
    return Experiment(kind="long_prompt", concurrency=4, arms=arms, pairs=[pair])
