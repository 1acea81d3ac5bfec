"""Run the Python blocks of a Markdown file and check what their comments claim.

The blocks of one file share one namespace, in order. Three kinds of comment at the end of a statement are claims:

    expression  # -> text           the repr of the value; of what is printed, if the expression is a call of print
    name = expression  # -> text    the repr of what was assigned
    statement  # raises Name: text  an exception of that name (or a subclass), whose message contains the text

``...`` in a claim stands for anything. A ```text block behind ``<!-- output -->`` is what the block before it printed.
A Python block behind ``<!-- not run: reason -->`` is compiled only.
"""

from __future__ import annotations

import ast
import contextlib
import io
import linecache
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

_FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!--\s*(.*?)\s*-->\s*\Z", re.DOTALL)
_CLAIM = re.compile(r"#\s*(->|raises)\s*(.*)$")


@dataclass(frozen=True)
class Block:
    """One fenced block; ``line`` is the number of its first line in the file, ``mark`` the html comment before it."""

    language: str
    text: str
    line: int
    mark: str

    @property
    def not_run(self) -> str | None:
        """The reason why a block is not run; None for an ordinary one."""
        return self.mark.removeprefix("not run:").strip() if self.mark.startswith("not run:") else None


def blocks(path: Path) -> list[Block]:
    """Every fenced block of the file."""
    text = path.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        mark = _MARK.search(text[: match.start()])
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Block(match.group(1).strip(), match.group(2), line, mark.group(1) if mark else ""))
    return found


class ClaimError(AssertionError):
    """A documentation block does something else than it says."""


def run(path: Path) -> int:
    """Run the file's Python blocks. Returns how many claims were checked; raises ClaimError for a wrong one."""
    module = ModuleType(f"documentation_{path.stem.replace('-', '_')}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pydantic look their module up
    printed, checked = "", 0
    try:
        for block in blocks(path):
            if block.language == "python" and block.not_run is not None:
                compile(block.text, str(path), "exec")
            elif block.language == "python":
                runner = _Runner(path, block)
                printed = runner.run(module.__dict__)
                checked += len(runner.claims)
            elif block.mark == "output":
                if printed.strip() != block.text.strip():
                    raise ClaimError(
                        f"{path.name}:{block.line}: the block before printed\n{printed}\nnot\n{block.text}"
                    )
                checked += 1
    finally:
        del sys.modules[module.__name__]
    return checked


class _Runner:
    """One block on its way."""

    def __init__(self, path: Path, block: Block) -> None:
        self.place = f"{path.name}:{block.line}"
        self.first = block.line
        self.path = path
        self.source = "\n" * (block.line - 1) + block.text  # so that tracebacks show the lines of the file
        self.claims = dict(_claims(self.source))
        self.seen: set[int] = set()

    def run(self, namespace: dict[str, Any]) -> str:
        filename = f"<{self.place}>"
        lines = self.source.splitlines(keepends=True)
        linecache.cache[filename] = (len(self.source), None, lines, filename)  # inspect.getsource works in it
        tree = _Claims(self.claims).visit(ast.parse(self.source, filename))
        namespace.update(__claim__=self._check, __printed__=self._print, __raised__=self._raised)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(ast.fix_missing_locations(tree), filename, "exec", dont_inherit=True), namespace)
        for line in self.claims.keys() - self.seen:
            raise ClaimError(f"{self.path.name}:{line}: this claim was never reached")
        return printed.getvalue()

    def _check(self, value: Any, line: int) -> Any:
        self._compare(repr(value), line)
        return value

    def _print(self, line: int, *values: Any, **options: Any) -> None:
        text = io.StringIO()
        print(*values, file=text, **options)
        self._compare(text.getvalue().strip(), line)

    def _compare(self, came: str, line: int) -> None:
        self.seen.add(line)
        said = self.claims[line][1]
        pattern = ".*".join(re.escape(part) for part in said.split("..."))
        if not re.fullmatch(pattern, came, re.DOTALL):
            raise ClaimError(f"{self.path.name}:{line}: said {said}, came {came}")

    def _raised(self, error: BaseException | None, line: int) -> None:
        self.seen.add(line)
        name, _, text = (part.strip() for part in self.claims[line][1].partition(":"))
        kinds = [] if error is None else [kind.__name__ for kind in type(error).__mro__]
        if name not in kinds or text not in str(error):
            raise ClaimError(f"{self.path.name}:{line}: said that it raises {name}: {text}, came {error!r}") from error


def _claims(source: str) -> Iterator[tuple[int, tuple[str, str]]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        match = _CLAIM.match(token.string) if token.type == tokenize.COMMENT else None
        if match:
            yield token.start[0], (match.group(1), match.group(2).strip())


class _Claims(ast.NodeTransformer):
    """Puts a check into every statement that ends on a line with a claim."""

    def __init__(self, claims: dict[int, tuple[str, str]]) -> None:
        self.claims = claims

    def visit(self, node: ast.AST) -> Any:
        claim = self.claims.get(getattr(node, "end_lineno", None) or 0) if isinstance(node, ast.stmt) else None
        if claim is None or hasattr(node, "body"):
            return self.generic_visit(node)
        assert isinstance(node, ast.stmt)
        line = ast.Constant(node.end_lineno)
        if claim[0] == "raises":
            return _raising(node, line)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = node.value
            if isinstance(call.func, ast.Name) and call.func.id == "print":
                call.func, call.args = _name("__printed__"), [line, *call.args]
                return node
        if isinstance(node, (ast.Expr, ast.Assign)):
            node.value = ast.Call(_name("__claim__"), [node.value, line], [])
        return node


def _name(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _raising(node: ast.stmt, line: ast.Constant) -> list[ast.stmt]:
    # try: statement; except BaseException as __error__: __raised__(__error__, line); else: __raised__(None, line)
    caught = ast.Expr(ast.Call(_name("__raised__"), [_name("__error__"), line], []))
    missed = ast.Expr(ast.Call(_name("__raised__"), [ast.Constant(None), line], []))
    handler = ast.ExceptHandler(_name("BaseException"), "__error__", [caught])
    made = ast.Try([node], [handler], [missed], [])
    return [ast.copy_location(made, node)]
