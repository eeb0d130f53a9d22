"""The peers as grouped bars: tokens per second over the number of clients, one panel per series. Plain SVG, from engine.json's content.

Bars are medians over the rounds, whiskers the lowest and the highest round; under each group stands how many times as fast as each peer
ours is, paired. All panels have one scale.
"""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from engine_benchmark.engine import OURS

OUR_COLOR = "#0284c7"
PEER_COLORS = ("#94a3b8", "#cbd5e1", "#64748b", "#e2e8f0")
WIDTH = 960
PANEL_WIDTH = 440
PANEL_HEIGHT = 240
LEFT = 36
TOP = 92
GAP = 40
BAR_SHARE = 0.72
"""Of a group's width; the rest is air."""
STYLE = (
    "text { fill: #0f172a } .small { font-size: 12.5px; fill: #475569 } .value { font-size: 12px; text-anchor: middle }"
    " .grid { stroke: #e2e8f0 } .axis { stroke: #94a3b8 } .whisker { stroke: #0f172a; stroke-width: 1.2 }"
)


def draw(document: Mapping[str, Any]) -> str:
    """One panel per series, side by side. Without rows of kind "peers" it says only that."""
    rows = [row for row in document["rows"] if row["kind"] == "peers"]
    series = list(dict.fromkeys(row["series"] for row in rows))
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    ratio_lines = max(1, len(engines) - 1)
    height = TOP + PANEL_HEIGHT + 40 + 20 * ratio_lines
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        " font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif\" font-size=\"15\">",
        "<title>Output tokens per second of each engine, by number of clients</title>",
        f'<style>{STYLE}</style><rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="28" font-weight="600">Output tokens per second, and how many times as fast as each other ours is</text>',
        f'<text class="small" x="{LEFT}" y="48">{escape(_caption(document["machine"]))}</text>',
        *_legend(engines),
    ]
    if not rows:
        parts.append(f'<text class="small" x="{LEFT}" y="{TOP + 40}">the peers were not measured</text>')
    for place, name in enumerate(series):
        members = [row for row in rows if row["series"] == name]
        ratios = [ratio for ratio in document["ratios"] if ratio["kind"] == "peers" and ratio["series"] == name]
        parts += _panel(LEFT + place * (PANEL_WIDTH + GAP), name, members, ratios, engines, max(_highest(row) for row in rows))
    return "\n".join([*parts, "</svg>"]) + "\n"


def scale(highest: float) -> tuple[float, float]:
    """A round top that is not below `highest`, and the step of its grid."""
    step = 1.0
    while True:
        for factor in (1, 2, 5):
            if step * factor * 5 >= highest:
                return step * factor * 5, step * factor
        step *= 10


def _caption(machine: Mapping[str, Any]) -> str:
    return (
        f"{machine['model']}, {machine['dtype']}, {machine['cpu']}, {machine['threads']} threads,"
        f" {machine['rounds']} rounds, {machine['date'][:10]}"
    )


def _color(engine: str, engines: Sequence[str]) -> str:
    others = [name for name in engines if name != OURS]
    return OUR_COLOR if engine == OURS else PEER_COLORS[others.index(engine) % len(PEER_COLORS)]


def _legend(engines: Sequence[str]) -> Iterator[str]:
    x = float(LEFT)
    for engine in engines:
        yield f'<rect x="{x:.0f}" y="60" width="12" height="12" fill="{_color(engine, engines)}"/>'
        yield f'<text class="small" x="{x + 17:.0f}" y="71">{escape(engine)}</text>'
        x += 40 + 7.2 * len(engine)


def _panel(
    x: float, name: str, rows: Sequence[Mapping[str, Any]], ratios: Sequence[Mapping[str, Any]], engines: Sequence[str], highest: float
) -> Iterator[str]:
    bottom = TOP + PANEL_HEIGHT
    top, step = scale(highest)

    def y(value: float) -> float:
        return bottom - value / top * (PANEL_HEIGHT - 24)

    for line in range(int(top / step) + 1):
        at = y(line * step)
        yield f'<line class="{"grid" if line else "axis"}" x1="{x + 34:.0f}" x2="{x + PANEL_WIDTH:.0f}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield f'<text class="small" x="{x + 28:.0f}" y="{at + 4:.1f}" text-anchor="end">{line * step:g}</text>'
    yield f'<text x="{x + 40:.0f}" y="{TOP + 12}" font-weight="600">{escape(name)} lengths</text>'
    clients = sorted({row["concurrency"] for row in rows})
    group = (PANEL_WIDTH - 40) / len(clients)
    for place, count in enumerate(clients):
        left = x + 40 + place * group
        members = [row for row in rows if row["concurrency"] == count]
        width = group * BAR_SHARE / len(members)
        start = left + group * (1 - BAR_SHARE) / 2
        for index, row in enumerate(members):
            yield from _bar(start + index * width, width, row, y, bottom, _color(row["engine"], engines))
        middle = left + group / 2
        yield f'<text class="value" x="{middle:.1f}" y="{bottom + 18}">{count} client{"s" if count > 1 else ""}</text>'
        for index, ratio in enumerate(one for one in ratios if one["concurrency"] == count):
            at = bottom + 40 + 20 * index
            yield f'<rect x="{middle - 28:.1f}" y="{at - 10}" width="12" height="12" fill="{_color(ratio["below"], engines)}"/>'
            yield f'<text class="small" x="{middle - 11:.1f}" y="{at}">× {ratio["median"]:.2f}</text>'


def _bar(x: float, width: float, row: Mapping[str, Any], y: Any, bottom: float, color: str) -> Iterator[str]:  # noqa: ANN401
    speeds = [one["output_tokens_per_second"] for one in row["rounds"]]
    value, middle = row["output_tokens_per_second"], x + width / 2
    yield f'<rect x="{x + 1:.1f}" y="{y(value):.1f}" width="{width - 2:.1f}" height="{bottom - y(value):.1f}" fill="{color}"/>'
    yield f'<line class="whisker" x1="{middle:.1f}" x2="{middle:.1f}" y1="{y(min(speeds)):.1f}" y2="{y(max(speeds)):.1f}"/>'
    yield f'<text class="value" x="{middle:.1f}" y="{y(max(speeds)) - 5:.1f}">{value:.0f}</text>'


def _highest(row: Mapping[str, Any]) -> float:
    return max(float(one["output_tokens_per_second"]) for one in row["rounds"])
