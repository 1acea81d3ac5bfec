"""Random choices that every process makes alike, now and after a resume.

A choice depends on three integers - the seed, the number of the refresh, the position of the tensor - and on nothing
else: not on the global generator, the device, or what was drawn before. So replicas agree without talking, and a
checkpoint holds integers instead of generator states.
"""

from __future__ import annotations

from typing import Any

from trace_core.optimizers.tensor.frugal._torch import torch

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix(*numbers: int) -> int:
    """One 64-bit number out of several, each of whose bits depends on all of them (the splitmix64 finalizer)."""
    state = 0
    for number in numbers:
        state = (state + (number & _MASK) + _GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def generator(seed: int, refresh: int, tensor: int) -> Any:
    """A CPU generator for one tensor at one refresh."""
    return torch.Generator().manual_seed(mix(seed, refresh, tensor) >> 1)


def permutation(n: int, seed: int, refresh: int, tensor: int) -> list[int]:
    order: list[int] = torch.randperm(n, generator=generator(seed, refresh, tensor)).tolist()
    return order


def subset(n: int, count: int, seed: int, refresh: int, tensor: int) -> Any:
    """``count`` different indices below ``n``, ascending (ascending reads are kinder to caches). int64, on the CPU."""
    return torch.randperm(n, generator=generator(seed, refresh, tensor))[:count].sort().values


def scattered(n: int, count: int, keys: tuple[int, int, int], device: Any) -> Any:
    """``count`` different indices below ``n`` made on ``device``, cheap enough to be made anew at every step.

    The range, cut into ``count`` strata of nearly equal width, gives one index per stratum; the strata are rotated by a
    random amount, so every index is equally likely. A permutation of all entries would need 8 bytes per entry and a
    sort; this needs a hash of the stratum's number. All arithmetic is in 64-bit integers, the same on every device, and
    can be turned round: ``kernels.py`` finds the stratum of an entry. ``keys``: of ``scatter_keys``. Returns int64,
    shape (count,).
    """
    factor, offset, shift = keys
    bits = torch.arange(count, dtype=torch.int64, device=device)
    bits.mul_(factor).add_(offset)
    high = bits >> 32
    bits.bitwise_xor_(high.bitwise_and_(0xFFFFFFFF)).mul_(MULTIPLIER)
    torch.bitwise_right_shift(bits, 32, out=high)
    bits.bitwise_xor_(high).bitwise_and_(0x7FFFFFFF)
    if n % count == 0:
        width = n // count
        index = bits.mul_(width).bitwise_right_shift_(31)
        index.add_(torch.arange(shift, shift + n, width, dtype=torch.int64, device=device))
    else:
        edges = torch.arange(count + 1, dtype=torch.int64, device=device)  # the floors of i * n / count
        edges = (edges * (n % count)).div_(count, rounding_mode="floor").add_(edges, alpha=n // count)
        index = bits.mul_(edges[1:] - edges[:-1]).bitwise_right_shift_(31).add_(edges[:-1]).add_(shift)
    # Indices ascend up to the end of the range and begin anew there, in the middle of a stratum perhaps.
    over = -((shift - n) * count // n)
    edge = index[max(0, over - 1) : over]
    edge.sub_((edge >= n).to(torch.int64).mul_(n))
    index[over:].sub_(n)
    return index


def scatter_keys(n: int, seed: int, refresh: int, tensor: int) -> tuple[int, int, int]:
    """Factor and offset of the hash of a stratum's number, as int64, and the rotation of the strata, below ``n``."""
    place = (seed, refresh, tensor)
    return _signed(mix(*place, 1) | 1), _signed(mix(*place, 2)), mix(*place, 3) % n


def _signed(number: int) -> int:
    """The 64-bit pattern as torch's int64 reads it."""
    return number - (1 << 64) if number >= 1 << 63 else number


MULTIPLIER = _signed(0xD6E8FEB86659FD93)
