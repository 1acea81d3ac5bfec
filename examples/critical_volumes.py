"""How big is a mole at its critical point? A function that a language model rewrites, weights that Adam learns.

The data are critical volumes of organic compounds as they were measured, beside their formulas; see
data/critical_volumes/README.md for origin and licence. Compounds with one formula stay together: training, validation
and held-out examples have different formulas.

The function ``atoms``, a code parameter, turns a formula, which is a text, into counts of atoms; at first it sees which
elements there are, but not the numbers behind them. The tensor ``sizes`` has what an atom of each element adds to the
volume, and is learned by gradients. A language model alone, which may change the sizes too, can mend the function and
has to guess the sizes; a numeric optimizer alone learns sizes for wrong counts.

See docs/mixed.md for the held-out scores with a real model.

    python -m trace_core.examples.critical_volumes            # all three settings, three seeds
    python -m trace_core.examples.critical_volumes --seeds 0 --settings both --log
"""

from __future__ import annotations

import random
import re
import time
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import trace_core as tc
from trace_core._lazy import require
from trace_core.optimizers import Mixed, OptoPrime, Part

if TYPE_CHECKING:
    from trace_core.integrations.llm import LLM
    from trace_core.node import Node
    from trace_core.optimizers.mixed import Event

ELEMENTS = ("C", "H", "O", "N", "F", "Cl", "Br", "I", "S", "Si")
FIRST_SIZE = 10.0  # cm3/mol, of every atom
SETTINGS = ("llm", "numeric", "both")
OPTIMIZER: dict[str, Any] = {
    "objective": "Predict the critical volume of a compound from its chemical formula: each atom adds to the volume.",
    "focus": 1,
    "memory": 2,
    "examples": 4,
    "max_prompt_tokens": 1400,
    "max_answer_tokens": 240,
    "temperature": 0.8,
    "long_code": 0,
}


class CriticalVolumes(tc.Module):
    """formula -> counts of atoms -> volume."""

    def __init__(self) -> None:
        torch = require("torch", extra="torch")
        from trace_core.nodes.tensor import TensorParameter

        self.sizes = TensorParameter(
            torch.full((len(ELEMENTS),), FIRST_SIZE), name="sizes", description="what an atom of each element adds"
        )

    @tc.bundle(trainable=True)
    def atoms(self, formula: str) -> dict[str, int]:
        """{symbol: count of atoms} of a formula such as C2H6O: the number behind a symbol is its count; none means 1."""
        counts = {}
        for symbol, number in re.findall("([A-Z][a-z]?)([0-9]*)", formula):
            counts[symbol] = 1
        return counts

    @tc.bundle
    def volume(self, atoms: dict[str, float]) -> Any:
        """The volume in cm3/mol: the sum of the atoms' sizes. What is no element's symbol does not count."""
        torch = require("torch", extra="torch")
        counts = torch.tensor([float(atoms.get(symbol, 0)) for symbol in ELEMENTS])
        return self.sizes.value @ counts

    def forward(self, formula: str) -> Node:
        """The volume in cm3/mol."""
        volume: Node = self.volume(self.atoms(formula))
        return volume


def load(seed: int) -> tuple[list[Any], list[Any], list[Any]]:
    """Training, validation and held-out examples, drawn by ``seed``; no formula is in two of them."""
    text = files("trace_core.examples").joinpath("data", "critical_volumes", "critical_volumes.tsv").read_text("utf-8")
    by_formula: dict[str, list[Any]] = {}
    for line in text.splitlines()[1:]:
        name, formula, volume = line.split("\t")
        by_formula.setdefault(formula, []).append({"name": name, "formula": formula, "volume": float(volume)})
    formulas = sorted(by_formula)
    random.Random(seed).shuffle(formulas)
    third = len(formulas) // 3
    cuts = (formulas[:third], formulas[third : 2 * third], formulas[2 * third :])
    parts = [[example for formula in part for example in by_formula[formula]] for part in cuts]
    return parts[0], parts[1], parts[2]


def score(workflow: CriticalVolumes, examples: list[Any]) -> float:
    """Share of the compounds whose volume is predicted within 10 %."""
    by_formula: dict[str, float] = {}
    for example in examples:  # isomers get one prediction
        if example["formula"] not in by_formula:
            with tc.no_trace():
                by_formula[example["formula"]] = workflow(example["formula"]).value.item()
    good = sum(abs(by_formula[e["formula"]] - e["volume"]) <= 0.1 * e["volume"] for e in examples)
    return float(good / len(examples))


@tc.bundle
def squared_error(volume: Any, measured: float) -> Any:
    """Squared relative error."""
    return (volume / measured - 1) ** 2


def make_optimizer(
    workflow: CriticalVolumes, setting: str, llm: LLM | str, *, every: int, proposals: int, seed: int, **options: Any
) -> Mixed:
    """``llm`` is a language model for function and sizes, ``numeric`` is Adam for the sizes, ``both`` have one each."""
    torch = require("torch", extra="torch")
    shown = {**OPTIMIZER, **options}
    if setting == "llm":
        everything = OptoPrime([workflow.atoms.code, workflow.sizes], llm=llm, seed=seed, **shown)
        return Mixed({"llm": Part(everything, every=every, budget=proposals)})
    return Mixed.by_kind(
        workflow,
        llm=Part(partial(OptoPrime, llm=llm, seed=seed, **shown), every=every, budget=proposals),
        tensor=partial(torch.optim.Adam, lr=1.0),
        frozen=[workflow.atoms.code] if setting == "numeric" else [],
    )


def train(
    workflow: CriticalVolumes,
    optimizer: Mixed,
    examples: list[Any],
    validation: list[Any],
    *,
    steps: int,
    batch: int = 16,
    seed: int = 0,
) -> list[Event]:
    """The training loop: a minibatch, feedback on each output, one step."""
    drawn = random.Random(seed)
    for _ in range(steps):
        optimizer.zero_feedback()
        for example in drawn.sample(examples, batch):
            formula, measured = example["formula"], example["volume"]
            try:
                volume = workflow(formula)
            except tc.ExecutionError as error:
                optimizer.backward(error.node, f"{formula}: failed")
                continue
            off = volume.value.item() / measured
            said = f"predicted {volume.value.item():.0f}, measured {measured:.0f}"
            optimizer.backward(squared_error(volume, measured) / batch, (max(0.0, 1 - abs(off - 1)), said))
        optimizer.step(lambda: score(workflow, validation))
    return list(optimizer.log)


def run(
    setting: str, seed: int, llm: LLM | str, *, proposals: int = 8, every: int = 40, **options: Any
) -> tuple[float, list[Event], CriticalVolumes]:
    """(held-out score, what happened, what was learned) in a setting; ``options`` go to OptoPrime.

    ``every`` numeric steps come before the first proposal and after each, so that the last one is judged at the end.
    """
    workflow = CriticalVolumes()
    examples, validation, held_out = load(seed)
    optimizer = make_optimizer(workflow, setting, llm, every=every, proposals=proposals, seed=100 * seed, **options)
    events = train(workflow, optimizer, examples, validation, steps=every * (proposals + 1), seed=seed)
    return score(workflow, held_out), events, workflow


def main() -> None:
    """Print the held-out score of each setting and seed."""
    import argparse

    from rich.console import Console
    from rich.table import Table

    from trace_core.integrations.llm import resolve_llm

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--llm", default="local", help="model, as everywhere in the library")
    parser.add_argument("--proposals", type=int, default=8, help="of the model, in each run")
    parser.add_argument("--every", type=int, default=40, help="numeric steps for each proposal of the model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--log", action="store_true", help="print what happened to each proposal")
    given = parser.parse_args()
    llm, console = resolve_llm(given.llm), Console()
    title = "held-out compounds within 10 %"
    table = Table("seed", *given.settings, title=title, title_justify="left")
    for seed in given.seeds:
        row = []
        for setting in given.settings:
            began = time.monotonic()
            result, events, workflow = run(setting, seed, llm, proposals=given.proposals, every=given.every)
            row.append(f"{result:.3f}")
            console.print(f"seed {seed}, {setting}: {result:.3f} ({time.monotonic() - began:.0f} s)")
            for event in events if given.log else ():
                console.print(f"  step {event.step}: {event.part} {event.kind}: {event.reason}", markup=False)
            if given.log:
                console.print(workflow.atoms.code.value, workflow.sizes.value.tolist(), markup=False)
        table.add_row(str(seed), *row)
    console.print(table)


if __name__ == "__main__":
    main()
