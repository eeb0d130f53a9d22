"""A play as four panels over one time: load, replicas, waiting time and refusals, and the figures of each law below. Plain SVG."""

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

from millrace_operator.simulate import table
from millrace_operator.simulate.figures import Figures
from millrace_operator.simulate.play import SAMPLE_SECONDS, Record, Sample
from millrace_operator.simulate.scene import Scene
from millrace_operator.simulate.traffic import Traffic

WIDTH, LEFT, RIGHT, TOP = 960, 60, 936, 104
PANEL_HEIGHT, PANEL_GAP = 120, 42
ROW = 22
STEPS = 150
"""A play is drawn in so many steps at most."""
COLORS = ("#0284c7", "#f59e0b", "#10b981", "#a855f7")
"""Of the laws, ours first."""
STYLE = (
    "text { fill: #0f172a; font-size: 13px } .small { font-size: 12px; fill: #475569 } .strong { font-weight: 600 }"
    " .grid { stroke: #e2e8f0 } .axis { stroke: #94a3b8 } .line { fill: none; stroke-linejoin: round }"
    " .need { fill: none; stroke: #0f172a; stroke-dasharray: 4 3 }"
)

Points = Sequence[tuple[float, float]]
"""Shares of the time, and values."""


def load(scene: Scene, traffic: Traffic) -> str:
    """What is played, whatever the size of the service."""
    return (
        f"{traffic.name}, {round(traffic.seconds / 60, 1):g} min, up to {traffic.highest:.3g} requests/s of"
        f" {scene.seconds_per_request:g} s each; {scene.slots} slots, cold start {scene.cold_start:g} s; {scene.retries} retries"
    )


def caption(scene: Scene, traffic: Traffic) -> str:
    """What is played, in a line."""
    bounds = scene.bounds
    return f"{load(scene, traffic)}; {bounds.minimum} to {bounds.maximum} replicas, target {bounds.target}"


def draw(scene: Scene, traffic: Traffic, records: Sequence[Record], rows: Sequence[tuple[str, Figures]]) -> str:
    """Records of the same traffic, ours first, and the figures of each."""
    plays = [_steps(record.samples) for record in records]
    asked = _curve(plays[0], lambda step: _per_second(step, sum(sample.asked for sample in step)))
    need = [(at, scene.replicas_for(rate)) for at, rate in _smooth(asked, 2)]
    ready = _curve(plays[0], lambda step: step[-1].ready)
    panels = (
        ("Requests per second: new ones (grey), and with repeated attempts", lambda step: _per_second(step, _sum(step, "attempts")), asked),
        (
            "Replicas wanted; those of Millrace that serve (blue), and the true need (dashed)",
            lambda step: step[-1].wanted,
            ready,
        ),
        ("Longest wait for a slot, seconds", lambda step: max(sample.longest_wait for sample in step), ()),
        ("Attempts refused per second", lambda step: _per_second(step, _sum(step, "refused")), ()),
    )
    height = TOP + len(panels) * (PANEL_HEIGHT + PANEL_GAP) + ROW * (len(rows) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        " font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif\">",
        f"<title>Four autoscaling laws under the load {escape(traffic.name)}</title><style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text class="strong" x="{LEFT}" y="28" style="font-size: 15px">Who scales how, under the same requests</text>',
        f'<text class="small" x="{LEFT}" y="48">{escape(caption(scene, traffic))}</text>',
        *_legend([record.law for record in records]),
    ]
    for place, (title, value, area) in enumerate(panels):
        curves = [_curve(each, value) for each in plays]
        dashed = need if area is ready else ()
        parts += _Panel(TOP + 20 + place * (PANEL_HEIGHT + PANEL_GAP), title, curves, area, dashed).draw(traffic.seconds)
    return "\n".join([*parts, *_figures(TOP + 30 + len(panels) * (PANEL_HEIGHT + PANEL_GAP), rows), "</svg>"]) + "\n"


class _Panel:
    """One panel: its curves, ours first, above an area that they are seen against."""

    def __init__(self, top: float, title: str, curves: Sequence[Points], area: Points, dashed: Points) -> None:
        self._top, self._title, self._curves, self._area, self._dashed = top, title, curves, area, dashed
        highest = max((value for each in (*curves, area, dashed) for _, value in each), default=0.0)
        self._grid = round_step(max(highest, 1.0) / 3)
        self._highest = self._grid * math.ceil(max(highest, 1.0) / self._grid)

    def draw(self, seconds: float) -> Iterator[str]:
        bottom = self._top + PANEL_HEIGHT
        yield f'<text class="strong" x="{LEFT}" y="{self._top - 8:.0f}">{escape(self._title)}</text>'
        minutes = round_step(seconds / 60 / 10)
        for line in range(int(seconds / 60 / minutes) + 1):
            x = _x(line * minutes * 60 / seconds)
            yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{self._top:.0f}" y2="{bottom:.0f}"/>'
            unit = " min" if not line else ""
            yield f'<text class="small" x="{x:.1f}" y="{bottom + 15:.0f}" text-anchor="middle">{line * minutes:g}{unit}</text>'
        for line in range(round(self._highest / self._grid) + 1):
            y = self._y(line * self._grid)
            yield f'<line class="{"grid" if line else "axis"}" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text class="small" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{line * self._grid:g}</text>'
        if self._area:
            color = COLORS[0] if self._dashed else "#94a3b8"
            edges = f"{_x(self._area[-1][0]):.1f},{bottom} {_x(self._area[0][0]):.1f},{bottom}"
            yield f'<polygon points="{self._path(self._area)} {edges}" fill="{color}" fill-opacity="0.18"/>'
        for color, curve in reversed(list(zip(COLORS, self._curves, strict=False))):
            width = 2.4 if color == COLORS[0] else 1.4
            yield f'<polyline class="line" points="{self._path(curve)}" stroke="{color}" stroke-width="{width}"/>'
        if self._dashed:
            yield f'<polyline class="need" points="{self._path(self._dashed)}"/>'

    def _y(self, value: float) -> float:
        return self._top + PANEL_HEIGHT * (1 - value / self._highest)

    def _path(self, points: Points) -> str:
        return " ".join(f"{_x(at):.1f},{self._y(value):.1f}" for at, value in points)


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10 … (and their tenths) that is not below `least`, which is above 0."""
    unit = 10.0 ** math.floor(math.log10(least))
    return next(step for step in (unit, 2 * unit, 5 * unit, 10 * unit) if step >= least * 0.999)


def _x(share: float) -> float:
    return LEFT + (RIGHT - LEFT) * share


def _steps(samples: Sequence[Sample]) -> list[Sequence[Sample]]:
    """Samples in groups of equal length."""
    length = max(1, math.ceil(len(samples) / STEPS))
    return [samples[begin : begin + length] for begin in range(0, len(samples), length)]


def _curve(steps: Sequence[Sequence[Sample]], value: Callable[[Sequence[Sample]], float]) -> Points:
    end = steps[-1][-1].at
    return [(step[-1].at / end, value(step)) for step in steps]


def _sum(step: Sequence[Sample], count: str) -> int:
    return sum(getattr(sample, count) for sample in step)


def _per_second(step: Sequence[Sample], count: float) -> float:
    return count / (len(step) * SAMPLE_SECONDS)


def _smooth(points: Points, reach: int) -> Points:
    """The mean of the points around each."""
    values = [value for _, value in points]
    near = [values[max(0, place - reach) : place + reach + 1] for place in range(len(values))]
    return [(at, sum(around) / len(around)) for (at, _), around in zip(points, near, strict=True)]


def _legend(laws: Sequence[str]) -> Iterator[str]:
    x = float(LEFT)
    for color, law in zip(COLORS, laws, strict=False):
        yield f'<line x1="{x:.0f}" x2="{x + 22:.0f}" y1="70" y2="70" stroke="{color}" stroke-width="3"/>'
        yield f'<text x="{x + 28:.0f}" y="74.5">{escape(law)}</text>'
        x += 64 + 7.4 * len(law)


def _figures(top: float, rows: Sequence[tuple[str, Figures]]) -> Iterator[str]:
    lines = [("Law", table.COLUMNS), *((law, table.cells(figures)) for law, figures in rows)]
    for place, (law, words) in enumerate(lines):
        y = top + ROW * place
        style = "strong" if place <= 1 else ""
        yield f'<text class="{style}" x="{LEFT}" y="{y}">{escape(law)}</text>'
        for column, word in enumerate(words):
            yield f'<text class="{style}" x="{LEFT + 240 + 124 * column}" y="{y}" text-anchor="end">{escape(word)}</text>'
    y = top + 7
    yield f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{y}" y2="{y}"/>'
