"""The page of a run in a real browser: it loads without complaints, and what can be clicked, typed and moved works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from browser import BROWSER, Page, browser
from study_rows import Rows, write_rows

from trace_core.integrations.store import Ledger
from trace_core.optimizers.report import write_run_page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")]
HOSTILE = '</script><script>window.hacked = 1</script>"\'><img src=x onerror="window.hacked=1">&amp;\u202e{ticket}'


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    kinds = {
        "plain": Rows(objectives=("accuracy", "brevity")),
        "hostile": Rows(
            values=lambda ticket, old: HOSTILE.format(ticket=ticket),
            say=lambda index, score: HOSTILE,
            reason=HOSTILE,
            note=HOSTILE,
            prompt=HOSTILE,
        ),
    }
    found = {}
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        for kind, rows in kinds.items():
            found[kind] = write_run_page(write_rows(ledger, rows, kind), folder / f"{kind}.html")
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def shown(page: Page, selector: str) -> int:
    """How many elements that match can be seen."""
    found: Any = page.run(f"[...document.querySelectorAll('{selector}')].filter(e => e.checkVisibility()).length")
    return int(found)


@pytest.fixture
def plain(page: Page, pages: dict[str, Path]) -> Iterator[Page]:
    """The usual page, freshly loaded; nothing of what a test does with it may make it complain."""
    page.look(1100, 900)
    page.complaints.clear()
    page.requests.clear()
    page.open(pages["plain"])
    yield page
    assert page.complaints == []
    assert {request.partition(":")[0] for request in page.requests} == {"file", "data"}
    assert [r for r in page.requests if r.startswith("file")] == [pages["plain"].as_uri()]


def test_it_loads_and_its_parts_are_there(plain: Page) -> None:
    for selector in (
        ".tiles .tile",
        "svg.chart",
        "svg.lineage",
        "#matrix img",
        ".tc-trace svg",
        "pre.diff",
        "dl.facts",
    ):
        assert shown(plain, selector), selector
    assert shown(plain, "svg.chart") == 2  # the score over one unit, and one pair of objectives
    assert plain.run("document.querySelector('#matrix img').naturalWidth") == 30
    assert (
        plain.run("getComputedStyle(document.querySelector('.tc-trace .parameter rect')).stroke") == "rgb(99, 102, 241)"
    )


def test_the_unit_of_the_budget_can_be_switched(plain: Page) -> None:
    before = plain.run("[...document.querySelectorAll('figure[data-unit]')].map(e => e.checkVisibility())")
    plain.click("#unit-usd")
    after = plain.run("[...document.querySelectorAll('figure[data-unit]')].map(e => e.checkVisibility())")
    assert (before, after) == ([True, False, False], [False, False, True])


def test_a_click_on_a_candidate_opens_its_panel(plain: Page) -> None:
    for selector in ("svg.chart circle.top", "svg.lineage circle.top"):
        plain.click(selector)
        assert plain.run("document.getElementById('panel').open")
        assert plain.run("document.getElementById('panel-title').textContent") == "Candidate 23.0"
        text = plain.run("document.getElementById('panel-body').innerText")
        for part in ("parent", "The optimizer's reason", "classify.prompt", "The prompt it came from", "minibatch"):
            assert part in text
        assert plain.run("document.querySelectorAll('#panel-body .diff ins').length") == 1
        plain.key("Escape")
        assert not plain.run("document.getElementById('panel').open")
    plain.click("svg.chart circle.top")
    plain.click("#panel-body dl a")  # its parent
    assert plain.run("document.getElementById('panel-title').textContent") == "Candidate 16.m"
    plain.key("ArrowRight")
    assert plain.run("document.getElementById('panel-title').textContent") == "Candidate 17.0"
    plain.click("#close")
    assert not plain.run("document.getElementById('panel').open")


def test_an_address_with_a_candidate_opens_it(plain: Page, pages: dict[str, Path]) -> None:
    plain.requests.clear()
    plain.open(pages["plain"], "#c3")
    assert plain.run("document.getElementById('panel-title').textContent") == "Candidate 3.0"


def test_rejected_candidates_can_be_filtered_and_searched(plain: Page) -> None:
    everything = shown(plain, ".candidate")
    plain.click("#show-guard")
    guard = shown(plain, ".candidate")
    assert 0 < guard < everything
    assert guard == plain.run("document.querySelectorAll('.candidate[data-group=guard]').length")
    plain.click("#show-all")
    plain.run("find.value = 'REPEATS 9 words'; find.dispatchEvent(new Event('input'))")
    assert shown(plain, ".candidate") == guard
    assert plain.run("document.getElementById('found').textContent") == f"{guard} contain it"


def test_the_matrix_tells_of_its_cells_to_mouse_and_keys(plain: Page) -> None:
    x, y = plain.run(
        "(() => { const e = document.querySelector('#matrix img'); e.scrollIntoView({block: 'center'});"
        "const r = e.getBoundingClientRect(); return [r.left + 3, r.top + 3]; })()"
    )
    plain.mouse("mouseMoved", x, y)
    first = plain.run("document.getElementById('cell').textContent")
    assert first.startswith("candidate 23.0 (accepted, 0.")
    assert "val " in first
    assert "score " in first
    plain.run("document.getElementById('matrix').focus()")
    plain.key("ArrowDown")
    second = plain.run("document.getElementById('cell').textContent")
    assert second.split(",")[-1].split(":")[0] == first.split(",")[-1].split(":")[0]  # the same example
    assert second.split()[1] != first.split()[1]  # another candidate
    plain.key("Enter")
    assert plain.run("document.getElementById('panel-title').textContent") == f"Candidate {second.split()[1]}"


def test_text_of_a_model_does_not_act(page: Page, pages: dict[str, Path]) -> None:
    page.look(1100, 900)
    page.complaints.clear()
    page.requests.clear()
    page.open(pages["hostile"])
    page.click("svg.chart circle.top")
    assert page.run("window.hacked") is None
    assert "</script><script>window.hacked = 1</script>" in page.run("document.getElementById('panel-body').innerText")
    assert page.run("document.querySelectorAll('img').length") == 1
    assert page.complaints == []
    assert [r for r in page.requests if not r.startswith("data:")] == [pages["hostile"].as_uri()]
    # and if it were taken for code after all, the page's policy would not run it
    page.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked=1\">')")
    page.run("fetch('http://127.0.0.1:9/').catch(() => 0)")
    assert page.run("window.hacked") is None
    assert any("Content Security Policy" in complaint for complaint in page.complaints)


def test_it_fits_a_phone_and_works_without_scripts(page: Page, pages: dict[str, Path]) -> None:
    page.look(390, 800, dark=True, script=False)
    page.complaints.clear()
    page.open(pages["plain"])
    assert page.run("document.documentElement.scrollWidth") == 390
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 27)"
    everything = shown(page, ".candidate")
    page.click("#show-gate")
    assert 0 < shown(page, ".candidate") < everything
    page.click(".candidate[data-group=gate] summary")
    assert shown(page, ".candidate[data-group=gate] .panel") == 1
    page.click("#show-all")
    page.click("svg.lineage circle.top")  # without a script the link leads into the list, which opens there
    assert page.run("document.querySelector(location.hash).checkVisibility()")
    assert not shown(page, ".find")
    page.look(1100, 900)
