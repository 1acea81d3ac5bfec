"""Replays through torch.compile and CUDA graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core._lazy import require
from trace_core.errors import ReplayError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trace_core.nodes.tensor.program import TensorProgram


def compiled(program: TensorProgram, backend: str) -> Callable[..., Any]:
    """The program through torch.compile: as a whole; with random draws or other Python in it, piece by piece."""
    torch = require("torch", extra="torch")
    options: dict[str, Any] = {"backend": backend, "dynamic": False}
    if backend == "inductor":
        options["options"] = {"fallback_random": True}  # the generators of eager torch
    if program.is_traceable() and all(step.draws is None for step in program.steps):
        whole = torch.compile(program.run_traced, **options)

        def fast(*tensors: Any) -> Any:
            with program.prepared():
                return whole(*tensors)
    else:
        program.compile_modules(options)

        def fast(*tensors: Any) -> Any:
            return program.run(tensors)

    def run(*tensors: Any) -> Any:
        try:
            return fast(*tensors)
        except Exception as error:
            module = type(error).__module__
            if module.startswith(("torch._dynamo", "torch._inductor")):
                raise ReplayError(
                    f"torch.compile with backend {backend!r} failed ({_first_line(error)}): the inductor needs a C++ "
                    "compiler (on GPUs triton); use backend='aot_eager' or mode='eager'"
                ) from error
            raise

    return run


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def graphed(program: TensorProgram, examples: Sequence[Any]) -> Callable[..., Any]:
    """The program as CUDA graphs, one for it and one for its backward pass."""
    torch = require("torch", extra="torch")
    if not all(example.is_cuda for example in examples):
        raise ReplayError("mode 'cuda-graph' needs parameters on a CUDA device: use mode='eager' or 'compile'")
    if not program.is_traceable():
        raise ReplayError(
            "mode 'cuda-graph' takes torch functions and module nodes only, and each module in one state: use "
            "mode='eager' or 'compile'"
        )
    draws = [step.draws for step in program.steps if step.draws is not None]
    if len(draws) > 1:
        raise ReplayError("mode 'cuda-graph' repeats the random numbers of one module or function, this has more")
    samples = tuple(example.detach().clone().requires_grad_(example.is_floating_point()) for example in examples)

    state = torch.cuda.get_rng_state()
    with program.prepared():
        graph = torch.cuda.make_graphed_callables(program.run_traced, samples, allow_unused_input=True)
    torch.cuda.set_rng_state(state)
    own = _own_gradients(torch)

    def run(*tensors: Any) -> Any:
        placed = [own(tensor) for tensor in tensors]
        if not draws:
            return graph(*placed).clone()
        with draws[0].again():  # the graph begins where the generators are
            return graph(*placed).clone()

    return run


def _own_gradients(torch: Any) -> Callable[[Any], Any]:
    """The identity, with gradients in memory of their own: a graph writes its gradients to the same place each time."""

    class OwnGradient(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, tensor: Any) -> Any:
            return tensor.view_as(tensor)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            return None if gradient is None else gradient.clone()

    apply: Callable[[Any], Any] = OwnGradient.apply
    return apply
