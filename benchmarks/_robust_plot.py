"""The picture of part (e), as SVG: CPU seconds over the number of items, both logarithmic."""

from __future__ import annotations

import math

from _robust_jobs import Row
from _robust_learned import CAPS

MARKS = (
    ("exact 0.01", "exact", "#1f5fa8", -5),
    ("learned 0.01", "learned", "#c2410c", 0),
    ("proven", "exact, proven within 1 %", "#6b7280", 5),
)
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 400, 60, 20, 210, 50
TICKS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0)


def drawn(rows: list[Row]) -> str:
    """An SVG picture: when a decision within 1 % of the best was verified, one mark for each instance."""
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
    for k, (key, title, color, aside) in enumerate(MARKS):
        for row in rows:
            x, y = at(row["n"], TICKS[-1] if row[key] is None else row[key])
            fill = "none" if row[key] is None else color
            parts.append(f'<circle cx="{x + aside:.1f}" cy="{y:.1f}" r="4" stroke="{color}" fill="{fill}"/>')
        y = TOP + 20 + 22 * k
        parts.append(f'<circle cx="{WIDTH - RIGHT + 30}" cy="{y}" r="4" fill="{color}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 46}" y="{y + 4}">{title}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT + 15}" y="{TOP + 22 + 22 * len(MARKS)}">hollow: not within the limit</text>')
    limits = f"limits: exact {CAPS['exact']:g} s, learned {CAPS['learned']:g} s"
    parts.append(f'<text x="{WIDTH - RIGHT + 15}" y="{TOP + 42 + 22 * len(MARKS)}">{limits}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
