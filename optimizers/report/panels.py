"""Every candidate as a panel that opens by itself, and that the page's script shows beside the rest."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from trace_core.optimizers.report.chart import number
from trace_core.optimizers.report.text import block, diff_block, esc, room_for, shown
from trace_core.values import elide

if TYPE_CHECKING:
    from trace_core.optimizers.report.reading import Candidate, RunData

# Bytes on the page for each kind of text, shared among all candidates: 500 of them stay readable, and under 10 MB.
_VALUES, _DIFFS, _PROMPTS, _REASONS, _WORST = 1_200_000, 1_200_000, 1_500_000, 400_000, 900_000
_MOST_WORST = 6
#: Where a candidate can be rejected, in the order in which it would be.
STAGES = {
    "empty": "no usable proposal",
    "guard": "a guard",
    "gate": "the minibatch",
    "validation": "the validation examples",
    "error": "an error",
    "unfinished": "the run was cut off",
    "other": "for another reason",
}


class Panels:
    """Writes them; texts are shortened so that all of them fit."""

    def __init__(self, data: RunData) -> None:
        self.data = data
        pairs = [(self._before(c, name), shown(c.values.get(name))) for c in data.candidates for name in c.changed]
        seed = [shown(value) for c in data.candidates if c.status == "start" for value in c.values.values()]
        self.value_room = room_for([new for _, new in pairs] + seed, _VALUES)
        self.diff_room = room_for([old if len(old) > len(new) else new for old, new in pairs], _DIFFS // 2)
        self.prompt_room = room_for([_prompt(c) for c in data.candidates], _PROMPTS)
        self.reason_room = room_for([c.reason for c in data.candidates], _REASONS)
        self.worst_room = max(60, _WORST // max(1, min(_MOST_WORST, len(data.examples)) * len(data.candidates)) - 60)

    def all(self) -> str:
        """A closed element for each candidate, behind choices that hide some of them."""
        counts = Counter(self._group(c) for c in self.data.candidates)
        choices = [f"{_choice('all', f'all {len(self.data.candidates)}', ' checked')}"]
        choices += [_choice(name, f"{_LABELS[name]} {counts[name]}") for name in _LABELS if counts[name]]
        rows = "".join(self._row(c) for c in self.data.candidates)
        return (
            f'<fieldset class="filter"><legend>show</legend>{"".join(choices)}</fieldset>'
            '<p class="find" hidden><label>containing <input type="search" id="find" autocomplete="off"></label> '
            f'<span id="found" role="status"></span></p><div id="candidates">{rows}</div>'
        )

    def _group(self, candidate: Candidate) -> str:
        if candidate.kept:
            return "kept"
        return candidate.stage if candidate.stage in STAGES else "other"

    def _row(self, candidate: Candidate) -> str:
        group = self._group(candidate)
        mark = " ★" if candidate.id == self.data.best else ""
        score = candidate.score if candidate.score is not None else candidate.after
        told = "" if score is None else f'<span class="num">{number(round(score, 4))}</span>'
        why = candidate.note or candidate.reason
        where = f"rejected by {STAGES[group]}" if group in ("guard", "gate", "validation", "error") else ""
        status = where or STAGES.get(group, candidate.status)
        return (
            f'<details class="candidate {"kept" if candidate.kept else "dropped"}" data-group="{group}">'
            f'<summary><b class="id">{esc(candidate.id)}{mark}</b> <span class="status">{esc(status)}</span> {told} '
            f'<span class="why">{esc(elide(" ".join(why.split()), 160))}</span></summary>'
            f'<div class="panel" id="c{candidate.number}" data-title="{esc(f"Candidate {candidate.id}")}">'
            f"{self._panel(candidate)}</div></details>"
        )

    def _panel(self, candidate: Candidate) -> str:
        parts = [self._facts(candidate)]
        if candidate.note:
            head = "Why it was kept" if candidate.kept else "Why it was rejected"
            parts.append(f"<h4>{head}</h4><p class='said'>{esc(elide(candidate.note, 2000))}</p>")
        if candidate.reason:
            text = esc(elide(candidate.reason, self.reason_room))
            parts.append(f"<h4>The optimizer's reason</h4><p class='said quiet'>{text}</p>")
        for name in candidate.changed:
            parts.append(self._change(candidate, name))
        if candidate.status == "start":
            parts.append("<h4>Values</h4>")
            parts += [_folded(name, block(shown(v), self.value_room)) for name, v in candidate.values.items()]
        else:
            rest = [name for name in candidate.values if name not in candidate.changed]
            if rest:
                parts.append(f"<p class='quiet'>As in its parent: {esc(', '.join(rest))}</p>")
        parts.append(self._worst(candidate))
        for item in candidate.detail.get("dropped") or ():
            parts.append(_dropped(item))
        prompt = _prompt(candidate)
        if prompt:
            parts.append(_folded("The prompt it came from", block(prompt, self.prompt_room)))
        return "".join(parts)

    def _facts(self, candidate: Candidate) -> str:
        facts: list[tuple[str, str]] = [("status", esc(candidate.status)), ("ticket", str(candidate.ticket))]
        if candidate.stage:
            facts.append(("rejected by", esc(STAGES.get(candidate.stage, candidate.stage))))
        guard = candidate.detail.get("guard")
        if guard:
            facts.append(("guard", esc(str(guard))))
        if candidate.parents:
            links = []
            for parent in candidate.parents:
                known = self.data.by_id.get(parent)
                text = esc(parent)
                links.append(f'<a href="#c{known.number}" data-c="{known.number}">{text}</a>' if known else text)
            facts.append(("parent" if len(links) == 1 else "parents", ", ".join(links)))
        if candidate.score is not None:
            count = len(self.data.scores.get(candidate.id, ()))
            on = f" on {count} of {len(self.data.examples)} examples" if count else ""
            facts.append(("validation", f"{number(round(candidate.score, 6))}{on}"))
        if candidate.after is not None:
            before = "" if candidate.before is None else f"{number(round(candidate.before, 6))} → "
            facts.append(("minibatch", f"{before}{number(round(candidate.after, 6))}"))
        for name, score in self.data.objectives.get(candidate.id, {}).items():
            facts.append((esc(name), number(round(score, 6))))
        facts += _paid(candidate.detail)
        return f"<dl>{''.join(f'<div><dt>{name}</dt><dd>{value}</dd></div>' for name, value in facts)}</dl>"

    def _before(self, candidate: Candidate, name: str) -> str:
        parent = self.data.by_id.get(candidate.parents[0]) if candidate.parents else None
        return "" if parent is None or name not in parent.values else shown(parent.values[name])

    def _change(self, candidate: Candidate, name: str) -> str:
        new = shown(candidate.values.get(name))
        diff = diff_block(self._before(candidate, name), new, self.diff_room)
        whole = _folded("the whole value", block(new, self.value_room)) if "\n" in new or len(new) > 60 else ""
        return f"<h4>{esc(name)}</h4>{diff or '<p class=quiet>unchanged</p>'}{whole}"

    def _worst(self, candidate: Candidate) -> str:
        scores = self.data.scores.get(candidate.id)
        if not scores:
            return ""
        low = sorted(scores, key=lambda example: scores[example])[:_MOST_WORST]
        rows = []
        for example in low:
            said = self.data.said.get((candidate.id, example), "")
            look = " class='failed'" if (candidate.id, example) in self.data.failed else ""
            said = esc(elide(said, self.worst_room))
            score = number(round(scores[example], 4))
            rows.append(f"<tr{look}><td>{esc(example)}</td><td class='num'>{score}</td><td>{said}</td></tr>")
        head = "<tr><th>example</th><th class='num'>score</th><th>feedback</th></tr>"
        title = "Its weakest validation examples" if len(scores) > len(low) else "Its validation examples"
        return f"<h4>{title}</h4><div class='scroll'><table>{head}{''.join(rows)}</table></div>"


_LABELS = {
    "kept": "kept",
    "guard": "guard",
    "gate": "minibatch",
    "validation": "validation",
    "empty": "no proposal",
    "error": "error",
    "unfinished": "cut off",
    "other": "other",
}


def filter_rules() -> str:
    """The style rules behind the choices, so that they work without a script."""
    rule = "main:has(#show-{0}:checked) .candidate:not([data-group={0}]){{display:none}}"
    return "".join(rule.format(name) for name in _LABELS)


def _choice(name: str, label: str, more: str = "") -> str:
    return f'<label><input type="radio" name="show" id="show-{name}"{more}><span>{label}</span></label>'


def _folded(title: str, inside: str) -> str:
    return f"<details><summary>{esc(title)}</summary>{inside}</details>"


def _prompt(candidate: Candidate) -> str:
    prompt = candidate.detail.get("prompt")
    if prompt is None or isinstance(prompt, str):
        return prompt or ""
    if isinstance(prompt, list) and all(isinstance(m, dict) and "content" in m for m in prompt):
        return "\n\n".join(f"[{m.get('role', '')}]\n{m['content']}" for m in prompt)
    return json.dumps(prompt, indent=1)


def _paid(detail: dict[str, Any]) -> list[tuple[str, str]]:
    tokens = detail.get("tokens")
    if tokens is None and detail.get("prompt_tokens") is not None:
        tokens = detail["prompt_tokens"] + (detail.get("completion_tokens") or 0)
    found = [("tokens", f"{tokens:,}")] if isinstance(tokens, int) else []
    cost = detail.get("cost")
    return found + ([("cost", f"${cost:.4f}")] if isinstance(cost, int | float) and cost else [])


def _dropped(item: Any) -> str:
    name, value, reason = [*item, "", "", ""][:3] if isinstance(item, list | tuple) else ("", item, "")
    inside = f"<p class='said'>{esc(elide(str(reason), 600))}</p>{block(shown(value), 2000)}"
    return _folded(f"dropped value of {name}", inside)
