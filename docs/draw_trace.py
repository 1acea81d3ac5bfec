"""Draw the picture in the README from a real trace:  python docs/draw_trace.py [FILE]

The drawing is the one a notebook shows for a Trace; this script gives it the style sheet and the background that a
picture in a page needs.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import trace_core as tc

_COLOURS = (
    ".tc-trace{color:#1f2328;background:#ffffff}\n"
    "@media (prefers-color-scheme:dark){.tc-trace{color:#e6edf3;background:#0d1117}}"
)


def record() -> tc.Trace:
    """A workflow with a text, a number and a function to improve, and feedback on one output."""
    prompt = tc.Parameter("Summary: {}", name="pattern", description="how a title is written")
    words = tc.Parameter(3, name="words", constraint=tc.Range(1, 9, integer=True))

    @tc.bundle
    def shorten(text: str, words: int) -> str:
        """The first words of a text."""
        return " ".join(text.split()[:words])

    @tc.bundle(trainable=True)
    def polish(title: str) -> str:
        """Capital letters where a title has them."""
        return title.capitalize()

    text = tc.node("a short history of the paper clip and its inventors", name="text")
    title = polish(shorten(text, words))
    output = prompt.format(title)
    return tc.Trace.of(output, (0.2, "It should go on to 'paper clip'."))


def picture(trace: tc.Trace) -> str:
    """The drawing in the trace's HTML as a file of its own."""
    html = trace._repr_html_()
    drawing = re.search(r"<svg (.*?)>(.*)</svg>", html, re.DOTALL)
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    if drawing is None or style is None:
        raise SystemExit("the trace's HTML has no drawing: trace_core/views.py has changed, change this script with it")
    rules = [rule for rule in style.group(1).splitlines() if re.search(r"\b(text|path|rect)\b", rule)]
    sheet = "\n".join([_COLOURS, *rules])
    return f'<svg class="tc-trace" {drawing.group(1)}>\n<style>\n{sheet}\n</style>\n{drawing.group(2)}\n</svg>\n'


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("trace.svg")
    target.write_text(picture(record()), encoding="utf-8")
