"""How many bits each layer gets: allocation under a budget. The inputs are measured losses of lowering each group alone.

All methods except `random_choices` assume that losses add up. A *choice* is, for every group, the index of its precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, isotonic_regression, milp

from qatlib.checks import filled, finite, whole
from qatlib.precision import FULL, Configuration, Group, LayerInfo, Precision, names_by_group
from qatlib.seeds import stream

Choice = NDArray[np.int64]
"""(groups,) indices into the precisions."""

_ROUNDING = 1e-6
"""Relative tolerance: sums of costs may exceed a budget by this, as in a linear program's feasibility tolerance."""


@dataclass(frozen=True)
class Allocation:
    """A problem of allocation.

    Args:
        groups: block and role of layers that get one precision.
        precisions: the allowed precisions.
        loss: (groups, precisions), the increase of the loss if only this group has that precision; any unit.
        cost: (groups, precisions), the part of the budget that it uses; any unit.

    Raises:
        ValueError: there are no groups or no precisions; an array has another shape, or a number that is not finite.
    """

    groups: tuple[Group, ...]
    precisions: tuple[Precision, ...]
    loss: NDArray[np.float64]
    cost: NDArray[np.float64]

    def __post_init__(self) -> None:
        filled(groups=self.groups, precisions=self.precisions)
        shape = len(self.groups), len(self.precisions)
        for name in ("loss", "cost"):
            array = np.asarray(getattr(self, name))
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"{name} is of shape {array.shape}; allowed are finite numbers of shape {shape}")
            object.__setattr__(self, name, array)

    def predicted(self, choice: Choice) -> float:
        """The loss that a choice adds, if losses are additive."""
        return float(_chosen(self.loss, choice).sum())

    def spent(self, choice: Choice) -> float:
        """The cost of a choice."""
        return float(_chosen(self.cost, choice).sum())

    def keeps(self, choice: Choice, budget: float) -> bool:
        """Whether a choice is within the budget, up to rounding."""
        return self.spent(choice) <= budget * (1 + _ROUNDING)

    def configuration(self, choice: Choice, layers: Sequence[LayerInfo]) -> Configuration:
        """The choice as a precision for every layer."""
        precision = {group: self.precisions[i] for group, i in zip(self.groups, choice, strict=True)}
        return Configuration({layer.name: precision[layer.block, layer.role] for layer in layers})

    def choice(self, configuration: Configuration, layers: Sequence[LayerInfo]) -> Choice:
        """A configuration as a choice.

        Raises:
            ValueError: a precision is not one of the problem's, or a group has two.
        """
        found: dict[Group, Precision] = {}
        for layer in layers:
            p = configuration[layer.name]
            if found.setdefault((layer.block, layer.role), p) != p or p not in self.precisions:
                raise ValueError(f"{layer.name} is at {p.name}; allowed is one of {self._names} for all of its block and role")
        return np.array([self.precisions.index(found[group]) for group in self.groups])

    @property
    def _names(self) -> str:
        return ", ".join(p.name for p in self.precisions)

    def between(self, share: float) -> float:
        """A budget between the costs of the cheapest and the most expensive choice, at the given share of the way."""
        least, most = self.cost.min(1).sum(), self.cost.max(1).sum()
        return float(least + share * (most - least))

    def check(self, budget: float) -> None:
        """
        Raises:
            ValueError: the budget is no number, or below the cost of the cheapest choice.
        """
        finite(budget=budget)
        if budget * (1 + _ROUNDING) < (least := self.cost.min(1).sum()):
            raise ValueError(f"the budget is {budget:g}; allowed is at least {least:g}, which {self._names} take")


def weight_bits(layers: Sequence[LayerInfo], precisions: Sequence[Precision]) -> NDArray[np.float64]:
    """(groups, precisions): each group's part of the average weight bits. A choice's costs add up to that average."""
    filled(layers=layers, precisions=precisions)
    total = sum(layer.weights + layer.fixed for layer in layers)
    return _summed(layers, lambda layer: [(layer.weights * p.w_bits + layer.fixed * FULL) / total for p in precisions])


def weight_bytes(
    layers: Sequence[LayerInfo], precisions: Sequence[Precision], scale_group: int | None = None
) -> NDArray[np.float64]:
    """(groups, precisions): bytes by formula, including scales (`Configuration.storage_bytes`)."""
    filled(layers=layers, precisions=precisions)
    sizes = {p: Configuration.uniform(p, layers) for p in precisions}
    return _summed(layers, lambda layer: [sizes[p].storage_bytes([layer], scale_group) for p in precisions])


def _summed(layers: Sequence[LayerInfo], cost: Callable[[LayerInfo], list[float]]) -> NDArray[np.float64]:
    rows: dict[Group, NDArray[np.float64]] = {}
    for layer in layers:
        rows[layer.block, layer.role] = rows.get((layer.block, layer.role), 0) + np.array(cost(layer))
    return np.stack([rows[group] for group in names_by_group(layers)])


def monotone(loss: NDArray[np.float64]) -> NDArray[np.float64]:
    """(groups, precisions): measured losses without one kind of noise, namely that fewer bits cost less.

    The result is 0 at the base, never negative, and never falls from the widest to the narrowest. Losses are clipped at 0. Then
    isotonic regression replaces neighbours in the wrong order by their mean.

    Args:
        loss: (groups, precisions), the base first and then the widest first.

    Raises:
        ValueError: the losses have another shape, or are not finite.
    """
    if np.ndim(loss) != 2 or len(loss) < 1 or loss.shape[1] < 2 or not np.isfinite(loss).all():
        raise ValueError(f"loss is of shape {np.shape(loss)}; allowed are finite numbers of groups and two or more precisions")
    rising = [isotonic_regression(row).x for row in np.maximum(loss[:, 1:], 0)]
    return np.hstack([np.zeros((len(loss), 1)), rising])


def ilp(problem: Allocation, budget: float) -> Choice:
    """The choice of least predicted loss within the budget, by integer linear programming (HAWQ-V3, Yao et al. 2021).

    Among choices of equal loss it takes the one with the most bits, summed over weights, activations and groups. A second program
    maximizes this sum at the loss of the first program (within the solver's tolerance, 1e-6).

    Raises:
        ValueError: a budget that no choice keeps.
    """
    problem.check(budget)
    within = _at_most(problem.cost, budget * (1 + _ROUNDING / 2))
    best = _least(problem.loss, [within])
    bits = np.tile([float(sum(p)) for p in problem.precisions], (len(problem.groups), 1))
    return _least(-bits, [within, _at_most(problem.loss, problem.predicted(best))])


def _at_most(table: NDArray[np.float64], bound: float) -> LinearConstraint:
    """The constraint that a choice's entries of `table` add up to at most the bound."""
    return LinearConstraint(table.reshape(1, -1), -np.inf, bound)


def _least(table: NDArray[np.float64], constraints: Sequence[LinearConstraint]) -> Choice:
    """The choice with the smallest sum of `table` under constraints."""
    groups, widths = table.shape
    one_each = LinearConstraint(np.kron(np.eye(groups), np.ones(widths)), 1, 1)
    found = milp(table.ravel(), integrality=1, bounds=Bounds(0, 1), constraints=[one_each, *constraints])
    if not found.success:
        raise RuntimeError(f"the integer program was not solved: {found.message}")
    choice: Choice = found.x.reshape(groups, widths).argmax(1)
    return choice


def best_uniform(problem: Allocation, budget: float) -> Choice | None:
    """The best choice of one precision for all groups: least predicted loss within the budget; None if none is within it."""
    uniform = (np.full(len(problem.groups), i) for i in range(len(problem.precisions)))
    return min((c for c in uniform if problem.keeps(c, budget)), key=problem.predicted, default=None)


def greedy_down(problem: Allocation, budget: float) -> Choice:
    """Start at the most expensive precisions. Repeat the step that adds the least loss per saved cost, until within budget.

    A step may go to any cheaper precision of its group.

    Raises:
        ValueError: a budget that no choice keeps.
    """
    problem.check(budget)
    choice: Choice = problem.cost.argmax(1)
    while not problem.keeps(choice, budget):
        saved = -_steps(problem.cost, choice)
        price = np.divide(_steps(problem.loss, choice), saved, out=np.full(saved.shape, np.inf), where=saved > 0)
        group, width = np.unravel_index(price.argmin(), price.shape)
        choice[group] = width
    return choice


def greedy_up(problem: Allocation, budget: float) -> Choice:
    """Start at the cheapest precisions. Repeat the step that saves the most loss per cost, while one fits and adds no loss.

    Raises:
        ValueError: a budget that no choice keeps.
    """
    problem.check(budget)
    choice: Choice = problem.cost.argmin(1)
    while True:
        paid, gained = _steps(problem.cost, choice), -_steps(problem.loss, choice)
        fits = (paid > 0) & (gained >= 0) & (problem.spent(choice) + paid <= budget * (1 + _ROUNDING))
        if not fits.any():
            return choice
        worth = np.divide(gained, paid, out=np.full(paid.shape, -np.inf), where=fits)
        group, width = np.unravel_index(worth.argmax(), worth.shape)
        choice[group] = width


def random_choices(problem: Allocation, budget: float, n: int, seed: int) -> Iterator[Choice]:
    """`n` random choices near a budget: all groups start most expensive, and groups drawn at random go down until it is met.

    Raises:
        ValueError: a budget that no choice keeps, or a negative number of choices.
    """
    whole(0, n=n)
    problem.check(budget)
    rng = np.random.default_rng(stream(seed, "random choices"))
    dearest_first = np.argsort(-problem.cost, axis=1, kind="stable")
    for _ in range(n):
        places = np.zeros(len(problem.groups), int)
        at = np.arange(len(places))
        while not problem.keeps(choice := dearest_first[at, places], budget):
            places[rng.choice(np.flatnonzero(places < len(problem.precisions) - 1))] += 1
        yield choice


@dataclass(frozen=True)
class Interactions:
    """A second-order term: the loss of groups lowered together minus the sum of their losses alone (CLADO, Deng et al. 2023).

    Args:
        extra: (groups, groups), symmetric with zeros on its diagonal, measured with both groups at one precision.
        amplitude: (groups, precisions), the size of each precision's error, relative to the error at the precision of `extra`. An
            interaction grows with the product of two errors. 0 where nothing is lowered.
    """

    extra: NDArray[np.float64]
    amplitude: NDArray[np.float64]

    def added(self, choice: Choice) -> float:
        """The addition to `Allocation.predicted`."""
        errors = _chosen(self.amplitude, choice)
        return float(errors @ self.extra @ errors / 2)


def exchange(problem: Allocation, interactions: Interactions, budget: float, start: Choice) -> Choice:
    """Local search from a choice within the budget. Repeat the change of one or two groups that lowers the predicted loss most.

    It stops if no change lowers the loss. With interactions, a linear program can't find the least loss.

    Raises:
        ValueError: the start is beyond the budget, or no choice; or the interactions are of other groups or precisions.
    """
    groups, widths = problem.loss.shape
    shapes = np.shape(interactions.extra), np.shape(interactions.amplitude), np.shape(start)
    if shapes != (allowed := ((groups, groups), (groups, widths), (groups,))):
        raise ValueError(f"extra, amplitude and start are of shapes {shapes}; allowed is {allowed}")
    finite(budget=budget)
    if not problem.keeps(start, budget):
        raise ValueError(f"the start takes {problem.spent(start):g}; allowed is the budget, {budget:g}, at most")

    def predicted(choice: Choice) -> float:
        return problem.predicted(choice) + interactions.added(choice)

    best, least = start, predicted(start)
    while True:
        found = min((c for c in _neighbours(best, len(problem.precisions)) if problem.keeps(c, budget)), key=predicted)
        if predicted(found) >= least - 1e-12:
            return best
        best, least = found, predicted(found)


def _neighbours(choice: Choice, widths: int) -> Iterator[Choice]:
    """The choice itself, and all choices that differ from it in one or two groups."""
    yield choice
    for count in (1, 2):
        for groups in combinations(range(len(choice)), count):
            for precisions in product(range(widths), repeat=count):
                other = choice.copy()
                other[list(groups)] = precisions
                yield other


def _chosen(table: NDArray[np.float64], choice: Choice) -> NDArray[np.float64]:
    """(groups,): each group's entry of `table` at its precision."""
    return table[np.arange(len(choice)), choice]


def _steps(table: NDArray[np.float64], choice: Choice) -> NDArray[np.float64]:
    """(groups, precisions): the change of `table` if one group goes to another precision."""
    return table - _chosen(table, choice)[:, None]


def pareto(cost: Sequence[float], loss: Sequence[float]) -> list[bool]:
    """The Pareto points. No other point has at most their cost and loss, with one of the two lower.

    Raises:
        ValueError: the points do not have one cost and one loss each.
    """
    if len(cost) != len(loss):
        raise ValueError(f"{len(cost)} costs and {len(loss)} losses are given; allowed is one of each for every point")
    points = list(zip(cost, loss, strict=True))
    return [not any(a <= c and b <= d and (a, b) != (c, d) for a, b in points) for c, d in points]
