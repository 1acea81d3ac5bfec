"""The page of a run: everything is on it, nothing on it is taken for markup, and it stays small."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from study_problems import Shift, closeness, offsets
from study_rows import Rows, write_rows

from trace_core.cli import cli
from trace_core.integrations.store import CandidateRow, Ledger, Run, StoreError
from trace_core.optimizers import OptoPrime, Study, optimize
from trace_core.optimizers.report import run_page, write_run_page
from trace_core.optimizers.report.text import diff_block, esc, room_for
from trace_core.optimizers.search.candidate import Candidate

MARKUP = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"
HOSTILE = f"{MARKUP}\u202egnp.exe\u2066\x00\x1b[31m $title"


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


class Elements(HTMLParser):
    """Start tags with their attributes, and the text of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.text: list[str] = []
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in self.raw:
            self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        (self.raw[self._inside] if self._inside else self.text).append(data)

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in attributes.items())]


def test_everything_is_on_the_page(ledger: Ledger) -> None:
    run = write_rows(ledger, Rows(objectives=("accuracy", "brevity")))
    page = Elements(run_page(run))
    text = " ".join(" ".join(page.text).split())
    for heading in ("Score over budget", "Lineage", "Pareto front", "Objectives", "Every candidate", "Cost by role"):
        assert heading in text
    rows = run.candidates()
    panels = [a for a in page.all("div") if (a.get("class") or "") == "panel"]
    empty = [e for e in run.events() if e.kind == "rejected" and e.data["candidate"] == ""]
    assert len(panels) == len(rows) + len(empty)
    assert empty
    for row in rows:
        assert row.detail.get("note", "") in text
    stages = {row.detail["stage"] for row in rows if row.status == "rejected"}
    assert stages == {"gate", "validation", "guard", "error"}
    groups = [a["data-group"] for a in page.all("details") if "data-group" in a]
    for stage in (*stages, "empty"):
        wanted = sum(row.detail.get("stage") == stage for row in rows) if stage != "empty" else len(empty)
        assert groups.count(stage) == wanted
    assert len(page.all("svg", **{"class": "lineage"})) == 1
    assert [a["data-unit"] for a in page.all("figure") if "data-unit" in a] == ["calls", "tokens", "usd"]
    assert "sandbox tier: jail" in text
    assert f"run {run.id}" in text
    assert "optimizer 24 21,900 $0.0264" in text
    assert "ValueError: no such class" in text


def test_only_its_own_script_and_styles_may_run_and_nothing_may_be_loaded(ledger: Ledger) -> None:
    html = run_page(write_rows(ledger, Rows()))
    page = Elements(html)
    (policy,) = (a["content"] or "" for a in page.all("meta", **{"http-equiv": "Content-Security-Policy"}))
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"

    def named(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    _, script = page.raw["script"]
    assert rules["script-src"] == named(script)
    assert rules["style-src"].split() == [named(text) for text in page.raw["style"]]
    for tag, attributes in page.tags:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert re.match(r"data:image/png;base64,|data:,\Z|#", attributes.get(name) or "#")


def test_text_written_by_a_model_stays_text(ledger: Ledger) -> None:
    plain = Elements(run_page(write_rows(ledger, Rows(values=lambda t, old: f"{old} {t}", say=lambda i, s: "no"))))
    hostile = Rows(
        values=lambda ticket, old: f"{HOSTILE} {ticket}",
        say=lambda index, score: HOSTILE,
        reason=HOSTILE,
        note=HOSTILE,
        prompt=HOSTILE,
    )
    html = run_page(write_rows(ledger, hostile, HOSTILE))
    page = Elements(html)
    html.encode("utf-8")
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b]", html)
    assert "⟨U+202E⟩gnp.exe" in html
    assert len(page.all("script")) == len(plain.all("script")) == 2
    assert page.all("img")
    assert all("onerror" not in a for a in page.all("img"))
    assert json.loads(page.raw["script"][0])["matrix"]["texts"]
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags}


@settings(max_examples=40)
@given(st.text())
def test_escaped_text_reads_back_as_what_can_be_seen(text: str) -> None:
    page = Elements(f'<p title="{esc(text)}">{esc(text)}</p>')
    assert [tag for tag, _ in page.tags] == ["p"]
    told = page.tags[0][1]["title"] or ""
    assert "".join(page.text) == told
    if text.isprintable() and not re.search("[\u00ad\u200b-\u200f\u2060-\u206f]", text):
        assert told == text


@given(st.lists(st.text(alphabet="ab<\n", max_size=400), min_size=1), st.integers(300, 5000))
def test_texts_are_shortened_until_they_fit(texts: list[str], total: int) -> None:
    room = room_for(texts, total)
    sizes = [len(esc(text[:room]).encode()) for text in texts]
    floor = sum(len(esc(text[:200]).encode()) for text in texts)
    assert sum(sizes) <= max(2 * total, floor)
    if sum(len(esc(text).encode()) for text in texts) <= total:
        assert room >= max(map(len, texts))


def test_a_diff_marks_the_words_that_changed() -> None:
    diff = diff_block("Answer with one word.\nBe kind.", "Answer with two words.\nBe kind.\nBe brief.", 1000)
    assert "<del>Answer with <b>one</b> <b>word</b>.</del>" in diff
    assert "<ins>Answer with <b>two</b> <b>words</b>.</ins>" in diff
    assert "<span>Be kind.</span>" in diff
    assert "<ins>Be brief.</ins>" in diff
    assert diff_block("same", "same", 1000) == ""


def _pixels(url: str) -> list[bytes]:
    """Palette numbers of a picture as the page makes them, row by row."""
    data = base64.b64decode(url.partition(",")[2])
    chunks, place = {}, 8
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        kind = data[place + 4 : place + 8]
        chunks[kind] = data[place + 8 : place + 8 + length]
        assert struct.unpack_from(">I", data, place + 8 + length)[0] == zlib.crc32(kind + chunks[kind])
        place += 12 + length
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    lines = zlib.decompress(chunks[b"IDAT"])
    return [lines[row * (width + 1) + 1 : (row + 1) * (width + 1)] for row in range(height)]


def test_the_matrix_holds_the_scores_of_the_ledger(ledger: Ledger) -> None:
    run = write_rows(ledger, Rows())
    page = Elements(run_page(run))
    matrix = json.loads(page.raw["script"][0])["matrix"]
    cells = struct.unpack(f"<{len(matrix['rows']) * len(matrix['columns'])}H", base64.b64decode(matrix["cells"]))
    known = {(e.candidate, e.example): e for e in run.evaluations() if e.example.startswith("val ")}
    pixels = _pixels(next(a["src"] or "" for a in page.all("img")))
    wide, compared = len(matrix["columns"]), 0
    for r, (_, candidate, _, _) in enumerate(matrix["rows"]):
        for c, example in enumerate(matrix["columns"]):
            cell = known[candidate, example]
            assert matrix["values"][cells[r * wide + c] - 1] == cell.score
            assert (pixels[r][c] == 1) == (cell.error is not None)
            assert matrix["texts"][matrix["said"][str(r * wide + c)]] == (cell.error or cell.feedback)
            compared += 1
    assert compared == len(known)
    means = [score for *_, score in matrix["rows"]]
    assert means == sorted(means, reverse=True)


def test_a_candidate_stands_where_its_metric_calls_were_spent(ledger: Ledger) -> None:
    run = write_rows(ledger, Rows(tickets=1, examples=10))
    html = run_page(run)
    # the seed: 10 examples; ticket 1: 3 of the parent, 3 and 10 of the candidate
    assert len(run.evaluations()) == 26
    from trace_core.optimizers.report.reading import read_run

    assert [spent.calls for spent in read_run(run).spent.values()] == [10, 26]
    assert "metric calls" in html


def test_secrets_of_the_environment_are_masked(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sk-canary-0123456789abcdef"
    monkeypatch.setenv("SOME_PROVIDER_API_KEY", secret)
    rows = Rows(say=lambda i, s: f"wrong key {secret}", reason=secret, note=f"x{secret}", prompt=secret)
    rows.values = lambda ticket, old: f"{old} {secret}"
    html = run_page(write_rows(ledger, rows))
    assert secret not in html
    assert "wrong key ***" in html


@pytest.mark.slow
def test_500_candidates_on_1000_examples_stay_below_ten_megabytes(ledger: Ledger) -> None:
    long = "Think about the message, then answer. " * 120
    rows = Rows(tickets=499, examples=4, values=lambda ticket, old: f"{long}{ticket}", prompt=long * 8)
    run = write_rows(ledger, rows)
    cells = [
        (run.id, row.id, f"val {index}", (index * 7919 + row.step * 104729) % 99991 / 99991, f"said {index} {row.step}")
        for row in run.candidates()
        for index in range(1000)
    ]
    ledger.write("DELETE FROM evaluations WHERE run = ?", (run.id,))
    with ledger.transaction():
        ledger._usable().executemany("INSERT INTO evaluations VALUES (?, ?, ?, 0, ?, NULL, ?, NULL)", cells)
    page = run_page(run)
    assert len(page.encode()) < 10_000_000
    matrix = json.loads(Elements(page).raw["script"][0])["matrix"]
    assert (len(matrix["rows"]), len(matrix["columns"])) == (len(run.candidates()), 1000)
    corner = matrix["rows"][0][1], matrix["columns"][0]
    first = next(score for _, candidate, example, score, _ in cells if (candidate, example) == corner)
    (code,) = struct.unpack_from("<H", base64.b64decode(matrix["cells"]))
    assert matrix["low"] + (code - 1) * matrix["step"] == pytest.approx(first, abs=1e-4)


def test_a_run_of_the_plain_loop_has_a_page_too(ledger: Ledger) -> None:
    run = ledger.new_run("shift", fingerprint={}, config={})
    workflow = Shift()
    optimizer = OptoPrime(workflow, offsets(1, -4, 3))
    optimize(workflow, closeness, list(range(8)), optimizer=optimizer, steps=3, batch_size=3, run=run)
    page = Elements(run_page(run))
    text = " ".join(" ".join(page.text).split())
    assert "minibatch 0.800 -> 0.300" in text
    assert "over the seed's 0.7" in text
    groups = [a["data-group"] for a in page.all("details") if "data-group" in a]
    assert groups == ["kept", "kept", "gate", "kept"]


def test_runs_that_have_hardly_begun_have_a_page(ledger: Ledger) -> None:
    run = ledger.new_run("empty", fingerprint={}, config={})
    assert "The run ended before its first score." in run_page(run)
    run.put_candidate(CandidateRow("0", 0, (), "start", None, "", {}, {"prompt": "Hi"}))
    assert "The run ended before its first score." in run_page(run)


def test_a_damaged_trace_is_said_and_does_not_hide_the_rest(ledger: Ledger) -> None:
    run = write_rows(ledger, Rows(tickets=3, trace=False))
    assert "No trace was recorded." in run_page(run)
    ledger.write(
        "INSERT INTO events VALUES (?, 9, 999, 'trace', ?)",
        (run.id, json.dumps({"candidate": run.row().best, "example": "val 0", "trace": {"format": "no"}})),
    )
    assert "The trace in the ledger cannot be read" in run_page(run)


def test_the_command(ledger: Ledger, tmp_path: Path) -> None:
    run = write_rows(ledger, Rows(tickets=2))
    out = tmp_path / "new folder" / "report.html"
    done = CliRunner().invoke(cli, ["report", "latest", "--store", str(ledger.path), "-o", str(out)])
    assert (done.exit_code, done.output.strip()) == (0, str(out))
    assert f"<title>{run.id}</title>" in out.read_text(encoding="utf-8")
    missing = CliRunner().invoke(cli, ["report", "other", "--store", str(ledger.path)])
    assert "the run 'other' is not there" in str(missing.exception)


def test_a_place_that_cannot_be_written_is_told(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="give another file"):
        write_run_page(Run(ledger, write_rows(ledger, Rows(tickets=1)).id), tmp_path / "file" / "report.html")


def test_a_study_has_a_page_and_shows_itself_in_a_notebook(tmp_path: Path) -> None:
    workflow = Shift()
    optimizer = OptoPrime(workflow, offsets(1, -4, 3))
    study = Study(workflow, closeness, list(range(8)), optimizer=optimizer, steps=5, store=tmp_path / "ledger.sqlite")
    assert "not run yet" in study._repr_html_()
    study.run()
    with Ledger.open(tmp_path / "ledger.sqlite", read_only=True) as ledger:
        page = Elements(run_page(Run(ledger, ledger.find_run("latest"))))
    text = " ".join(" ".join(page.text).split())
    assert "rejected by the minibatch 0.3 minibatch 0.800 -> 0.300" in text
    assert "0.7 Candidate" not in text
    assert "Candidate 3.0 on val 0." in text  # the trace
    shown = Elements(study._repr_html_())
    assert not [tag for tag, _ in shown.tags if tag in ("script", "link", "img", "a")]
    words = " ".join(" ".join(shown.text).split())
    assert "offset : from the seed to the best 0 3" in words or "offset: from the seed to the best 0 3" in words
    assert "rejected by: gate 1" in words
    assert study.best is not None
    best = " ".join(Elements(study.best._repr_html_()).text)
    assert "minibatch 0.800 -> 1.000; validation 1.000" in best


def test_a_candidate_in_a_notebook_escapes_what_a_model_wrote() -> None:
    candidate = Candidate(
        "1.0", {HOSTILE: HOSTILE}, parents=(HOSTILE,), changed=(HOSTILE,), note=HOSTILE, reason=HOSTILE
    )
    shown = Elements(candidate._repr_html_())
    assert not [tag for tag, _ in shown.tags if tag in ("script", "img")]
    assert "\u202e" not in "".join(shown.text)
