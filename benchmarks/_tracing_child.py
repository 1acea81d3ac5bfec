"""Child processes of benchmarks/tracing.py: one interpreter per side, asked for one workload at a time."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
from pathlib import Path
from typing import IO

from _tracing_common import Answer

HERE = Path(__file__).resolve().parent
NOT_INSTALLED = "not installed"


class SideError(RuntimeError):
    """A child could not give a figure; the text says why and is shown under the table."""


class Child:
    """One environment's interpreter, running its side of the workloads until closed."""

    def __init__(self, name: str, python: Path, script: str, imports: tuple[str, str], timeout: float) -> None:
        self.name = name
        self.python = python
        self.script = HERE / script
        self.imports = imports
        self.timeout = timeout
        self.about = NOT_INSTALLED
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None

    @property
    def installed(self) -> bool:
        return self.about != NOT_INSTALLED

    def ask(self, case: str, n: int = 0, *, fresh: bool = False, **more: object) -> Answer:
        """Run one workload. Raises SideError with the child's own words when it does not answer with a figure."""
        if fresh:
            self.close()
        process = self._process if self._process is not None else self._start()
        if process.stdin is None or process.stdout is None:
            raise SideError(f"{self.name}: the child has no pipes")
        try:
            process.stdin.write(json.dumps({"case": case, "n": n, **more}) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise SideError(f"{self.name}: {self._last_words()}") from None
        if not select.select([process.stdout], [], [], self.timeout)[0]:
            self.close(kill=True)
            raise SideError(f"{self.name}: {case} took longer than {self.timeout:.0f} s")
        line = process.stdout.readline()
        if not line:
            raise SideError(f"{self.name}: {self._last_words()}")
        answer: Answer = json.loads(line)
        if fresh:
            self.close()
        if "error" in answer:
            raise SideError(f"{self.name}: {case}: {answer['error']}")
        return answer

    def start_cost(self, code: str) -> float:
        """CPU seconds of a fresh interpreter that runs `code`, its own start included."""
        with tempfile.TemporaryDirectory() as folder:
            process = subprocess.Popen(
                [self.python, "-I", "-W", "ignore", "-c", code],
                cwd=folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            if process.stderr is None:
                raise SideError(f"{self.name}: the child has no pipes")
            words = process.stderr.read().strip()
            # wait4 gives this child's own CPU time, whatever other children are doing
            _pid, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            process.stderr.close()
        if process.returncode != 0:
            raise SideError(f"{self.name}: {code!r}: {_last_line(words)}")
        return usage.ru_utime + usage.ru_stime

    def close(self, *, kill: bool = False) -> None:
        process, self._process = self._process, None
        if process is not None:
            if kill:
                process.kill()
            process.communicate()  # closes stdin, which ends the child's loop
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def _start(self) -> subprocess.Popen[str]:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed in close()
        try:
            self._process = subprocess.Popen(
                [self.python, "-W", "ignore", self.script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                encoding="utf-8",
                env=_environment(),
            )
        except OSError as error:
            raise SideError(f"{self.name}: {error}") from None
        return self._process

    def _last_words(self) -> str:
        if self._process is not None:
            self._process.wait()
        words = ""
        if self._errors is not None:
            self._errors.seek(0)
            words = self._errors.read()
        self.close()
        return f"the child ended: {_last_line(words)}"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1][:300]


def _environment() -> dict[str, str]:
    """This process's environment without what would point a child at other packages; no network for price lists."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k != "VIRTUAL_ENV"}
    return {**kept, "PYTHONHASHSEED": "0", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
