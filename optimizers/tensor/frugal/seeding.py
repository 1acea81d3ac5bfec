"""Random choices that every process makes alike, now and after a resume.

A choice depends on three integers - the seed, the number of the refresh, the position of the tensor - and on nothing
else: not on the global generator, the device, or what was drawn before. So replicas agree without talking, and a
checkpoint holds integers instead of generator states.
"""

from __future__ import annotations

import math
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


def scattered(n: int, count: int, seed: int, refresh: int, tensor: int, device: Any) -> Any:
    """``count`` different indices below ``n`` made on ``device``, cheap enough to be made anew at every step.

    The range, cut into ``count`` strata of nearly equal width, gives one index per stratum; the strata are rotated by a
    random amount, so every index is equally likely. A permutation of all entries would need 8 bytes per entry and a
    sort; this needs a hash of the stratum's number. The arithmetic (64-bit integers, and float64 products of exact
    operands) gives the same numbers on every device. Returns int64, shape (count,).
    """
    first, second = mix(seed, refresh, tensor, 1), mix(seed, refresh, tensor, 2)
    shift = mix(seed, refresh, tensor, 3) % n
    bits = torch.arange(count, dtype=torch.int64, device=device)
    bits.mul_(_signed(first | 1)).add_(_signed(second))
    bits.bitwise_xor_((bits >> 32).bitwise_and_(0xFFFFFFFF)).mul_(_signed(0xD6E8FEB86659FD93))
    bits.bitwise_xor_((bits >> 32).bitwise_and_(0xFFFFFFFF))
    bits.bitwise_and_(0x7FFFFFFF)
    if n % count == 0:
        width = n // count
        index = bits.remainder_(width) if width & (width - 1) else bits.bitwise_and_(width - 1)
        index.add_(torch.arange(shift, shift + n, width, dtype=torch.int64, device=device))
    else:
        edges = torch.arange(count + 1, dtype=torch.float64, device=device).mul_(n / count).floor_()
        edges[-1:].fill_(n)
        widths = edges[1:] - edges[:-1]
        index = bits.to(torch.float64).mul_(math.ldexp(1.0, -31)).mul_(widths).floor_().add_(edges[:-1]).to(torch.int64)
        index.add_(shift)
    return index.sub_((index >= n).to(torch.int64).mul_(n))


def _signed(number: int) -> int:
    """The 64-bit pattern as torch's int64 reads it."""
    return number - (1 << 64) if number >= 1 << 63 else number
