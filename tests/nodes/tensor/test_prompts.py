"""How tensors look in a rendered trace, which is what a language model is shown."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import trace_core as tc
from trace_core.nodes.tensor import TensorParameter, module_node, send_gradients
from trace_core.optimizers import OptoPrime
from trace_core.render import estimate_tokens
from trace_core.values import render_value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            torch.arange(8.0),
            "tensor(8, float32: mean 3.5, std 2.291, min 0, max 7, 12.5 % zeros: [0, 1, 2, 3, 4, 5, …])",
        ),
        (torch.tensor([1.0, 2.0]), "tensor(2, float32: [1, 2])"),
        (torch.tensor(3.0, dtype=torch.bfloat16), "tensor(scalar, bfloat16: [3])"),
        (torch.zeros(0, 3), "tensor(0x3, float32, empty)"),
        (torch.arange(7), "tensor(7, int64: mean 3, std 2, min 0, max 6, 14.3 % zeros: [0, 1, 2, 3, 4, 5, …])"),
        (torch.ones(9) > 0, "tensor(9, bool: [True, True, True, True, True, True, …])"),
        (
            torch.full((8,), float("nan")),
            "tensor(8, float32: no finite number, 100 % NaN: [nan, nan, nan, nan, nan, nan, …])",
        ),
        (torch.ones(2, 2, device="meta"), "tensor(2x2, float32 on meta, no data)"),
        (torch.eye(3).to_sparse(), "tensor(3x3, float32, sparse_coo)"),
        ([torch.zeros(2)], "[tensor(2, float32: [0, 0])]"),
        ({"a": (torch.ones(1), 2)}, "{'a': (tensor(1, float32: [1]), 2)}"),
    ],
)
def test_summaries(value: Any, text: str) -> None:
    assert render_value(value) == text


def test_statistics_are_those_of_the_finite_numbers() -> None:
    values = torch.tensor([1.0, 3.0, float("nan"), float("inf"), 0.0, 0.0, 4.0, -float("inf")])
    text = render_value(values)
    assert "mean 1.6, std 1.625, min 0, max 4, 25 % zeros, 12.5 % NaN, 25 % Inf" in text
    assert "mean 1.6, std 1.625" in render_value(values.numpy())
    assert "min 1, max 1" in render_value(torch.ones(100, dtype=torch.float16) * 1.0)
    assert "max 3e+38" in render_value(torch.full((8,), 3e38))


def test_gradient_norms_of_parameters() -> None:
    w = TensorParameter(torch.ones(4), name="w", description="gains")
    trace = tc.Trace.of((w * 3).sum())
    assert "gradient" not in trace.render()
    send_gradients(trace)
    assert "w = tensor(4, float32: [1, 1, 1, 1], gradient norm 6)  # gains" in trace.render()


def deep(layers: int = 12) -> Any:
    return nn.Sequential(*[nn.Linear(16, 16) for _ in range(layers)])


def test_the_weights_of_a_module_are_one_line() -> None:
    prompt = tc.node("be kind", trainable=True, name="prompt")
    node = module_node(deep(), name="net")
    features = tc.bundle(lambda text: torch.ones(1, 16) * len(text), name="features")(prompt)
    trace = tc.Trace.of(node(features).mean(), "too low")
    for text in (trace.render(names={prompt: "prompt"}), trace.render()):
        assert "net0 = net(features0, net_weights)" in text
        assert "net_weights = 24 weights, 3.26 k numbers" in text
        assert "0_weight" not in text
    few = tc.Trace.of(module_node(deep(1), name="net")(features).mean())
    assert "weight = tensor(16x16" in few.render()
    assert "net_weights = 2 weights" in few.render(names={prompt: "prompt"})
    weight = node.parameters()[0]
    chosen = trace.render(names={prompt: "prompt", weight: "first"})
    assert "first = tensor(16x16" in chosen
    assert "net_weights = 23 weights" in chosen


def test_two_modules_of_one_name() -> None:
    one, two = module_node(deep(), name="net"), module_node(deep(), name="net")
    text = tc.Trace.of(two(one(torch.ones(1, 16))).mean()).render()
    assert "net_weights = 24 weights" in text
    assert "net_weights_2 = 24 weights" in text


@pytest.mark.parametrize("layers", [1, 250])
def test_prompts_stay_within_their_budget(layers: int) -> None:
    prompt = tc.node("be kind", trainable=True, name="prompt")
    node = module_node(deep(layers), name="net", transparent=True)
    features = tc.bundle(lambda text: torch.ones(1, 16) * len(text), name="features")(prompt)
    hidden = node(features)
    for _ in range(30):
        hidden = torch.tanh(hidden)
    trace = hidden.mean().backward("too low")
    prompts = []

    def answer(messages: Any) -> Any:
        prompts.append("".join(str(message["content"]) for message in messages))
        return {"reasoning": "r", "prompt": "be kinder"}

    from trace_core.integrations.llm import ScriptedLLM

    OptoPrime([prompt], llm=ScriptedLLM(answer)).step()
    assert "net_weights" in prompts[0]
    assert len(prompts[0]) < 12_000
    for budget in (60, 200, 1000):
        assert estimate_tokens(trace.render(budget, names={prompt: "prompt"})) <= budget
        assert estimate_tokens(tc.Trace.of(trace.output, "", unfold=True).render(budget)) <= budget
