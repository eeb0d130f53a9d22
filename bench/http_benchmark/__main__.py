"""How fast the HTTP front is by itself, what it does under too much load, whether it grows: tables, http.json and pictures.

A missed goal is said and is no failure (the machine may be busy); wrong answers are.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from demo import model as demo_model
from engine_benchmark.machine import CPU_INFO, cpu_model, revision
from http_benchmark import experiments, picture
from http_benchmark.figures import GOODPUT_GOAL, GROWTH_GOAL, REFUSAL_GOAL_MS, Overload, Row, Soak
from http_benchmark.prediction import prediction

KINDS = ("throughput", "streams", "cache", "goodput", "prediction", "soak")


def main() -> int:
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    model = demo_model.folder()
    caption = f"{cpu_model(CPU_INFO.read_text())}, revision {revision()}"
    document: dict[str, Any] = {"machine": caption, "seconds": options.seconds, "rounds": options.rounds}
    missed: list[str] = []
    rows: list[Row] = []
    # Sockets' names are short: not below --out.
    with tempfile.TemporaryDirectory() as logs:
        folder = Path(logs)
        if "throughput" in options.kinds:
            rows += experiments.throughput(model, folder, rounds=options.rounds, seconds=options.seconds)
        if "streams" in options.kinds:
            rows += experiments.streams(model, folder, rounds=options.rounds, seconds=options.seconds)
        if "cache" in options.kinds:
            rows += experiments.cache(model, folder, rounds=options.rounds, prompts=20)
        if "prediction" in options.kinds:
            rows += prediction(model, folder, seconds=6 * options.seconds)
        for row in rows:
            print(_line(row), flush=True)
        missed += [row.what for row in rows if row.met is False]
        if "goodput" in options.kinds:
            capacity, overloads = experiments.goodput(model, folder, seconds=2 * options.seconds)
            missed += _tell_overload(capacity, overloads)
            document |= {"capacity_per_second": capacity, "overloads": [asdict(each) for each in overloads]}
            (options.out / "goodput.svg").write_text(picture.draw_overload(capacity, overloads, caption=f"mock engine, {caption}"))
        if "soak" in options.kinds:
            soak = experiments.soak(model, folder, seconds=options.soak_minutes * 60)
            missed += _tell_soak(soak)
            document |= {"soak": asdict(soak)}
            (options.out / "soak.svg").write_text(
                picture.draw_soak(soak, caption=f"the demo model, {sum(soak.done.values())} requests, {caption}")
            )
    document["rows"] = [{**asdict(row), "median": row.median, "met": row.met} for row in rows]
    (options.out / "http.json").write_text(json.dumps(document, indent=1))
    print("MISSED: " + "; ".join(missed) if missed else "all goals met")
    return 0


def _line(row: Row) -> str:
    goal = "" if row.goal is None else f", goal {'≥' if row.at_least else '≤'} {row.goal:g}: {'met' if row.met else 'MISSED'}"
    return f"{row.what}: {row.median:.4g} {row.unit} ({min(row.rounds):.4g}…{max(row.rounds):.4g}){goal}"


def _tell_overload(capacity: float, overloads: Sequence[Overload]) -> list[str]:
    print(f"capacity: {capacity:.0f} answers per second")
    print("| load | good/s | of capacity | refused | too late | refusal p99 | answer p50 |\n|---|---|---|---|---|---|---|")
    for each in overloads:
        refusal = "" if each.refusal_p99_ms is None else f"{each.refusal_p99_ms:.1f} ms"
        answer = "" if each.answer_p50_seconds is None else f"{each.answer_p50_seconds:.2f} s"
        print(
            f"| {each.load:g} × | {each.good_per_second:.0f} | {each.good_per_second / capacity:.0%} | {each.refused_share:.0%} |"
            f" {each.late_share:.1%} | {refusal} | {answer} |"
        )
    best = max(each.good_per_second for each in overloads)
    slow = max((each.refusal_p99_ms or 0 for each in overloads), default=0)
    missed = [] if overloads[-1].good_per_second >= GOODPUT_GOAL * best else ["goodput at the highest load"]
    return missed if slow < REFUSAL_GOAL_MS else [*missed, "refusals' p99"]


def _tell_soak(soak: Soak) -> list[str]:
    print(f"soak of {soak.seconds / 60:g} minutes: {soak.done}")
    processes = list(soak.samples[-1][1])
    for process in processes:
        print(f"  {process}: {soak.samples[-1][1][process] / 2**20:.0f} MiB at the end, {soak.growth(process):+.2%} since the warm-up")
    return [f"memory of {process}" for process in processes if soak.growth(process) > GROWTH_GOAL]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-http ARGS=…", description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS[:-1], help="what is measured; the soak only when it is named")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="of one load")
    parser.add_argument("--soak-minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="the folder for the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
