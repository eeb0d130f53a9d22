"""Figures as text, one line per law or per size."""

from collections.abc import Sequence

from millrace_operator.simulate.figures import Figures

COLUMNS = ("peak", "refused %", "late %", "wait p99 s", "reversals", "replica-hours")


def cells(of: Figures) -> tuple[str, ...]:
    """In the order of COLUMNS."""
    return (
        f"{of.peak:.1f}".removesuffix(".0"),
        f"{of.refused_percent:.1f}",
        f"{of.late_percent:.1f}",
        f"{of.wait_99_seconds:.1f}",
        f"{of.reversals:.1f}".removesuffix(".0"),
        f"{of.replica_hours:.2f}",
    )


def draw(heading: str, rows: Sequence[tuple[str, Figures]]) -> str:
    """A heading for the first column, and what each row is called."""
    width = max(len(name) for name in (heading, *(name for name, _ in rows)))
    lines = [(heading, COLUMNS), *((name, cells(figures)) for name, figures in rows)]
    return "".join(f"{name:<{width}}" + "".join(f"{cell:>14}" for cell in words) + "\n" for name, words in lines)
