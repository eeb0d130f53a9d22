"""`python -m millrace_operator.simulate SERVICE.yaml`: how a service would bear a load, and which size would suit it."""

import argparse
import itertools
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from millrace_operator.api import InferenceService, InvalidService, parse
from millrace_operator.autoscale import Decision
from millrace_operator.names import KIND
from millrace_operator.simulate import picture, scene, table, traffic
from millrace_operator.simulate.figures import mean, of_record
from millrace_operator.simulate.laws import LAWS, Millrace
from millrace_operator.simulate.play import play
from millrace_operator.simulate.scene import Scene
from millrace_operator.simulate.traffic import Traffic


def main(words: Sequence[str] | None = None) -> None:
    parser = _parser()
    asked = parser.parse_args(words)
    try:
        sys.stdout.write(simulate(asked))
    except (OSError, yaml.YAMLError, InvalidService, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def simulate(asked: argparse.Namespace) -> str:
    """What to tell; writes the picture where one is asked for."""
    stage = scene.of_service(
        read_service(asked.service), seconds_per_request=asked.seconds_per_request, cold_start=asked.cold_start, retries=asked.retries
    )
    loads = [_traffic(asked, seed) for seed in range(1, asked.seeds + 1)]
    sizes = _sizes(stage, asked.min_replicas, asked.target_per_replica)
    return _compare_sizes(sizes, loads) if len(sizes) > 1 else _compare_laws(sizes[0], loads, asked)


def read_service(path: Path) -> InferenceService:
    """The one InferenceService of the file, with the schema's defaults. Raises ValueError."""
    found = [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if isinstance(each, dict) and each.get("kind") == KIND]
    if len(found) != 1:
        raise ValueError(f"{path} holds {len(found)} objects of kind {KIND}; name a file with one")
    metadata = found[0].get("metadata") or {}
    if not metadata.get("name"):
        raise ValueError(f"{path}: metadata.name is missing; name the {KIND}")
    return parse({**found[0], "metadata": {"namespace": "default", "uid": "", "generation": 1, **metadata}})


def _compare_laws(stage: Scene, loads: Sequence[Traffic], asked: argparse.Namespace) -> str:
    laws = [[law(stage.bounds) for _ in loads] for law in LAWS]
    records = [
        [play(stage, load, law, chance=random.Random(seed)) for seed, (load, law) in enumerate(zip(loads, each, strict=True))]
        for each in laws
    ]
    rows = [(each[0].law, mean([of_record(record) for record in each])) for each in records]
    if asked.picture:
        asked.picture.write_text(picture.draw(stage, loads[0], [each[0] for each in records], rows), encoding="utf-8")
    ours = laws[0][0]
    told = "".join(map(_line, ours.decisions)) if asked.explain and isinstance(ours, Millrace) else ""
    return f"{picture.caption(stage, loads[0])}\n\n{table.draw('law', rows)}{told and chr(10)}{told}"


def _compare_sizes(sizes: Sequence[Scene], loads: Sequence[Traffic]) -> str:
    rows = []
    for stage in sizes:
        records = [play(stage, load, Millrace(stage.bounds), chance=random.Random(seed)) for seed, load in enumerate(loads)]
        rows.append((f"{stage.bounds.minimum}, {stage.bounds.target}", mean([of_record(record) for record in records])))
    return f"{picture.load(sizes[0], loads[0])}\n\n{table.draw('minReplicas, targetPerReplica', rows)}"


def _sizes(stage: Scene, minima: Sequence[int], targets: Sequence[int]) -> list[Scene]:
    bounds = stage.bounds
    return [
        replace(stage, bounds=replace(bounds, minimum=minimum, target=target, maximum=max(minimum, bounds.maximum)))
        for minimum, target in itertools.product(minima or [bounds.minimum], targets or [bounds.target])
    ]


def _traffic(asked: argparse.Namespace, seed: int) -> Traffic:
    chance = random.Random(seed)
    if asked.trace:
        return traffic.recorded(asked.trace.name, asked.trace.read_text(encoding="utf-8"), chance=chance)
    return traffic.shaped(asked.load, low=asked.low, high=asked.high, seconds=60 * asked.minutes, chance=chance)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m millrace_operator.simulate", description=__doc__, allow_abbrev=False)
    parser.add_argument("service", type=Path, metavar="SERVICE.yaml", help="a file with one InferenceService")
    load = parser.add_argument_group("load")
    load.add_argument("--load", choices=traffic.SHAPES, default="step", help="default: %(default)s")
    load.add_argument("--low", type=_above_zero, default=2.0, metavar="RATE", help="requests per second; default: %(default)g")
    load.add_argument("--high", type=_above_zero, default=20.0, metavar="RATE", help="requests per second; default: %(default)g")
    load.add_argument("--minutes", type=_above_zero, default=25.0, help="default: %(default)g")
    load.add_argument("--trace", type=Path, metavar="TRACE.csv", help="instead of a shape: arrival_seconds, or seconds,requests_per_second")
    load.add_argument("--retries", type=int, choices=range(11), default=2, metavar="N", help="of a refused client; default: %(default)s")
    load.add_argument("--seeds", type=int, choices=range(1, 101), default=3, metavar="N", help="plays to average; default: %(default)s")
    replica = parser.add_argument_group("replicas")
    replica.add_argument("--seconds-per-request", type=_above_zero, default=4.0, metavar="S", help="in a slot; default: %(default)g")
    replica.add_argument("--cold-start", type=_above_zero, default=60.0, metavar="S", help="until it serves; default: %(default)g")
    replica.add_argument("--min-replicas", type=_count, nargs="+", default=[], metavar="N", help="instead of the spec's")
    replica.add_argument("--target-per-replica", type=_count, nargs="+", default=[], metavar="N", help="instead of the spec's")
    told = parser.add_argument_group("what is told; several sizes: a table of them, else one of the laws")
    told.add_argument("--picture", type=Path, metavar="PICTURE.svg", help="draw the first play of each law")
    told.add_argument("--explain", action="store_true", help="every decision of Millrace's law in the first play, in the status's words")
    return parser


def _above_zero(word: str) -> float:
    number = float(word)
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"{word} is not above 0 and below 1e6")
    return number


def _line(told: tuple[float, Decision]) -> str:
    at, decision = told
    blocked = f" (blocked by {decision.blocked_by})" if decision.blocked_by else ""
    return f"{at / 60:6.1f} min  {decision.desired:>4}  {decision.cause}: {decision.sentence}{blocked}\n"


def _count(word: str) -> int:
    number = int(word)
    if not 1 <= number <= 100_000:
        raise argparse.ArgumentTypeError(f"{word} is not from 1 to 100000")
    return number


if __name__ == "__main__":
    main()
