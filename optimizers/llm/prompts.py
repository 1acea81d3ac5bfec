"""Prompt templates: text files in a package's folder ``templates``, filled with ``$name`` fields."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from string import Template


@lru_cache(maxsize=64)
def _template(name: str, package: str) -> Template:
    return Template(files(package).joinpath("templates", f"{name}.md").read_text(encoding="utf-8"))


def fill(template: str, package: str = __package__, /, **fields: str) -> str:
    """The template of that name with its fields filled; lines that an empty field leaves empty are dropped."""
    empty = {key for key, value in fields.items() if not value.strip()}
    lines = [
        line
        for line in _template(template, package).template.splitlines()
        if not (line.startswith("$") and line[1:].strip() in empty)
    ]
    return Template("\n".join(lines)).substitute(fields).strip() + "\n"
