"""One curve per burst: how many services had their children after how many seconds. Straight means linear. Plain SVG."""

from collections.abc import Sequence
from html import escape

from operator_benchmark.figures import Burst

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 960, 400, 60, 70, 46
COLORS = ("#0284c7", "#f59e0b", "#10b981", "#a855f7")
STYLE = "text { fill: #0f172a; font-size: 13px } .grid { stroke: #e2e8f0 } .axis { stroke: #94a3b8 }"


def draw(bursts: Sequence[Burst], *, caption: str) -> str:
    """Both axes are shares: of the burst's own count and of its own duration. The legend has the numbers."""
    right, low = WIDTH - 30, HEIGHT - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif">',
        f'<title>Services with their children over time</title><style>{STYLE}</style><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="26" font-weight="600">Services that have their children, over time</text>',
        f'<text x="{LEFT}" y="46">{escape(caption)}</text>',
    ]
    for tenth in range(0, 11, 2):
        y, x = low - (low - TOP) * tenth / 10, LEFT + (right - LEFT) * tenth / 10
        parts.append(f'<line class="{"grid" if tenth else "axis"}" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tenth * 10} %</text>')
        parts.append(f'<text x="{x:.1f}" y="{low + 18}" text-anchor="middle">{tenth * 10} %</text>')
    curves = [each for each in bursts if each.count > 1]
    for place, each in enumerate(curves):
        color = COLORS[place % len(COLORS)]
        span, count = each.done_at[-1] or 1, len(each.done_at)
        points = " ".join(
            f"{LEFT + (right - LEFT) * at / span:.1f},{low - (low - TOP) * (index + 1) / count:.1f}"
            for index, at in enumerate(each.done_at)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        words = f"{each.count} at once: {each.all_seconds:.1f} s, {each.all_seconds / each.count * 1000:.0f} ms each"
        words += f", {each.times_the_floor:.2f} times a bare client's; others took {each.others_cores:.1f} cores"
        parts.append(f'<text x="{LEFT + 20}" y="{TOP + 20 + 20 * place}" style="fill: {color}">{escape(words)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
