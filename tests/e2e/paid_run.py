"""A small paid run for tests: a workflow that asks a model, a provider that counts, and the command in a child."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from chat_answers import completion

CHILD = Path(__file__).with_name("ledger_child.py")
KEY = "sk-canary-77c1d0"
WORKFLOW = """
import trace_core as tc
from trace_core.nodes import LLMCall

WANTED = "Dear friend"

class Writer(tc.Module):
    def __init__(self):
        self.greeting = tc.node("Hi", trainable=True)
        self.llm = LLMCall("openai/test-model")

    def forward(self, name):
        return self.llm(self.greeting, name)

def metric(output, example):
    right = sum(a == b for a, b in zip(output, WANTED))
    return right / 20, f"{right} letters are right"
"""
#: What the "model" proposes, by the seed of the request: some better, some worse, one of no use.
PROPOSED = ["De", "No", "Dear", 7, "Dear f", "Dxxx", "Dear frie", "Dear friend", "Hi again"]


class Killable(Protocol):
    """A process under way."""

    def kill(self) -> None:
        """SIGKILL."""


class Provider:
    """Answers by fixed rules. ``deadly`` is called with the count of requests so far, and says when to kill whom."""

    def __init__(self) -> None:
        self.bodies: list[str] = []
        self.kill_at: tuple[int, str] | None = None
        self.process: Killable | None = None
        self.hold: Callable[[], None] | None = None
        self._lock = threading.Lock()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers["Content-Length"])).decode()
                with provider._lock:
                    provider.bodies.append(text)
                    moment = ""
                    if provider.kill_at is not None:
                        left, moment = provider.kill_at
                        provider.kill_at = (left - 1, moment) if left > 1 else None
                        moment = moment if left == 1 else ""
                if provider.hold is not None:
                    provider.hold()
                if moment == "before":
                    provider.kill()
                data = provider.answer(json.loads(text))
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                if moment == "middle":
                    provider.kill()
                self.wfile.write(data[len(data) // 2 :])
                self.wfile.flush()
                if moment == "after":
                    provider.kill()

            def handle(self) -> None:
                try:
                    super().handle()
                except ConnectionError:
                    return  # the client was killed, which is what this is about

            def log_message(self, *args: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()

    @staticmethod
    def answer(body: dict[str, Any]) -> bytes:
        system, user = (message["content"] for message in body["messages"][:2])
        if "response_format" in body:
            content = json.dumps({"reasoning": "r", "greeting": PROPOSED[body["seed"] % len(PROPOSED)]})
        else:
            content = f"{system} {user}"
        return completion(body["model"], content)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def make_project(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(WORKFLOW)
    names = ["Ann", "Ben", "Cem", "Dan", "Eva", "Fay", "Gus", "Hal"]
    (folder / "x.jsonl").write_text("".join(json.dumps({"name": name}) + "\n" for name in names))
    return folder


OPTIMIZE = [
    *("optimize", "mine:Writer", "--data", "x.jsonl", "--metric", "mine:metric", "--llm", "openai/test-model"),
    *("--steps", "7", "--batch-size", "2", "--proposals", "2", "--validation", "0.25", "--held-out", "0.25"),
    *("--out", "result"),
]


def environment(provider: Provider) -> dict[str, str]:
    """Of the command, with the provider's address and key."""
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    return kept | {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": provider.url, "COLUMNS": "200"}


def start(folder: Path, provider: Provider, *arguments: str, **more: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(CHILD), *arguments],
        cwd=folder,
        env=environment(provider) | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    provider.process = process
    return process


def run(folder: Path, provider: Provider, *arguments: str, **more: str) -> tuple[int, str, str]:
    process = start(folder, provider, *arguments, **more)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def ledger(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(folder / "runs" / "ledger.sqlite")


class Forked:
    """Runs the command in forked children of a process that has loaded it once: ten times faster than starting anew."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = subprocess.Popen(
            [sys.executable, str(CHILD), "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, folder: Path, provider: Provider, *arguments: str, **more: str) -> tuple[int, str, str]:
        """Exit code (that of a signal is negative), output and errors."""
        out, err = self._folder / "out", self._folder / "err"
        order = {"folder": str(folder), "environment": environment(provider) | more, "arguments": arguments}
        provider.process = _Child(int(self._say(json.dumps({**order, "out": str(out), "err": str(err)}))))
        return int(self._say("go")), out.read_text(), err.read_text()

    def _say(self, line: str) -> str:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(line + "\n")
        self._server.stdin.flush()
        return self._server.stdout.readline()

    def close(self) -> None:
        """End it."""
        self._server.communicate()


class _Child(NamedTuple):
    pid: int

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
