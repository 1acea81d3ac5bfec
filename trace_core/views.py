"""Drawings of a trace: a networkx graph, a Mermaid flowchart, and HTML that needs no network and no scripts."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from trace_core._lazy import require
from trace_core.graph import named_inputs, node_kinds
from trace_core.layout import layered
from trace_core.program import Program
from trace_core.values import elide, now_and_then, render_value

if TYPE_CHECKING:
    from collections.abc import Iterable

    from networkx import MultiDiGraph

    from trace_core.node import Node
    from trace_core.trace import Trace

_DRAWN = 40  # boxes in the HTML drawing
_LISTED = 60  # rows of the HTML table


def _nearest(trace: Trace, limit: int) -> list[Node]:
    """The nodes of the trace in order; of a bigger one, the ``limit`` nodes with the fewest links to the output."""
    if len(trace.nodes) <= limit:
        return list(trace.nodes)
    inside = set(trace.nodes)
    found: dict[Node, None] = {trace.output: None}
    ring = [trace.output]
    while ring and len(found) < limit:
        sources = [source for node in ring for _, source in named_inputs(node, trace.unfolded) if source in inside]
        ring = [source for source in dict.fromkeys(sources) if source not in found][: limit - len(found)]
        found.update(dict.fromkeys(ring))
    return [node for node in trace.nodes if node in found]


def _links(trace: Trace, nodes: Iterable[Node], kinds: dict[Node, str]) -> list[tuple[Node, Node, str]]:
    """(source, target, input name) among the given nodes. What an input was made of is not shown."""
    inside = set(nodes)
    return [
        (source, node, name)
        for node in nodes
        if kinds[node] != "input"
        for name, source in named_inputs(node, trace.unfolded)
        if source in inside
    ]


def to_networkx(trace: Trace) -> MultiDiGraph[str]:
    """See Trace.to_networkx."""
    networkx = require("networkx", extra="all")
    names, kinds = trace.names(), node_kinds(trace)
    graph: MultiDiGraph[str] = networkx.MultiDiGraph(feedback=trace.feedback.summary())
    for node in trace.nodes:
        op = node.op.name if node.op is not None else None
        graph.add_node(names[node], op=op, value=node.recorded, kind=kinds[node])
    for source, target, name in _links(trace, trace.nodes, kinds):
        graph.add_edge(names[source], names[target], input=name)
    return graph


_SHAPES = {
    "parameter": ("([", "])"),
    "input": ("[/", "/]"),
    "op": ("[", "]"),
    "output": ("[[", "]]"),
    "error": ("{{", "}}"),
}
_CLASSES = (
    "classDef parameter fill:#e0e7ff,stroke:#4f46e5,color:#1e1b4b",
    "classDef input fill:#f3f4f6,stroke:#9ca3af,color:#111827",
    "classDef op fill:#ffffff,stroke:#6b7280,color:#111827",
    "classDef output fill:#d1fae5,stroke:#059669,color:#064e3b",
    "classDef error fill:#fee2e2,stroke:#dc2626,color:#7f1d1d",
)


def _mermaid_text(text: str) -> str:
    """Text for a quoted label: everything that Mermaid or HTML might read as syntax as a numeric entity."""
    safe = []
    for character in text:
        if character == "\n":
            safe.append("<br/>")
        elif character.isalnum() or character in " .,_=+-*":
            safe.append(character)
        else:
            safe.append(f"#{ord(character)};")
    return "".join(safe)


def to_mermaid(trace: Trace, max_nodes: int = 200) -> str:
    """See Trace.to_mermaid."""
    names, kinds = trace.names(), node_kinds(trace)
    shown = _nearest(trace, max(1, max_nodes))
    ids = {node: f"n{number}" for number, node in enumerate(shown)}
    lines = ["flowchart TD"]
    for node in shown:
        opening, closing = _SHAPES[kinds[node]]
        label = _mermaid_text(f"{names[node]}\n{_one_line(render_value(now_and_then(node), 60), 60)}")
        lines.append(f'    {ids[node]}{opening}"{label}"{closing}:::{kinds[node]}')
    lines += [
        f'    {ids[s]} -->|"{_mermaid_text(elide(name, 40))}"| {ids[t]}' for s, t, name in _links(trace, shown, kinds)
    ]
    rest = len(trace.nodes) - len(shown)
    if rest:
        lines.append(f'    rest["{rest} more nodes, farther from the output"]:::input')
    return "\n".join([*lines, *(f"    {line}" for line in _CLASSES)]) + "\n"


# ---- HTML: one <div> with its own style, legible on light and dark pages because it takes the page's text colour

_STYLE = """
.tc-trace{font:13px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;max-width:100%}
.tc-trace .tc-scroll{overflow:auto;max-height:640px;border:1px solid rgba(128,128,128,.3);border-radius:8px}
.tc-trace svg{display:block;margin:auto}
.tc-trace text{fill:currentColor;font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
.tc-trace text.n{font-weight:600}.tc-trace text.e{opacity:.75}
.tc-trace text.e,.tc-trace text.v,.tc-trace td.v,.tc-trace pre{font-family:ui-monospace,Menlo,Consolas,monospace;\
font-size:11px}
.tc-trace path{fill:none;stroke:currentColor;stroke-opacity:.45;stroke-width:1.2}
.tc-trace rect{stroke-width:1.3;fill:rgba(128,128,128,.08);stroke:rgba(128,128,128,.75)}
.tc-trace .parameter rect{fill:rgba(99,102,241,.18);stroke:#6366f1}
.tc-trace .input rect{stroke-dasharray:4 3}
.tc-trace .output rect{fill:rgba(16,185,129,.18);stroke:#10b981}
.tc-trace .error rect{fill:rgba(239,68,68,.18);stroke:#ef4444}
.tc-trace table{border-collapse:collapse;margin-top:8px;width:100%}
.tc-trace th{text-align:left;font-weight:600;opacity:.7}
.tc-trace td,.tc-trace th{padding:3px 10px 3px 0;vertical-align:top;border-bottom:1px solid rgba(128,128,128,.2)}
.tc-trace td.v{white-space:pre-wrap;overflow-wrap:anywhere}
.tc-trace tr.parameter td:first-child{border-left:3px solid #6366f1;padding-left:6px}
.tc-trace tr.output td:first-child{border-left:3px solid #10b981;padding-left:6px}
.tc-trace tr.error td:first-child{border-left:3px solid #ef4444;padding-left:6px}
.tc-trace pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:4px 0 0}
.tc-trace .tc-said{margin:8px 0;padding:6px 10px;border-left:3px solid #f59e0b;background:rgba(245,158,11,.1)}
.tc-trace .tc-note{opacity:.7;margin:4px 0}
""".strip()

_BOX_W, _BOX_H, _GAP_X, _GAP_Y, _MARGIN = 190, 58, 22, 40, 14


def to_html(trace: Trace) -> str:
    """A self-contained piece of HTML: feedback, drawing, table of values. No scripts, no network, all text escaped."""
    names, kinds = trace.names(), node_kinds(trace)
    program = Program(trace)
    forms = {line.name: line.text.partition(" = ")[2] for line in program.lines}
    rest = len(trace.nodes) - _DRAWN
    parts = [
        f'<div class="tc-trace"><style>{_STYLE}</style>',
        f'<div class="tc-note">{len(trace.nodes):,} nodes, {len(trace.parameters):,} parameters</div>',
        _said(program, trace.error),
        _drawing(trace, names, kinds, forms),
        f'<div class="tc-note">drawn: the {_DRAWN} nodes nearest the output; {rest:,} more</div>' if rest > 0 else "",
        _table(trace, names, kinds, forms),
        "</div>",
    ]
    return "\n".join(part for part in parts if part)


def _said(program: Program, error: str | None) -> str:
    said = program.trace.feedback.summary()
    parts = [f"<b>feedback</b> {escape(elide(said, 4000))}"] if said else []
    if error and error not in said:
        parts.append(f"<pre>{escape(elide(error, 4000))}</pre>")
    return f'<div class="tc-said">{"".join(parts)}</div>' if parts else ""


def _drawing(trace: Trace, names: dict[Node, str], kinds: dict[Node, str], forms: dict[str, str]) -> str:
    shown = _nearest(trace, _DRAWN)
    index = {node: number for number, node in enumerate(shown)}
    labels: dict[tuple[int, int], list[str]] = {}
    for source, target, name in _links(trace, shown, kinds):
        labels.setdefault((index[source], index[target]), []).append(name)
    layout = layered(len(shown), list(labels))
    step_x, step_y = _BOX_W + _GAP_X, _BOX_H + _GAP_Y
    width = round(layout.width * step_x) + 2 * _MARGIN
    height = layout.height * step_y - _GAP_Y + 2 * _MARGIN

    def centre(place: tuple[float, int]) -> tuple[float, int]:
        return _MARGIN + place[0] * step_x, _MARGIN + place[1] * step_y

    drawn = []
    for route, inputs in zip(layout.routes, labels.values(), strict=True):
        drawn.append(
            f"<path d={_curve([centre(place) for place in route])!r}><title>{escape(', '.join(inputs))}</title></path>"
        )
    for node, place in zip(shown, layout.places, strict=True):
        x, y = centre(place)
        name = names[node]
        value = "" if kinds[node] == "error" else _one_line(render_value(now_and_then(node), 200), 29)
        form = _one_line(forms.get(name, ""), 29)
        rows = [f'<text class="n" x="{x:.1f}" y="{y + 17}" text-anchor="middle">{escape(_one_line(name, 26))}</text>']
        for cls, text in (("e", form), ("v", value)):
            if text:
                y_text = y + 17 + 16 * len(rows)
                rows.append(f'<text class="{cls}" x="{x:.1f}" y="{y_text}" text-anchor="middle">{escape(text)}</text>')
        title = escape(f"{name} = {forms[name]}\n" if name in forms else f"{name}\n") + escape(
            render_value(now_and_then(node), 600)
        )
        box = f'<rect x="{x - _BOX_W / 2:.1f}" y="{y}" width="{_BOX_W}" height="{_BOX_H}" rx="8"/>'
        drawn.append(f'<g class="{kinds[node]}"><title>{title}</title>{box}{"".join(rows)}</g>')
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return (
        f'<div class="tc-scroll"><svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>{"".join(drawn)}</svg></div>'
    )


def _curve(points: list[tuple[float, int]]) -> str:
    """A smooth line from the lower edge of the first box to the upper edge of the last, through the places between."""
    x, y = points[0]
    path = [f"M{x:.1f},{y + _BOX_H}"]
    bottom: float = y + _BOX_H
    for number, (x_next, top) in enumerate(points[1:], start=1):
        bend = (top - bottom) / 2
        path.append(f"C{x:.1f},{bottom + bend:.1f} {x_next:.1f},{top - bend:.1f} {x_next:.1f},{top}")
        if number < len(points) - 1:
            path.append(f"V{top + _BOX_H}")
        x, bottom = x_next, top + _BOX_H
    return " ".join(path)


def _one_line(text: str, max_chars: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= max_chars else flat[: max_chars - 1] + "…"


def _table(trace: Trace, names: dict[Node, str], kinds: dict[Node, str], forms: dict[str, str]) -> str:
    rows = []
    shown = _nearest(trace, _LISTED)
    for node in shown:
        name, kind = names[node], kinds[node]
        about = forms.get(name, kind)
        if node._about():
            about = f"{about}: {node._about()}"
        value = "raised an error" if kind == "error" else render_value(now_and_then(node), 600)
        cells = f"<td>{escape(name)}</td><td>{escape(elide(about, 200))}</td>"
        rows.append(f'<tr class="{kind}">{cells}<td class="v">{escape(value)}</td></tr>')
    if len(trace.nodes) > len(shown):
        rows.append(f"<tr><td>…</td><td>{len(trace.nodes) - len(shown):,} more nodes</td><td></td></tr>")
    return f"<table><tr><th>name</th><th>what</th><th>value</th></tr>{''.join(rows)}</table>"
