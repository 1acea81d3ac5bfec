"""Code as a model answers with it, made into the source of a whole function.

Small models often leave something out: the word ``def``, the signature's line, or all but the expression that is
returned; or they give their reason before they close the fence. What they mean is then still plain, and asking again
gives the same once more.
"""

from __future__ import annotations

import ast
import re
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def strip_fence(text: str) -> str:
    """Code without the Markdown fence a model may have put around it, and with a final newline."""
    lines = text.strip("\n").splitlines()
    if lines and lines[0].lstrip().startswith("```"):
        lines = lines[1:]
        if lines and lines[-1].strip() == "```":
            lines = lines[:-1]
    return "\n".join(lines).strip("\n") + "\n"


def whole_function(text: str, current: str, name: str) -> str:
    """The source that ``text`` stands for, beside the ``current`` source of the function ``name``.

    A fence and a reason behind the code are taken off, a missing ``def`` is put before the function's name, and the
    present signature's line before a bare body or expression. What cannot be completed in this way is given back as it
    is: the parameter says what is wrong with it.
    """
    text = _without_reason(strip_fence(text))
    function = next((found for found in reversed(_functions(current)) if found.name == name), None)
    if function is None:
        return text
    if _functions(text):
        return _without_usage(text, name)
    word = "async def " if isinstance(function, ast.AsyncFunctionDef) else "def "
    if text.startswith(f"{name}(") and _parses(word + text):
        return word + text
    returns = f" -> {ast.unparse(function.returns)}" if function.returns is not None else ""
    header = f"{word}{name}({ast.unparse(function.args)}){returns}:\n"
    body = textwrap.dedent(text).strip("\n")
    if _is_expression(body):
        body = f"return {body}"
    elif "return" not in body and "yield" not in body:
        return text
    completed = header + textwrap.indent(body, "    ") + "\n"
    return completed if _parses(completed) and not _has_long_text(completed) else text


#: The line that answers end with, as it is asked for.
_REASON = re.compile(r"^(?:\*\*)?Reason(?:ing)?(?:\*\*)?:.*", re.MULTILINE | re.DOTALL)


def _without_reason(text: str) -> str:
    """The source without a reason behind it, where it parses without and does not with it."""
    shorter = _REASON.sub("", text).rstrip() + "\n"
    return shorter if _functions(shorter) and not _parses(text) else text


def _has_long_text(source: str) -> bool:
    """Whether a text in the source goes over several lines: moving the source to the right would change it."""
    texts = (ast.Constant, ast.JoinedStr)
    return any(isinstance(n, texts) and n.end_lineno != n.lineno for n in ast.walk(ast.parse(source)))


def _functions(text: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions defined at the top of a source, none where it does not parse."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return []
    return [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def _without_usage(text: str, name: str) -> str:
    """The source without what stands behind the function to show how it is used."""
    tree = ast.parse(text)
    last = max((n.end_lineno or 0 for n in tree.body if getattr(n, "name", None) == name), default=None)
    if last is None:
        return text
    kept = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom
    behind = [node for node in tree.body if node.lineno > last]
    if not behind or any(isinstance(node, kept) for node in behind) or not any(map(_calls(name), behind)):
        return text
    return "\n".join(text.splitlines()[:last]) + "\n"


def _calls(name: str) -> Callable[[ast.AST], bool]:
    def calls(node: ast.AST) -> bool:
        return any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(node))

    return calls


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def _is_expression(text: str) -> bool:
    """Whether it is one expression that computes something: a bare name or a constant is rather a slip."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError):
        return False
    return not isinstance(tree.body, ast.Name | ast.Constant)
