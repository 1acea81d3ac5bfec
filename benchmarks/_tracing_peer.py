"""trace-opt's side of benchmarks/tracing.py. Runs in the peer's own environment; see _tracing_common.serve."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from _tracing_common import serve


class InstantModel:
    """Stands where the peer expects a chat model: called with messages, it returns an OpenAI-shaped reply at once."""

    def __init__(self, answers: Callable[[], dict[str, object]]) -> None:
        self.answers = answers
        self.names: dict[str, str] = {}
        self.requests: list[dict[str, Any]] = []

    def __call__(self, **request: Any) -> Any:
        self.requests.append(request)
        suggestion = {self.names[name]: value for name, value in self.answers().items()}
        text = json.dumps({"reasoning": "", "answer": "", "suggestion": suggestion})
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=text))])


class PeerSide:
    def __init__(self) -> None:
        # litellm would otherwise ask the network for a price list while it is imported.
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        # Imported here, after `serve` has moved stdout out of the way: the package prints while it is imported.
        self.trace: Any = importlib.import_module("opto.trace")
        self.optimizers: Any = importlib.import_module("opto.optimizers")

    def version(self) -> str:
        return f"trace-opt {importlib.metadata.version('trace-opt')}"

    def node(self, value: object, name: str | None = None) -> Any:
        return self.trace.node(value, name=name)

    def parameter(self, value: object, name: str) -> Any:
        return self.trace.node(value, name=name, trainable=True)

    def value(self, node: Any) -> Any:
        return node.data

    def bundle(self, function: Callable[..., Any], *, trainable: bool = False) -> Callable[..., Any]:
        bundled: Callable[..., Any] = self.trace.bundle(trainable=trainable)(function)
        return bundled

    def replace_code(self, bundled: Any, source: str) -> None:
        bundled.parameter._data = source  # what the peer's own Optimizer.update does

    def backward(self, output: Any, feedback: str) -> object:
        return output.backward(feedback)

    def optimizer(self, parameters: list[Any], answers: Callable[[], dict[str, object]]) -> Any:
        model = InstantModel(answers)
        # The peer numbers names ("margin0"), in its prompt and in the reply that it expects.
        model.names = {parameter.name.split(":")[0]: parameter.py_name for parameter in parameters}
        return self.optimizers.OptoPrime(parameters, llm=model)

    def last_request(self, optimizer: Any) -> tuple[list[dict[str, str]], str]:
        return optimizer.llm.requests[-1]["messages"], ""  # it sends no schema, only "answer in JSON"

    def reset(self) -> None:
        self.trace.GRAPH.clear()  # its registry keeps every node ever made


if __name__ == "__main__":
    serve(PeerSide)
