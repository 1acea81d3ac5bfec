"""What a run ran, part by part, as short hashes: so that a resumed run notices what has changed."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_core._codec import encode
from trace_core._version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable


def digest(data: Any) -> str:
    """A short hash of plain data, the same in every process."""
    text = data if isinstance(data, str) else json.dumps(data, sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def code_of(thing: Any) -> str:
    """A hash of the code that ``thing`` (function, class, instance, bundle, module) was made from.

    The whole file it comes from where there is one: helpers beside it count. Else its own source; for what has no
    source, its type and name.
    """
    while (inner := getattr(thing, "target", getattr(thing, "fn", None))) is not None:
        thing = inner
    code = inspect.unwrap(thing) if inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)
    try:
        file = inspect.getsourcefile(code)
        if file is not None and Path(file).is_file():
            return digest(Path(file).read_text(encoding="utf-8"))
        return digest(inspect.getsource(code))
    except (TypeError, OSError):
        return digest(f"{code.__module__}.{getattr(code, '__qualname__', code)}")


def fingerprint(*, code: dict[str, Any], data: dict[str, Iterable[Any]], config: dict[str, Any]) -> dict[str, str]:
    """Part -> hash or version.

    Args:
        code: name -> workflow, metric ...
        data: name -> examples.
        config: name -> setting that decides what happens; shown as it is where it is short.
    """
    parts = {f"code of the {name}": code_of(thing) for name, thing in code.items()}
    parts |= {f"{name} examples": digest(encode(list(examples))) for name, examples in data.items()}
    for name, setting in config.items():
        text = json.dumps(setting, sort_keys=True, default=repr)
        parts[name] = text if len(text) <= 40 else digest(text)
    major, minor, _ = platform.python_version_tuple()
    return parts | {"trace_core": __version__, "python": f"{major}.{minor}"}
