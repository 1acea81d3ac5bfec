"""What the LLM optimizers share: asking, checking, repairing, remembering, keeping to the token budget."""

from __future__ import annotations

import copy
import re
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from trace_core.integrations.llm.cache import rollout
from trace_core.integrations.llm.errors import Fatal, LLMError, Unusable
from trace_core.optimizers.base import Dropped, Optimizer, OptimizerError, Proposal
from trace_core.optimizers.llm.answer import AnswerModels, check_one, to_values
from trace_core.optimizers.llm.budget import PER_MESSAGE, repair, shrink, size_of, within
from trace_core.optimizers.llm.failing import failed, with_shorter_prompts
from trace_core.optimizers.llm.memory import Memory
from trace_core.optimizers.llm.prompts import fill
from trace_core.optimizers.llm.selecting import failing_code, varied, worst_first
from trace_core.tokens import estimate_tokens
from trace_core.values import elide, render_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pydantic import BaseModel

    from trace_core.integrations.llm import LLM, Completion
    from trace_core.optimizers.base import Parameters
    from trace_core.parameter import Parameter
    from trace_core.trace import Trace

_FENCE = re.compile(r"```[A-Za-z0-9_+-]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)  # the last fence is forgotten at times
_REASON = re.compile(r"^\W*reason(?:ing)?\W*[:\-]\s*(.+)$", re.IGNORECASE | re.MULTILINE)
MAX_REPAIRS = 2
#: Functions of more lines are asked for in a fenced block under ``focus=1``: a small model loses its way in a long JSON
#: string. Short ones come out right more often as JSON under an enforced schema (docs/llm.md has the figures).
LONG_CODE = 20
#: Values asked for in one request about a number: trying them costs no request.
ALTERNATIVES = 3
#: Seeds of requests are counted from the ticket of a search times this: no ticket makes so many.
REQUESTS_PER_TICKET = 1000
_KINDS = ("code", "number", "data", "text")


def form(parameter: Parameter) -> str:
    """How a parameter is asked for: kinds of other layers (tensors, decisions) are data to a language model."""
    return parameter.kind if parameter.kind in _KINDS else "data"


class _Reading(NamedTuple):
    """One answer, read."""

    sets: list[dict[Parameter, Any]]
    dropped: list[Dropped]
    reason: str


class LLMOptimizer(Optimizer):
    """Base of the optimizers that ask a language model.

    Args:
        parameters: what may change; see ``Optimizer``.
        llm: a model by name or object (``"openai/gpt-4.1-mini"``, ``"local"``, a ``ScriptedLLM`` ...); by default the
            provider whose key is in the environment, else the local model.
        objective: what is wanted of the workflow, in words, beyond the feedback.
        memory: how many past attempts to keep and show.
        max_prompt_tokens: the most tokens one prompt may have, counted with the model's tokenizer where it is known,
            else by a conservative estimate. Holds whatever the values are.
        max_answer_tokens: limit of one answer.
        focus: how many parameters one request may change; None for all that the feedback reached. By default 1 for a
            local model and all for others. With 1, the parameters take turns, the prompt shows only values that depend
            on the one asked for and their direct inputs, and the question is put for its kind: what small models need.
        examples: at most so many traces in one prompt, the worst first; None for all.
        temperature: of the sampling; None for the model's own.
        seed: of the sampling, where the model takes one; counted up with each request.
        long_code: with ``focus=1``, functions of more lines are asked for in a fenced block instead of JSON.

    Attributes:
        notes: what else the model is to know now, such as what a numeric optimizer did meanwhile; shown in each prompt
            with past attempts, in at most an eighth of its budget.
    """

    system_template = "optoprime_system"
    concurrent = True

    def __init__(
        self,
        parameters: Parameters,
        llm: LLM | str | None = None,
        *,
        objective: str | None = None,
        memory: int = 8,
        max_prompt_tokens: int = 8000,
        max_answer_tokens: int = 2000,
        focus: int | str | None = "auto",
        examples: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        long_code: int = LONG_CODE,
    ) -> None:
        from trace_core.integrations.llm import resolve_llm

        super().__init__(parameters)
        if max_prompt_tokens < 200:
            raise OptimizerError(f"max_prompt_tokens must be at least 200, got {max_prompt_tokens}")
        if objective is not None and estimate_tokens(objective) > max_prompt_tokens // 4:
            raise OptimizerError(
                f"objective must fit a quarter of max_prompt_tokens ({max_prompt_tokens // 4} tokens), "
                f"got about {estimate_tokens(objective)}: shorten it or raise max_prompt_tokens"
            )
        if focus != "auto" and focus is not None and (not isinstance(focus, int) or focus < 1):
            raise OptimizerError(f"focus must be 'auto', None or a number of parameters from 1, got {focus!r}")
        self.llm: LLM = resolve_llm(llm)
        self.objective = objective or ""
        self.memory = Memory(memory)
        self.max_prompt_tokens = max_prompt_tokens
        self.max_answer_tokens = max_answer_tokens
        self.focus: int | None = (1 if getattr(self.llm, "is_local", False) else None) if focus == "auto" else focus  # type: ignore[assignment]
        self.examples = examples
        self.temperature = temperature
        self.seed = seed
        self.long_code = long_code
        self.notes = ""
        self.requests = 0
        self.prompt_size = 0  # of the last prompt, in tokens
        self._models = AnswerModels()
        self.turns: dict[str, int] = dict.fromkeys(self.names.values(), 0)
        self._turns_before = dict(self.turns)

    # ---- proposing

    def propose(self, traces: Sequence[Trace] | None = None, n: int = 1) -> list[Proposal]:
        """``n`` proposals; each is asked for, checked, and repaired at most twice.

        A failing model gives an empty Proposal with the reason. Raises OptimizerError without feedback, and the
        gateway's Fatal errors (wrong key, exhausted quota, unknown model), which no repetition can mend.
        """
        return list(self.proposals(traces, n))

    def proposals(self, traces: Sequence[Trace] | None = None, n: int = 1) -> Iterator[Proposal]:
        """``propose``, one at a time: whoever is content with one stops, and no further request is made."""
        found = self._traces_or_raise(traces)
        self.memory.add_traces(found, self.names)
        names = self.choose(found)
        made = 0
        while made < n:
            try:
                batch = with_shorter_prompts(self, partial(self.propose_some, found, names, n - made))
            except Fatal:
                raise
            except LLMError as error:
                batch = [failed(error)]
            for proposal in batch[: n - made]:
                made += 1
                yield proposal

    def propose_some(self, traces: Sequence[Trace], names: Mapping[Parameter, str], n: int) -> list[Proposal]:
        """At least one proposal for the parameters in ``names``, from one request and repairs. May raise LLMError."""
        raise NotImplementedError

    def choose(self, traces: Sequence[Trace]) -> dict[Parameter, str]:
        """The parameters this request may change: those the feedback reached, with ``focus`` the next ones in turn.

        Code goes before numbers before text: trying the first needs no new model answers where these are cached. Code
        whose own operator raised an error goes first of all. More parameters than the prompt budget can describe
        (about 60 tokens each) take turns, too.
        """
        reached = {p for trace in traces for p in trace.parameters}
        wanted = reached & self.only or reached if self.only is not None else reached
        names = {p: name for p, name in self.names.items() if p in wanted}
        limit = min(self.focus or len(names), max(1, self.max_prompt_tokens // 60))
        if len(names) <= limit:
            return names
        failing = failing_code(traces)
        order = sorted(
            names, key=lambda p: (self.turns[names[p]] - (1.5 if p in failing else 0), _KINDS.index(form(p)))
        )
        chosen = set(order[:limit])
        for parameter in chosen:
            self.turns[names[parameter]] += 1
        return {p: name for p, name in names.items() if p in chosen}

    def select(self, traces: Sequence[Trace], names: Mapping[Parameter, str]) -> list[Trace]:
        """The traces to show, at most ``examples``: the worst first, but one of each kind of feedback before more.

        When a number is asked for they keep their order: the worst outputs are mostly outliers there and mislead.
        """
        reached = [trace for trace in traces if not set(names).isdisjoint(trace.parameters)]
        numbers = self.style(names) == "one" and next(iter(names)).kind == "number"
        return (reached if numbers else varied(worst_first(reached)))[: self.examples]

    def remember(self, values: Mapping[Parameter, Any], score: float | None, note: str = "") -> None:
        """Record how values did that were evaluated elsewhere; the next prompts show it.

        ``score`` None with a note is a failure: the workflow raised an error with these values, which the note tells.
        """
        if score is None and note:
            score = float("-inf")
        if score is not None:
            everything = {name: values.get(p, p.value) for p, name in self.names.items()}
            self.memory.add(everything, score, note=note)

    # ---- asking

    def ask(self, system: str, user: str, names: Mapping[Parameter, str], n: int = 1) -> list[Proposal]:
        """Ask for values of the parameters in ``names``, repair at most twice, make the Proposals (at least one).

        What is valid in one answer is kept while the rest is asked for again.
        """
        schema = self.schema(names, n)
        first: list[dict[str, str]] = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        messages = first
        spent: list[Completion | None] = []
        dropped: list[Dropped] = []
        kept: dict[Parameter, Any] = {}
        said = ""
        for attempt in range(1 + MAX_REPAIRS):
            try:
                reading, text = self._answer(messages, schema, names, n, spent)
            except LLMError as error:
                if attempt == 0 or isinstance(error, Fatal):
                    raise
                dropped.append(Dropped("answer", "", f"{type(error).__name__}: {error}"))
                break
            said = reading.reason or said
            dropped += reading.dropped
            if reading.sets and self.several(names, n) > 1:
                made = [_proposal(reading.sets[0], said, dropped, spent, user)]
                return made + [_proposal(values, said, [], [], user) for values in reading.sets[1:]]
            for values in reading.sets:
                kept.update(values)
            if not reading.dropped:
                return [_proposal(kept, said if kept else f"no change: {said}", dropped, spent, user)]
            errors = "\n".join(f"- {item.name}: {item.reason}" for item in reading.dropped)
            messages = repair(first, text, errors, self.max_prompt_tokens, self.count)
        if not kept:
            said = f"no usable answer: {'; '.join(f'{item.name}: {item.reason}' for item in dropped[-3:])}"
        return [_proposal(kept, said, dropped, spent, user)]

    def _answer(
        self,
        messages: list[dict[str, str]],
        schema: type[BaseModel] | None,
        names: Mapping[Parameter, str],
        n: int,
        spent: list[Completion | None],
    ) -> tuple[_Reading, str]:
        """One request: (what the answer says, its text). An answer that does not fit is one that was refused."""
        try:
            completion = self.complete(messages, schema)
        except Unusable as error:
            if error.completion is None or error.completion.finish_reason == "length":
                raise  # there is no text to repair, or it was cut with twice the room, too
            spent.append(error.completion)
            text = error.completion.text
            return _Reading([], [Dropped("answer", elide(text, 500), str(error.args[0]))], ""), text
        spent.append(completion)
        return self._read(completion, names, n), completion.text

    def complete(self, messages: list[dict[str, str]], schema: type[BaseModel] | None = None) -> Completion:
        """One request with this optimizer's sampling settings, within the token budget. Repairs are the caller's.

        Raises ContextTooLong, without a request, if the fixed parts of the prompt exceed the budget.
        """
        form = self.count(self._models.text(schema)) if schema is not None else 0
        messages = within(messages, self.max_prompt_tokens - form, self.count)
        seed = None if self.seed is None else self.seed + self.requests
        self.requests += 1
        self.prompt_size = form + size_of(messages, self.count)
        with rollout(f"request {self.requests}"):  # a cache must not answer several equal questions with one proposal
            return self.llm.complete(
                messages,  # type: ignore[arg-type]
                schema=schema,
                temperature=self.temperature,
                seed=seed,
                max_tokens=self.max_answer_tokens,
                repair=False,
            )

    def style(self, names: Mapping[Parameter, str]) -> str:
        """The form of the answer: ``json``; with ``focus=1``, ``one`` (JSON, for the parameter's kind) or ``fence``."""
        if self.focus != 1 or len(names) != 1:
            return "json"
        parameter = next(iter(names))
        return "fence" if parameter.kind == "code" and parameter.value.count("\n") > self.long_code else "one"

    def several(self, names: Mapping[Parameter, str], n: int) -> int:
        """How many alternatives one request asks for."""
        return ALTERNATIVES if n > 1 and self.style(names) == "one" and next(iter(names)).kind == "number" else 1

    def schema(self, names: Mapping[Parameter, str], n: int = 1) -> type[BaseModel] | None:
        """The model of the answer; None for a plain one."""
        style = self.style(names)
        if style == "fence":
            return None
        return self._models.get(names, brief=style == "one", several=self.several(names, n))

    def task(self, names: Mapping[Parameter, str], n: int = 1) -> str:
        """What to answer with, in words."""
        style = self.style(names)
        if style == "json":
            listed = ", ".join(f'"{name}"' for name in names.values())
            fields = listed if len(names) <= 20 else "one field for each variable"
            keep = "Use null for a variable that should stay as it is." if len(names) > 1 else ""
            return fill("task_json", fields=fields, keep=keep)
        parameter, name = next(iter(names.items()))
        words = {
            "name": name,
            "signature": getattr(parameter, "signature", name),
            "rule": elide(parameter.constraint.describe(), 200),
        }
        if style == "fence":
            return fill("task_fence", **words)
        if parameter.kind != "number":
            return fill(f"task_one_{form(parameter)}", **words)
        if self.several(names, n) > 1:
            words["amount"] = f"{ALTERNATIVES} new values to try"
            words["form"] = "the values after a small, a medium and a large step in the right direction"
        else:
            words["amount"], words["form"] = "a better value", "the new value"
        return fill("task_one_numbers", **words)

    def _read(self, completion: Completion, names: Mapping[Parameter, str], n: int) -> _Reading:
        if self.style(names) != "fence":
            if completion.parsed is None:
                return _Reading([], [Dropped("answer", completion.text, "expected a JSON object")], "")
            sets, dropped = to_values(completion.parsed, names, self.several(names, n))
            return _Reading(sets, dropped, str(getattr(completion.parsed, "reasoning", "")))
        parameter, name = next(iter(names.items()))
        text = completion.text
        found = _FENCE.findall(text)
        reason = _REASON.search(text)
        said = reason.group(1).strip() if reason else elide(" ".join(_FENCE.sub("", text).split()), 300)
        if not found:
            return _Reading([], [Dropped(name, elide(text, 500), "expected one ```python block, found none")], said)
        values: dict[Parameter, Any] = {}
        refused: list[Dropped] = []
        check_one(parameter, name, found[-1], values, refused)
        return _Reading([values] if values else [], refused, said)

    # ---- budget

    def count(self, text: str) -> int:
        """Tokens of ``text``: by the model's tokenizer where it is known, else a conservative estimate."""
        known = self.llm.count_tokens(text)
        return estimate_tokens(text) if known is None else known

    def fit(self, render: Callable[[int], str], rest: str, names: Mapping[Parameter, str] | None = None) -> str:
        """``render(budget)`` with what ``rest`` and the schema of the answer for ``names`` leave of the budget."""
        overhead = 2 * PER_MESSAGE
        schema = self.schema(names, ALTERNATIVES) if names else None
        if schema is not None:
            overhead += self.count(self._models.text(schema))
        return render(max(0, self.max_prompt_tokens - self.count(rest) - overhead))

    def shrink(self, text: str, budget: int) -> str:
        """``text``, or its head and tail, in at most ``budget`` tokens."""
        return shrink(text, budget, self.count)

    def history(self, names: Mapping[Parameter, str], max_chars: int = 600) -> str:
        """``notes`` and past attempts on the parameters as sections of the prompt; '' if there is neither."""
        notes = self.shrink(self.notes.strip(), self.max_prompt_tokens // 8)
        return "\n".join(part for part in (notes, self._attempts(names, max_chars)) if part)

    def _attempts(self, names: Mapping[Parameter, str], max_chars: int) -> str:
        current = {name: p.value for p, name in names.items()}
        lines = self.memory.lines(list(names.values()), current, max_chars, self.memory.size)
        budget = self.max_prompt_tokens // 4
        while lines and self.count("\n".join(lines)) > budget:
            lines = lines[1:]  # the worst comes first
        return "# Past attempts (best last; do not repeat them)\n" + "\n".join(lines) if lines else ""

    # ---- several at once

    def fork(self, ticket: int) -> LLMOptimizer:
        """A copy with a memory of its own, whose requests are counted from the ticket: its seeds are its own, too."""
        twin = copy.copy(self)
        twin.memory, twin.turns = self.memory.fork(), dict(self.turns)
        twin.requests = ticket * REQUESTS_PER_TICKET
        twin._turns_before = dict(self.turns)
        return twin

    def join(self, fork: Optimizer, improved: bool = False) -> None:
        """Take over the fork's attempts and turns, and a prompt size that it learned from the server."""
        if not isinstance(fork, LLMOptimizer) or fork is self:
            return
        self.memory.join(fork.memory)
        for name, turns in fork.turns.items():
            self.turns[name] += turns - fork._turns_before.get(name, 0)
        self.requests += fork.requests % REQUESTS_PER_TICKET
        self.max_prompt_tokens = min(self.max_prompt_tokens, fork.max_prompt_tokens)

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Plain data: memory, whose turn it is, how many requests there were."""
        state = {"memory": self.memory.state(), "turns": dict(self.turns), "requests": self.requests}
        return {**state, "max_prompt_tokens": self.max_prompt_tokens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.memory.load(state["memory"])
        self.turns.update(state["turns"])
        self._turns_before = dict(self.turns)
        self.requests = int(state["requests"])
        self.max_prompt_tokens = int(state.get("max_prompt_tokens", self.max_prompt_tokens))


def variable_lines(names: Mapping[Parameter, str], max_chars: int = 4000) -> str:
    """Current values of the parameters, one after the other."""
    parts = []
    for parameter, name in names.items():
        about = "; ".join(t for t in (parameter.description, f"must be {parameter.constraint.describe()}") if t)
        parts.append(f"{name} = {render_value(parameter.value, max_chars)}  # {elide(' '.join(about.split()), 300)}")
    return "\n".join(parts)


def _proposal(
    values: Mapping[Parameter, Any],
    reason: str,
    dropped: Sequence[Dropped],
    spent: Sequence[Completion | None],
    prompt: str,
) -> Proposal:
    def total(amounts: list[Any]) -> Any:
        return None if any(amount is None for amount in amounts) else sum(amounts)

    return Proposal(
        values,
        reason=reason,
        dropped=dropped,
        attempts=len(spent),
        prompt_tokens=total([c and c.usage.prompt_tokens for c in spent]),
        completion_tokens=total([c and c.usage.completion_tokens for c in spent]),
        cost=total([c and c.cost for c in spent]),
        prompt=prompt,
    )
