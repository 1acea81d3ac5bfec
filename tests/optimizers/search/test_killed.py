"""kill -9 of a real process at any write, with a real server in place of the provider: nothing changes."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from chat_answers import completion, send

CHILD = Path(__file__).with_name("study_child.py")
STATE = {
    "runs": "id, status, stopped, error, best, score",
    "steps": 'step, score, "values", state',
    "candidates": 'id, step, parents, status, score, reason, detail, "values"',
    "evaluations": "candidate, example, sample, score, feedback, error",
    "events": "step, number, kind, data",
    "calls": "key, role, model, request_hash, state, usd, tokens, result, error",
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    requests = 0

    def do_POST(self) -> None:
        Handler.requests += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = zlib.crc32(repr([m["content"] for m in body["messages"]]).encode()) % 1_000_000
        content = json.dumps({"reasoning": "r", "odd": None, "even": None} | {"odd" if number % 3 else "even": number})
        send(self, completion(body["model"], content))

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            return  # the client was killed, which is what this is about

    def log_message(self, *args: Any) -> None:
        return


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def child(place: Path, url: str, **more: str) -> tuple[int, str]:
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_API_KEY")}
    environment |= {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": url, **more}
    found = subprocess.run(
        [sys.executable, str(CHILD), str(place)], env=environment, capture_output=True, text=True, timeout=120
    )
    return found.returncode, found.stdout + found.stderr


def end_state(place: Path) -> dict[str, list[str]]:
    with sqlite3.connect(place) as connection:
        return {t: sorted(map(str, connection.execute(f"SELECT {c} FROM {t}"))) for t, c in STATE.items()}


@pytest.mark.slow
def test_kills_that_are_each_resumed_change_nothing_and_little_is_asked_for_twice(tmp_path: Path, url: str) -> None:
    code, said = child(tmp_path / "whole", url)
    assert code == 0, said
    wanted, asked = end_state(tmp_path / "whole"), Handler.requests
    chance, kills = random.Random(4), 0
    while True:
        at = f"{chance.randint(4, 90)} {chance.choice(['before', 'after'])}"
        code, said = child(tmp_path / "killed", url, **({"KILL_AT": at} if kills < 4 else {}))
        if code == 0:
            break
        assert code == -9, said
        kills += 1
    assert kills >= 2
    assert end_state(tmp_path / "killed") == wanted
    assert Handler.requests - asked <= asked + 3 * kills  # what was in flight at a kill
