"""Drawings: networkx, Mermaid, HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

import trace_core as tc
from trace_core.layout import layered

EVIL = '<script>alert("x")</script> & [brackets] {braces} (round) |pipe| `tick`\nsecond #line; --> end'


def evil_trace() -> tc.Trace:
    @tc.bundle(description=EVIL)
    def join(text: str, other: Any) -> str:
        return text + str(other)

    p = tc.node(EVIL, trainable=True, name=EVIL, description=EVIL)
    return tc.Trace.of(join(p, tc.node({EVIL: EVIL})) + tc.node("x", name=EVIL), EVIL)


def error_trace() -> tc.Trace:
    with pytest.raises(tc.ExecutionError) as caught:
        tc.node(1, trainable=True) / 0
    return tc.Trace.of(caught.value.node, "x")


class Checker(HTMLParser):
    VOID = frozenset({"br", "rect", "path"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in {"br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    return checker


def test_networkx() -> None:
    p = tc.node(2, trainable=True, name="p")
    x = tc.node(3, name="x")
    graph = tc.Trace.of(p * x + p, (1, "good")).to_networkx()
    assert {name: data["kind"] for name, data in graph.nodes(data=True)} == {
        "p": "parameter",
        "x": "input",
        "mul0": "op",
        "add0": "output",
    }
    assert graph.nodes["mul0"]["value"] == 6
    assert graph.nodes["mul0"]["op"] == "mul"
    assert graph.nodes["p"]["op"] is None
    assert sorted((s, t, d["input"]) for s, t, d in graph.edges(data=True)) == [
        ("mul0", "add0", "a"),
        ("p", "add0", "b"),
        ("p", "mul0", "a"),
        ("x", "mul0", "b"),
    ]
    assert tc.Trace.of(p * p, "").to_networkx().number_of_edges("p", "mul0") == 2
    assert "error" in [d["kind"] for _, d in error_trace().to_networkx().nodes(data=True)]


def test_mermaid_labels_cannot_break_out() -> None:
    text = evil_trace().to_mermaid()
    lines = text.strip().split("\n")
    assert lines[0] == "flowchart TD"
    for line in lines[1:]:
        if "classDef" in line:
            continue
        assert line.count('"') == 2
        label = line.split('"')[1]
        assert not re.search(r"[<>\[\]{}()|`&\\]", label.replace("<br/>", ""))
    for kind in ("parameter", "input", "op", "output"):
        assert f":::{kind}" in text
    assert ":::error" in error_trace().to_mermaid()


def test_mermaid_of_a_big_graph_shows_the_part_nearest_the_output() -> None:
    p = tc.node(1, trainable=True)
    x = p + 0
    for _ in range(50):
        x = x + 1
    text = tc.Trace.of(x, "").to_mermaid(max_nodes=5)
    assert "add50" in text
    assert "add0<" not in text
    assert "47 more nodes" in text
    assert text.count(":::") == 6


def test_html_is_self_contained_and_escaped() -> None:
    html = evil_trace()._repr_html_()
    page = checked(html)
    tags = {tag for tag, _ in page.seen}
    assert not tags & {"script", "link", "img", "iframe", "object"}
    assert "alert" in page.text
    for _, attributes in page.seen:
        assert not [name for name in attributes if name.startswith("on")]
        assert not [value for name, value in attributes.items() if name in ("src", "href")]
    assert "@import" not in html
    assert "url(" not in html
    for kind in ("parameter", "input", "output"):
        assert ("g", {"class": kind}) in page.seen


def test_html_shows_values_feedback_and_errors() -> None:
    p = tc.node("instruction", trainable=True, name="prompt", description="what to do")
    page = checked(tc.Trace.of(p + "!", (0.5, "too loud"))._repr_html_())
    for words in ("prompt", "what to do", "'instruction!'", "score 0.5: too loud", "prompt + '!'"):
        assert words in page.text
    assert "ZeroDivisionError" in checked(error_trace()._repr_html_()).text


def test_html_of_big_traces_is_capped() -> None:
    p = tc.node("x" * 100_000, trainable=True)
    wide = tc.Trace.of(tc.node([p + str(i) for i in range(3000)]), "f" * 100_000)
    html = wide._repr_html_()
    checked(html)
    assert len(html) < 400_000
    assert "more" in html


def test_boxes_do_not_overlap_and_links_lead_down() -> None:
    links = [(0, 3), (1, 3), (1, 4), (2, 4), (3, 5), (4, 5), (0, 6), (5, 6), (2, 6), (1, 6)]
    layout = layered(7, links)
    assert layout.places[6][1] == layout.height - 1
    for index, (x, layer) in enumerate(layout.places):
        assert 0.49 <= x <= layout.width - 0.49
        for other_x, other_layer in layout.places[index + 1 :]:
            assert layer != other_layer or abs(x - other_x) >= 0.99
    for (source, target), route in zip(links, layout.routes, strict=True):
        assert route[0] == layout.places[source]
        assert route[-1] == layout.places[target]
        assert [layer for _, layer in route] == list(range(layout.places[source][1], layout.places[target][1] + 1))


@pytest.mark.parametrize("count", [0, 1])
def test_tiny_layouts(count: int) -> None:
    assert layered(count, []).height >= 0


def test_missing_networkx_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "networkx", None)
    p = tc.node(1, trainable=True)
    with pytest.raises(tc.MissingExtra, match="pip install"):
        tc.Trace.of(p + 1, "").to_networkx()


def test_seconds_name_the_operators_that_took_long() -> None:
    from time import perf_counter

    @tc.bundle
    def slow(x: float) -> float:
        end = perf_counter() + 0.002
        while perf_counter() < end:
            pass
        return 2 * x

    @tc.bundle
    def outer(x: float) -> float:
        return float(slow(x)) + 1

    p = tc.node(1.0, trainable=True)
    first = slow(p)
    trace = tc.Trace.of(outer(first) + 1, "")
    assert [node for node in trace.seconds if node is first] == [first]
    assert {node.op.name for node in trace.seconds} == {"slow", "outer"}
    assert all(seconds >= 0.002 for seconds in trace.seconds.values())
