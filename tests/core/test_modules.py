"""Modules: finding parameters, saving and loading them (behaviours 19 and 20; 9: two instances)."""

from __future__ import annotations

import copy
import json
import pickle
from collections import deque, namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pytest

import trace_core as tc

Pair = namedtuple("Pair", ["x", "y"])


class Inner(tc.Module):
    def __init__(self, value: Any = 1) -> None:
        self.p = tc.node(value, trainable=True)


class Agent(tc.Module):
    def __init__(self) -> None:
        self.prompt = tc.node("be brief", trainable=True)
        self.inner = Inner()

    @tc.bundle(trainable=True, isolation="inline")
    def plan(self, text: str) -> str:
        return self.prompt.value + text

    def forward(self, text: str) -> tc.Node:
        return self.plan(text) * self.inner.p


# ---- 19: finding parameters


def test_attributes_nested_modules_and_methods() -> None:
    agent = Agent()
    assert [path for path, _ in agent.named_parameters()] == ["prompt", "inner.p", "plan"]
    result = agent("x")
    assert set(result.backward("x").parameters) == set(agent.parameters())
    agent.zero_feedback()
    assert not any(p.feedback for p in agent.parameters())


def test_two_instances_have_code_of_their_own() -> None:
    first, second = Agent(), Agent()
    assert first.plan.code is first.plan.code
    assert first.plan.code is not second.plan.code
    first.plan.code.update("def plan(self, text):\n    return 'new'\n")
    assert first.plan("x").value == "new"
    assert second.plan("x").value == "be briefx"
    assert Agent.plan(first, "x").value == "new"
    with pytest.raises(tc.SourceError, match="each instance"):
        Agent.plan.code  # noqa: B018


def test_containers_and_bundles_in_attributes() -> None:
    p = tc.node(1, trainable=True)

    @tc.bundle(trainable=True, isolation="inline")
    def free(x: int) -> int:
        return x

    class Holder(tc.Module):
        def __init__(self) -> None:
            self.items = [tc.node(1, trainable=True), {"deep": (tc.node(2, trainable=True), Inner())}]
            self.pair = Pair(tc.node(3, trainable=True), 4)
            self.free = free
            self.again = [p, p]
            self.cycle: list[Any] = [p]
            self.cycle.append(self.cycle)
            self.me = self

    paths = [path for path, _ in Holder().named_parameters()]
    assert paths == ["items.0", "items.1.deep.0", "items.1.deep.1.p", "pair.0", "free", "again.0"]


def test_records_and_deques_in_attributes() -> None:
    from pydantic import BaseModel, ConfigDict

    @dataclass
    class Config:
        prompt: Any
        rest: Any = None

    class Settings(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        limit: Any

    class Holder(tc.Module):
        def __init__(self) -> None:
            self.config = Config(tc.node("a", trainable=True), [Config(tc.node("b", trainable=True))])
            self.config.rest[0].rest = self.config
            self.settings = Settings(limit=tc.node(3, trainable=True))
            self.queue = deque([tc.node(4, trainable=True)])
            self.kind = Config

    found = {path: parameter.value for path, parameter in Holder().named_parameters()}
    assert found == {"config.prompt": "a", "config.rest.0.prompt": "b", "settings.limit": 3, "queue.0": 4}


def test_properties_are_never_run() -> None:
    class Careful(tc.Module):
        constant = 5
        shared = tc.node(1, trainable=True)

        def __init__(self) -> None:
            self.p = tc.node(1, trainable=True)

        @property
        def trap(self) -> None:
            raise AssertionError("a property was run")

        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"__getattr__({name}) was run")

    assert [path for path, _ in Careful().named_parameters()] == ["p", "shared"]


def test_unnamed_parameters_get_the_attribute_name() -> None:
    agent = Agent()
    assert agent.prompt.name == "prompt"
    named = tc.node(1, trainable=True, name="mine")
    agent.other = named
    assert named.name == "mine"


def test_static_and_class_methods_share_their_code() -> None:
    class Kinds(tc.Module):
        @staticmethod
        @tc.bundle(trainable=True, isolation="inline")
        def outside(x: int) -> int:
            return x + 1

        @tc.bundle(trainable=True, isolation="inline")
        @staticmethod
        def inside(x: int) -> int:
            return x + 1

        @classmethod
        @tc.bundle(trainable=True, isolation="inline")
        def of_class(cls, x: int) -> int:
            return x + 1

    kinds = Kinds()
    found = dict(kinds.named_parameters())
    assert set(found) == {"outside", "inside", "of_class"}
    for name in found:
        output = getattr(kinds, name)(1)
        assert output.value == 2
        assert output.backward("x").parameters == [found[name]]
        assert getattr(Kinds(), name).code is found[name]


def test_inherited_and_overridden_trainable_methods() -> None:
    class Child(Agent):
        @tc.bundle(trainable=True, isolation="inline")
        def plan(self, text: str) -> str:
            return super().plan(text).value + "!"

    class Replaced(Agent):
        def plan(self, text: str) -> str:  # type: ignore[override]
            return text

    child = Child()
    found = dict(child.named_parameters())
    assert list(found) == ["prompt", "inner.p", "plan", "Agent.plan"]
    assert set(child.plan("x").backward("x").parameters) == {found["plan"], found["Agent.plan"], found["prompt"]}
    assert "plan" not in dict(Replaced().named_parameters())


def test_slots_and_equal_instances() -> None:
    class Slotted(tc.Module):
        __slots__ = ("__weakref__", "p", "unset")

        def __init__(self) -> None:
            self.p = tc.node(1, trainable=True)

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

        @tc.bundle(trainable=True, isolation="inline")
        def act(self, x: int) -> int:
            return x + self.p.value

    first, second = Slotted(), Slotted()
    assert [path for path, _ in first.named_parameters()] == ["p", "act"]
    assert first.act.code is not second.act.code
    assert set(first.act(1).backward("x").parameters) == {first.p, first.act.code}

    class Closed:
        __slots__ = ()

        @tc.bundle(trainable=True)
        def act(self) -> int:
            return 1

    with pytest.raises(tc.SourceError, match="__weakref__"):
        Closed().act()


def test_model_decorator() -> None:
    @tc.model
    class Plain:
        constant = 3

        def __init__(self, value: int) -> None:
            self.p = tc.node(value, trainable=True)

        @property
        def double(self) -> int:
            return self.p.value * 2

        @tc.bundle
        def act(self, x: int) -> int:
            return x * self.p.value

    @tc.model
    @dataclass
    class Data:
        p: Any
        q: int = 2

    @tc.model
    @dataclass(frozen=True)
    class Frozen:
        p: Any

    @tc.model
    class Slotted:
        __slots__ = ("p",)

        def __init__(self) -> None:
            self.p = tc.node(1, trainable=True)

    @tc.model
    class WithSuper(Plain):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__(7)

    p = tc.node(2, trainable=True)
    for instance in (Plain(1), Data(p), Frozen(p), Slotted(), WithSuper()):
        assert isinstance(instance, tc.Module)
        assert [path for path, _ in instance.named_parameters()] == ["p"]
    assert Plain(4).double == 8
    assert Plain(4).act(2).value == 8
    assert Plain.constant == 3
    assert Plain.__name__ == "Plain"
    assert tc.model(Agent) is Agent
    with pytest.raises(tc.StateError, match="decorates a class"):
        tc.model(5)  # type: ignore[type-var]


def test_generic_models() -> None:
    item = TypeVar("item")

    @tc.model
    class Store(Generic[item]):
        def __init__(self) -> None:
            self.p = tc.node(1, trainable=True)

    class Numbers(Store[int]):
        pass

    assert [path for path, _ in Store[int]().named_parameters()] == ["p"]  # type: ignore[attr-defined]
    assert isinstance(Numbers(), tc.Module)


def test_modules_without_forward_say_so() -> None:
    with pytest.raises(TypeError, match="forward"):
        Inner()()


def test_copies_of_modules() -> None:
    agent = Agent()
    agent.plan.code.update("def plan(self, text):\n    return 'v1 ' + text\n")
    for twin in (copy.deepcopy(agent), pickle.loads(pickle.dumps(agent))):  # noqa: S301 - made here
        assert twin.plan.code is not agent.plan.code
        assert twin.plan("x").value == "v1 x"
        twin.plan.code.update("def plan(self, text):\n    return 'v2'\n")
        twin.prompt.update("other")
        assert agent.plan("x").value == "v1 x"
        assert agent.prompt.value == "be brief"
        assert [path for path, _ in twin.named_parameters()] == [path for path, _ in agent.named_parameters()]


def test_copies_of_bound_bundles_and_trainable_functions() -> None:
    agent = Agent()
    assert pickle.loads(pickle.dumps(agent.plan))("x").value == "be briefx"  # noqa: S301 - made here
    assert copy.copy(agent.plan) == agent.plan

    @tc.bundle(trainable=True, isolation="inline")
    def free(x: int) -> int:
        return x

    twin = copy.deepcopy({"f": free})["f"]
    twin.code.update("def free(x):\n    return 5\n")
    assert (free(1).value, twin(1).value) == (1, 5)


# ---- 20: state


class State(tc.Module):
    def __init__(self) -> None:
        for name, value in VALUES.items():
            setattr(self, name, tc.node(copy.deepcopy(value), trainable=True))


VALUES: dict[str, Any] = {
    "text": "käse 🤖 'x'",
    "whole": 10**30,
    "number": 0.1,
    "flag": True,
    "items": [1, [2.5, None]],
    "pair": (1, ("a", 2)),
    "table": {"a": {"b": 1}, "$": 2},
    "keys": {1: "a", (2, 3): "b"},
    "unique": {1, 2},
    "raw": b"\x00\xff",
    "complex_": 1 + 2j,
    "array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "ints": np.array([1, 2]),
}


def test_state_round_trip(tmp_path: Path) -> None:
    first, second = State(), State()
    changed = dict(first.state_dict())
    for name, p in second.named_parameters():
        p.update({"text": "z", "number": 9.0, "array": np.zeros((2, 3), np.float32)}.get(name, p.value))
    first.save(tmp_path / "state.json")
    second.load(tmp_path / "state.json")
    for name, value in changed.items():
        found = second.state_dict()[name]
        assert type(found) is type(value)
        assert np.array_equal(found, value) if isinstance(value, np.ndarray) else found == value
    assert second.state_dict()["array"].dtype == np.float32
    assert b"pickle" not in (tmp_path / "state.json").read_bytes()


def test_code_and_versions_are_part_of_the_state(tmp_path: Path) -> None:
    agent, other = Agent(), Agent()
    agent.plan.code.update("def plan(self, text):\n    return 'saved'\n")
    agent.save(tmp_path / "s.json")
    other.load(tmp_path / "s.json")
    assert other.plan("x").value == "saved"


def test_every_misfit_is_named_and_nothing_is_changed() -> None:
    agent = Agent()
    state = {"prompt": 5, "nonsense": 1, "plan": "def plan(self):\n    pass\n"}
    with pytest.raises(tc.StateError) as caught:
        agent.load_state_dict(state)
    for words in ("unknown entry 'nonsense'", "missing entry 'inner.p'", "entry 'prompt'", "entry 'plan'", "signature"):
        assert words in str(caught.value)
    assert agent.prompt.value == "be brief"
    agent.load_state_dict({"prompt": "other", "nonsense": 1}, strict=False)
    assert agent.prompt.value == "other"


def test_values_that_are_no_data_are_named(tmp_path: Path) -> None:
    class Odd(tc.Module):
        def __init__(self) -> None:
            self.thing = tc.Parameter(object(), constraint=tc.Anything())

    with pytest.raises(tc.StateError, match="'thing' holds a object"):
        Odd().save(tmp_path / "s.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"format": "other"}',
        '{"format": "trace_core state"}',
        '{"format": "trace_core state", "values": 3, "arrays": []}',
        '{"format": "trace_core state", "values": {"a": {"$": "nope"}}, "arrays": []}',
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(tc.StateError):
        Agent().load(tmp_path / "s.json")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(tc.StateError, match="no such file"):
        Agent().load(tmp_path / "s.json")
    state = State()
    state.save(tmp_path / "s.json")
    (tmp_path / "s.safetensors").write_bytes(b"damaged")
    with pytest.raises(tc.StateError, match="damaged"):
        state.load(tmp_path / "s.json")
    (tmp_path / "s.safetensors").unlink()
    with pytest.raises(tc.StateError, match="beside"):
        state.load(tmp_path / "s.json")
    with pytest.raises(tc.StateError, match="another ending"):
        state.save(tmp_path / "s.safetensors")


def test_saved_text_is_readable(tmp_path: Path) -> None:
    Agent().save(tmp_path / "s.json")
    data = json.loads((tmp_path / "s.json").read_text())
    assert data["values"]["prompt"] == "be brief"
