"""A small paid run for tests: a workflow that asks a model, a provider that counts, and the command in a child."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

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


class Provider:
    """Answers by fixed rules. ``deadly`` is called with the count of requests so far, and says when to kill whom."""

    def __init__(self) -> None:
        self.bodies: list[str] = []
        self.kill_at: tuple[int, str] | None = None
        self.process: subprocess.Popen[str] | None = None
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
        return json.dumps(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [
                    {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
                ],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
            }
        ).encode()

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


def start(folder: Path, provider: Provider, *arguments: str, **more: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}
    environment |= {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": provider.url, "COLUMNS": "200", **more}
    provider.process = subprocess.Popen(
        [sys.executable, str(CHILD), *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return provider.process


def run(folder: Path, provider: Provider, *arguments: str, **more: str) -> tuple[int, str, str]:
    process = start(folder, provider, *arguments, **more)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def ledger(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(folder / "runs" / "ledger.sqlite")
