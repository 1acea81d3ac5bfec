"""Arrays and tensors summed up in a line: shape, type, statistics, a few values. Made when something is rendered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core._values import is_tensor

if TYPE_CHECKING:
    from collections.abc import Callable

_SHOWN = 6  # values
_EXACT = 1_000_000  # with more numbers than this, statistics are computed in single precision


def summarize(value: Any, show: Callable[[Any], str]) -> str:
    """Shape, type and, for numbers, mean, standard deviation, extremes, shares of zeros, NaN and Inf, and a few values.

    Mean, deviation and extremes are those of the finite numbers. A tensor is summed up where it is: what comes from its
    device is one transfer of a dozen numbers. A tensor that has a gradient shows its norm, which is a second one.
    """
    tensor = is_tensor(value)
    shape = "x".join(str(n) for n in value.shape) or "scalar"
    dtype = str(value.dtype).removeprefix("torch.")
    where = f" on {value.device}" if tensor and str(value.device) != "cpu" else ""
    head = f"{'tensor' if tensor else 'array'}({shape}, {dtype}{where}"
    size = value.numel() if tensor else value.size
    if size == 0:
        return f"{head}, empty)"
    if tensor and (value.device.type == "meta" or value.layout != _strided()):
        return f"{head}, {'no data' if value.device.type == 'meta' else str(value.layout).removeprefix('torch.')})"
    numeric = dtype.startswith(("int", "uint", "float", "bfloat"))
    data = value.detach() if tensor else value
    if not numeric or size <= _SHOWN:
        first = data.reshape(-1)[:_SHOWN].tolist()
        few = ", ".join(f"{item:.4g}" if isinstance(item, float) else show(item) for item in first)
        return f"{head}: [{few}{', …' if size > _SHOWN else ''}]{_gradient(value, tensor)})"
    stats, first = _of_tensor(data) if tensor else _of_array(data)
    whole = dtype.startswith(("int", "uint"))
    few = ", ".join(f"{int(item)}" if whole and item == item else f"{item:.4g}" for item in first)
    return f"{head}: {_stats(stats, size)}: [{few}, …]{_gradient(value, tensor)})"


def _stats(stats: list[float], size: int) -> str:
    mean, deviation, low, high, zeros, nans, infs = stats
    if nans + infs == size:
        text = "no finite number"
    else:
        text = f"mean {mean:.4g}, std {deviation:.4g}, min {low:.4g}, max {high:.4g}"
    for count, what in ((zeros, "zeros"), (nans, "NaN"), (infs, "Inf")):
        if count:
            text += f", {100 * count / size:.3g} % {what}"
    return text


def _of_tensor(data: Any) -> tuple[list[float], list[float]]:
    import sys

    torch: Any = sys.modules["torch"]
    flat = data.reshape(-1)
    numbers = flat.to(torch.float64 if flat.numel() <= _EXACT and flat.device.type != "mps" else torch.float32)
    finite = torch.isfinite(numbers)
    nans = torch.isnan(numbers).sum()
    count = finite.sum()
    mean = torch.where(finite, numbers, 0.0).sum() / count
    deviation = torch.where(finite, (numbers - mean) ** 2, 0.0).sum().div(count).sqrt()
    low = torch.where(finite, numbers, float("inf")).min()
    high = torch.where(finite, numbers, -float("inf")).max()
    zeros = (numbers == 0).sum()
    parts = [mean, deviation, low, high, zeros, nans, numbers.numel() - count - nans]
    together = torch.cat([torch.stack([part.to(numbers.dtype) for part in parts]), numbers[:_SHOWN]]).tolist()
    return together[:7], together[7:]


def _of_array(data: Any) -> tuple[list[float], list[float]]:
    import numpy

    with numpy.errstate(all="ignore"):
        numbers = data.reshape(-1).astype(float)
        finite = numbers[numpy.isfinite(numbers)]
        nans = int(numpy.isnan(numbers).sum())
        extremes = [finite.mean(), finite.std(), finite.min(), finite.max()] if finite.size else [0.0] * 4
        zeros = int((numbers == 0).sum())
        return [*map(float, extremes), zeros, nans, numbers.size - finite.size - nans], numbers[:_SHOWN].tolist()


def _strided() -> Any:
    import sys

    return sys.modules["torch"].strided


def _gradient(value: Any, tensor: bool) -> str:
    if not tensor or not value.is_leaf or value.grad is None:
        return ""
    return f", gradient norm {float(value.grad.detach().float().norm()):.4g}"
