"""FRUGAL written down for reading, not for speed: full-size moments, masks and bases instead of slices, float64.

It is told what was chosen at each refresh (masks or bases, made elsewhere) and computes everything else by itself, one
parameter at a time, from the formulas of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass
class Settings:
    lr: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    full: str = "adamw"
    free: str = "signsgd"
    projected_scale: float = 1.0
    free_scale: float = 1.0
    momentum: float = 0.9
    dampening: float = 0.0


@dataclass
class Reference:
    """One parameter as a matrix. ``part``: None (all of it), a boolean mask, or ("right"|"left", orthonormal basis)."""

    value: Array
    settings: Settings
    projected: bool = True
    part: Any = None
    m: Array = field(init=False)
    v: Array = field(init=False)
    t: int = 0

    def __post_init__(self) -> None:
        self.m = np.zeros_like(self.down(self.value))
        self.v = np.zeros_like(self.m)

    # the projector of the paper and the embedding back
    def down(self, x: Array) -> Array:
        if self.part is None:
            return x
        if isinstance(self.part, tuple):
            side, basis = self.part
            return x @ basis if side == "right" else basis.T @ x
        return x * self.part

    def up(self, x: Array) -> Array:
        if self.part is None or not isinstance(self.part, tuple):
            return x
        side, basis = self.part
        return x @ basis.T if side == "right" else basis @ x

    def refresh(self, part: Any, *, reset: bool) -> None:
        old, self.part = self.part, part
        if reset:
            self.m, self.v, self.t = np.zeros_like(self.down(self.value)), np.zeros_like(self.down(self.value)), 0
        elif isinstance(part, tuple):
            side, basis = part
            rotation = old[1].T @ basis
            if side == "right":
                self.m, self.v = self.m @ rotation, self.v @ rotation**2
            else:
                self.m, self.v = rotation.T @ self.m, (rotation**2).T @ self.v
        else:
            self.m, self.v = self.down(self.m), self.down(self.v)
        if not self.keeps_state():
            self.t = 0

    def keeps_state(self) -> bool:
        return not isinstance(self.part, np.ndarray) or bool(self.part.any())

    def step(self, grad: Array) -> None:
        s = self.settings
        scale = s.projected_scale if self.projected else 1.0
        low = self.down(grad)
        rest = grad - self.up(low)
        if isinstance(self.part, tuple) and s.free == "signsgd":
            rest = np.where(np.abs(rest) <= 8 * np.finfo(grad.dtype).eps * np.abs(grad).max(), 0.0, rest)
        lr_full, lr_free = s.lr * scale, s.lr * scale * s.free_scale
        u_full = self.up(-lr_full * self.full_direction(low)) if self.keeps_state() else np.zeros_like(grad)
        u_free = {"signsgd": -lr_free * np.sign(rest), "sgd": -lr_free * rest, "none": 0.0 * rest}[s.free]
        self.value = self.value * (1 - s.lr * s.weight_decay) + u_full + u_free

    def full_direction(self, g: Array) -> Array:
        s = self.settings
        b1, b2 = s.betas
        self.t += 1
        if s.full == "adamw":
            self.m = b1 * self.m + (1 - b1) * g
            self.v = b2 * self.v + (1 - b2) * g**2
            root = np.sqrt(self.v / (1 - b2**self.t))
            return (self.m / (1 - b1**self.t)) / (root + s.eps)
        if s.full == "lion":
            direction = np.sign(b1 * self.m + (1 - b1) * g)
            self.m = b2 * self.m + (1 - b2) * g
            return direction
        self.m = s.momentum * self.m + (1 - s.dampening) * g
        return self.m
