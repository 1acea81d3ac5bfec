"""A run in a ledger as a Study writes it, made without running anything: for tests of what reads ledgers."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trace_core as tc
from trace_core.integrations.budget import Cost
from trace_core.integrations.store import CandidateRow, EvaluationRow, EventRow, Ledger, Run
from trace_core.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SEED_VALUES: dict[str, Any] = {
    "classify.prompt": "You sort messages to a help desk.\nAnswer with one word: billing, technical or other.",
    "reply.prompt": "Answer the customer in a friendly way.",
    "threshold": 0.5,
}
_STAGES = ("gate", "guard", "validation", "gate", "empty", "gate", "error")


@dataclass
class Rows:
    """What to write.

    Attributes:
        tickets: candidates beside the seed.
        examples: in the validation set.
        objectives: names of the scores of a metric with several; none for a plain one.
        say: feedback on example ``index`` at ``score``.
        values: called with (ticket, value of the parent) for the prompt of a candidate; None for the usual ones.
        reason, note: in place of the usual words.
    """

    tickets: int = 24
    examples: int = 30
    objectives: tuple[str, ...] = ()
    say: Callable[[int, float], str] = lambda index, score: f"message {index}: expected billing, got other"
    values: Callable[[int, str], str] | None = None
    reason: str = "The messages about refunds were sorted wrongly; say that refunds are billing."
    note: str = ""
    prompt: str = "Here is the trace of two failing messages ..."
    config: Mapping[str, Any] = field(default_factory=lambda: {"seed": 3})
    trace: bool = True


_HINTS = (
    "Refunds and invoices are billing.",
    "Crashes and error codes are technical.",
    "If two fit, take the one that is asked for last.",
    "Greetings alone are other.",
    "Passwords are technical.",
    "A question about a price is billing.",
)


def write_rows(ledger: Ledger, rows: Rows, name: str = "help-desk") -> Run:
    """A finished run: seed, tickets, evaluations, calls, events, steps."""
    rng = random.Random(7)
    run = ledger.new_run(name, fingerprint={"code of the metric": "0f31aa", "trace_core": "0.1.0"}, config=rows.config)
    skill: dict[str, list[float]] = {"0": [rng.betavariate(2, 3) for _ in range(rows.examples)]}
    values: dict[str, dict[str, Any]] = {"0": dict(SEED_VALUES)}
    pool, scores = ["0"], {}
    number = lost = 0

    def evaluate(candidate: str, example: str, score: float, index: int, sample: int = 0) -> None:
        several = {n: min(1.0, max(0.0, score + rng.uniform(-0.2, 0.2))) for n in rows.objectives} or None
        failed = index % 29 == 28 and score < 0.5
        error = "ValueError: no such class: 'biling'" if failed else None
        run.put_evaluation(
            EvaluationRow(candidate, example, sample, score, several, "" if failed else rows.say(index, score), error)
        )

    def validate(candidate: str) -> float:
        found = [round(s, 3) for s in skill[candidate]]
        for index, score in enumerate(found):
            evaluate(candidate, f"val {index}", score, index)
        scores[candidate] = sum(found) / max(1, len(found))
        return scores[candidate]

    def event(step: int, kind: str, **data: Any) -> None:
        nonlocal number
        run.put_event(EventRow(step, number, kind, data))
        number += 1

    with ledger.transaction():
        run.put_candidate(CandidateRow("0", 0, (), "start", validate("0"), "", {}, values["0"]))
        run.best("0", scores["0"])
        run.save_step(0, scores["0"], values["0"], {}, seconds=0.5)
        event(0, "started", score=scores["0"])
        for ticket in range(1, rows.tickets + 1):
            best = max(scores, key=lambda c: scores[c])
            parent = best if ticket % 3 else rng.choice(pool)
            merge = ticket % 17 == 16 and len(pool) > 2
            parents = (parent, next(c for c in pool if c != parent)) if merge else (parent,)
            event(ticket, "chosen", ticket=ticket, parents=parents, minibatch=[])
            candidate = f"{ticket}.m" if merge else f"{ticket}.0"
            changed = ["classify.prompt"] if ticket % 4 else ["reply.prompt", "threshold"]
            new = dict(values[parent])
            for what in changed:
                if what == "threshold":
                    new[what] = round(min(0.95, new[what] + 0.05), 2)
                elif rows.values is not None:
                    new[what] = rows.values(ticket, new[what])
                else:
                    new[what] = f"{new[what]}\n{_HINTS[ticket % len(_HINTS)]}"
            values[candidate] = new
            good = ticket % 5 in (1, 3)
            skill[candidate] = [min(1, max(0, s + rng.gauss(0.03 if good else -0.02, 0.08))) for s in skill[parent]]
            stage = "" if good else _STAGES[lost % len(_STAGES)]
            lost += not good
            batch = [(ticket * 3 + k) % 20 for k in range(3)]
            before = round(rng.uniform(0.2, 0.6), 3)
            after = round(before + (0.2 if good or stage == "validation" else -0.1), 3)
            detail: dict[str, Any] = {"changed": changed, "parent": parent, "minibatch": batch, "before": before}
            detail |= {"prompt": rows.prompt, "tokens": 900 + ticket, "cost": 0.0011, "dropped": []}
            key = f"call {run.id} {ticket}"
            ledger.begin_call(key, "optimizer", "h", Cost(0.002, 1000, 1), run=run.id, model="scripted")
            ledger.finish_call(key, Cost(0.0011, 900 + ticket, 1))
            for index in batch:
                evaluate(parent, f"train {index}", before, index, ticket)
            if stage in ("", "gate", "validation"):
                detail["after"] = after
                for index in batch:
                    evaluate(candidate, f"train {index}", after, index, ticket)
            score = None
            if stage in ("", "validation"):
                score = validate(candidate)
            notes = {
                "": f"validation {scores[parent]:.3f} -> {score or 0:.3f}",
                "gate": f"minibatch {before:.3f} -> {after:.3f}",
                "validation": f"validation {scores[parent]:.3f}, with it {score or 0:.3f}",
                "guard": "the new text repeats 9 words of training example 4",
                "empty": "the answer held no new value",
                "error": "it failed on every example: ValueError: no such class: 'biling'",
            }
            note = rows.note or notes[stage]
            status = "rejected" if stage else "merged" if merge else "accepted"
            if stage:
                scores.pop(candidate, None)
                detail |= {"stage": stage, "guard": "CopyGuard" if stage == "guard" else None}
                made = "" if stage == "empty" else candidate
                event(ticket, "rejected", ticket=ticket, candidate=made, stage=stage, reason=note)
            else:
                pool.append(candidate)
                event(ticket, "accepted", ticket=ticket, candidate=candidate, score=score)
                if score is not None and score >= max(scores.values()):
                    run.best(candidate, score)
            if stage != "empty":
                run.put_candidate(
                    CandidateRow(candidate, ticket, parents, status, score, rows.reason, detail | {"note": note}, new)
                )
            best = max(scores, key=lambda c: scores[c])
            run.save_step(ticket, scores[best], values[best], {}, seconds=ticket * 2.0)
        if rows.trace:
            event(rows.tickets, "trace", candidate=best, example="val 3", trace=_trace(values[best]).to_dict())
        event(rows.tickets, "sandbox", tier="jail", layers="Landlock, seccomp, rlimits")
    run.end("done", stopped="budget", error="the budget is used up: 400 of 400 metric_calls spent")
    return run


def _trace(values: Mapping[str, Any]) -> Trace:
    """Of a small workflow with the given prompts."""
    prompt = tc.node(values["classify.prompt"], trainable=True, name="classify.prompt")
    reply = tc.node(values["reply.prompt"], trainable=True, name="reply.prompt")
    threshold = tc.node(values["threshold"], trainable=True, name="threshold")

    @tc.bundle
    def classify(prompt: str, message: str) -> dict[str, float]:
        """Probability of each class."""
        return {"billing": 0.7, "technical": 0.2, "other": 0.1}

    @tc.bundle
    def decide(classes: dict[str, float], threshold: float) -> str:
        """The likeliest class above the threshold."""
        return max(classes, key=lambda name: classes[name])

    @tc.bundle
    def answer(prompt: str, label: str, message: str) -> str:
        """The reply."""
        return f"[{label}] Thank you for your message."

    message = tc.node("My invoice is wrong & I want a refund", name="message")
    output = answer(reply, decide(classify(prompt, message), threshold), message)
    return Trace.of(output, (0.7, "the reply does not name the invoice"))
