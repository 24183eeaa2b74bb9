"""Every search keeps its budget; the integer program is the best there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatlib.model import SwitchableModel
from qatlib.precision import Configuration, Precision, names_by_group
from qatlib.search import (
    Allocation,
    greedy_down,
    greedy_up,
    ilp,
    pareto,
    random_choices,
    weight_bits,
    weight_bytes,
)

WIDTHS = tuple(Precision.parse(b) for b in (8, 4, 2))


@st.composite
def problems(draw):
    groups = draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    names = tuple((block, "qkv") for block in range(groups))
    loss = rng.normal(scale=0.1, size=(groups, 3)) + [0.0, 0.1, 0.5]
    share = rng.dirichlet(np.ones(groups))
    return Allocation(names, WIDTHS, loss, share[:, None] * [8.0, 4.0, 2.0])


BUDGETS = st.floats(2.01, 8)


@given(problems(), BUDGETS)
def test_no_choice_within_the_budget_beats_the_integer_program(problem, budget):
    every = [np.array(c) for c in itertools.product(range(3), repeat=len(problem.groups))]
    least = min(problem.predicted(c) for c in every if problem.spent(c) <= budget)
    assert problem.predicted(ilp(problem, budget)) == pytest.approx(least, abs=1e-6)


@given(problems(), BUDGETS, st.sampled_from([greedy_down, greedy_up, ilp]))
def test_budgets_are_kept(problem, budget, search):
    assert problem.spent(search(problem, budget)) <= budget + 1e-6


@given(problems(), BUDGETS)
def test_greedy_from_below_ends_where_no_single_step_fits_and_helps(problem, budget):
    choice = greedy_up(problem, budget)
    for group, width in itertools.product(range(len(choice)), range(3)):
        other = choice.copy()
        other[group] = width
        dearer = problem.spent(other) > problem.spent(choice)
        assert not dearer or problem.spent(other) > budget or problem.predicted(other) >= problem.predicted(choice) - 1e-12


@given(problems(), BUDGETS, st.integers(0, 9))
def test_random_choices_use_the_budget_up(problem, budget, seed):
    drawn = list(random_choices(problem, budget, 5, seed))
    assert [c.tolist() for c in drawn] == [c.tolist() for c in random_choices(problem, budget, 5, seed)]
    for choice in drawn:
        assert problem.spent(choice) <= budget
        # one group one precision up, and the budget is broken: for the group that was lowered last
        ups = [problem.spent(np.where(np.arange(len(choice)) == g, choice - 1, choice)) for g in np.flatnonzero(choice)]
        assert not ups or max(ups) > budget


def test_a_budget_that_nothing_keeps_is_refused():
    problem = Allocation(((0, "qkv"),), WIDTHS, np.zeros((1, 3)), np.array([[8.0, 4, 2]]))
    for search in (ilp, greedy_down, greedy_up, lambda p, b: list(random_choices(p, b, 1, 0))):
        with pytest.raises(ValueError, match="^the budget is 1.5; allowed is at least 2, which 8, 4, 2 take$"):
            search(problem, 1.5)


def test_costs_of_uniform_choices_are_those_of_configurations(tiny_lm):
    layers = SwitchableModel(tiny_lm("llama")).infos
    bits, size = weight_bits(layers, WIDTHS), weight_bytes(layers, WIDTHS)
    for i, p in enumerate(WIDTHS):
        uniform = Configuration.uniform(p, layers)
        assert bits[:, i].sum() == pytest.approx(uniform.average_bits(layers)[0])
        assert size[:, i].sum() == pytest.approx(uniform.storage_bytes(layers))


def test_choices_are_configurations_and_back(tiny_lm):
    layers = SwitchableModel(tiny_lm()).infos
    bits = weight_bits(layers, WIDTHS)
    problem = Allocation(tuple(names_by_group(layers)), WIDTHS, np.zeros_like(bits), bits)
    for choice in random_choices(problem, 4, 5, 0):
        assert problem.choice(problem.configuration(choice, layers), layers).tolist() == choice.tolist()
    with pytest.raises(ValueError, match="is at 6; allowed is one of 8, 4, 2 for all of its block and role"):
        problem.choice(Configuration.uniform(6, layers), layers)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_a_front_is_beaten_by_nobody_and_beats_the_rest(points):
    cost, loss = zip(*points, strict=True)
    front = [p for p, on in zip(points, pareto(cost, loss), strict=True) if on]
    for point, on in zip(points, pareto(cost, loss), strict=True):
        beaten = any(f[0] <= point[0] and f[1] <= point[1] and f != point for f in front)
        assert on != beaten
