"""Problems hold what was measured, searches keep their budgets, and equal choices are one configuration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from qatlib.judging import searches
from qatlib.learned import Learned
from qatlib.precision import FULL_PRECISION, Precision
from qatlib.search import Allocation, ilp, monotone
from qatlib.studies import allocations
from qatlib.studies.allocations import Allocations


@pytest.fixture
def search(layers):
    return Allocations(layers)


def test_budgets_of_bytes_and_time_keep_the_losses(search, layers, sweep):
    problem = search.problem(sweep)
    latencies = search.latencies(problem)
    assert list(zip(latencies["block"], latencies["role"], strict=True)) == list(problem.groups)
    for other in (search.in_bytes(problem), search.in_milliseconds(problem, latencies)):
        assert (other.loss == problem.loss).all() and (other.cost > 0).all()
        found = allocations.against_uniform(other, [0.5, 0.9])
        assert all(other.keeps(choice, budget) for (_, budget), [choice] in found.items())
        assert {method for method, _ in found} == {"ILP", "uniform"}
    everywhere_at_base = np.zeros(len(problem.groups), int)
    size = search.in_bytes(problem).spent(everywhere_at_base)
    uniform = problem.configuration(everywhere_at_base, layers.model.infos)
    assert size == pytest.approx(uniform.storage_bytes(layers.model.infos) / 1e6)


def test_a_pass_is_timed_at_every_configuration(search, layers, sweep):
    problem = search.problem(sweep)
    listed = allocations.listed({("ILP", 8.0): [ilp(problem, 8)]}, problem)
    configurations = {"c000": problem.configuration(listed["choice"][0], layers.model.infos)}
    timed = search.pass_latencies(configurations)
    assert timed["id"].tolist() == ["c000"] and timed["pass_milliseconds"].gt(0).all()


def test_a_problem_has_the_measured_losses_made_monotone(search, layers, sweep):
    problem, measured = search.problem(sweep), search.measured(sweep)
    assert [p.name for p in problem.precisions] == ["8", "4", "2"]
    assert [p.name for p in layers.candidates(FULL_PRECISION)] == ["32", "8", "4", "2"]
    cell = sweep[(sweep["block"] == 1) & (sweep["role"] == "mlp_out") & (sweep["precision"] == "2")]
    assert measured[problem.groups.index((1, "mlp_out")), 2] == pytest.approx(cell["loss_change"].mean())
    assert not measured[:, 0].any() and np.array_equal(problem.loss, monotone(measured))


def test_interactions_are_what_is_more_than_the_sum(search, layers, sweep):
    problem = replace(search.problem(sweep), loss=search.measured(sweep))
    pairs = search.pair_losses(sweep, 2)
    assert len(pairs) == len(layers.groups) * (len(layers.groups) - 1) / 2
    row = pairs.iloc[3]
    i, j = int(row["first"]), int(row["second"])
    choice = np.zeros(len(layers.groups), int)
    choice[[i, j]] = 2
    both = search.judged({"pair": problem.configuration(choice, layers.model.infos)}, "pair")
    seen = layers.study.scores(
        layers.model, "pair_seen", {"pair": problem.configuration(choice, layers.model.infos)}, layers.seen
    )
    assert len(both) == len(layers.held_out)
    added = seen["loss"].mean() - layers.base_scores(layers.base)["loss"].mean()
    noise = layers.noise(layers.base).assign(precision=lambda t: t["precision"].astype(str))
    interactions = search.interactions(problem, pairs, noise, 2)
    assert problem.predicted(choice) + interactions.added(choice) == pytest.approx(added, abs=1e-5)
    assert (interactions.amplitude[:, 0] == 0).all() and np.allclose(interactions.amplitude[:, 2], 1)


def test_without_pairs_nothing_interacts(search, layers, sweep, monkeypatch):
    monkeypatch.setattr(search, "pairs", list)
    problem, noise = search.problem(sweep), layers.noise(layers.base)
    interactions = search.interactions(problem, search.pair_losses(sweep, 2), noise, 2)
    assert interactions.added(np.full(len(problem.groups), 2)) == 0


def test_at_least_the_share_of_the_layers_is_lowered(search, layers, sweep):
    problem = search.problem(sweep)
    for share in (0.25, 0.83, 1.0):
        choice = search.at_share(problem, share)
        configuration = problem.configuration(choice, layers.model.infos)
        assert sum(p != layers.base for p in configuration.values()) / len(configuration) >= share - 1e-6
        assert choice.max() == 1  # a step down, since none further costs less


def test_equal_choices_are_one_configuration():
    problem = Allocation(((0, "qkv"),), (Precision(8, 8), Precision(2, 2)), np.zeros((1, 2)), np.array([[8.0, 2.0]]))
    found = {("ILP", 8): [np.array([0])], ("random", 8): [np.array([0]), np.array([1])]}
    listed = allocations.listed(found, problem)
    assert listed["id"].tolist() == ["c000", "c000", "c001"] and listed["spent"].tolist() == [8, 8, 2]
    scores = pd.DataFrame({"model": "search", "precision": ["c000", "c001"], "seed": 0, "id": "q", "paragraph": "p"})
    scores = scores.assign(em=0.0, f1=[100.0, 50.0], loss=[0.0, 1.0])
    by_method = searches.by_method(listed, scores)
    assert by_method["f1"].tolist() == [100, 100, 50] and by_method["model"].tolist() == ["ILP", "random", "random"]
    assert by_method["seed"].tolist() == [0, 0, 1] and set(by_method["precision"]) == {"8"}  # a draw is a seed


def test_the_likeliest_choice_is_that_of_the_largest_shares():
    problem = Allocation(
        ((0, "qkv"), (0, "mlp_in")), (Precision(8, 8), Precision(2, 2)), np.zeros((2, 2)), np.tile([8.0, 2], (2, 1))
    )
    learned = Learned(np.array([[0.9, 0.1], [0.2, 0.8]]), pd.DataFrame())
    assert ilp(allocations.likeliest(problem, learned), 16).tolist() == [0, 1]
    said = searches.learned_to(problem, {16: learned, 10: learned})
    assert "10.60 of 16 (within), 10.60 of 10 (beyond)" in said and "0.85 on average" in said


def test_a_learned_allocation_is_kept_with_its_steps(search, layers, sweep):
    problem = search.problem(sweep)
    found, again = search.learned(problem, 4.5), search.learned(problem, 4.5)
    assert found.shares.shape == problem.cost.shape and np.allclose(found.shares.sum(1), 1)
    assert list(found.metrics) == ["step", "span_loss", "expected_cost"] and len(found.metrics) == 2
    assert np.array_equal(found.shares, again.shares) and found.metrics.equals(again.metrics)
    assert layers.study.stage.computed[-2:] == ["learned_4-5", "learned_4-5_metrics"]  # once each
