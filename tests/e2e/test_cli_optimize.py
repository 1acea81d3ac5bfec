"""`trace-core optimize` as a user runs it: a child process, a real HTTP server in place of the provider."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from chat_answers import completion, send

from trace_core.cli import main
from trace_core.examples import review_ratings
from trace_core.integrations.llm import RetryPolicy, gateway

WORKFLOW = '''
import trace_core as tc

class Greeter(tc.Module):
    def __init__(self):
        self.greeting = tc.node("Hi", trainable=True, description="how to begin")

    @tc.bundle
    def greet(self, name):
        """Greet somebody by name."""
        return f"{self.greeting} {name}"

    def forward(self, name):
        return self.greet(name)

no_parameters = tc.bundle(lambda name: name)
number = 3

def politeness(output, example):
    score = 1.0 if output.startswith("Dear") else 0.0
    return score, "good" if score else "the greeting should be formal"

def nothing(output, example):
    return None

def nan(output, example):
    return float("nan")
'''
KEY = "sk-canary-5f2c9a"


class Provider:
    """Speaks just enough of the chat completions protocol; ``reply`` makes the content from the request."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.answers: list[str] = []
        self.answer: Callable[[dict[str, Any]], str] | None = None  # instead of the list
        self.status = 200
        self.hold: threading.Event | None = None
        self.waiting = threading.Event()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                provider.requests.append(body)
                if provider.hold is not None:
                    provider.waiting.set()
                    provider.hold.wait(60)
                if provider.answer is not None:
                    content = provider.answer(body)
                else:
                    content = provider.answers[min(len(provider.requests), len(provider.answers)) - 1]
                data = completion(body["model"], content)
                if provider.status != 200:
                    data = json.dumps({"error": {"message": f"no, and your key is {KEY}"}}).encode()
                send(self, data, provider.status)

            def log_message(self, *args: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()
    made.answers = [json.dumps({"reasoning": "be formal", "greeting": "Dear"})]
    yield made
    if made.hold is not None:
        made.hold.set()
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(WORKFLOW)
    names = ["Ann", "Ben", "Cem", "Dan", "Eva", "Fay", "Gus", "Hal", "Ida", "Jo"]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"name": name}) + "\n" for name in names))
    return tmp_path


def environment(provider: Provider | None) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}
    if provider is not None:
        kept |= {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": provider.url}
    return kept | {"COLUMNS": "200"}


def command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("trace-core")), *arguments]


def run(project: Path, provider: Provider | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=project, env=environment(provider), capture_output=True, text=True, timeout=120
    )


ORDINARY = (
    "optimize",
    "mine:Greeter",
    "--data",
    "x.jsonl",
    "--metric",
    "mine:politeness",
    "--llm",
    "openai/test-model",
)


def replaced(**changes: str) -> list[str]:
    arguments = list(ORDINARY)
    for option, value in changes.items():
        if option == "workflow":
            arguments[1] = value
        else:
            arguments[arguments.index(f"--{option}") + 1] = value
    return arguments


def test_a_users_own_workflow_is_optimized(project: Path, provider: Provider) -> None:
    done = run(project, provider, *ORDINARY, "--steps", "3", "--out", "result")
    assert done.returncode == 0, done.stderr
    state = json.loads((project / "result" / "best.json").read_text())
    assert state["values"] == {"greeting": "Dear"}
    assert "held-out" in done.stdout
    assert "+1.000" in done.stdout
    assert "- Hi" in done.stdout.replace("-Hi", "- Hi")
    page = (project / "result" / "report.html").read_text()
    assert "<svg" in page
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")
    everything = done.stdout + done.stderr + page + (project / "result" / "history.json").read_text()
    assert KEY not in everything


def test_workflow_and_metric_may_be_given_by_file(project: Path, provider: Provider) -> None:
    done = run(project, provider, *replaced(workflow="mine.py:Greeter", metric="mine.py:politeness"), "--steps", "1")
    assert done.returncode == 0, done.stderr
    assert list((project / "runs").iterdir())


def test_examples_run_in_other_processes(project: Path, provider: Provider) -> None:
    done = run(project, provider, *ORDINARY, "--steps", "2", "--out", "a", "--engine", "processes", "--timeout", "60")
    assert done.returncode == 0, done.stderr
    assert json.loads((project / "a" / "best.json").read_text())["values"] == {"greeting": "Dear"}
    assert "+1.000" in done.stdout


def test_a_run_that_is_killed_leaves_the_best_so_far(project: Path, provider: Provider) -> None:
    second = threading.Event()

    def reply(body: dict[str, Any]) -> str:
        if len(provider.requests) > 1:
            second.set()
            threading.Event().wait(30)
        return provider.answers[0]

    provider.answer = reply
    (project / "mine.py").write_text(
        (project / "mine.py").read_text()
        + "\n\ndef halved(output, example):\n    return politeness(output, example)[0] / 2, 'more formal'\n"
    )
    process = subprocess.Popen(
        command(*replaced(metric="mine:halved"), "--steps", "3", "--out", "result"),
        cwd=project,
        env=environment(provider),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert second.wait(60)
    process.kill()
    process.wait(10)
    assert json.loads((project / "result" / "best.json").read_text())["values"] == {"greeting": "Dear"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workflow": "nowhere:Greeter"}, "no module named 'nowhere'"),
        ({"workflow": "mine:Missing"}, "'mine' has no 'Missing'"),
        ({"workflow": "mine"}, "module:name"),
        ({"workflow": "mine:number"}, "must be callable"),
        ({"workflow": "mine:no_parameters"}, "no parameters"),
        ({"metric": "mine:number"}, "must be a function"),
        ({"metric": "mine:nothing"}, "finite score"),
        ({"metric": "mine:nan"}, "finite"),
        ({"data": "absent.jsonl"}, "no such file"),
        ({"llm": "unheard-of"}, "unheard-of"),
    ],
)
def test_wrong_input_is_one_clear_message_and_exit_code_2(
    project: Path, provider: Provider, changes: dict[str, str], message: str
) -> None:
    done = run(project, provider, *replaced(**changes))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not provider.requests


def test_a_folder_that_cannot_be_made_is_named(project: Path, provider: Provider) -> None:
    (project / "file").write_text("")
    done = run(project, provider, *ORDINARY, "--out", "file/result")
    assert done.returncode == 2
    assert "file/result" in done.stderr
    assert "--out" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_line_is_named(project: Path, provider: Provider) -> None:
    lines = [json.dumps({"name": str(i)}) for i in range(20)]
    lines[16] = '{"name": '
    (project / "x.jsonl").write_text("\n".join(lines))
    done = run(project, provider, *ORDINARY)
    assert done.returncode == 2
    assert "line 17" in done.stderr


def test_a_missing_field_is_named(project: Path, provider: Provider) -> None:
    lines = [json.dumps({"name": str(i)}) for i in range(20)]
    lines[7] = '{"nome": "x"}'
    (project / "x.jsonl").write_text("\n".join(lines))
    done = run(project, provider, *ORDINARY)
    assert done.returncode == 2
    assert "example 8 has no field name, which the workflow needs; it has: nome" in done.stderr
    assert not provider.requests
    (project / "x.jsonl").write_text('{"nome": "x"}\n' * 20)
    done = run(project, provider, *ORDINARY, "--steps", "1")
    assert "each example is passed as a whole" in done.stdout


def test_a_metric_that_fails_later_loses_nothing(project: Path, provider: Provider) -> None:
    """It failed on an example: that scores as a failure, and the run goes on and says how often."""
    code = (project / "mine.py").read_text()
    code += """
seen = []

def failing_later(output, example):
    seen.append(output)
    if len(seen) > 14 and output.startswith("Dear"):
        return example["nowhere"]
    return politeness(output, example)[0] / 2, "more formal"
"""
    (project / "mine.py").write_text(code)
    done = run(project, provider, *replaced(metric="mine:failing_later"), "--steps", "9", "--out", "result")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d outputs failed: .*KeyError: 'nowhere'", done.stdout)
    assert "Traceback" not in done.stdout + done.stderr
    assert json.loads((project / "result" / "best.json").read_text())["values"] == {"greeting": "Dear"}
    assert (project / "result" / "report.html").exists()


def test_a_workflow_that_raises_is_one_message(project: Path, provider: Provider) -> None:
    code = (project / "mine.py").read_text()
    (project / "mine.py").write_text(code + "\ndef broken(name):\n    return name.missing\n")
    done = run(project, provider, *replaced(workflow="mine:broken"))
    assert done.returncode == 2
    assert "AttributeError" in done.stderr
    assert "-->   2 |     return name.missing" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_key_is_named(project: Path) -> None:
    done = run(project, None, *ORDINARY)
    assert done.returncode == 2
    assert "OPENAI_API_KEY" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_refused_key_ends_the_run_at_the_first_call(project: Path, provider: Provider) -> None:
    provider.status = 401
    done = run(project, provider, *ORDINARY, "--steps", "9", "--out", "result")
    assert done.returncode == 2
    assert "the key was refused" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(provider.requests) == 1
    assert json.loads((project / "result" / "best.json").read_text())["values"] == {"greeting": "Hi"}
    kept = "".join(path.read_text() for path in (project / "result").iterdir() if path.suffix in (".json", ".html"))
    assert KEY not in done.stdout + done.stderr + kept


def test_a_provider_that_is_not_there_ends_the_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not with empty proposals and exit code 0. In this process, so that the retries need not wait."""

    async def at_once(seconds: float) -> None:
        return

    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setattr(gateway, "RetryPolicy", lambda: RetryPolicy(sleep=at_once))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
    monkeypatch.chdir(project)
    arguments = replaced(workflow="mine.py:Greeter", metric="mine.py:politeness")
    monkeypatch.setattr(sys, "argv", ["trace-core", *arguments, "--steps", "9", "--out", "result"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "3 times in a row" in said
    assert "connection failed" in said
    assert json.loads((project / "result" / "best.json").read_text())["values"] == {"greeting": "Hi"}


def test_ctrl_c_ends_with_the_best_so_far(project: Path, provider: Provider) -> None:
    provider.hold = threading.Event()
    process = subprocess.Popen(
        command(*ORDINARY, "--steps", "3", "--out", "result"),
        cwd=project,
        env=environment(provider),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert provider.waiting.wait(60)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "interrupted" in out
    assert json.loads((project / "result" / "best.json").read_text())["values"] == {"greeting": "Hi"}


def test_the_demo_with_a_providers_key(tmp_path: Path, provider: Provider) -> None:
    """The demo's own workflow and data; the provider plays both roles by simple rules."""
    code = (
        "def read_polarity(self, reply):\n    reply = reply.lower()\n"
        "    return 1 if 'positive' in reply else -1 if 'negative' in reply else 0\n"
    )

    ratings = {example["text"]: example["rating"] for part in review_ratings.load(1) for example in part}

    def answer(body: dict[str, Any]) -> str:
        prompt = body["messages"][-1]["content"]
        if "read_polarity" in prompt:
            return json.dumps({"reasoning": "r", "prompt": None, "strength": 1.7, "read_polarity": code})
        return "Negative." if ratings[prompt] < 0 else "Positive."

    provider.answer = answer
    done = run(tmp_path, provider, "demo", "--seed", "1", "--steps", "2", "--out", "result")
    assert done.returncode == 0, done.stderr
    before, after = (
        float(line.split()[position])
        for line in done.stdout.splitlines()
        if "held-out" in line and "│" in line
        for position in (3, 5)
    )
    assert after > before
    assert "read_polarity:" in done.stdout
    assert (tmp_path / "result" / "report.html").exists()
    assert KEY not in done.stdout + done.stderr + (tmp_path / "result" / "report.html").read_text()


def test_version_and_help() -> None:
    done = subprocess.run(command("--version"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "trace-core" in done.stdout
    assert "optimize" in subprocess.run(command("--help"), capture_output=True, text=True, timeout=60).stdout
