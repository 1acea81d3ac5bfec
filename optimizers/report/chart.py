"""Charts as SVG: a score over what was spent, and two objectives against each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from trace_core.optimizers.report.text import esc

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 18, 14, 44


class Dot(NamedTuple):
    """A candidate on a chart: where, of what look, what it says, and which panel it opens (None for none)."""

    x: float
    y: float
    look: str
    title: str
    opens: int | None = None


class Axes(NamedTuple):
    """Where numbers lie on a chart of ``width`` x ``height`` pixels."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int
    height: int

    @classmethod
    def around(cls, xs: Iterable[float], ys: Iterable[float], width: int, height: int) -> Axes:
        """Axes that hold all the numbers, with a little room above and below."""
        left, right = _ends(xs, 0.02)
        low, high = _ends(ys, 0.06)
        return cls((left, right), (low, high), width, height)

    def px(self, x: float) -> float:
        """From the left."""
        return _LEFT + (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.width - _LEFT - _RIGHT)

    def py(self, y: float) -> float:
        """From the top."""
        return _TOP + (self.y[1] - y) / (self.y[1] - self.y[0]) * (self.height - _TOP - _BOTTOM)

    def frame(self, x_name: str, y_name: str) -> str:
        """Grid, numbers and names of both axes."""
        bottom, right = self.height - _BOTTOM, self.width - _RIGHT
        parts = []
        for tick in ticks(*self.y, 5):
            y = self.py(tick)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
        for tick in ticks(*self.x, 7):
            x = self.px(tick)
            parts.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{number(tick)}</text>')
        parts.append(f'<text class="name" x="{right}" y="{self.height - 6}" text-anchor="end">{esc(x_name)}</text>')
        parts.append(f'<text class="name" x="{_LEFT}" y="{self.height - 6}">{esc(y_name)}</text>')
        return "".join(parts)


def score_chart(dots: Sequence[Dot], best: Sequence[tuple[float, float]], x_name: str, label: str) -> str:
    """``best`` is (spent, best score so far), drawn as steps; every candidate is a dot."""
    if not best:
        return "<p>The run ended before its first score.</p>"
    end = max([x for x, _ in best] + [dot.x for dot in dots])
    axes = Axes.around(
        [x for x, _ in best] + [dot.x for dot in dots], [y for _, y in best] + [dot.y for dot in dots], 980, 320
    )
    path = [f"M{axes.px(best[0][0]):.1f},{axes.py(best[0][1]):.1f}"]
    for x, y in best[1:]:
        path += [f"H{axes.px(x):.1f}", f"V{axes.py(y):.1f}"]
    path.append(f"H{axes.px(end):.1f}")
    line = f'<path class="best" d="{"".join(path)}"/>'
    return _svg(axes, axes.frame(x_name, "score") + line + _dots(axes, dots), label)


def scatter(dots: Sequence[Dot], x_name: str, y_name: str) -> str:
    """Two objectives, higher is better in both; the dots of look ``front`` are joined by a line."""
    axes = Axes.around([dot.x for dot in dots], [dot.y for dot in dots], 420, 320)
    front = sorted((dot.x, dot.y) for dot in dots if dot.look == "front")
    points = " ".join(f"{axes.px(x):.1f},{axes.py(y):.1f}" for x, y in front)
    line = f'<polyline class="front" points="{points}"/>' if len(front) > 1 else ""
    return _svg(axes, axes.frame(f"{x_name} →", f"↑ {y_name}") + line + _dots(axes, dots), f"{y_name} over {x_name}")


def _svg(axes: Axes, inside: str, label: str) -> str:
    size = f'viewBox="0 0 {axes.width} {axes.height}" width="{axes.width}" height="{axes.height}"'
    return f'<svg class="chart" {size} role="group" aria-label="{esc(label)}">{inside}</svg>'


def _dots(axes: Axes, dots: Sequence[Dot]) -> str:
    order = {"rejected": 0, "kept": 1, "front": 1, "top": 2}  # what matters lies above
    drawn = []
    for dot in sorted(dots, key=lambda d: order.get(d.look, 0)):
        radius = {"rejected": 3, "top": 6}.get(dot.look, 4.5)
        circle = f'<circle class="{dot.look}" cx="{axes.px(dot.x):.1f}" cy="{axes.py(dot.y):.1f}" r="{radius}"/>'
        drawn.append(link(f"<title>{esc(dot.title)}</title>{circle}", dot.opens))
    return "".join(drawn)


def link(inside: str, opens: int | None, attributes: str = "") -> str:
    """What opens a candidate's panel when it is clicked."""
    if opens is None:
        return f"<g>{inside}</g>"
    return f'<a href="#c{opens}" data-c="{opens}" {attributes}>{inside}</a>'


def number(value: float) -> str:
    """Short: 1,200 or 0.35 or 1.2e-07."""
    if value == 0 or 1e-4 <= abs(value) < 1e15:
        return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
    return f"{value:.2g}"


def ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers within [low, high]."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _ends(values: Iterable[float], room: float) -> tuple[float, float]:
    found = list(values)
    low, high = min(found), max(found)
    extra = (high - low) * room or abs(high) * 0.1 or 1.0
    return low - extra, high + extra
