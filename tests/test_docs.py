"""README and docs/: every Python block runs and does what it says; links lead somewhere; the option tables are true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from doc_blocks import ClaimError, blocks, run
from wheel_venv import ROOT

FILES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
LANGUAGES = {"python", "text", "console", "toml", "json", "mermaid"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_python_blocks_do_what_they_say(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    try:
        run(path)
    finally:  # a page may set variables
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_block_names_its_language_and_every_skip_its_reason(path: Path) -> None:
    for block in blocks(path):
        assert block.language in LANGUAGES, f"{path.name}:{block.line}"
        if block.not_run is not None:
            assert len(block.not_run) > 10, f"{path.name}:{block.line}: say why it is not run"


def test_each_page_has_something_to_run() -> None:
    without = {"CHANGELOG.md", "CONTRIBUTING.md", "cli.md", "performance.md"}
    runnable = {path.name for path in FILES if any(b.language == "python" and b.not_run is None for b in blocks(path))}
    assert {path.name for path in FILES} - runnable <= without


def anchors(path: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name) if name else path
        assert linked.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor in anchors(linked), f"{path.name}: {target}"


def test_every_page_is_linked_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in text] == []


@pytest.mark.parametrize("command", ["demo", "optimize"])
def test_cli_page_lists_every_option(command: str) -> None:
    from trace_core.cli import cli

    text = (ROOT / "docs" / "cli.md").read_text()
    section = text.partition(f"## trace-core {command}\n")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^\| `(--[a-z-]+)", section, re.MULTILINE))
    options = [option for option in cli.commands[command].params if isinstance(option, click.Option)]
    assert listed == {name for option in options for name in option.opts}


def test_the_picture_is_the_one_of_the_present_code(tmp_path: Path) -> None:
    drawn = tmp_path / "trace.svg"
    script = [sys.executable, str(ROOT / "docs" / "draw_trace.py"), str(drawn)]
    subprocess.run(script, check=True, cwd=tmp_path)
    assert drawn.read_text() == (ROOT / "docs" / "trace.svg").read_text(), "run `python docs/draw_trace.py`"


# ---- the checker itself


def page(tmp_path: Path, *parts: str) -> Path:
    path = tmp_path / "page.md"
    path.write_text("# Title\n\n" + "\n".join(f"```python\n{part}\n```\n" for part in parts))
    return path


def test_claims_are_checked(tmp_path: Path) -> None:
    path = page(
        tmp_path,
        "x = 1 + 1  # -> 2\nprint('a', x)  # -> a 2\nint('z')  # raises ValueError: invalid literal",
        "for _ in [0]:\n    x + 1  # -> 3\n[x,\n 5]  # -> [2, ...]",
    )
    assert run(path) == 5


@pytest.mark.parametrize(
    "block",
    [
        "1 + 1  # -> 3",
        "x = 'a'  # -> 'b'",
        "print('a')  # -> b",
        "int('1')  # raises ValueError: invalid",
        "int('z')  # raises KeyError: invalid",
        "int('z')  # raises ValueError: something else",
        "def f():\n    1 + 1  # -> 2",
        "x = 1\ndel x  # -> 1",
    ],
)
def test_wrong_claims_are_found(block: str, tmp_path: Path) -> None:
    with pytest.raises(ClaimError):
        run(page(tmp_path, block))


def test_printed_output_is_compared(tmp_path: Path) -> None:
    path = page(tmp_path, "print('one')\nprint('two')")
    right = path.read_text() + "\n<!-- output -->\n```text\none\ntwo\n```\n"
    path.write_text(right)
    assert run(path) == 1
    path.write_text(right.replace("one\ntwo\n```\n", "one\nthree\n```\n"))
    with pytest.raises(ClaimError):
        run(path)


def test_only_a_marked_block_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("<!-- not run: needs a key -->\n```python\nraise SystemExit\n```\n")
    assert run(path) == 0
