"""A run that is killed goes on as if it had not been: real processes, a real HTTP server in place of the provider."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from trace_core.cli import main

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
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

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


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()
    yield made
    made.close()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path)


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


#: Everything but clocks, and how often a call was tried.
STATE = {
    "runs": "id, name, status, fingerprint, config, parent, stopped, error, best, score",
    "steps": 'step, score, "values", state',
    "candidates": 'id, step, parents, status, score, reason, detail, "values"',
    "evaluations": "candidate, example, sample, score, feedback, error",
    "events": "step, number, kind, data",
    "calls": "key, role, model, request_hash, state, usd, tokens, result, error",
    "responses": "key, value",
}


def end_state(folder: Path) -> dict[str, list[str]]:
    with ledger(folder) as connection:
        found = {t: sorted(map(str, connection.execute(f"SELECT {c} FROM {t}"))) for t, c in STATE.items()}
    files = {name: [(folder / "result" / name).read_text()] for name in ("best.json", "history.json")}
    return {k: [text.replace(str(folder), "FOLDER") for text in rows] for k, rows in (found | files).items()}


@pytest.mark.slow
def test_ten_kills_each_resumed_change_nothing_and_repeat_at_most_one_call_each(tmp_path: Path) -> None:
    whole, killed = make_project(tmp_path / "whole"), make_project(tmp_path / "killed")
    provider = Provider()
    try:
        code, _, err = run(whole, provider, *OPTIMIZE)
        assert code == 0, err
        paid = len(provider.bodies)
        assert paid > 40
        provider.bodies.clear()
        dice = random.Random(20)
        kinds = [*("before", "middle", "after", "before", "middle"), *("write",) * 5]
        dice.shuffle(kinds)
        for number, kind in enumerate(kinds):
            more = {}
            if kind == "write":
                more["KILL_AT"] = f"{dice.randint(5, 16)} {dice.choice(['before', 'after'])}"
            else:
                provider.kill_at = (dice.randint(1, 4), kind)
            code, out, err = run(killed, provider, *(OPTIMIZE if number == 0 else ["resume", "latest"]), **more)
            assert code == -signal.SIGKILL, (number, kind, out, err)
            with ledger(killed) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        code, out, err = run(killed, provider, "resume", "latest")
        assert code == 0, err
        with ledger(killed) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            lost = connection.execute("SELECT sum(lost), sum(tries) FROM calls").fetchone()
        assert end_state(killed) == end_state(whole)
        assert paid <= len(provider.bodies) <= paid + 10
        assert lost[1] == paid + lost[0]
        assert len(provider.bodies) <= lost[1]  # a kill between intent and request paid nothing
        assert KEY.encode() not in (killed / "runs" / "ledger.sqlite").read_bytes()
    finally:
        provider.close()


def test_a_polite_kill_marks_the_run_and_a_second_writer_is_refused(project: Path, provider: Provider) -> None:
    waiting, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        if len(provider.bodies) == 8:
            waiting.set()
            go_on.wait(60)

    provider.hold = hold
    process = start(project, provider, *OPTIMIZE)
    try:
        assert waiting.wait(60)
        code, _, err = run_beside(project, provider, *OPTIMIZE)
        assert code == 2
        assert f"being written to by process {process.pid}" in err
        assert "Traceback" not in err
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        go_on.set()
    assert process.returncode == 0, err
    assert "trace-core resume Writer-1" in out
    with ledger(project) as connection:
        assert connection.execute("SELECT status, stopped FROM runs").fetchall() == [("interrupted", "interrupted")]
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def run_beside(folder: Path, provider: Provider, *arguments: str) -> tuple[int, str, str]:
    first = provider.process
    try:
        return run(folder, provider, *arguments)
    finally:
        provider.process = first


def test_a_budget_drift_forks_and_the_commands_that_look(
    project: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, through the command's own entry point."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def command(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["trace-core", *arguments])
        sys.modules.pop("mine", None)
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return code, said.out + said.err

    code, out = command(*OPTIMIZE, "--dry-run")
    assert code == 0
    assert "at most" in out
    assert not provider.bodies
    assert not (project / "runs").exists()

    code, out = command(*OPTIMIZE, "--calls", "15")
    assert code == 0, out
    assert "budget" in out
    assert "15 of 15 calls spent" in out
    assert len(provider.bodies) == 15
    assert "trace-core resume Writer-1" in out

    (project / "mine.py").write_text(WORKFLOW + "\nMORE = 1\n")
    code, out = command("resume", "Writer", "--calls", "100")
    assert code == 2
    assert "code of the workflow" in out
    assert "fork" in out
    assert len(provider.bodies) == 15
    code, out = command("resume", "latest", "--calls", "100", "--steps", "3", "--on-drift", "fork")
    assert code == 0, out
    (project / "mine.py").write_text(WORKFLOW)

    code, out = command("runs")
    assert "Writer-1" in out
    assert "done (budget)" in out
    assert "Writer-2" in out
    code, out = command("runs", "--json")
    assert [json.loads(line)["parent"] for line in out.splitlines()] == [None, "Writer-1"]
    code, out = command("show", "Writer-2")
    assert "forked from Writer-1" in out
    assert "optimizer:" in out
    assert "* " in out
    code, out = command("best", "Writer-2")
    assert json.loads(out) == json.loads((project / "result" / "best.json").read_text())["values"]
    code, out = command("best", "Writer-2", "--diff")
    assert "-Hi" in out.replace("- Hi", "-Hi")
    code, out = command("export", "Writer-1", "--out", "all.jsonl")
    kinds = [json.loads(line)["kind"] for line in (project / "all.jsonl").read_text().splitlines()]
    assert {"run", "step", "candidate", "evaluation", "event", "call"} == set(kinds)
    assert kinds.count("call") == 15
    assert KEY not in (project / "all.jsonl").read_text()
    code, out = command("show", "nothing")
    assert code == 2
    assert "it has: Writer-1, Writer-2" in out
    code, out = command("runs", "--store", "nowhere.sqlite")
    assert code == 2
    assert "no ledger nowhere.sqlite" in out
