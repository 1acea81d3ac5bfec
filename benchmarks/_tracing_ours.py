"""trace_core's side of benchmarks/tracing.py; see _tracing_common.serve."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any

from _tracing_common import serve


class OurSide:
    def __init__(self) -> None:
        self.tc: Any = importlib.import_module("trace_core")
        self.optimizers: Any = importlib.import_module("trace_core.optimizers")
        self.llm: Any = importlib.import_module("trace_core.integrations.llm")

    def version(self) -> str:
        return f"trace_core {importlib.import_module('trace_core._version').__version__}"

    def node(self, value: object, name: str | None = None) -> Any:
        return self.tc.node(value, name=name)

    def parameter(self, value: object, name: str) -> Any:
        return self.tc.node(value, name=name, trainable=True)

    def value(self, node: Any) -> Any:
        return node.value

    def bundle(self, function: Callable[..., Any], *, trainable: bool = False) -> Callable[..., Any]:
        # inline: the peer runs proposed code in this process, too
        isolation = "inline" if trainable else None
        bundled: Callable[..., Any] = self.tc.bundle(trainable=trainable, isolation=isolation)(function)
        return bundled

    def replace_code(self, bundled: Any, source: str) -> None:
        bundled.code.update(source)

    def backward(self, output: Any, feedback: str) -> object:
        return output.backward(feedback)

    def optimizer(self, parameters: list[Any], answers: Callable[[], dict[str, object]]) -> Any:
        def reply(messages: list[Any]) -> dict[str, object]:
            fields = model.calls[-1].schema.model_fields
            return {**dict.fromkeys(fields), "reasoning": "scripted", **answers()}

        model = self.llm.ScriptedLLM(reply)
        # a budget that lets all parameters into one request, as the peer puts them there
        optimizer = self.optimizers.OptoPrime(parameters, llm=model, max_prompt_tokens=max(8000, 80 * len(parameters)))
        optimizer.bench_model = model
        return optimizer

    def last_request(self, optimizer: Any) -> tuple[list[dict[str, str]], str]:
        call = optimizer.bench_model.calls[-1]
        if isinstance(call, list):
            return call, ""
        schema = getattr(call, "schema", None)
        return list(call.messages), json.dumps(schema.model_json_schema()) if schema is not None else ""

    def reset(self) -> None:
        """Nothing to do: the library keeps no global state."""


if __name__ == "__main__":
    serve(OurSide)
