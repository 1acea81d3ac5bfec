"""The picture of part (e), as SVG: CPU seconds over the number of items, both logarithmic."""

from __future__ import annotations

import math

from _robust_jobs import Row
from _robust_learned import CAPS, middle

LINES = (
    ("exact 0.01", "exact, decision within 1 %", "#1f5fa8", ""),
    ("learned 0.01", "learned, decision within 1 %", "#c2410c", ""),
    ("exact 0.001", "exact, within 0.1 %", "#1f5fa8", "6 4"),
    ("learned 0.001", "learned, within 0.1 %", "#c2410c", "6 4"),
    ("proven", "exact, proven within 1 %", "#6b7280", "2 3"),
)
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 400, 60, 20, 210, 50
TICKS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0)


def drawn(rows: list[Row]) -> str:
    """An SVG picture of the medians; a line ends where half of the instances were not done within the limit."""
    sizes = sorted({row["n"] for row in rows})

    def at(n: int, seconds: float) -> tuple[float, float]:
        across = math.log(n / sizes[0]) / max(math.log(sizes[-1] / sizes[0]), 1e-9)
        up = math.log(max(seconds, TICKS[0]) / TICKS[0]) / math.log(TICKS[-1] / TICKS[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for tick in TICKS:
        x, y = at(sizes[0], tick)
        parts.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for n in sizes:
        x, y = at(n, TICKS[0])
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{n}</text>')
    middle_x = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle_x:.0f}" y="{HEIGHT - 12}" text-anchor="middle">items</text>')
    parts.append(f'<text x="14" y="{HEIGHT / 2:.0f}" transform="rotate(-90 14 {HEIGHT / 2:.0f})">CPU seconds</text>')
    for k, (key, title, color, dash) in enumerate(LINES):
        medians = [(n, middle([row[key] for row in rows if row["n"] == n])) for n in sizes]
        points = [at(n, value) for n, value in medians if value is not None]
        style = f'stroke="{color}" stroke-width="2" stroke-dasharray="{dash}" fill="none"'
        parts.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" {style}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in points]
        y = TOP + 20 + 22 * k
        parts.append(f'<line x1="{WIDTH - RIGHT + 15}" y1="{y}" x2="{WIDTH - RIGHT + 40}" y2="{y}" {style}/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 46}" y="{y + 4}">{title}</text>')
    limits = f"limits: exact {CAPS['exact']:g} s, learned {CAPS['learned']:g} s"
    parts.append(f'<text x="{WIDTH - RIGHT + 15}" y="{TOP + 30 + 22 * len(LINES)}">{limits}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
