"""Start the engines, measure, write engine.json and engine.svg, and print both tables.

A missed goal is no failure (the machine may be busy), but it is said; only an engine that fails is.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine_benchmark import machine, model, picture, report
from engine_benchmark.clients import drive
from engine_benchmark.engine import OURS, SLOTS, Engine, EngineFailed
from engine_benchmark.experiment import Results, measure
from engine_benchmark.millrace import Millrace
from engine_benchmark.peer import Peer
from engine_benchmark.plan import CONTINUOUS, FORWARD, FULL, KINDS, QUICK, STATIC, Size, plan
from engine_benchmark.watch import Watch
from engine_benchmark.workload import Series

PACKAGES = Path(__file__).parents[1]
PEERS = {
    STATIC: "engine_benchmark.peers.transformers_static",
    CONTINUOUS: "engine_benchmark.peers.transformers_continuous",
    FORWARD: "engine_benchmark.peers.transformers_forward",
}
NEEDED = {"peers": (STATIC, CONTINUOUS), "light_ttft": (FORWARD,)}
"""The peers of each kind; ours is always there."""
WARM_UP = Series("warm-up", ((64, 8),))


def main() -> int:
    options = _options()
    build: Path = options.out
    build.mkdir(parents=True, exist_ok=True)
    size = QUICK if options.quick else FULL
    try:
        asyncio.run(benchmark(build, size, options.kinds, rounds=options.rounds or size.rounds))
    except EngineFailed as failure:
        print(f"bench-engine: {failure}", file=sys.stderr)
        return 1
    return 0


async def benchmark(build: Path, size: Size, kinds: Sequence[str], *, rounds: int) -> None:
    saved = await asyncio.to_thread(model.folder, build)
    facts = machine.describe(dtype=model.dtype(saved), model=f"Llama {model.PARAMETERS}, random weights")
    engines = _engines(saved, build, kinds, threads=facts.threads)
    results = Results()
    try:
        for engine in engines.values():
            _say(f"starting {engine.name}")
            await engine.start()
            if engine.name != FORWARD:
                await drive(engine, WARM_UP.requests(SLOTS, seed="warm-up"), concurrency=SLOTS)
        watch = Watch(list(engines.values()))
        experiments = plan(engines, size, kinds)
        for number, experiment in enumerate(experiments, 1):
            names = ", ".join(dict.fromkeys(arm.series for arm in experiment.arms))
            _say(f"{number}/{len(experiments)} {experiment.kind}: {names}, {experiment.concurrency} clients, {rounds} rounds")
            await measure(experiment, rounds=rounds, watch=watch, results=results)
    finally:
        for engine in engines.values():
            await engine.stop()
    company = watch.company()
    document = report.document(results, facts, company, rounds=rounds)
    (build / "engine.json").write_text(json.dumps(document, indent=1) + "\n")
    (build / "engine.svg").write_text(picture.draw(document))
    print(report.table(results))
    print(f"\n{facts.cpu}, {facts.threads} threads, {facts.dtype}, {facts.model}; torch {facts.torch}, transformers {facts.transformers}")
    print(company.warning or "the machine was quiet")
    print(f"{report.verdict(results)}\n{build}/engine.json, {build}/engine.svg")


def _engines(saved: Path, build: Path, kinds: Sequence[str], *, threads: int) -> dict[str, Engine]:
    environment: Mapping[str, str] = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": f"{PACKAGES}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    needed = dict.fromkeys(name for kind in kinds for name in NEEDED.get(kind, ()))
    peers = {name: Peer(name, PEERS[name], saved, environment, log=build / f"{name}.log") for name in needed}
    return {OURS: Millrace(saved, environment), **peers}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="engine_benchmark", description="Our engine against others on this machine.")
    parser.add_argument("--quick", action="store_true", help="two minutes instead of fifteen: fewer and smaller of everything")
    parser.add_argument("--rounds", type=int, help="how often everything is measured")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="only these experiments")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="the folder for model, logs and results")
    return parser.parse_args()


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
