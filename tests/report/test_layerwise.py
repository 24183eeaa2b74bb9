"""Changes are paired, effects are plain means, equal choices are one configuration, and no paragraph is on both sides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from qatlib.learned import Learned
from qatlib.precision import FULL_PRECISION, Precision
from qatlib.report import layerwise
from qatlib.report.layerwise import Layerwise
from qatlib.report.study import Study
from qatlib.report.trainings import Trainings
from qatlib.search import Allocation, ilp, monotone


@pytest.fixture(scope="module")
def work(make_desk, tmp_path_factory):
    """On an untrained switchable model of the smoke profile."""
    study = Study(make_desk(tmp_path_factory.mktemp("layerwise"), "sensitivity.lowered=[both,weights,activations]"))
    path = tmp_path_factory.mktemp("teacher") / "t"
    study.teacher("lora")[0].save(path, study.tokenizer)
    trainings = Trainings(study, path)
    return Layerwise(study, trainings.prepared(trainings.own))


@pytest.fixture(scope="module")
def sweep(work):
    return work.sweep(work.base)


def test_no_paragraph_is_on_both_sides(work):
    assert work.seen and work.held_out
    assert not {q.paragraph for q in work.seen} & {q.paragraph for q in work.held_out}


def test_a_sweep_lowers_weights_and_activations_together_and_apart(work, sweep):
    base = work.base
    assert work.lowered(base)["4"] == ("both", 4) and work.lowered(base)["w2a8"] == ("weights", 2)
    assert work.lowered(base)["w8a2"] == ("activations", 2)
    assert len(sweep) == len(work.groups) * 6 * len(work.seen)
    assert set(sweep.groupby("precision").size()) == {len(work.groups) * len(work.seen)}


def test_changes_are_against_the_base_question_by_question():
    base = pd.DataFrame({"id": ["a", "b"], "loss": [1.0, 2], "f1": [50.0, 100], "em": [0.0, 100]})
    found = pd.DataFrame({"id": ["b", "a"], "loss": [2.5, 1], "f1": [0.0, 60], "em": [0.0, 100], "role": ["x", "y"]})
    changes = layerwise.against(found, base)
    assert changes["loss_change"].tolist() == [0.5, 0] and changes["f1_change"].tolist() == [-100, 10]
    assert changes["em_change"].tolist() == [-100, 100] and changes["role"].tolist() == ["x", "y"]


def test_budgets_of_bytes_and_time_keep_the_losses(work, sweep):
    problem = work.problem(sweep)
    latencies = work.latencies(problem)
    assert list(zip(latencies["block"], latencies["role"], strict=True)) == list(problem.groups)
    for other in (work.in_bytes(problem), work.in_milliseconds(problem, latencies)):
        assert (other.loss == problem.loss).all() and (other.cost > 0).all()
        found = layerwise.against_uniform(other, [0.5, 0.9])
        assert all(other.keeps(choice, budget) for (_, budget), [choice] in found.items())
        assert {method for method, _ in found} == {"ILP", "uniform"}
    everywhere_at_base = np.zeros(len(problem.groups), int)
    size = work.in_bytes(problem).spent(everywhere_at_base)
    uniform = problem.configuration(everywhere_at_base, work.model.infos)
    assert size == pytest.approx(uniform.storage_bytes(work.model.infos) / 1e6)


def test_a_pass_is_timed_at_every_configuration(work, sweep):
    problem = work.problem(sweep)
    listed = layerwise.listed({("ILP", 8.0): [ilp(problem, 8)]}, problem)
    configurations = {"c000": problem.configuration(listed["choice"][0], work.model.infos)}
    timed = work.pass_latencies(configurations)
    assert timed["id"].tolist() == ["c000"] and timed["pass_milliseconds"].gt(0).all()


def test_effects_are_means_over_cells_and_by_weight(work, sweep):
    both = sweep[sweep["lowered"] == "both"]
    found = layerwise.effects(both, {"all": work.groups, "one": [work.problem(sweep).groups[0]]})
    one = both[(both["block"] == 0) & (both["role"] == "qkv") & (both["bits"] == 2)]
    mine = found[(found["model"] == "one") & (found["precision"] == "2")]
    assert mine["loss_change"].mean() == pytest.approx(one["loss_change"].mean())
    assert found[found["model"] == "all"]["loss_change"].mean() == pytest.approx(both["loss_change"].mean())
    halves = layerwise.effects(both, {"all": work.groups}, dict.fromkeys(work.groups, 500_000))
    assert halves["loss_change"].mean() == pytest.approx(2 * both["loss_change"].mean())


def test_cells_hold_their_means_between_their_bounds(sweep):
    table = layerwise.cell_table(sweep, resamples=100)
    assert len(table) == sweep.groupby(["block", "role", "lowered", "bits"]).ngroups
    assert ((table["loss_change_low"] <= table["loss_change"]) & (table["loss_change"] <= table["loss_change_high"])).all()
    assert table["loss_change"].mean() == pytest.approx(sweep["loss_change"].mean())


def test_a_problem_has_the_measured_losses_made_monotone(work, sweep):
    problem, measured = work.problem(sweep), work.measured(sweep)
    assert [p.name for p in problem.precisions] == ["8", "4", "2"]
    assert [p.name for p in work.candidates(FULL_PRECISION)] == ["32", "8", "4", "2"]
    cell = sweep[(sweep["block"] == 1) & (sweep["role"] == "mlp_out") & (sweep["precision"] == "2")]
    assert measured[problem.groups.index((1, "mlp_out")), 2] == pytest.approx(cell["loss_change"].mean())
    assert not measured[:, 0].any() and np.array_equal(problem.loss, monotone(measured))


def test_interactions_are_what_is_more_than_the_sum(work, sweep):
    problem = replace(work.problem(sweep), loss=work.measured(sweep))
    pairs = work.pair_losses(sweep, 2)
    assert len(pairs) == len(work.groups) * (len(work.groups) - 1) / 2
    row = pairs.iloc[3]
    i, j = int(row["first"]), int(row["second"])
    choice = np.zeros(len(work.groups), int)
    choice[[i, j]] = 2
    both = work.judged({"pair": problem.configuration(choice, work.model.infos)}, "pair")
    seen = work.study.scores(work.model, "pair_seen", {"pair": problem.configuration(choice, work.model.infos)}, work.seen)
    assert len(both) == len(work.held_out)
    added = seen["loss"].mean() - work.base_scores(work.base)["loss"].mean()
    noise = work.noise(work.base).assign(precision=lambda t: t["precision"].astype(str))
    interactions = work.interactions(problem, pairs, noise, 2)
    assert problem.predicted(choice) + interactions.added(choice) == pytest.approx(added, abs=1e-5)
    assert (interactions.amplitude[:, 0] == 0).all() and np.allclose(interactions.amplitude[:, 2], 1)


def test_without_pairs_nothing_interacts(work, sweep, monkeypatch):
    monkeypatch.setattr(work, "pairs", list)
    problem, noise = work.problem(sweep), work.noise(work.base)
    interactions = work.interactions(problem, work.pair_losses(sweep, 2), noise, 2)
    assert interactions.added(np.full(len(problem.groups), 2)) == 0


def test_at_least_the_share_of_the_layers_is_lowered(work, sweep):
    problem = work.problem(sweep)
    for share in (0.25, 0.83, 1.0):
        choice = work.at_share(problem, share)
        configuration = problem.configuration(choice, work.model.infos)
        assert sum(p != work.base for p in configuration.values()) / len(configuration) >= share - 1e-6
        assert choice.max() == 1  # a step down, since none further costs less


def test_equal_choices_are_one_configuration():
    problem = Allocation(((0, "qkv"),), (Precision(8, 8), Precision(2, 2)), np.zeros((1, 2)), np.array([[8.0, 2.0]]))
    found = {("ILP", 8): [np.array([0])], ("random", 8): [np.array([0]), np.array([1])]}
    listed = layerwise.listed(found, problem)
    assert listed["id"].tolist() == ["c000", "c000", "c001"] and listed["spent"].tolist() == [8, 8, 2]
    scores = pd.DataFrame({"model": "search", "precision": ["c000", "c001"], "seed": 0, "id": "q", "paragraph": "p"})
    scores = scores.assign(em=0.0, f1=[100.0, 50.0], loss=[0.0, 1.0])
    by_method = layerwise.by_method(listed, scores)
    assert by_method["f1"].tolist() == [100, 100, 50] and by_method["model"].tolist() == ["ILP", "random", "random"]
    assert by_method["seed"].tolist() == [0, 0, 1] and set(by_method["precision"]) == {"8"}  # a draw is a seed


def test_the_likeliest_choice_is_that_of_the_largest_shares():
    problem = Allocation(
        ((0, "qkv"), (0, "mlp_in")), (Precision(8, 8), Precision(2, 2)), np.zeros((2, 2)), np.tile([8.0, 2], (2, 1))
    )
    learned = Learned(np.array([[0.9, 0.1], [0.2, 0.8]]), pd.DataFrame())
    assert ilp(layerwise.likeliest(problem, learned), 16).tolist() == [0, 1]
    said = layerwise.learned_to(problem, {16: learned, 10: learned})
    assert "10.60 of 16 (within), 10.60 of 10 (beyond)" in said and "0.85 on average" in said


def test_a_learned_allocation_is_kept_with_its_steps(work, sweep):
    problem = work.problem(sweep)
    found, again = work.learned(problem, 4.5), work.learned(problem, 4.5)
    assert found.shares.shape == problem.cost.shape and np.allclose(found.shares.sum(1), 1)
    assert list(found.metrics) == ["step", "span_loss", "expected_cost"] and len(found.metrics) == 2
    assert np.array_equal(found.shares, again.shares) and found.metrics.equals(again.metrics)
    assert work.study.stage.computed[-2:] == ["learned_4-5", "learned_4-5_metrics"]  # once each


@pytest.mark.parametrize(
    ("milliseconds", "said"),
    [([3.0, 2, 1], ""), ([1.04, 1, 1], "about the same time"), ([1.0, 2, 3], "the base is the fastest"), ([2, 1, 3], "")],
)
def test_a_page_says_where_time_leaves_nothing_to_search(milliseconds, said):
    precisions = tuple(Precision(b, b) for b in (8, 4, 2))
    cost = np.tile(np.array(milliseconds, float), (2, 1))
    found = layerwise.no_tradeoff(Allocation(((0, "qkv"), (1, "qkv")), precisions, np.zeros((2, 3)), cost))
    assert said in found and bool(said) == bool(found)


def test_who_is_ahead_is_said_by_intervals():
    rows = [("random", "8", -1.0, 1.0), ("random", "4", 0.5, 2.0), ("learned", "4", 0.5, 2.0), ("learned", "3", -2.0, -0.5)]
    gaps = pd.DataFrame(rows, columns=["over", "budget", "difference_low", "difference_high"])
    said = layerwise.standing(gaps)
    assert "ahead of random at a budget of 4; learned at a budget of 4;" in said
    assert said.endswith("ahead of the ILP is learned at a budget of 3.")
    said = layerwise.standing(gaps[:1])
    assert said.count("no method at any budget") == 2


def test_rank_correlation_knows_order_alone():
    x = np.arange(20.0)
    same = layerwise.rank_correlation(x, np.exp(x), resamples=100)
    assert (same.low, same.value, same.high) == pytest.approx((1, 1, 1)) and same.n == len(x)
    turned = layerwise.rank_correlation(x, -(x**3), resamples=100)
    value, low, high = turned.value, turned.low, turned.high
    assert (value, low, high) == pytest.approx((-1, -1, -1))


def test_the_sweep_is_timed_beside_whole_passes(work):
    found = work.reuse()
    assert found["block"].tolist() == [0, 1] and found["equal"].all() and (found["cells"] == 4 * 2).all()
    assert (found[["sweep_seconds", "whole_seconds"]] > 0).all(axis=None)
