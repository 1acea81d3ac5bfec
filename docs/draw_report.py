"""Draws docs/report.png anew: a study with a scripted language model, its page, and a photograph of that in Chromium.

python docs/draw_report.py [COPY_OF_THE_PAGE]
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import trace_core as tc
from trace_core.integrations.budget import Budget
from trace_core.integrations.llm import ScriptedLLM
from trace_core.optimizers import OptoPrime, Search, Study
from trace_core.optimizers.live import StudyProgress

HERE = Path(__file__).parent
PARTS = {
    "billing": ("the refund", "my invoice", "the price", "a double charge", "the payment", "the receipt"),
    "technical": ("an error message", "the login", "a crash", "the update", "a frozen screen", "the password"),
    "shipping": (
        "my parcel",
        "the courier",
        "a late delivery",
        "the tracking number",
        "my address",
        "the pickup point",
    ),
}
ORDINARY = ("hello", "have", "question", "about", "again", "please", "help", "look", "into")
FRAMES = ("Hello, I have a question about {}.", "{} again, please help!", "Can you look into {} for me?", "Why {}?")


def messages(count: int, seed: int) -> list[dict[str, str]]:
    """Messages to a help desk with the department they belong to."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        label = rng.choice(list(PARTS))
        found.append({"text": rng.choice(FRAMES).format(rng.choice(PARTS[label])), "label": label})
    return found


class HelpDesk(tc.Module):
    """Sorts messages by rules that are written as text, one on each line."""

    def __init__(self) -> None:
        self.rules = tc.node("question: technical\nagain: billing", trainable=True, description="word: department")
        self.otherwise = tc.node("technical", trainable=True, description="where no rule fits")

    @tc.bundle
    def match(self, rules: str, text: str) -> list[str]:
        """The departments of the rules that fit."""
        pairs = [line.partition(":") for line in rules.splitlines()]
        return [label.strip() for word, _, label in pairs if word.strip() and word.strip() in text.lower()]

    @tc.bundle
    def choose(self, found: list[str], otherwise: str) -> str:
        """The last rule that fits wins."""
        return found[-1] if found else otherwise

    def forward(self, message: dict[str, str]) -> Any:
        return self.choose(self.match(self.rules, message["text"]), self.otherwise)


def metric(output: str, message: dict[str, str]) -> tuple[float, str]:
    """Right or wrong."""
    right = output == message["label"]
    return float(right), "right" if right else f"message <{message['text']}> is {message['label']}, not {output}"


def reply(conversation: Any) -> str:
    """Adds a rule for a message that was sorted wrongly, and picks the wrong word of it now and then."""
    prompt = conversation[-1]["content"]
    wrong = re.findall(r"message <(.*?)> is (\w+), not (\w+)", prompt)
    rules = re.findall(r'rules = """(.*?)"""', prompt, re.DOTALL)
    current = rules[-1] if rules else "question: technical\nagain: billing"
    rng = random.Random(prompt)
    if not wrong:
        return json.dumps({"reasoning": "nothing to do"})
    text, label, _ = rng.choice(wrong)
    words = [word for word in re.findall(r"[a-z]{4,}", text.lower()) if word not in ORDINARY or rng.random() < 0.2]
    word = rng.choice(words or ["hello"])
    otherwise = label if rng.random() < 0.15 else "technical"
    answer = {"reasoning": f"A message that has {word!r} in it belongs to {label}."}
    answer["rules"] = f"{current}\n{word}: {label}"
    return json.dumps(answer | {"otherwise": otherwise})


def study(store: Path) -> Study:
    """A study of the help desk that writes to ``store``."""
    desk, budget = HelpDesk(), Budget(metric_calls=1000)
    return Study(
        desk,
        metric,
        messages(40, 1),
        messages(30, 2),
        optimizer=OptoPrime(desk, ScriptedLLM(reply)),
        search=Search(in_flight=3, batch_size=4, perfect=None),
        budget=budget,
        seed=1,
        store=store,
        callbacks=[StudyProgress(budget=budget)],
    )


def main() -> None:
    """Run it, make the page with the command, photograph it."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from browser import browser

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study(folder / "ledger.sqlite").run()
        command = [sys.executable, "-m", "trace_core.cli", "report", "latest"]
        page = folder / "report.html"
        subprocess.run([*command, "--store", str(folder / "ledger.sqlite"), "-o", str(page)], check=True)
        if len(sys.argv) > 1:
            Path(sys.argv[1]).write_bytes(page.read_bytes())
        with browser(folder) as view:
            view.look(1060, 1240)
            view.open(page)
            view.photograph(HERE / "report.png", whole=False)


if __name__ == "__main__":
    main()
