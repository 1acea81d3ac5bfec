"""A study and its candidates in a notebook: HTML without scripts or network, legible on light and dark pages."""

from __future__ import annotations

from collections import Counter
from importlib.resources import files
from typing import TYPE_CHECKING

from trace_core.optimizers.report.chart import Dot, number, score_chart
from trace_core.optimizers.report.text import block, diff_block, esc, shown
from trace_core.values import elide

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trace_core.optimizers.search.candidate import Candidate
    from trace_core.optimizers.search.study import Study

_ROOM = 4_000  # characters of a value
_LISTED = 8  # candidates in the table


def candidate_html(candidate: Candidate, parent: Candidate | None = None) -> str:
    """What became of a candidate, and what it changes: against ``parent`` if that is given."""
    facts = [("status", candidate.status)]
    if candidate.score is not None:
        facts.append(("validation", f"{number(round(candidate.score, 4))} on {len(candidate.scores)} examples"))
    before, after = candidate.detail.get("before"), candidate.detail.get("after")
    if after is not None:
        first = "" if before is None else f"{number(round(before, 4))} → "
        facts.append(("minibatch", f"{first}{number(round(after, 4))}"))
    facts += [(name, number(round(score, 4))) for name, score in candidate.objectives.items()]
    if candidate.parents:
        facts.append(("from", ", ".join(candidate.parents)))
    parts = [f"<b>Candidate {esc(candidate.id)}</b>", _facts(facts)]
    for label, text in (("", candidate.note), ("The optimizer: ", candidate.reason)):
        if text:
            parts.append(f'<div class="said">{label}{esc(elide(text, 1000))}</div>')
    names = candidate.changed or candidate.values
    for name in names:
        value = candidate.values[name]
        known = parent is not None and name in parent.values
        inside = diff_block(parent.values[name], value, _ROOM) if known and parent is not None else ""
        parts.append(f"<h4>{esc(name)}</h4>{inside or block(shown(value), _ROOM)}")
    rest = [name for name in candidate.values if name not in names]
    if rest:
        parts.append(f'<div class="quiet">unchanged: {esc(", ".join(rest))}</div>')
    return _page(parts)


def study_html(study: Study) -> str:
    """How a study stands: scores, a chart, what changed, the best candidates, why the others were rejected."""
    candidates, best = study.candidates, study.best
    if best is None or best.score is None or not candidates:
        return _page(["<b>Study</b>", '<div class="quiet">not run yet</div>'])
    seed = candidates[0]
    rejected = Counter(str(c.detail.get("stage", c.status)) for c in candidates if not c.in_pool)
    tiles = [(number(round(best.score, 4)), f"best score, candidate {best.id}")]
    if seed.score is not None:
        tiles.append((f"{best.score - seed.score:+.4g}", f"over the seed's {number(round(seed.score, 4))}"))
    tiles.append((str(len(candidates)), f"candidates, {sum(rejected.values())} rejected"))
    if study.result.stopped:
        tiles.append((study.result.stopped, "why it ended"))
    drawn = "".join(f'<div class="tile"><b>{esc(v)}</b><span>{esc(label)}</span></div>' for v, label in tiles)
    parts = ["<b>Study</b>", f'<div class="tiles">{drawn}</div>', _chart(candidates, best)]
    for name, value in best.values.items():
        diff = diff_block(seed.values.get(name, ""), value, _ROOM)
        if diff:
            parts.append(f"<h4>{esc(name)}: from the seed to the best</h4>{diff}")
    parts.append(_table(sorted((c for c in candidates if c.in_pool), key=lambda c: -(c.score or 0.0))))
    if rejected:
        counts = ", ".join(f"{stage} {count}" for stage, count in rejected.most_common())
        parts.append(f'<div class="quiet">rejected by: {esc(counts)}</div>')
    return _page(parts)


def _page(parts: Iterable[str]) -> str:
    style = files("trace_core.optimizers.report").joinpath("templates", "notebook.css").read_text(encoding="utf-8")
    return f'<div class="tc-search"><style>{style}</style>{"".join(parts)}</div>'


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<div><dt>{esc(name)}</dt><dd>{esc(value)}</dd></div>' for name, value in facts)}</dl>"


def _chart(candidates: list[Candidate], best: Candidate) -> str:
    dots, line = [], []
    top: float | None = None
    for candidate in candidates:
        score = candidate.score if candidate.score is not None else candidate.detail.get("after")
        if score is None:
            continue
        look = "top" if candidate is best else "kept" if candidate.in_pool else "rejected"
        title = f"{candidate.id}: {number(round(score, 4))}, {candidate.status}\n{elide(candidate.note, 200)}"
        dots.append(Dot(candidate.ticket, score, look, title))
        if candidate.in_pool and candidate.score is not None and (top is None or candidate.score > top):
            top = candidate.score
            line.append((float(candidate.ticket), top))
    return score_chart(dots, line, "ticket", "score over tickets")


def _table(pool: list[Candidate]) -> str:
    rows = []
    for candidate in pool[:_LISTED]:
        score = "" if candidate.score is None else number(round(candidate.score, 4))
        what = ", ".join(candidate.changed) or "seed"
        rows.append(
            f'<tr><td>{esc(candidate.id)}</td><td class="num">{score}</td><td>{esc(", ".join(candidate.parents))}</td>'
            f"<td>{esc(what)}</td><td>{esc(elide(candidate.note, 120))}</td></tr>"
        )
    more = f'<div class="quiet">and {len(pool) - _LISTED} more in the pool</div>' if len(pool) > _LISTED else ""
    head = "<tr><th>candidate</th><th>score</th><th>from</th><th>changed</th><th>why</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>{more}"
