"""In which language is a country called so? Marks that a language model names, weights that a numeric optimizer learns.

The data are the names of countries and regions in six languages as the Unicode CLDR has them, from the package Babel
(extra ``examples``). Names that two of the languages share are left out. Training, validation and held-out examples
have different countries, so what is learned must be the spelling of a language, not a list of names.

Each language has a list of ``marks``, letters and parts of words that speak for it; the lists are empty at first. The
tensor ``head`` says what each mark is worth for each language, on top of its one vote. A language model alone can only
name marks; a numeric optimizer alone has nothing to weigh.

Held-out accuracy of seeds 0, 1, 2 with qwen2.5-coder-1.5b, about four minutes a run on two CPU cores: the model alone
0.228, 0.238, 0.187; the weights alone 0.181, 0.152, 0.177; both 0.350, 0.337, 0.275. See docs/mixed.md.

    python -m trace_core.examples.country_names            # all three settings, three seeds
    python -m trace_core.examples.country_names --seeds 0 --settings both --log
"""

from __future__ import annotations

import random
import time
import zlib
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import trace_core as tc
from trace_core._lazy import require
from trace_core.optimizers import Mixed, OptoPrime, Part

if TYPE_CHECKING:
    from trace_core.integrations.llm import LLM
    from trace_core.node import Node
    from trace_core.optimizers.mixed import Event

LANGUAGES = {"de": "German", "fr": "French", "es": "Spanish", "fi": "Finnish", "pl": "Polish", "tr": "Turkish"}
LABELS = list(LANGUAGES.values())
BUCKETS = 1024
SIZES = (320, 200)
SETTINGS = ("llm", "numeric", "both")
OBJECTIVE = (
    "Tell in which language the name of a country is written: German, French, Spanish, Finnish, Polish or Turkish. "
    "Each language has a list of marks: special letters, endings and groups of letters that are typical of its "
    "spelling. All marks that are in a name vote for their language."
)
OPTIMIZER: dict[str, Any] = {
    "objective": OBJECTIVE,
    "focus": 1,
    "memory": 2,
    "examples": 4,
    "max_prompt_tokens": 1400,
    "max_answer_tokens": 160,
    "temperature": 0.8,
}


class MarksRule:
    """At most eight short marks; a language model is asked for four at least."""

    def check(self, value: Any) -> Any:
        """The value. Raises ParameterError if it is not allowed."""
        if (
            not isinstance(value, list)
            or len(value) > 8
            or not all(isinstance(m, str) and 0 < len(m) <= 6 for m in value)
        ):
            raise tc.ParameterError(f"expected {self.describe()}, got {value!r:.80}")
        return value

    def describe(self) -> str:
        """One line."""
        return "a list of up to 8 marks, each of 1 to 6 letters"

    def annotation(self) -> Any:
        """The type of the field a language model is asked for."""
        from pydantic import Field

        return Annotated[list[Annotated[str, Field(min_length=1, max_length=6)]], Field(min_length=4, max_length=8)]


class CountryNames(tc.Module):
    """Each mark that is in a name votes for its language, and counts what the head has learned of it."""

    def __init__(self) -> None:
        torch = require("torch", extra="torch")
        from trace_core.nodes.tensor import TensorParameter

        self.marks = {
            label: tc.Parameter(
                [], name=f"marks_{label}", constraint=MarksRule(), description=f"what is typical of {label}"
            )
            for label in LABELS
        }
        self.head = TensorParameter(torch.zeros(BUCKETS, len(LABELS)), name="head", description="weights of marks")

    def forward(self, text: str) -> Node:
        """The language."""
        language: Node = self.choose(self.votes(text))
        return language

    @tc.bundle
    def votes(self, text: str) -> list[str]:
        """The marks that are in the name, with their language."""
        name = f" {text.lower()} "
        return [f"{m} = {x}" for x in LABELS for m in dict.fromkeys(self.marks[x].value) if m.lower() in name]

    @tc.bundle
    def choose(self, votes: list[str]) -> str:
        """The language with the highest score."""
        return LABELS[int(self._scores(votes).argmax())]

    @tc.bundle
    def loss(self, votes: list[str], language: str) -> Any:
        """How far the scores by votes and weights are from the right language."""
        torch = require("torch", extra="torch")
        return torch.nn.functional.cross_entropy(self._scores(votes), torch.tensor(LABELS.index(language)))

    def _scores(self, votes: list[str]) -> Any:
        torch = require("torch", extra="torch")
        pairs = [vote.rpartition(" = ") for vote in votes]
        rows = sorted({_row(""), *(_row(mark) for mark, _, _ in pairs)})
        return self.head.value[rows].sum(0) + torch.tensor(
            [float(sum(said == x for _, _, said in pairs)) for x in LABELS]
        )


def _row(mark: str) -> int:
    """Its row in the head: marks are hashed, so there may be any; '' stands in every name."""
    return zlib.crc32(mark.encode()) % BUCKETS


def load(seed: int) -> tuple[list[Any], list[Any], list[Any]]:
    """Training, validation and held-out examples, drawn by ``seed``; no country is in two of them."""
    locales = [require("babel", extra="examples").Locale.parse(code) for code in LANGUAGES]
    countries = sorted(code for code in locales[0].territories if len(code) == 2 and code.isalpha())
    drawn = random.Random(seed)
    drawn.shuffle(countries)
    third = len(countries) // 3
    parts: list[list[Any]] = []
    for codes in (countries[:third], countries[third : 2 * third], countries[2 * third :]):
        examples = []
        for code in codes:
            names = [str(locale.territories.get(code, "")) for locale in locales]
            examples += [
                {"text": name, "language": label}
                for name, label in zip(names, LABELS, strict=True)
                if name and names.count(name) == 1
            ]
        drawn.shuffle(examples)
        parts.append(examples)
    return parts[0][: SIZES[0]], parts[1][: SIZES[1]], parts[2]


def accuracy(workflow: CountryNames, examples: list[Any]) -> float:
    """Share of the examples whose language is found."""
    with tc.no_trace():
        return sum(bool(workflow(e["text"]).value == e["language"]) for e in examples) / len(examples)


def make_optimizer(
    workflow: CountryNames, setting: str, llm: LLM | str, *, every: int, proposals: int, seed: int, **options: Any
) -> Mixed:
    """``llm`` finds the marks, ``numeric`` learns the head, ``both`` do both."""
    torch = require("torch", extra="torch")
    frozen: dict[str, list[tc.Parameter]] = {"llm": [workflow.head], "numeric": [*workflow.marks.values()], "both": []}
    return Mixed.by_kind(
        workflow,
        llm=Part(partial(OptoPrime, llm=llm, seed=seed, **{**OPTIMIZER, **options}), every=every, budget=proposals),
        tensor=partial(torch.optim.Adam, lr=0.05),
        frozen=frozen[setting],
    )


def train(
    workflow: CountryNames,
    optimizer: Mixed,
    examples: list[Any],
    validation: list[Any],
    *,
    steps: int,
    batch: int = 24,
    seed: int = 0,
) -> list[Event]:
    """The training loop: a minibatch, feedback on each output, one step."""
    drawn = random.Random(seed)
    for _ in range(steps):
        optimizer.zero_feedback()
        for example in drawn.sample(examples, batch):
            text, language = example["text"], example["language"]
            votes = workflow.votes(text)
            chosen = workflow.choose(votes).value
            said = f"{text}: {chosen}, {'right' if chosen == language else f'but it is {language}'}"
            optimizer.backward(workflow.loss(votes, language), (float(chosen == language), said))
        optimizer.step(lambda: accuracy(workflow, validation))
    return list(optimizer.log)


def run(
    setting: str, seed: int, llm: LLM | str, *, proposals: int = 12, every: int = 20, **options: Any
) -> tuple[float, list[Event], CountryNames]:
    """(held-out accuracy, what happened, what was learned) in a setting; ``options`` go to OptoPrime.

    ``every`` numeric steps come before the first proposal and after each, so that the last one is judged at the end.
    """
    workflow = CountryNames()
    examples, validation, held_out = load(seed)
    optimizer = make_optimizer(workflow, setting, llm, every=every, proposals=proposals, seed=100 * seed, **options)
    events = train(workflow, optimizer, examples, validation, steps=every * (proposals + 1), seed=seed)
    return accuracy(workflow, held_out), events, workflow


def main() -> None:
    """Print the held-out accuracy of each setting and seed."""
    import argparse

    from rich.console import Console
    from rich.table import Table

    from trace_core.integrations.llm import resolve_llm

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--llm", default="local", help="model, as everywhere in the library")
    parser.add_argument("--proposals", type=int, default=12, help="of the model, in each run")
    parser.add_argument("--every", type=int, default=20, help="numeric steps for each proposal of the model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--log", action="store_true", help="print what happened to each proposal")
    given = parser.parse_args()
    llm, console = resolve_llm(given.llm), Console()
    table = Table("seed", *given.settings, title="held-out accuracy", title_justify="left")
    for seed in given.seeds:
        row = []
        for setting in given.settings:
            began = time.monotonic()
            score, events, workflow = run(setting, seed, llm, proposals=given.proposals, every=given.every)
            row.append(f"{score:.3f}")
            console.print(f"seed {seed}, {setting}: {score:.3f} ({time.monotonic() - began:.0f} s)")
            for event in events if given.log else ():
                console.print(f"  step {event.step}: {event.part} {event.kind}: {event.reason}", markup=False)
            if given.log:
                console.print(f"  { {label: marks.value for label, marks in workflow.marks.items()} }", markup=False)
        table.add_row(str(seed), *row)
    console.print(table)


if __name__ == "__main__":
    main()
