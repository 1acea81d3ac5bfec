"""Two-stage robust problems for tests and measurements: knapsack with repair, capital budgeting. Seeded generators.

Knapsack: Arslan and Detienne, "Decomposition-Based Approaches for a Class of Two-Stage Robust Binary Optimization
Problems" (INFORMS Journal on Computing); 32 of their instances lie in data/knapsack. Capital budgeting: Hanasusanto,
Kuhn and Wiesemann, "K-Adaptability in Two-Stage Robust Binary Programming" (2015), as in "Neur2RO" (2024).
"""

from __future__ import annotations

import csv
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trace_core.nodes.decision import Box, Budget, MilpStage, Model, decision
from trace_core.optimizers.decision import RobustProblem

DATA = Path(__file__).parent / "data" / "knapsack"
FAMILIES = ("UN", "WC", "ASC", "SC")


@dataclass(frozen=True)
class Knapsack:
    """n items: profit p, largest loss of it ph, weights c, and t more to repair, cost f of having it made elsewhere."""

    name: str
    capacity: float
    gamma: float
    p: Any
    ph: Any
    t: Any
    c: Any
    f: Any

    @property
    def n(self) -> int:
        return len(self.p)

    def stage(self, dynamic: bool = False) -> MilpStage:
        """max sum (f - ph xi) y + ph xi r, with y, r binary, c.y + t.r <= capacity, y <= x, r <= y."""
        n, one, zero = self.n, np.eye(self.n), np.zeros((self.n, self.n))
        return MilpStage(
            q=np.concatenate([self.f, np.zeros(n)]),
            Q=np.concatenate([np.diag(-self.ph), np.diag(self.ph)]),
            T=np.concatenate([np.zeros((1, n)), -one, zero]),
            W=np.concatenate(
                [np.concatenate([self.c, self.t])[None, :], np.hstack([one, zero]), np.hstack([-one, one])]
            ),
            h=np.concatenate([[self.capacity], np.zeros(2 * n)]),
            integer=True,
            high=1.0,
            sense="max",
            reaction=self.reaction if dynamic else None,
        )

    def problem(self, dynamic: bool = True, **options: Any) -> RobustProblem:
        """``dynamic``: the recourse by dynamic programming, which is much faster than a MILP here."""
        x = decision("take", binary=self.n)
        options = options or {"recourse": self.stage(dynamic)}
        return RobustProblem(x, Budget(self.n, gamma=self.gamma), first_stage=self.p - self.f, sense="max", **options)

    def second_stage(self, x: Any, xi: Any) -> float:
        """The value of the best reaction: plain Python, no MILP."""
        y = self.reaction(np.asarray(x), np.asarray(xi))
        return float((self.f - self.ph * xi) @ y[: self.n] + (self.ph * xi) @ y[self.n :])

    def reaction(self, x: Any, xi: Any) -> Any:
        """The best reaction, by dynamic programming over the capacity (weights are integers)."""
        chosen = np.flatnonzero(x > 0.5)
        best = np.zeros(int(self.capacity) + 1)
        how = np.zeros((len(chosen), len(best)), dtype=np.int8)
        for k, i in enumerate(chosen):
            before = best
            best = before.copy()
            for kind, weight, gain in (
                (1, int(self.c[i]), self.f[i] - self.ph[i] * xi[i]),
                (2, int(self.c[i] + self.t[i]), self.f[i]),
            ):
                if weight < len(best):
                    offer = before[: len(before) - weight] + gain
                    better = offer > best[weights := slice(weight, None)]
                    best[weights][better] = offer[better]
                    how[k, weights][better] = kind
        y, left = np.zeros(2 * self.n), len(best) - 1
        for k in range(len(chosen) - 1, -1, -1):
            kind, i = how[k, left], chosen[k]
            y[i], y[self.n + i] = kind > 0, kind == 2
            left -= int(kind > 0) * int(self.c[i]) + int(kind == 2) * int(self.t[i])
        return y

    def enumerate(self) -> tuple[float, Any]:
        """(best worst case, x) over all decisions; the worst case of each by its linear program over all reactions."""
        pairs = [(0, 0), (1, 0), (1, 1)]
        reactions = np.array(list(itertools.product(pairs, repeat=self.n)), dtype=float)  # items x (y, r)
        y, r = reactions[:, :, 0], reactions[:, :, 1]
        allowed = y @ self.c + r @ self.t <= self.capacity
        y, r = y[allowed], r[allowed]
        base, slope = y @ self.f, (r - y) * self.ph
        best, at = -np.inf, None
        for x in itertools.product((0.0, 1.0), repeat=self.n):
            usable = (y <= np.array(x)).all(axis=1)
            if (np.array(x) @ (self.p - self.f)) + base[usable].max() <= best:
                continue
            rows, right = _pareto(slope[usable], base[usable])
            model = Model()
            xi, theta = model.add_columns(self.n, 0, 1), model.add_columns(1, -np.inf, np.inf, cost=1.0)
            model.add_rows([(xi, np.ones(self.n))], high=self.gamma)
            model.add_rows([(theta, np.ones((len(rows), 1))), (xi, -rows)], low=right)
            value = float(np.array(x) @ (self.p - self.f)) + model.solve().objective
            if value > best:
                best, at = value, np.array(x)
        return best, at


def _pareto(slope: Any, base: Any) -> tuple[Any, Any]:
    """Reactions that no other one beats at every xi in [0, 1]^n, as far as a cheap test sees."""
    order = np.argsort(-base, kind="stable")
    slope, base = slope[order], base[order]
    kept: list[int] = []
    for k in range(len(base)):
        if not kept or not ((slope[kept] >= slope[k]).all(axis=1) & (base[kept] >= base[k])).any():
            kept.append(k)
    return slope[kept], base[kept]


def generate(
    family: str, n: int, *, share: float = 0.1, spread: float = 0.1, seed: int = 0, top: int = 1000
) -> Knapsack:
    """A knapsack of a family, close to the published ones: gamma = share * n, losses (1 +- spread) / 2 of profits."""
    rng = np.random.default_rng([seed, n, FAMILIES.index(family)])
    c = rng.integers(1, top + 1, n)
    part = rng.uniform((1 - spread) / 2, (1 + spread) / 2, n)
    if family == "UN":
        p, t = rng.integers(1, top + 1, n), rng.integers(1, c + 1)
    else:
        offset = {"WC": rng.integers(-top // 20, top // 20 + 1, n), "ASC": rng.integers(-1, 2, n) + top // 10}
        p = np.maximum(1, c + offset.get(family, top // 10))
        t = np.maximum(1, np.round(rng.uniform((1 - spread) / 2, (1 + spread) / 2, n) * (0.72 * c + top / 20)))
    f = np.round(p * rng.uniform(1.1, 1.5, n))
    name = f"{family} n={n} share={share} spread={spread} seed={seed}"
    values = [np.asarray(v, dtype=float) for v in (p, np.round(part * p), t, c, f)]
    return Knapsack(name, float(int(0.396 * c.sum())), share * n, *values)


def load(path: Path) -> Knapsack:
    """A published instance; its README says what stands where."""
    numbers = np.array(path.read_text().split(), dtype=float)
    items = numbers[3:].reshape(int(numbers[0]), 5).T
    return Knapsack(path.name, float(numbers[1]), float(numbers[2]), *items)


def published(n: int | None = None) -> list[tuple[Knapsack, float, bool]]:
    """(instance, best known value, whether it is proven) of those in data/knapsack."""
    with (DATA / "best_known.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = [
        (load(DATA / row["File name"]), float(row["Best primal bound"]), row["Solved to optimality"] == "1")
        for row in rows
    ]
    return [each for each in found if n is None or each[0].n == n]


@dataclass(frozen=True)
class Capital:
    """n projects: cost c (1 + phi.xi / 2), revenue r (1 + psi.xi / 2), xi in [-1, 1]^4; later ones earn 0.8 of it."""

    budget: float
    c: Any
    r: Any
    phi: Any
    psi: Any

    @property
    def n(self) -> int:
        return len(self.c)

    def stage(self) -> MilpStage:
        n, k = self.n, self.phi.shape[1]
        rows = np.zeros((k, n + 1, n))
        rows[:, 0, :] = (self.c[:, None] * self.phi / 2).T
        first = np.concatenate([self.c[None, :], np.eye(n)])
        growth = self.r[:, None] * self.psi / 2
        return MilpStage(
            q=0.8 * self.r,
            Q=0.8 * growth,
            P=growth,
            T=first,
            W=first,
            T_xi=rows,
            W_xi=rows,
            h=np.concatenate([[self.budget], np.ones(n)]),
            integer=True,
            high=1.0,
            sense="max",
        )

    def problem(self) -> RobustProblem:
        x = decision("invest", binary=self.n)
        xi = Box(-1, 1, size=self.phi.shape[1])
        return RobustProblem(x, xi, first_stage=self.r, recourse=self.stage(), sense="max")

    def worst_case(self, x: Any, points: Any) -> float:
        """The worst of ``points`` (rows), by enumeration of the reactions; -inf where x alone breaks the budget."""
        worst = np.inf
        reactions = np.array([y for y in itertools.product((0.0, 1.0), repeat=self.n) if (x + y <= 1).all()])
        for xi in points:
            cost, revenue = self.c * (1 + self.phi @ xi / 2), self.r * (1 + self.psi @ xi / 2)
            fits = reactions @ cost + x @ cost <= self.budget + 1e-9
            if not fits.any():
                return -np.inf
            worst = min(worst, x @ revenue + 0.8 * (reactions[fits] @ revenue).max())
        return float(worst)


def capital(n: int, seed: int = 0) -> Capital:
    """c uniform in [0, 10], r = c / 5, rows of phi and psi uniform in the simplex, budget half of the costs."""
    rng = np.random.default_rng([seed, n])
    c = rng.uniform(0, 10, n)
    phi, psi = rng.dirichlet(np.ones(4), n), rng.dirichlet(np.ones(4), n)
    return Capital(float(c.sum() / 2), c, c / 5, phi, psi)
