"""Rules about the source itself: who imports whom, and what may not be written."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from wheel_venv import ROOT, WheelVenv, rooms

HEAVY = ["pydantic", "openai", "litellm", "networkx", "torch", "numpy", "rich", "typer", "click", "tenacity", "httpx"]
HEAVY += ["msgpack", "inspect", "ast", "dataclasses", "asyncio", "json"]  # standard, but not free

TEXT = {".py", ".md", ".toml", ".txt", ".html", ".css", ".js", ".json", ".jsonl", ".svg", ".yml", ".yaml", ".cfg", ""}
SKIPPED = {".git", "build", "dist", "__pycache__", "runs"}


def library_files() -> list[Path]:
    return sorted(path for folder in rooms().values() for path in folder.rglob("*.py"))


def repository_files() -> Iterator[Path]:
    """Every text file that belongs to the repository, whether or not it is committed yet."""
    for folder, names, files in os.walk(ROOT):
        names[:] = [
            name
            for name in names
            if name not in SKIPPED
            and not name.endswith((".egg-info", "_cache"))
            and not name.startswith((".venv", ".hyp"))
        ]
        for name in files:
            path = Path(folder, name)
            if path.suffix in TEXT and name != ".git":
                yield path


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT).as_posix()}:{line}"


# ---- imports


def check_imports(venv: WheelVenv, site: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(venv.python), str(ROOT / "tests" / "import_rules.py"), str(ROOT / "pyproject.toml")],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_arrows_hold(wheel_venv: WheelVenv, tmp_path: Path) -> None:
    done = check_imports(wheel_venv, wheel_venv.site, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("trace_core/node.py", "import trace_core.integrations"),
        ("trace_core/node.py", "def later():\n    from trace_core.optimizers import base"),
        ("trace_core/__init__.py", "def later():\n    import trace_core.nodes"),
        ("trace_core/__init__.py", "def later():\n    import trace_core.integrations.llm"),
        ("trace_core/integrations/llm/__init__.py", "from trace_core import nodes"),
        ("trace_core/integrations/llm/__init__.py", "import trace_core.optimizers.base"),
        (
            "trace_core/nodes/__init__.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from trace_core import optimizers",
        ),
        ("trace_core/optimizers/base.py", "import trace_core.examples.review_ratings"),
        ("trace_core/integrations/__init__.py", "from trace_core.cli import main"),
        ("trace_core/optimizers/base.py", "from trace_core.cli import main"),
    ],
)
def test_a_violated_arrow_is_found(module: str, line: str, wheel_venv: WheelVenv, tmp_path: Path) -> None:
    site = tmp_path / "site"
    shutil.copytree(wheel_venv.site / "trace_core", site / "trace_core", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "trace_core" / "cli.py").touch()
    path = site / module
    path.write_text(f"{path.read_text()}\n{line}\n")
    done = check_imports(wheel_venv, site, tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout
    assert module.removesuffix(".py").removesuffix("/__init__").replace("/", ".") in done.stdout


def test_cli_may_import_every_room(wheel_venv: WheelVenv, tmp_path: Path) -> None:
    site = tmp_path / "site"
    shutil.copytree(wheel_venv.site / "trace_core", site / "trace_core", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "trace_core" / "cli.py").write_text(
        "import trace_core.integrations, trace_core.nodes, trace_core.optimizers\n"
    )
    done = check_imports(wheel_venv, site, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_the_library_loads_nothing_heavy(tmp_path: Path) -> None:
    # -I -S would hide the install; -X importtime is not needed: what was imported is what is in sys.modules.
    code = (
        "import sys; before = set(sys.modules)\n"
        "import trace_core, trace_core.optimizers\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        f"import json; print(json.dumps(sorted(loaded & set({HEAVY!r}))))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


# ---- what may not be written


def forbidden_text() -> dict[str, re.Pattern[str]]:
    """Patterns are put together here, so that this file does not contain what it looks for."""
    slash = "/"
    homes = "|".join(["home", "root", "Users", "work"])
    hosts = "|".join(
        re.escape(f"{name}.{end}") for name, end in [("pypi", "org"), ("pythonhosted", "org"), ("test.pypi", "org")]
    )
    hosts += "|" + re.escape("download." + "pytorch.org")
    return {
        "a path of one machine": re.compile(rf"(?<![\w.{slash}-]){slash}(?:{homes}){slash}\w"),
        "a package index": re.compile(hosts),
        "an issue number": re.compile(r"(?i:\b(?:issue|pr|fixes|closes)\s+)" + r"#\d"),
    }


def test_no_text_is_tied_to_one_machine() -> None:
    patterns = forbidden_text()
    found = []
    for path in repository_files():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            found += [
                f"{where(path, number)}: {what}: {line.strip():.100}" for what, p in patterns.items() if p.search(line)
            ]
    assert found == []


def noqa_lines(path: Path) -> dict[int, str]:
    """Line -> its ``noqa`` comment."""
    with path.open("rb") as file:
        return {
            token.start[0]: token.string
            for token in tokenize.tokenize(file.readline)
            if token.type == tokenize.COMMENT and "noqa" in token.string
        }


def test_every_exemption_names_its_rule_and_its_reason() -> None:
    form = re.compile(r"# (?:ruff: )?noqa: [A-Z]+\d+(?:, ?[A-Z]+\d+)* - \S")
    found = [
        f"{where(path, number)}: {comment}"
        for path in library_files()
        for number, comment in noqa_lines(path).items()
        if not form.match(comment)
    ]
    assert found == [], "write `# noqa: RULE - reason`"


def test_library_code_does_not_print() -> None:
    found = []
    for path in library_files():
        exempt = noqa_lines(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found += [where(path, node.lineno)] if node.lineno not in exempt else []
    assert found == []


def is_broad(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(
        kind is None or (isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException")) for kind in kinds
    )


def test_broad_excepts_raise_again_or_say_why() -> None:
    found = []
    for path in library_files():
        exempt = noqa_lines(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and is_broad(node) and node.lineno not in exempt:
                raises = any(isinstance(inner, ast.Raise) for statement in node.body for inner in ast.walk(statement))
                found += [] if raises else [where(path, node.lineno)]
    assert found == []


def test_nothing_is_unpickled() -> None:
    modules = {"pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
    found = []
    for path in library_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
                safe = isinstance(node.value, ast.Constant) and node.value.value is (node.arg == "weights_only")
                names = [] if safe else ["pickle"]
            else:
                continue
            found += [where(path, node.lineno) for name in names if name.partition(".")[0] in modules]
    assert found == []


def lines_to_read(path: Path) -> int:
    """Lines of a module, without blank ones and without what stands there for the type checker only."""
    text = path.read_text()
    count = sum(1 for line in text.splitlines() if line.strip())
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            count -= (node.end_lineno or node.lineno) - node.lineno + 1
    return count


def test_modules_stay_small() -> None:
    too_long = {path.relative_to(ROOT).as_posix(): lines_to_read(path) for path in library_files()}
    assert {name: count for name, count in too_long.items() if count >= 400} == {}, (
        "one idea per module, under 400 lines"
    )
