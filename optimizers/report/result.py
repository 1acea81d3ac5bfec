"""A run as one self-contained HTML page: no network, no scripts."""

from __future__ import annotations

import html
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from trace_core.optimizers.console import diff_lines
from trace_core.values import elide, render_value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trace_core.optimizers.loop import Event, Result
    from trace_core.parameter import Parameter
    from trace_core.trace import Trace


def write_report(
    path: Path,
    result: Result,
    *,
    title: str,
    facts: Sequence[str],
    names: Mapping[Parameter, str],
    scores: Mapping[str, tuple[float, float]],
    trace: Trace | None,
) -> Path:
    """Write the page of a run: scores, chart, diffs, every proposal with its outcome, the graph of ``trace``."""
    template = Template(
        files("trace_core.optimizers.report").joinpath("templates", "result.html").read_text(encoding="utf-8")
    )
    page = template.substitute(
        title=html.escape(title),
        facts=html.escape(" · ".join(facts)),
        scores=_scores(scores),
        chart=_chart(result),
        diffs=_diffs(result, names),
        history=_history(result, names),
        graph=trace._repr_html_() if trace is not None else "<p>no trace was recorded</p>",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _scores(scores: Mapping[str, tuple[float, float]]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td class=n>{before:.3f}</td><td class=n>{after:.3f}</td>"
        f"<td class=n>{after - before:+.3f}</td></tr>"
        for name, (before, after) in scores.items()
    )
    return f"<table><tr><th></th><th>before</th><th>after</th><th>change</th></tr>{rows}</table>"


def _chart(result: Result) -> str:
    """Best validation score after each step as a step line; candidates' minibatch scores as dots."""
    best = [(event.step, event.best) for event in result.history if event.best is not None]
    dots = [(event.step, event.score) for event in result.history if event.kind == "gated" and event.score is not None]
    if not best:
        return "<p>the run ended before the first score</p>"
    values = [score for _, score in (*best, *dots)]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    steps = max(1, max(step for step, _ in best))
    width, height, left, top = 720, 236, 48, 12

    def x(step: float) -> float:
        return left + step / steps * (width - left - 16)

    def y(score: float) -> float:
        return top + (high - score) / span * (height - top - 50)

    points, last = [], best[0][1]
    for step, score in best:
        points += [f"{x(step):.1f},{y(last):.1f}", f"{x(step):.1f},{y(score):.1f}"]
        last = score
    circles = "".join(f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="3.5" fill="GrayText"/>' for s, v in dots)
    ticks = "".join(
        f'<text x="{left - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.2f}</text>'
        f'<line x1="{left}" x2="{width - 16}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="#8884"/>'
        for v in (low, (low + high) / 2, high)
    )
    stride = max(1, steps // 10)
    marks = "".join(
        f'<text x="{x(s):.1f}" y="{height - 22}" text-anchor="middle">{s}</text>' for s in range(0, steps + 1, stride)
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="score over steps" '
        f'font-size="12" fill="currentColor">{ticks}{marks}'
        f'<polyline points="{" ".join(points)}" fill="none" stroke="var(--good)" stroke-width="2.5"/>{circles}'
        f'<text x="{width - 16}" y="{height - 1}" text-anchor="end">step (line: best on validation, dots: candidates '
        f"on their minibatch)</text></svg>"
    )


def _diffs(result: Result, names: Mapping[Parameter, str]) -> str:
    if not result.changed:
        return "<p>no parameter was changed</p>"
    blocks = []
    for parameter, (before, after) in result.changed.items():
        name, *lines = diff_lines(names.get(parameter, "?"), before, after)
        shown = []
        for line in lines:
            tag = "ins" if line.startswith("  +") else "del" if line.startswith("  -") else ""
            text = html.escape(line[2:])
            shown.append(f"<{tag}>{text}</{tag}>" if tag else text)
        blocks.append(f"<h3>{html.escape(name.rstrip(':'))}</h3><pre>{chr(10).join(shown)}</pre>")
    return "".join(blocks)


def _history(result: Result, names: Mapping[Parameter, str]) -> str:
    rows = []
    for event in result.history:
        if event.kind in ("accepted", "rejected"):
            rows.append(_row(event, names))
    if not rows:
        return "<p>no proposal was made</p>"
    head = "<tr><th>step</th><th></th><th>why</th><th>proposal</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _row(event: Event, names: Mapping[Parameter, str]) -> str:
    proposal = event.proposal
    details = []
    if proposal is not None:
        if proposal.reason:
            details.append(f"<p>{html.escape(elide(proposal.reason, 600))}</p>")
        for parameter, value in proposal.values.items():
            shown = value if isinstance(value, str) else render_value(value)
            label = html.escape(names.get(parameter, "?"))
            details.append(f"<details><summary>{label}</summary><pre>{html.escape(elide(shown, 4000))}</pre></details>")
        details += [
            f"<details><summary>dropped: {html.escape(item.name)}</summary>"
            f"<pre>{html.escape(elide(_text(item), 2000))}</pre></details>"
            for item in proposal.dropped
        ]
    outcome = f'<td class="{event.kind}">{event.kind}</td><td>{html.escape(elide(event.note, 300))}</td>'
    return f"<tr><td class=n>{event.step}</td>{outcome}<td>{''.join(details)}</td></tr>"


def _text(item: Any) -> str:
    return f"{item.reason}\n{item.value if isinstance(item.value, str) else render_value(item.value)}"
