"""Modules as the big libraries write them: keywords in, an output that is dict, tuple and dataclass at once."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import trace_core as tc
from trace_core.nodes.tensor import module_node, send_gradients


class ModelOutput(OrderedDict[str, Any]):
    """Fields that are items as well, but for those that are None; numbers index the ones that are there."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value is not None:
                super().__setitem__(field.name, value)

    def __getitem__(self, key: Any) -> Any:
        return dict(self.items())[key] if isinstance(key, str) else self.to_tuple()[key]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.keys() and value is not None:
            super().__setitem__(name, value)
        super().__setattr__(name, value)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("outputs are not updated")

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self[key] for key in self.keys())


@dataclass
class CausalOutput(ModelOutput):
    loss: Any = None
    logits: Any = None
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mix, self.drop = nn.LayerNorm(width), nn.Linear(width, width), nn.Dropout(0.2)

    def forward(self, hidden_states: Any, attention_mask: Any = None) -> Any:
        mixed = self.drop(functional.gelu(self.mix(self.norm(hidden_states))))
        if attention_mask is not None:
            mixed = mixed * attention_mask[..., None]
        return hidden_states + mixed


class LanguageModel(nn.Module):
    """Tied embeddings, a buffer that is not saved, dropout, optional outputs."""

    position: torch.Tensor

    def __init__(self, vocabulary: int = 11, width: int = 6, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(layers))
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.embed.weight
        self.register_buffer("position", torch.linspace(0, 1, 16)[:, None], persistent=False)

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        labels: Any = None,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> Any:
        hidden = self.embed(input_ids) + self.position[: input_ids.shape[1]]
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=attention_mask)
            states.append(hidden)
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        if not return_dict:
            return tuple(item for item in (loss, logits) if item is not None)
        return CausalOutput(loss, logits, tuple(states) if output_hidden_states else None)


def batch() -> dict[str, torch.Tensor]:
    tokens = torch.arange(10).reshape(2, 5)
    mask = torch.ones(2, 5)
    mask[1, 3:] = 0
    return {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, -100)}


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel().double()


@pytest.mark.parametrize("transparent", [False, True])
def test_outputs_are_those_of_the_model(model: LanguageModel, transparent: bool) -> None:
    node = module_node(model.eval(), transparent=transparent)
    expected = model(**batch(), output_hidden_states=True)
    out = node(**batch(), output_hidden_states=True)
    assert type(out.value) is CausalOutput
    assert torch.equal(out.loss.value, expected.loss)
    assert torch.equal(out["logits"].value, expected.logits)
    assert torch.equal(out[1].value, expected.logits)
    assert len(out.hidden_states) == 3
    assert torch.equal(out.hidden_states[-1].value, expected.hidden_states[-1])
    assert all(torch.equal(a.value, b) for a, b in zip(out.to_tuple()[2], expected.hidden_states, strict=True))
    assert out.attentions.value is None
    assert list(out.value.keys()) == ["loss", "logits", "hidden_states"]
    assert node(**batch(), return_dict=False)[0].value == expected.loss
    assert list(node(input_ids=batch()["input_ids"]).value.keys()) == ["logits"]


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("whole", ["loss", "own"])
def test_gradients_are_those_of_the_model(model: LanguageModel, transparent: bool, whole: str) -> None:
    """The loss that the model computes, and one computed from its logits and a hidden state."""
    node = module_node(model, transparent=transparent)

    def loss_of(out: Any) -> Any:
        return out.loss if whole == "loss" else out.logits.square().mean() + out.hidden_states[1].sin().mean()

    torch.manual_seed(1)  # dropout is on
    loss_of(model(**batch(), output_hidden_states=True)).backward()
    expected = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    torch.manual_seed(1)
    sent = send_gradients(tc.Trace.of(loss_of(node(**batch(), output_hidden_states=True))))
    assert {p.name for p in sent.reached} == {name for name, grad in expected.items() if grad is not None}
    for name, weight in model.named_parameters():
        assert (weight.grad is None) == (expected[name] is None)
        assert expected[name] is None or torch.allclose(weight.grad, expected[name], rtol=1e-12, atol=0)  # type: ignore[arg-type]


def test_nodes_go_in_by_keyword_and_replays_draw_the_same_dropout(model: LanguageModel) -> None:
    node = module_node(model)
    given = {name: tc.node(value, name=name) for name, value in batch().items()}
    loss = node(**given).loss
    trace = tc.Trace.of(loss)
    assert {"input_ids", "attention_mask", "labels", "embed.weight"} <= {n.name for n in trace.nodes if n.op is None}
    changes = {p: p.value.detach().clone() for p in node.parameters()}
    torch.manual_seed(5)
    assert torch.equal(trace.replay(changes).value, loss.value)
    (tied,) = [p for p in node.parameters() if p.name == "embed.weight"]
    assert not torch.equal(trace.replay({tied: torch.zeros(11, 6).double()}).value, loss.value)
    assert model.lm_head.weight is model.embed.weight


class Residual(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Any) -> Any:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.downsample(x)
        return self.relu(out)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(6, 3)]
    return nn.Sequential(Residual(3, 4, 2), nn.MaxPool2d(2), Residual(4, 6, 1), *pool).double()


@pytest.mark.parametrize("transparent", [False, True])
def test_image_models_train_as_alone(transparent: bool) -> None:
    """Three steps with in-place layers and moving statistics; then evaluation, which moves none."""
    alone, traced = resnet(), resnet()
    node = module_node(traced, transparent=transparent)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in (alone, traced)]
    images, labels = torch.randn(5, 3, 8, 8).double(), torch.tensor([0, 1, 2, 1, 0])
    for step in range(3):
        torch.manual_seed(step)
        functional.cross_entropy(alone(images), labels).backward()
        torch.manual_seed(step)
        sent = send_gradients(tc.Trace.of(functional.cross_entropy(node(images), labels)))
        assert len(sent.reached) == len(list(traced.parameters()))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    same = zip(alone.state_dict().values(), traced.state_dict().values(), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-14) for a, b in same)
    alone.eval()
    traced.eval()
    before = copy.deepcopy(traced.state_dict())
    out = node(images)
    assert torch.allclose(out.value, alone(images), rtol=1e-10)
    changes = {p: p.value.detach().clone() for p in node.parameters()}
    assert torch.allclose(tc.Trace.of(out).replay(changes).value, out.value, rtol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), traced.state_dict().values(), strict=True))
