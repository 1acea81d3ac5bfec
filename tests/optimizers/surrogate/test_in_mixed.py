"""A surrogate as one part of several: beside a language model's prompts, and beside a torch optimizer."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

import trace_core as tc
from trace_core.integrations.llm import ScriptedLLM
from trace_core.nodes.tensor import TensorParameter, module_node
from trace_core.optimizers import OptoPrime
from trace_core.optimizers.mixed import Mixed, Part
from trace_core.optimizers.surrogate import TargetSurrogate
from trace_core.optimizers.tensor import TorchOptimizer


class Workflow:
    """A unit in words that a prompt names, an encoder, a policy, and the loss of what the policy does."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        draw = torch.Generator().manual_seed(1)
        self.x = torch.randn(30, 4, generator=draw)
        self.y = self.x @ torch.tensor([[1.0], [-2.0], [0.5], [0.0]]) * 3
        self.unit = tc.node("feet", trainable=True, name="unit", constraint=["feet", "metres"])
        self.encoder = module_node(torch.nn.Linear(4, 4), name="encoder")
        self.policy = module_node(torch.nn.Linear(4, 1), name="policy")

    def __call__(self) -> Any:
        encoded = self.encoder(self.x)
        action = self.policy(torch.tanh(encoded) + encoded)
        scale = tc.bundle(lambda unit: 1.0 if unit == "metres" else 0.3, name="scale")(self.unit)
        return tc.bundle(lambda z, s: (s * z - self.y).square().mean(), name="loss")(action, scale)

    def loss(self) -> float:
        return float(self().value.detach())


def mixed(workflow: Workflow, eta: Any = 0.5) -> Mixed:
    llm = ScriptedLLM([json.dumps({"reasoning": "The plan is in metres.", "unit": "metres"})] * 9)
    return Mixed(
        {
            "words": Part(OptoPrime([workflow.unit], llm=llm), every=3),
            "encoder": TorchOptimizer(workflow.encoder, torch.optim.Adam, lr=0.01),
            "policy": TargetSurrogate(workflow.policy, eta=eta),
        }
    )


@pytest.mark.parametrize("eta", [0.5, "bb"])
def test_each_part_improves_its_own(eta: Any) -> None:
    workflow = Workflow()
    optimizer = mixed(workflow, eta)
    before = workflow.loss()
    encoder, policy = (
        next(p.value.detach().clone() for p in m.parameters()) for m in (workflow.encoder, workflow.policy)
    )
    for _ in range(6):
        optimizer.zero_feedback()
        optimizer.backward(workflow())
        optimizer.step(lambda: -workflow.loss())
    assert workflow.unit.value == "metres"
    assert not torch.equal(workflow.encoder.parameters()[0].value, encoder)
    assert not torch.equal(workflow.policy.parameters()[0].value, policy)
    assert workflow.loss() < 0.1 * before
    surrogate = optimizer.parts["policy"]
    assert isinstance(surrogate, TargetSurrogate)
    assert surrogate.calls.gradients == 6
    assert surrogate.steps == 6


def test_the_surrogate_sees_the_trace_as_it_was_recorded_whatever_the_order_of_parts() -> None:
    """The encoder lies upstream of the policy's target: it may change only after the surrogate has been minimised."""
    workflow, alone = Workflow(), Workflow()
    optimizer = mixed(workflow)
    optimizer.backward(workflow())
    optimizer.step()
    single = TargetSurrogate(alone.policy, eta=0.5)
    single.backward(alone())
    single.step()
    for mine, theirs in zip(workflow.policy.parameters(), alone.policy.parameters(), strict=True):
        torch.testing.assert_close(mine.value.detach(), theirs.value.detach())


def test_state_goes_through_mixed() -> None:
    first, second = Workflow(), Workflow()
    one, other = mixed(first), mixed(second)
    for optimizer, workflow in ((one, first), (other, second)):
        for _ in range(2):
            optimizer.zero_feedback()
            optimizer.backward(workflow())
            optimizer.step()
    resumed = mixed(second)
    resumed.load_state_dict(other.state_dict())
    for optimizer, workflow in ((one, first), (resumed, second)):
        optimizer.zero_feedback()
        optimizer.backward(workflow())
        optimizer.step()
    assert second.loss() == first.loss()
    assert resumed.parts["policy"].state_dict()["steps"] == 3


def test_a_surrogate_can_be_the_part_for_all_tensors() -> None:
    workflow = Workflow()
    llm = ScriptedLLM([json.dumps({"reasoning": "metres", "unit": "metres"})] * 9)
    parameters = [workflow.unit, *workflow.encoder.parameters(), *workflow.policy.parameters()]
    optimizer = Mixed.by_kind(parameters, llm=llm, tensor=lambda pairs: TargetSurrogate(pairs, "policy", eta=5.0))
    before = workflow.loss()
    for _ in range(4):
        optimizer.zero_feedback()
        optimizer.backward(workflow())
        optimizer.step()
    assert workflow.loss() < 0.2 * before


def test_number_of_the_target_is_moved_by_words_while_a_model_moves_the_prompt() -> None:
    theta = TensorParameter(torch.zeros(3), name="theta")
    style = tc.node("plain", trainable=True, name="style")
    actions = tc.bundle(lambda t: t + 1, name="actions")(theta)
    report = tc.bundle(lambda a, s: f"{s}: {a.tolist()}", name="report")(actions, style)
    judge = ScriptedLLM([json.dumps({"reasoning": "less", "changes": [{"entry": "1", "value": 0.25}]})])
    writer = ScriptedLLM([json.dumps({"reasoning": "shorter", "style": "short"})])
    optimizer = Mixed(
        {"words": OptoPrime([style], llm=writer), "actions": TargetSurrogate([theta], "actions", llm=judge)}
    )
    optimizer.backward(report, "Action 1 is too strong, and the text is too long.")
    optimizer.step()
    assert (theta.value.detach() + 1).tolist() == pytest.approx([1, 0.25, 1])
    assert style.value == "short"
