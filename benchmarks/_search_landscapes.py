"""Tasks whose best values are known: texts that must hold rules, and code that must know words.

A workflow sends an example through some of its components, one after the other. Every landscape exists twice, with the
same functions underneath: as a Module, and as ``ran``, for searches that know no traces. The metric is told what is
missing, and not where it belongs; ``true`` is the score without noise.
"""

from __future__ import annotations

import math
import random
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import trace_core as tc

RULE = re.compile(r"rule-\w+")


class Task(NamedTuple):
    """An example: the components that it goes through, what it needs of one of them, and how it reads."""

    name: str
    path: tuple[str, ...]
    place: str
    needs: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.text}".strip()


class Ran(NamedTuple):
    """A run without a trace: output, the components that were called, and the error if there was one."""

    output: str
    called: tuple[str, ...]
    error: str | None = None


@dataclass(frozen=True)
class Landscape:
    """A task for searches.

    Attributes:
        name, about: for the table.
        seeds: component -> its first value.
        train, validation: examples.
        calls: metric calls that a search may make.
        noise: standard deviation of what is added to scores.
        trap: a rule that serves every example a little, and hides all others.
        sloppy: share of the answers of the model that lose a rule.
        window: characters that the model can read; None for all.
        judged: feedback on a score below 1 as the judge words it, from its plain form.
        code: whether the components are code.
    """

    name: str
    about: str
    seeds: Mapping[str, str]
    train: Sequence[Task]
    validation: Sequence[Task]
    calls: int
    noise: float = 0.0
    trap: str = ""
    sloppy: float = 0.0
    window: int | None = None
    judged: Callable[[str], str] = field(default=lambda said: said)
    code: bool = False

    def step(self, component: str, value: str, before: str, task: Task) -> str:
        """What one component makes of an example. Code may raise."""
        if not self.code:
            return followed(component, value, before)
        scope: dict[str, Any] = {}
        exec(value, scope)  # noqa: S102 - the benchmark's own code, changed by the benchmark's own model
        return str(scope[component](before, task.needs))

    def score(self, output: str, task: Task) -> tuple[float, str]:
        """(score, feedback) of an output, without noise."""
        if self.code:
            return 1.0, "right"
        found = output.split()
        wanted = {f"{t.place}:{t.needs}" for t in self.validation}
        if self.trap and f"{self.validation[0].path[0]}:{self.trap}" in found:
            where = f"{task.path[0]}:{self.trap}"
            return 0.6, self.judged(f"too general, useless: {where}, missing: {task.needs}")
        useless = [one for one in dict.fromkeys(found) if one not in wanted]
        has = f"{task.place}:{task.needs}" in found
        said = [f"useless: {one}" for one in useless]
        if not has:
            said.append(f"missing: {task.needs}" + (f" or {self.trap}" if self.trap else ""))
        score = max(0.0, float(has) - 0.05 * len(useless))
        return score, self.judged(", ".join(said)) if said else "right"

    def ran(self, values: Mapping[str, str], task: Task) -> Ran:
        """A run without a trace."""
        state = ""
        for number, component in enumerate(task.path):
            try:
                state = self.step(component, values[component], state, task)
            except Exception as error:  # noqa: BLE001 - proposed code may raise anything
                return Ran("", task.path[: number + 1], f"(in {component}) {type(error).__name__}: {error}")
        return Ran(state, task.path)

    def true(self, values: Mapping[str, str]) -> float:
        """The mean on all validation examples, without noise. The best is 1."""
        found = [(self.ran(values, task), task) for task in self.validation]
        return math.fsum(0.0 if ran.error else self.score(ran.output, task)[0] for ran, task in found) / len(found)

    def metric(self, seed: int) -> Callable[[str, Task], tuple[float, str]]:
        """The metric of one search: its noise differs from call to call."""
        rng = random.Random(f"{self.name}/{seed}/noise")

        def measured(output: str, task: Task) -> tuple[float, str]:
            score, said = self.score(output, task)
            return score + rng.gauss(0, self.noise) if self.noise else score, said

        return measured

    def workflow(self) -> tc.Module:
        """The components as parameters."""
        return CodeWorkflow(self) if self.code else TextWorkflow(self)


def followed(component: str, text: str, before: str) -> str:
    """What came before, and the rules of a text."""
    return " ".join(part for part in (before, *(f"{component}:{rule}" for rule in rules(text))) if part)


@tc.bundle
def follow(component: str, text: str, before: str, request: str) -> str:
    """Works on a request by the rules of a text."""
    return followed(component, text, before)


class TextWorkflow(tc.Module):
    """Texts with rules, one after the other on an example's path."""

    def __init__(self, landscape: Landscape) -> None:
        for name, seed in landscape.seeds.items():
            setattr(self, name, tc.node(seed, trainable=True, name=name))

    def forward(self, task: Task) -> Any:
        state: Any = ""
        for component in task.path:
            state = follow(component, getattr(self, component), state, str(task))
        return state


class CodeWorkflow(tc.Module):
    """Functions that call each other's results on; each may not know a word."""

    def __init__(self, landscape: Landscape) -> None:
        for name, source in landscape.seeds.items():
            scope: dict[str, Any] = {}
            exec(source, scope)  # noqa: S102 - the benchmark's own code
            setattr(self, name, tc.bundle(scope[name], trainable=True, source=source, isolation="inline"))

    def forward(self, task: Task) -> Any:
        state: Any = ""
        for component in task.path:
            state = getattr(self, component)(state, task.needs)
        return state


def rules(text: str) -> list[str]:
    """Of a text, in order."""
    return list(dict.fromkeys(RULE.findall(text)))


# ---- the landscapes

PLAIN = "Do what is asked."


def first_texts(names: Sequence[str], rule: str) -> dict[str, str]:
    """Texts without rules but for one: gepa's merge raises an error where an ancestor scores 0."""
    return {**dict.fromkeys(names, PLAIN), names[0]: f"{PLAIN}\n- {rule}"}


def branches(tools: int = 8, each: int = 3, **more: Any) -> Landscape:
    """Every example takes one branch, and its tool lacks the rule: the path says who is to blame."""
    names = [f"tool{i}" for i in range(tools)]
    kinds = [(name, f"rule-{name[4:]}{letter}") for name in names for letter in "abcdefgh"[:each]]
    settings: dict[str, Any] = {
        "name": "branches",
        "about": f"{tools} texts, one on each path",
        "calls": 400,
        **more,
    }
    return Landscape(
        seeds=first_texts(names, kinds[0][1]),
        train=[Task(f"{rule[5:]}, case {n}", (tool,), tool, rule) for n in range(2) for tool, rule in kinds],
        validation=[Task(f"{rule[5:]}, case 9", (tool,), tool, rule) for tool, rule in kinds],
        **settings,
    )


def crossing(parts: int = 6, on_path: int = 3, each: int = 3) -> Landscape:
    """Examples share components in all combinations: only several traces together say who is to blame."""
    rng = random.Random("crossing")
    names = [f"part{i}" for i in range(parts)]

    def task(place: str, rule: str, case: int) -> Task:
        others = rng.sample([name for name in names if name != place], on_path - 1)
        return Task(f"{rule[5:]}, case {case}", tuple(sorted([place, *others])), place, rule)

    kinds = [(name, f"rule-{name[4:]}{letter}") for name in names for letter in "abcdefgh"[:each]]
    return Landscape(
        name="crossing",
        about=f"{parts} texts, {on_path} on each path",
        seeds=first_texts(names, shuffled(kinds[0][1])),
        train=[task(place, shuffled(rule), n) for n in range(3) for place, rule in kinds],
        validation=[task(place, shuffled(rule), 9) for place, rule in kinds],
        calls=400,
    )


def trap(classes: int = 4, each: int = 2) -> Landscape:
    """One rule gives 0.6 everywhere and hides the others: the best on average is a dead end, specialists are not."""
    names = [f"class{i}" for i in range(classes)]
    kinds = [(name, f"rule-{name[5:]}{letter}") for name in names for letter in "abcdefgh"[:each]]

    def tasks(cases: Sequence[int]) -> list[Task]:
        return [Task(f"{rule[5:]}, case {n}", ("general", name), name, rule) for n in cases for name, rule in kinds]

    return Landscape(
        name="trap",
        about="a shortcut worth 0.6 hides the rest",
        seeds={"general": PLAIN, **first_texts(names, kinds[0][1])},
        train=tasks(range(3)),
        validation=tasks((8, 9)),
        calls=500,
        trap="rule-shortcut",
    )


WORDS = {
    "read": "metre mile yard inch foot league",
    "convert": "acre pint gallon ounce stone barrel",
    "label": "knot carat bushel fathom chain furlong",
}
WORLD = {word: len(word) + number for number, word in enumerate(["rod", *" ".join(WORDS.values()).split()])}
"""What the model knows; the first values of a step lack a third of it."""

STEP = '''def {name}(before: str, word: str) -> str:
    """One step."""
    table = {table}
    return f"{{before}} {{table[word]}}"
'''


def errors() -> Landscape:
    """Three functions, each of which raises KeyError for words that it does not know; all are on every path."""
    seeds = {}
    for name, lacking in WORDS.items():
        known = {word: value for word, value in WORLD.items() if word not in lacking.split()}
        seeds[name] = STEP.format(name=name, table=known)
    return Landscape(
        name="errors",
        about="3 functions that raise",
        seeds=seeds,
        train=[Task(f"{word}, case {n}", tuple(WORDS), "", word) for n in range(2) for word in WORLD],
        validation=[Task(f"{word}, case 9", tuple(WORDS), "", word) for word in WORLD],
        calls=300,
        code=True,
    )


def noisy() -> Landscape:
    """Scores with noise, and a model that now and then loses a rule: not all that looks better is."""
    return branches(
        4, 3, name="noise", about="4 texts, scores with a deviation of 0.3", calls=600, noise=0.3, sloppy=0.33
    )


def long_prompt(kept: int = 40, missing: int = 12) -> Landscape:
    """A text of many rules that must all survive, long inputs, and feedback that buries what matters."""
    filler = "The customer wrote at length about matters that have no bearing on the case at hand. "
    have = [f"rule-h{i}" for i in range(kept)]
    lack = [f"rule-n{i}" for i in range(missing)]
    handbook = "Keep to the handbook.\n" + "\n".join(
        f"- {rule}: paragraph {i} holds for all cases of its kind, whatever the customer says of it."
        for i, rule in enumerate(have)
    )

    def task(rule: str, case: int) -> Task:
        return Task(f"{rule[5:]}, case {case}", ("handbook",), "handbook", rule, filler * 140)

    def judged(said: str) -> str:
        talk = "The judge looked at form and tone and found nothing to say against them. " * 8
        return f"{talk}{said}. {talk}"

    some = have[:: max(1, kept // missing)][:missing]
    return Landscape(
        name="long",
        about=f"a text of {len(handbook)} characters, inputs of {len(filler) * 140}",
        seeds={"handbook": handbook},
        train=[task(rule, n) for n in range(2) for rule in (*lack, *some)],
        validation=[task(rule, 9) for rule in (*lack, *have)],
        calls=600,
        window=24_000,
        judged=judged,
    )


def shuffled(rule: str) -> str:
    """A name that does not give the component away."""
    return f"rule-{zlib.crc32(rule.encode()) % 10_000:04d}"


LANDSCAPES: dict[str, Callable[[], Landscape]] = {
    "branches": branches,
    "crossing": crossing,
    "trap": trap,
    "errors": errors,
    "noise": noisy,
    "long": long_prompt,
}
