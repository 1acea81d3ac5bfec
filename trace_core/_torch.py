"""What a torch function needs to give the same again: autocast, grad mode, random generators. torch is not imported.

Nothing here waits for a device.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from trace_core._values import is_tensor
from trace_core.errors import ReplayError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_DEVICES = ("cpu", "cuda", "xpu", "mps")


class Mode(NamedTuple):
    """torch's switches where they are not at their defaults.

    Attributes:
        grad: whether autograd recorded.
        autocast: (device type, dtype) for which autocast was on.
    """

    grad: bool = True
    autocast: tuple[tuple[str, Any], ...] = ()


PLAIN = Mode()


def mode_now() -> Mode:
    """The present mode."""
    if is_default_mode():
        return PLAIN
    torch: Any = sys.modules["torch"]
    grad: bool = torch.is_grad_enabled()
    if not torch._C._is_any_autocast_enabled():
        return Mode(grad)
    return Mode(grad, tuple((d, torch.get_autocast_dtype(d)) for d in _DEVICES if _autocast_on(torch, d)))


def is_default_mode() -> bool:
    """Whether autograd records and autocast is off. torch must be loaded."""
    return is_grad_enabled() and not is_autocast_on()


def _first_is_grad_enabled() -> bool:
    """Looks torch's functions up, and stands aside: they are asked at every operator."""
    global is_grad_enabled, is_autocast_on
    torch: Any = sys.modules["torch"]
    is_grad_enabled, is_autocast_on = torch.is_grad_enabled, torch._C._is_any_autocast_enabled
    return is_grad_enabled()


is_grad_enabled: Callable[[], bool] = _first_is_grad_enabled
is_autocast_on: Callable[[], bool] = bool


def autocast_now() -> bool:
    """Whether torch is loaded and autocast is on for any device."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch._C._is_any_autocast_enabled())


def _autocast_on(torch: Any, device: str) -> bool:
    try:
        return bool(torch.is_autocast_enabled(device))
    except RuntimeError:  # a device this build does not know
        return False


@contextmanager
def as_recorded(mode: Mode) -> Iterator[None]:
    """Run as in ``mode``. Autograd stays off where it is off now."""
    torch: Any = sys.modules["torch"]
    with ExitStack() as stack:
        if not mode.grad:
            stack.enter_context(torch.no_grad())
        wanted = dict(mode.autocast)
        now = dict(mode_now().autocast)
        for device in {*wanted, *now}:
            if wanted.get(device) != now.get(device):
                on = device in wanted
                stack.enter_context(torch.autocast(device, enabled=on, dtype=wanted[device] if on else None))
        yield


def in_mode(mode: Mode, call: Callable[[], Any]) -> Any:
    """``call()`` in ``mode``, from the default one, in a form that torch.compile can look into."""
    torch: Any = sys.modules["torch"]
    if not mode.grad:
        with torch.no_grad():
            return in_mode(Mode(True, mode.autocast), call)
    if mode.autocast:
        device, dtype = mode.autocast[0]
        with torch.autocast(device, dtype=dtype):
            return in_mode(Mode(True, mode.autocast[1:]), call)
    return call()


# ---- random numbers

#: Functions and methods that draw random numbers (some only if asked to: noting the state costs next to nothing).
STOCHASTIC = frozenset(
    {
        "alpha_dropout",
        "bernoulli",
        "binomial",
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "feature_alpha_dropout",
        "feature_dropout",
        "fractional_max_pool2d",
        "fractional_max_pool3d",
        "fractional_max_pool2d_with_indices",
        "fractional_max_pool3d_with_indices",
        "gru",
        "gumbel_softmax",
        "lstm",
        "multi_head_attention_forward",
        "multinomial",
        "native_dropout",
        "normal",
        "poisson",
        "rand_like",
        "randint_like",
        "randn_like",
        "rnn_relu",
        "rnn_tanh",
        "rrelu",
        "scaled_dot_product_attention",
        "svd_lowrank",
        "pca_lowrank",
    }
)


class Draws:
    """The states of the random generators before something ran.

    Attributes:
        states: (generator, its state).
    """

    __slots__ = ("states",)

    def __init__(self, devices: Iterable[Any] = ()) -> None:
        torch: Any = sys.modules["torch"]
        generators = [torch.default_generator]
        if torch.cuda.is_initialized():
            wanted = {device.index for device in devices if device.type == "cuda" and device.index is not None}
            generators += [torch.cuda.default_generators[index] for index in sorted(wanted)]
        self.states = [(generator, _state(generator)) for generator in generators]

    def drawn(self) -> bool:
        """Whether any random number was drawn since."""
        torch: Any = sys.modules["torch"]
        for generator, before in self.states:
            now = _state(generator)
            if before is None or now is None or not torch.equal(before, now):
                return True
        return False

    def set(self) -> None:
        """Put the generators into these states."""
        for generator, state in self.states:
            if state is None:
                raise ReplayError(
                    "random numbers were drawn while a CUDA graph was being captured, where the generator's state "
                    "cannot be read: record outside of the capture"
                )
            generator.set_state(state)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw the same numbers inside; the generators are afterwards as they were before."""
        now = [(generator, generator.get_state()) for generator, _ in self.states]
        self.set()
        try:
            yield
        finally:
            for generator, state in now:
                generator.set_state(state)


def _state(generator: Any) -> Any:
    try:
        return generator.get_state()
    except RuntimeError:  # a CUDA graph is being captured
        return None


def devices_of(values: Iterable[Any]) -> set[Any]:
    """The devices of the tensors among the values, one level deep into lists, tuples and dicts."""
    found = set()
    for value in values:
        if is_tensor(value):
            found.add(value.device)
        elif isinstance(value, list | tuple | dict):
            items = value.values() if isinstance(value, dict) else value
            found.update([item.device for item in items if is_tensor(item)])
    return found
