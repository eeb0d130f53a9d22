"""What an overloaded server still does, and what a soak does to its memory: one panel each. Plain SVG."""

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

from engine_benchmark.picture import scale
from http_benchmark.figures import Overload, Soak

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 960, 400, 60, 84, 60
GOOD, REFUSED, LATE = "#0284c7", "#cbd5e1", "#f59e0b"
STYLE = (
    "text { fill: #0f172a; font-size: 13px } .small { font-size: 12.5px; fill: #475569 } .value { font-size: 12px; text-anchor: middle }"
    " .grid { stroke: #e2e8f0 } .axis { stroke: #94a3b8 }"
)
MEBIBYTE = 2**20


def draw_overload(capacity: float, overloads: Sequence[Overload], *, caption: str) -> str:
    """Bars: what was offered, split into good answers, refusals and those that came too late, as shares of the capacity."""
    parts = list(_frame("Answers under load, as shares of the capacity", caption))
    top = math.ceil(2 * max(each.offered_per_second for each in overloads) / capacity) / 2
    parts += _grid(top, 0.5, lambda value: f"{value * 100:.0f} %")
    group = (WIDTH - LEFT - 30) / len(overloads)
    for place, each in enumerate(overloads):
        x, base = LEFT + (place + 0.25) * group, 0.0
        late, refused = each.late_share * each.offered_per_second, each.refused_share * each.offered_per_second
        for color, value in ((GOOD, each.good_per_second), (LATE, late), (REFUSED, refused)):
            high, low = _y((base + value) / capacity, top), _y(base / capacity, top)
            parts.append(f'<rect x="{x:.1f}" y="{high:.1f}" width="{group / 2:.1f}" height="{low - high:.1f}" fill="{color}"/>')
            base += value
        middle = x + group / 4
        share, y = f"{each.good_per_second / capacity:.0%}", _y(each.good_per_second / capacity, top) + 16
        parts.append(f'<text class="value" x="{middle:.1f}" y="{y:.1f}" style="fill: #fff">{share}</text>')
        parts.append(f'<text class="value" x="{middle:.1f}" y="{HEIGHT - BOTTOM + 18}">{each.load:g} × capacity</text>')
        notes = [
            f"answer p50 {each.answer_p50_seconds:.2f} s" if each.answer_p50_seconds else "no answer",
            f"refusal p99 {each.refusal_p99_ms:.0f} ms" if each.refusal_p99_ms is not None else "none refused",
        ]
        for line, words in enumerate(notes):
            y = HEIGHT - BOTTOM + 36 + 16 * line
            parts.append(f'<text class="small" text-anchor="middle" x="{middle:.1f}" y="{y}">{words}</text>')
    for index, (color, words) in enumerate(((GOOD, "whole answers in time"), (LATE, "too late"), (REFUSED, "refused at once"))):
        x = LEFT + 180 * index
        parts.append(f'<rect x="{x}" y="56" width="12" height="12" fill="{color}"/><text class="small" x="{x + 18}" y="67">{words}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def draw_soak(soak: Soak, *, caption: str) -> str:
    """Resident memory over time, a line per process."""
    parts = list(_frame("Resident memory during the soak, MiB", caption))
    processes = list(soak.samples[-1][1])
    top, step = scale(max(max(resident.values()) for _, resident in soak.samples) / MEBIBYTE)
    parts += _grid(top, step, lambda value: f"{value:.0f}")
    for index, process in enumerate(processes):
        color = (GOOD, LATE, "#10b981")[index % 3]
        points = " ".join(
            f"{LEFT + (WIDTH - 30 - LEFT) * at / soak.seconds:.1f},{_y(resident.get(process, 0) / MEBIBYTE, top):.1f}"
            for at, resident in soak.samples
        )
        words = f"{process}: {soak.samples[-1][1][process] / MEBIBYTE:.0f} MiB, {soak.growth(process):+.1%}"
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.append(f'<text x="{LEFT + 230 * index}" y="67" style="fill: {color}">{escape(words)}</text>')
    parts.append(f'<text class="value" x="{LEFT}" y="{HEIGHT - BOTTOM + 18}">0</text>')
    parts.append(f'<text class="value" x="{WIDTH - 40}" y="{HEIGHT - BOTTOM + 18}">{soak.seconds / 60:g} min</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)


def _frame(title: str, caption: str) -> Iterator[str]:
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, \'DejaVu Sans\', sans-serif">'
    yield f'<title>{escape(title)}</title><style>{STYLE}</style><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    yield f'<text x="{LEFT}" y="26" font-weight="600">{escape(title)}</text><text class="small" x="{LEFT}" y="44">{escape(caption)}</text>'


def _grid(top: float, step: float, name: Callable[[float], str]) -> Iterator[str]:
    for line in range(int(top / step) + 1):
        y = _y(line * step, top)
        yield f'<line class="{"grid" if line else "axis"}" x1="{LEFT}" x2="{WIDTH - 30}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="small" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{name(line * step)}</text>'
