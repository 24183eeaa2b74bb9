"""Every search keeps its budget; the integer program is the best there is."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatlib.model import SwitchableModel
from qatlib.precision import Configuration, Precision, names_by_group
from qatlib.search import (
    Allocation,
    Interactions,
    best_uniform,
    exchange,
    greedy_down,
    greedy_up,
    ilp,
    monotone,
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
    least = min(problem.predicted(c) for c in every if problem.keeps(c, budget))
    assert problem.predicted(ilp(problem, budget)) == pytest.approx(least, abs=1e-6)


@given(problems(), st.floats(0, 1))
def test_the_best_uniform_choice_is_one_that_the_program_could_have_taken(problem, share):
    budget = problem.between(share)
    found = best_uniform(problem, budget)
    assert found is not None and len(set(found)) == 1  # costs fall with the width here, so that the cheapest always fits
    assert problem.keeps(found, budget) and problem.predicted(ilp(problem, budget)) <= problem.predicted(found) + 1e-6
    assert best_uniform(problem, 0.9 * problem.between(0)) is None


@given(problems(), BUDGETS, st.sampled_from([greedy_down, greedy_up, ilp]))
def test_budgets_are_kept(problem, budget, search):
    assert problem.keeps(search(problem, budget), budget)


@given(problems())
def test_losses_made_monotone_rise_from_nothing_and_stay_if_they_did(problem):
    found = monotone(problem.loss)
    assert not found[:, 0].any() and (np.diff(found, axis=1) >= 0).all()
    assert found.sum(1) == pytest.approx(np.maximum(problem.loss[:, 1:], 0).sum(1))
    assert np.array_equal(monotone(found), found)


@given(problems(), BUDGETS)
def test_of_equal_losses_the_program_takes_the_most_bits(problem, budget):
    problem = replace(problem, loss=monotone(np.round(problem.loss, 1)))
    found = ilp(problem, budget)
    every = [np.array(c) for c in itertools.product(range(3), repeat=len(problem.groups))]
    equal = [c for c in every if problem.keeps(c, budget) and problem.predicted(c) <= problem.predicted(found) + 1e-9]
    bits = np.array([8, 4, 2])
    assert bits[found].sum() == max(bits[c].sum() for c in equal)
    assert not ilp(problem, 8).any() and not greedy_up(problem, 8).any()  # a budget for the base is spent on it


@given(problems(), BUDGETS)
def test_greedy_from_below_ends_where_every_step_that_fits_adds_loss(problem, budget):
    choice = greedy_up(problem, budget)
    for group, width in itertools.product(range(len(choice)), range(3)):
        other = choice.copy()
        other[group] = width
        dearer = problem.spent(other) > problem.spent(choice)
        assert not dearer or not problem.keeps(other, budget) or problem.loss[group, width] > problem.loss[group, choice[group]]


@given(problems(), BUDGETS, st.integers(0, 9))
def test_random_choices_use_the_budget_up(problem, budget, seed):
    drawn = list(random_choices(problem, budget, 5, seed))
    assert [c.tolist() for c in drawn] == [c.tolist() for c in random_choices(problem, budget, 5, seed)]
    for choice in drawn:
        assert problem.keeps(choice, budget)
        # one group one precision up, and the budget is broken: for the group that was lowered last
        ups = [problem.spent(np.where(np.arange(len(choice)) == g, choice - 1, choice)) for g in np.flatnonzero(choice)]
        assert not ups or max(ups) > budget


@given(problems(), BUDGETS, st.integers(0, 2**16))
def test_exchanges_lower_the_loss_within_the_budget(problem, budget, seed):
    rng = np.random.default_rng(seed)
    count = len(problem.groups)
    extra = np.triu(rng.normal(scale=0.2, size=(count, count)), 1)
    interactions = Interactions(extra + extra.T, np.tile([0.0, 1.0, 4.0], (count, 1)))
    start = ilp(problem, budget)
    found = exchange(problem, interactions, budget, start)
    assert problem.keeps(found, budget)
    total = [problem.predicted(c) + interactions.added(c) for c in (start, found)]
    assert total[1] <= total[0]
    pairs = [(i, j) for i in range(count) for j in range(i)]
    errors = interactions.amplitude[range(count), found]
    assert interactions.added(found) == pytest.approx(sum(interactions.extra[i, j] * errors[i] * errors[j] for i, j in pairs))
    if count <= 2:  # two groups changed at once are all there is
        every = [np.array(c) for c in itertools.product(range(3), repeat=count)]
        least = min(problem.predicted(c) + interactions.added(c) for c in every if problem.keeps(c, budget))
        assert total[1] == pytest.approx(least)


def test_an_exchange_starts_within_the_budget():
    problem = Allocation(((0, "qkv"),), WIDTHS, np.zeros((1, 3)), np.array([[8.0, 4, 2]]))
    with pytest.raises(ValueError, match="^the start takes 8; allowed is the budget, 4, at most$"):
        exchange(problem, Interactions(np.zeros((1, 1)), np.zeros((1, 3))), 4, np.array([0]))


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
