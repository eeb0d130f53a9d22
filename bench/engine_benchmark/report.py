"""Results as a table for people and as JSON for programs. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from engine_benchmark.experiment import Goal, Ratio, Results, Row
from engine_benchmark.machine import Machine
from engine_benchmark.watch import Company

UNITS = {"output_tokens_per_second": "tokens/s", "ttft_p50_seconds": "TTFT p50", "itl_p99_seconds": "ITL p99"}


def document(results: Results, machine: Machine, company: Company, *, rounds: int) -> dict[str, Any]:
    """What engine.json holds: `machine`, `rows` (one per arm, medians over the rounds) and `ratios` (paired, with goals)."""
    return {
        "machine": {**asdict(machine), "rounds": rounds, **asdict(company)},
        "rows": [_row(row) for row in results.rows],
        "ratios": [_ratio(ratio) for ratio in results.ratios],
    }


def table(results: Results) -> str:
    """Every row, then every ratio with its goal."""
    head = ("kind", "series", "engine", "clients", "tokens/s", "TTFT p50", "TTFT p99", "ITL p50", "ITL p99")
    rows = [
        (
            row.kind,
            row.series,
            row.engine,
            str(row.concurrency),
            f"{row.figures.output_tokens_per_second:.1f}",
            milliseconds(row.figures.ttft_p50_seconds),
            milliseconds(row.figures.ttft_p99_seconds),
            milliseconds(row.figures.itl_p50_seconds),
            milliseconds(row.figures.itl_p99_seconds),
        )
        for row in results.rows
    ]
    return "\n".join([*columns([head, *rows]), "", *columns([_ratio_head(), *(_ratio_line(ratio) for ratio in results.ratios)])])


def verdict(results: Results) -> str:
    """One line: how many goals are met, and which are not."""
    judged = [(ratio, ratio.goal) for ratio in results.ratios if ratio.goal]
    missed = [_name(ratio) for ratio, goal in judged if not goal.met_by(ratio.spread.median)]
    if not missed:
        return f"all {len(judged)} goals met"
    return f"{len(judged) - len(missed)} of {len(judged)} goals met; MISSED: {'; '.join(missed)}"


def milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1000:.0f} ms"


def columns(lines: Sequence[Sequence[str]]) -> Iterable[str]:
    """Left-aligned text, columns as wide as their widest cell."""
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _ratio_head() -> tuple[str, ...]:
    return ("kind", "series", "clients", "ratio", "median", "lowest…highest", "goal", "")


def _ratio_line(ratio: Ratio) -> tuple[str, ...]:
    spread = ratio.spread
    return (
        ratio.kind,
        ratio.series,
        str(ratio.concurrency),
        f"{UNITS[ratio.figure]}: {ratio.above} / {ratio.below}",
        f"{spread.median:.2f}",
        f"{spread.lowest:.2f}…{spread.highest:.2f}",
        str(ratio.goal) if ratio.goal else "",
        _judgement(ratio.goal, spread.median),
    )


def _judgement(goal: Goal | None, ratio: float) -> str:
    if goal is None:
        return ""
    return "met" if goal.met_by(ratio) else "MISSED"


def _name(ratio: Ratio) -> str:
    where = f" {ratio.series}" if ratio.series else ""
    return f"{ratio.kind}{where} ×{ratio.concurrency} {ratio.above} / {ratio.below} = {ratio.spread.median:.2f} ({ratio.goal})"


def _row(row: Row) -> dict[str, Any]:
    named = {"kind": row.kind, "engine": row.engine, "series": row.series, "concurrency": row.concurrency}
    return {**named, **asdict(row.figures), "rounds": [asdict(figures) for figures in row.rounds]}


def _ratio(ratio: Ratio) -> dict[str, Any]:
    goal = ratio.goal
    return {
        "kind": ratio.kind,
        "series": ratio.series,
        "concurrency": ratio.concurrency,
        "figure": ratio.figure,
        "above": ratio.above,
        "below": ratio.below,
        **asdict(ratio.spread),
        "goal": str(goal) if goal else None,
        "met": goal.met_by(ratio.spread.median) if goal else None,
    }
