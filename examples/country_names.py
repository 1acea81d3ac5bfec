"""In which language is a country called so? Code that a language model writes, weights that a numeric optimizer learns.

The data are the names of countries and regions in six languages as the Unicode CLDR has them, from the package Babel
(extra ``examples``). Names that two of the languages share are left out. Training, validation and held-out examples
have different countries, so what is learned must be the spelling of a language, not a list of names.

Two functions are code parameters: ``features`` finds marks in the spelling, ``rule`` guesses a language from it. A
tensor, ``head``, weighs each word and each mark for each language. A language model alone can only write the rule; a
numeric optimizer alone can only weigh whole words and the two marks that are there at first.

    python -m trace_core.examples.country_names            # all three settings, three seeds
    python -m trace_core.examples.country_names --seeds 0 --settings both --log
"""

from __future__ import annotations

import random
import time
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any

import trace_core as tc
from trace_core._lazy import require
from trace_core.optimizers import Mixed, OptoPrime, Part

if TYPE_CHECKING:
    from trace_core.integrations.llm import LLM
    from trace_core.node import Node
    from trace_core.optimizers.mixed import Event

LANGUAGES = {"de": "German", "fr": "French", "es": "Spanish", "fi": "Finnish", "pl": "Polish", "tr": "Turkish"}
LABELS = list(LANGUAGES.values())
BUCKETS = 4096
SIZES = (320, 200)
SETTINGS = ("llm", "numeric", "both")
OBJECTIVE = (
    "Tell in which language the name of a country is written: German, French, Spanish, Finnish, Polish or Turkish. "
    "features(text) finds marks in the spelling, whose weights are learned. rule(text) gives the language if the "
    "spelling shows it, else ''. Both need many more marks, for all six languages."
)
OPTIMIZER: dict[str, Any] = {
    "objective": OBJECTIVE,
    "focus": 1,
    "memory": 2,
    "examples": 3,
    "max_prompt_tokens": 800,
    "max_answer_tokens": 200,
    "temperature": 0.8,
    "long_code": 0,
}


def features(text: str) -> list[str]:
    """The marks in the spelling of a name: letters and endings that tell the languages apart."""
    marks = ["ß", "land"]
    return [mark for mark in marks if mark in text.lower()]


def rule(text: str) -> str:
    """The language whose mark is in the name, or ''."""
    marks = {"ß": "German"}
    for mark, language in marks.items():
        if mark in text.lower():
            return language
    return ""


class CountryNames(tc.Module):
    """One score for each language: 3 for what the rule says, and the weights of the rule's guess and of the marks."""

    def __init__(self) -> None:
        torch = require("torch", extra="torch")
        from trace_core.nodes.tensor import TensorParameter

        self.features = tc.bundle(trainable=True)(features)
        self.rule = tc.bundle(trainable=True)(rule)
        self.head = TensorParameter(torch.zeros(BUCKETS, len(LABELS)), name="head", description="weights of pieces")

    def forward(self, text: str) -> Node:
        """The language."""
        language: Node = self.choose(self.features(text), self.rule(text))
        return language

    @tc.bundle
    def choose(self, marks: Any, guess: Any) -> str:
        """The language with the highest score."""
        return LABELS[int(self._scores(marks, guess).argmax())]

    @tc.bundle
    def loss(self, marks: Any, guess: Any, language: str) -> Any:
        """How far the scores by marks and by the rule's guess are from the right language."""
        torch = require("torch", extra="torch")
        return torch.nn.functional.cross_entropy(self._scores(marks, guess), torch.tensor(LABELS.index(language)))

    def _scores(self, marks: Any, guess: Any) -> Any:
        torch = require("torch", extra="torch")
        rows = [_row("name"), _row(f"rule {guess}"), *{_row(f"mark {mark}") for mark in marks}]
        return self.head.value[rows].sum(0) + 3.0 * torch.tensor([float(label == guess) for label in LABELS])


def _row(piece: str) -> int:
    """Its row in the head: pieces are hashed, so there may be any."""
    return zlib.crc32(piece.encode()) % BUCKETS


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
    """``llm`` writes the rule, ``numeric`` learns the head, ``both`` do that and write the features."""
    torch = require("torch", extra="torch")
    code, rules, head = workflow.features.code, workflow.rule.code, workflow.head
    frozen: dict[str, list[tc.Parameter]] = {"llm": [code, head], "numeric": [code, rules], "both": []}
    return Mixed.by_kind(
        workflow,
        llm=Part(partial(OptoPrime, llm=llm, seed=seed, **{**OPTIMIZER, **options}), every=every, budget=proposals),
        tensor=partial(torch.optim.Adam, lr=0.1),
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
            try:
                marks, guess = workflow.features(text), workflow.rule(text)
                chosen = workflow.choose(marks, guess).value
                output = workflow.loss(marks, guess, language)
            except tc.ExecutionError as error:
                optimizer.backward(error.node, (0.0, str(error)))
                continue
            said = f"{text}: {chosen}, {'right' if chosen == language else f'but it is {language}'}"
            optimizer.backward(output, (float(chosen == language), said))
        optimizer.step(lambda: accuracy(workflow, validation))
    return list(optimizer.log)


def run(
    setting: str, seed: int, llm: LLM | str, *, proposals: int = 6, every: int = 20, **options: Any
) -> tuple[float, list[Event]]:
    """(held-out accuracy, what happened) after training in a setting; ``options`` go to OptoPrime.

    ``every`` numeric steps come before the first proposal and after each, so that the last one is judged at the end.
    """
    workflow = CountryNames()
    examples, validation, held_out = load(seed)
    optimizer = make_optimizer(workflow, setting, llm, every=every, proposals=proposals, seed=100 * seed, **options)
    events = train(workflow, optimizer, examples, validation, steps=every * (proposals + 1), seed=seed)
    return accuracy(workflow, held_out), events


def main() -> None:
    """Print the held-out accuracy of each setting and seed."""
    import argparse

    from rich.console import Console
    from rich.table import Table

    from trace_core.integrations.llm import resolve_llm

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--llm", default="local", help="model, as everywhere in the library")
    parser.add_argument("--proposals", type=int, default=6, help="of the model, in each run")
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
            score, events = run(setting, seed, llm, proposals=given.proposals, every=given.every)
            row.append(f"{score:.3f}")
            console.print(f"seed {seed}, {setting}: {score:.3f} ({time.monotonic() - began:.0f} s)")
            for event in events if given.log else ():
                console.print(f"  step {event.step}: {event.part} {event.kind}: {event.reason}", markup=False)
        table.add_row(str(seed), *row)
    console.print(table)


if __name__ == "__main__":
    main()
