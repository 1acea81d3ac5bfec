"""The lineage of the candidates as SVG: a row for each that was kept, the way to the best as the trunk."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from trace_core.optimizers.report.chart import link, number
from trace_core.optimizers.report.colour import Scale
from trace_core.optimizers.report.text import esc
from trace_core.values import elide

if TYPE_CHECKING:
    from trace_core.optimizers.report.reading import Candidate, RunData

_ROW, _LANE, _DOT, _PER_ROW = 26, 20, 9, 24
_LEFT, _TEXT = 16, 350


class _Row(NamedTuple):
    candidate: Candidate
    lane: int
    height: int
    rejected: list[Candidate]


def lineage(data: RunData) -> str:
    """The tree. Each kept candidate stands below its parent, with what was rejected of its children beside it."""
    rows = _rows(data)
    if not rows:
        return "<p>No candidate was made.</p>"
    scale = Scale(c.score for c in data.pool if c.score is not None)
    lanes = max(row.lane for row in rows) + 1
    text_x = _LEFT + lanes * _LANE
    places: dict[str, tuple[int, float]] = {}
    top, drawn, dots = 6.0, [], []
    for row in rows:
        places[row.candidate.id] = _LEFT + row.lane * _LANE, top + _ROW / 2
        top += row.height
    trunk = _trunk(data)
    for row in rows:
        drawn += _edges(row.candidate, places, trunk)
    for row in rows:
        x, y = places[row.candidate.id]
        drawn.append(_node(row.candidate, data, scale, x, y, text_x))
        for place, child in enumerate(row.rejected):
            cx = text_x + _TEXT + place % _PER_ROW * _DOT
            cy = y + place // _PER_ROW * _DOT - (4 if len(row.rejected) > _PER_ROW else 0)
            title = f"<title>{esc(f'{child.id} {child.status}: {elide(child.note, 300)}')}</title>"
            dots.append(
                link(
                    f'{title}<circle class="stage-{_known(child.stage)}" cx="{cx}" cy="{cy:.1f}" r="3"/>', child.number
                )
            )
    width = text_x + _TEXT + _PER_ROW * _DOT + 8
    return (
        f'<svg class="lineage" viewBox="0 0 {width} {top + 6:.0f}" width="{width}" height="{top + 6:.0f}" role="group" '
        f'aria-label="lineage: {len(rows)} kept candidates">{"".join(drawn)}{"".join(dots)}</svg>'
    )


def _known(stage: str) -> str:
    return stage if stage in ("guard", "gate", "validation", "empty", "error") else "other"


def _trunk(data: RunData) -> set[str]:
    """The best and its first parents up to the seed."""
    found: set[str] = set()
    at = data.by_id.get(data.best)
    while at is not None and at.id not in found:
        found.add(at.id)
        at = data.by_id.get(at.parents[0]) if at.parents else None
    return found


def _rows(data: RunData) -> list[_Row]:
    """Side branches first, then the branch that matters most, in the lane of its parent: so no lines cross."""
    children: dict[str, list[Candidate]] = {}
    roots = []
    kept = {c.id for c in data.pool}
    for candidate in data.candidates:
        parent = candidate.parents[0] if candidate.parents else None
        if parent in kept:
            children.setdefault(str(parent), []).append(candidate)
        elif candidate.kept:
            roots.append(candidate)
    trunk = _trunk(data)
    sizes: dict[str, int] = {}
    for candidate in reversed(data.candidates):  # children were made after their parents
        sizes[candidate.id] = 1 + sum(sizes[c.id] for c in children.get(candidate.id, ()) if c.kept)
    rows: list[_Row] = []
    stack = [(root, 0) for root in reversed(roots)]
    while stack:
        candidate, lane = stack.pop()
        mine = children.get(candidate.id, [])
        rejected = [c for c in mine if not c.kept]
        lines = (len(rejected) + _PER_ROW - 1) // _PER_ROW
        rows.append(_Row(candidate, lane, _ROW + max(0, lines - 2) * _DOT, rejected))
        branches = [c for c in mine if c.kept]
        if branches:
            main = max(branches, key=lambda c: (c.id in trunk, sizes[c.id], -c.number))
            stack.append((main, lane))
            stack += [(c, lane + 1) for c in reversed(branches) if c is not main]
    return rows


def _edges(candidate: Candidate, places: dict[str, tuple[int, float]], trunk: set[str]) -> list[str]:
    x, y = places[candidate.id]
    found = []
    for place, parent in enumerate(candidate.parents):
        if parent not in places:
            continue
        px, py = places[parent]
        if place:
            bend = min(px, x) - 12
            found.append(f'<path class="edge other" d="M{px},{py:.1f}C{bend},{py:.1f} {bend},{y:.1f} {x},{y:.1f}"/>')
            continue
        look = "edge trunk" if candidate.id in trunk and parent in trunk else "edge"
        way = f"V{y:.1f}" if px == x else f"V{y - 8:.1f}Q{px},{y:.1f} {px + 8},{y:.1f}H{x}"
        found.append(f'<path class="{look}" d="M{px},{py:.1f}{way}"/>')
    return found


def _node(candidate: Candidate, data: RunData, scale: Scale, x: float, y: float, text_x: int) -> str:
    colour = "#888" if candidate.score is None else scale.css(candidate.score)
    look = "node top" if candidate.id == data.best else "node"
    parent = data.by_id.get(candidate.parents[0]) if candidate.parents else None
    score = "" if candidate.score is None else number(round(candidate.score, 4))
    change = ""
    if parent is not None and parent.score is not None and candidate.score is not None:
        change = f"{candidate.score - parent.score:+.3f}"
    what = "seed" if candidate.status == "start" else ", ".join(candidate.changed)
    if candidate.status == "merged" or len(candidate.parents) > 1:
        what = f"merge: {what}"
    circle = (
        f'<circle class="{look}" cx="{x}" cy="{y:.1f}" r="{8 if candidate.id == data.best else 6}" fill="{colour}"/>'
    )
    label = (
        f'<text x="{text_x}" y="{y + 4:.1f}"><tspan class="id">{esc(elide(candidate.id, 12))}</tspan>'
        f'<tspan x="{text_x + 62}">{score}</tspan><tspan class="soft" x="{text_x + 116}">{change}</tspan>'
        f'<tspan class="soft" x="{text_x + 172}">{esc(elide(what, 26))}</tspan></text>'
    )
    title = f"<title>{esc(f'{candidate.id}: {what}')}</title>"
    return link(f"{title}{circle}{label}", candidate.number)
