"""The page of a run, made from its ledger alone: one file, no network, usable without scripts."""

from __future__ import annotations

import base64
import hashlib
import html
import time
from importlib.resources import files
from itertools import combinations
from string import Template
from typing import TYPE_CHECKING, Any

from trace_core.errors import StateError
from trace_core.optimizers.report.chart import Dot, number, scatter, score_chart
from trace_core.optimizers.report.lineage import lineage
from trace_core.optimizers.report.matrix import Matrix, script_json
from trace_core.optimizers.report.panels import Panels, filter_rules
from trace_core.optimizers.report.reading import RunData, read_run
from trace_core.optimizers.report.text import diff_block, environment_secrets, esc, visible
from trace_core.values import elide

if TYPE_CHECKING:
    from os import PathLike
    from pathlib import Path

    from trace_core.integrations.budget import Cost
    from trace_core.integrations.store import Run

_WINNERS = 25  # rows of the list of the front
_PAIRS = 6  # of objectives
_DIFF_ROOM = 60_000  # characters of each value
_STAGE_NAMES = ("guard", "gate", "validation", "empty", "error")


def write_run_page(run: Run, path: str | PathLike[str]) -> Path:
    """Write ``run_page`` to a file, whose folder is made. Raises StoreError if it cannot be written."""
    from pathlib import Path

    from trace_core.integrations.store import StoreError

    place = Path(path)
    page = run_page(run)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(page.encode("utf-8"))
    except OSError as error:
        raise StoreError(f"the report cannot be written to {place}: {error}; give another file") from error
    return place


def run_page(run: Run) -> str:
    """The page as HTML. Reads the ledger, runs no code of the run, and holds no secret that the environment knows.

    Raises StoreError for a run whose rows cannot be read.
    """
    data = read_run(run)
    matrix = Matrix(data)
    trace, trace_style = _trace(data)
    best = data.by_id.get(data.best)
    parts = {
        "title": esc(data.row.id),
        "headline": _headline(data),
        "charts": _charts(data),
        "lineage": lineage(data),
        "front": _front(data),
        "objectives": _objectives(data),
        "matrix": _matrix(matrix),
        "trace": trace,
        "diffs": _diffs(data),
        "candidates": Panels(data).all(),
        "costs": _costs(data.costs),
        "failures": _failures(data),
        "facts": _facts(data),
        "data": script_json({"matrix": matrix.packed() if matrix.rows else None, "best": best and best.number}),
    }
    for secret in environment_secrets():  # a second time: whatever way a value took to get here
        parts = {name: text.replace(html.escape(secret.reveal()), "***") for name, text in parts.items()}
    script, style = _asset("run.js"), _asset("run.css") + filter_rules()
    return Template(_asset("run.html")).substitute(
        parts,
        style=style,
        script=script,
        script_hash=_sha256(script),
        style_hashes=" ".join(f"'sha256-{_sha256(text)}'" for text in (style, trace_style) if text),
    )


def _asset(name: str) -> str:
    return files("trace_core.optimizers.report").joinpath("templates", name).read_text(encoding="utf-8").strip()


def _sha256(text: str) -> str:
    """Of an inline script or style, as a Content-Security-Policy names it: anything else is not run."""
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


# ---- the parts


def _headline(data: RunData) -> str:
    start = next((c.score for c in data.candidates if c.status == "start"), None)
    best = data.by_id.get(data.best)
    tiles = []
    if best is not None and best.score is not None:
        tiles.append((number(round(best.score, 4)), f"best score, candidate {esc(best.id)}"))
        if start is not None:
            tiles.append((f"{best.score - start:+.4g}", f"over the seed's {number(round(start, 4))}"))
    if data.best in data.tests:
        before = "" if "0" not in data.tests else f", the seed's {number(round(data.tests['0'], 4))}"
        tiles.append((number(round(data.tests[data.best], 4)), f"on the test examples{before}"))
    rejected = sum(not c.kept for c in data.candidates)
    tiles.append((str(len(data.candidates)), f"candidates, {rejected} rejected"))
    tiles.append((f"{sum(cost.metric_calls for cost in data.costs.values()):,}", "metric calls"))
    tokens = sum(cost.tokens for cost in data.costs.values())
    if tokens:
        usd = [cost.usd for cost in data.costs.values()]
        known = [part for part in usd if part is not None]
        price = f", ${sum(known):.4f}" if len(known) == len(usd) and any(known) else ""
        tiles.append((f"{tokens:,}", f"tokens{price}"))
    return "".join(f'<div class="tile"><b>{value}</b><span>{label}</span></div>' for value, label in tiles)


def _charts(data: RunData) -> str:
    """One chart for each unit that is known; choices above them, which need no script."""
    units = [("calls", "metric calls")]
    spent = list(data.spent.values())
    if any(s.tokens for s in spent):
        units.append(("tokens", "tokens"))
    if any(s.usd for s in spent):
        units.append(("usd", "US dollars"))
    if len(units) == 1:
        return f"<figure>{_chart(data, *units[0])}</figure>"
    choices = "".join(
        f'<label><input type="radio" name="unit" id="unit-{key}"{" checked" if key == "calls" else ""}>'
        f"<span>{name}</span></label>"
        for key, name in units
    )
    figures = "".join(f'<figure data-unit="{key}">{_chart(data, key, name)}</figure>' for key, name in units)
    return f'<fieldset class="filter"><legend>over</legend>{choices}</fieldset>{figures}'


def _chart(data: RunData, unit: str, unit_name: str) -> str:
    dots, line = [], []
    top: float | None = None
    for candidate in data.candidates:
        spent = data.spent.get(candidate.id)
        x = getattr(spent, unit) if spent is not None else None
        y = candidate.score if candidate.score is not None else candidate.after
        if x is None or y is None:
            continue
        look = "top" if candidate.id == data.best else "kept" if candidate.kept else "rejected"
        on = "validation" if candidate.score is not None else "its minibatch"
        title = f"{candidate.id}: {number(round(y, 4))} on {on}, {candidate.status}\n{elide(candidate.note, 200)}"
        dots.append(Dot(x, y, look, title, candidate.number))
        if candidate.kept and candidate.score is not None and (top is None or candidate.score > top):
            top = candidate.score
            line.append((x, top))
    return score_chart(dots, line, unit_name, f"score over {unit_name}")


def _front(data: RunData) -> str:
    winners = sorted(data.winners().items(), key=lambda item: (-item[1][0], -item[1][1]))
    if not winners:
        return "<p>No candidate was validated.</p>"
    total = len(data.examples)
    rows = []
    for cid, (first, alone) in winners[:_WINNERS]:
        candidate = data.by_id[cid]
        bar = (
            f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect class="all" width="{100 * first / total:.1f}" height="10"/>'
            f'<rect class="alone" width="{100 * alone / total:.1f}" height="10"/></svg>'
        )
        score = "" if candidate.score is None else number(round(candidate.score, 4))
        opens = f'<a href="#c{candidate.number}" data-c="{candidate.number}">{esc(cid)}</a>'
        star = " ★" if cid == data.best else ""
        rows.append(
            f"<tr><td>{opens}{star}</td><td class='num'>{score}</td><td class='num'>{first}</td>"
            f"<td class='num'>{alone}</td><td class='wide'>{bar}</td></tr>"
        )
    more = len(winners) - len(rows)
    rest = f"<p class='quiet'>and {more} more</p>" if more > 0 else ""
    head = (
        "<tr><th>candidate</th><th class='num'>score</th><th class='num'>best on</th><th class='num'>alone</th>"
        f"<th>of {total} examples</th></tr>"
    )
    return f"<div class='scroll'><table>{head}{''.join(rows)}</table></div>{rest}"


def _objectives(data: RunData) -> str:
    """Where a metric gives several scores, each pair of them as a scatter."""
    pool = {c.id: data.objectives[c.id] for c in data.candidates if c.id in data.objectives}
    names = list(dict.fromkeys(name for scores in pool.values() for name in scores))
    pairs = list(combinations(names, 2))[:_PAIRS]
    figures = []
    for a, b in pairs:
        points = {cid: (s[a], s[b]) for cid, s in pool.items() if a in s and b in s}
        kept = [point for cid, point in points.items() if data.by_id[cid].kept]
        dots = []
        for cid, (x, y) in points.items():
            beaten = any(u >= x and v >= y and (u, v) != (x, y) for u, v in kept)
            candidate = data.by_id[cid]
            look = "rejected" if not candidate.kept else "kept" if beaten else "front"
            dots.append(Dot(x, y, look, f"{cid}: {a} {x:.4g}, {b} {y:.4g}", candidate.number))
        if dots:
            figures.append(f"<figure>{scatter(dots, a, b)}</figure>")
    if not figures:
        return ""
    note = "Means over the validation examples; the line joins those that none of the kept ones beats in both."
    return f"<h3>Objectives</h3><p class='quiet'>{note}</p><div class='scatters'>{''.join(figures)}</div>"


def _matrix(matrix: Matrix) -> str:
    rows, columns = len(matrix.rows), len(matrix.columns)
    if not rows:
        return "<p>No candidate was validated.</p>"
    width, height = max(3, min(22, 880 // columns)), max(4, min(22, 480 // rows))
    low, high = (number(round(value, 4)) for value in (matrix.scale.low, matrix.scale.high))
    label = f"scores of {rows} candidates on {columns} validation examples, from {low} (dark) to {high} (light)"
    return (
        f'<p class="quiet">{rows} candidates, the best on top; {columns} examples, the hardest on the left.</p>'
        f'<div class="legend"><span>{low}</span><i class="ramp"></i><span>{high}</span>'
        '<i class="error"></i><span>error</span><i class="none"></i><span>not run</span></div>'
        f'<div class="scroll matrix" id="matrix" tabindex="0" role="application" aria-describedby="cell" '
        f'aria-label="{esc(label)}; arrow keys move, Enter opens the candidate">'
        f'<div class="grid"><img alt="{esc(label)}" width="{columns * width}" height="{rows * height}" '
        f'src="{matrix.picture()}"><i class="cursor" hidden></i></div></div>'
        '<p id="cell" class="cell" role="status" aria-live="polite"></p>'
    )


def _trace(data: RunData) -> tuple[str, str]:
    """(drawing of the stored trace, the style inside of it)."""
    if data.trace is None:
        return "<p>No trace was recorded.</p>", ""
    from trace_core.trace import Trace

    cid, example, stored = data.trace
    try:
        drawn = visible(Trace.from_dict(stored)._repr_html_())
    except StateError as error:
        return f"<p>The trace in the ledger cannot be read: {esc(str(error))}</p>", ""
    style = drawn.partition("<style>")[2].partition("</style>")[0]
    return f"<p class='quiet'>Candidate {esc(cid)} on {esc(example)}.</p>{drawn}", style


def _diffs(data: RunData) -> str:
    best = data.by_id.get(data.best)
    seed = next((c for c in data.candidates if c.status == "start"), None)
    if best is None or seed is None:
        return "<p>There is nothing to compare yet.</p>"
    blocks, same = [], []
    for name, value in best.values.items():
        diff = diff_block(seed.values.get(name, ""), value, _DIFF_ROOM)
        if diff:
            blocks.append(f"<h3>{esc(name)}</h3>{diff}")
        else:
            same.append(name)
    if same:
        blocks.append(f"<p class='quiet'>Unchanged: {esc(', '.join(same))}</p>")
    return "".join(blocks)


def _costs(costs: dict[str, Cost]) -> str:
    if not costs:
        return "<p>Nothing was spent.</p>"
    rows = []
    for role, cost in sorted(costs.items()):
        usd = "not known" if cost.usd is None else f"${cost.usd:.4f}"
        cells = "".join(
            f"<td class='num'>{text}</td>"
            for text in (f"{cost.calls:,}", f"{cost.tokens:,}", usd, f"{cost.metric_calls:,}")
        )
        rows.append(f"<tr><td>{esc(role or 'other')}</td>{cells}</tr>")
    names = "".join(f"<th class='num'>{name}</th>" for name in ("calls", "tokens", "cost", "metric calls"))
    return f"<div class='scroll'><table><tr><th>role</th>{names}</tr>{''.join(rows)}</table></div>"


def _failures(data: RunData) -> str:
    if not data.failures:
        return "<p>No output was an error.</p>"
    rows = "".join(
        f"<tr><td class='num'>{count}</td><td>{esc(elide(text, 600))}</td></tr>"
        for text, count in data.failures.most_common(50)
    )
    return f"<div class='scroll'><table><tr><th class='num'>outputs</th><th>error</th></tr>{rows}</table></div>"


def _facts(data: RunData) -> str:
    row = data.row
    facts = [("run", row.id), ("name", row.name), ("status", _status(data)), ("started", _when(row.started))]
    facts += [("last written", _when(row.updated)), ("seconds of work", f"{row.seconds:.1f}")]
    options = row.config.get("options")
    seed = row.config.get("seed", options.get("seed") if isinstance(options, dict) else None)
    seed = row.fingerprint.get("seed") if seed is None else seed
    facts += [(name, str(value)) for name, value in (("seed", seed), ("forked from", row.parent)) if value is not None]
    if row.error:
        facts.append(("error", row.error))
    facts += [(part, value) for part, value in row.fingerprint.items() if part != "seed"]
    facts += [("sandbox", text) for text in _layers(data.layers)]
    cells = "".join(f"<div><dt>{esc(name)}</dt><dd>{esc(elide(str(value), 2000))}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{cells}</dl>'


def _layers(layers: Any) -> list[str]:
    if not layers:
        return []
    if isinstance(layers, dict):
        return [f"{name}: {value}" for name, value in layers.items()]
    return [str(item) for item in layers] if isinstance(layers, list) else [str(layers)]


def _status(data: RunData) -> str:
    row = data.row
    if row.status == "running":
        return "running, or killed"
    return row.status if row.stopped in (None, row.status) else f"{row.status} ({row.stopped})"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(seconds))
