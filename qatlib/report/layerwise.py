"""What notebook 3 is made of: the sweep over layers, effects of role and depth, and searches that are held to account.

The search sees one half of the validation paragraphs; what it found answers the questions of the other half.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from itertools import combinations, groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from qatlib import results, stats
from qatlib.evaluate import evaluate_spans
from qatlib.latency import group_latencies, pass_latencies
from qatlib.learned import Learned, learn_allocation
from qatlib.model import SwitchableModel
from qatlib.precision import Configuration, Precision, names_by_group
from qatlib.report.study import Study, spread
from qatlib.search import Allocation, Choice, Interactions, best_uniform, ilp, monotone, weight_bits, weight_bytes
from qatlib.sensitivity import evaluate_changes, output_noise, sweep_block
from qatlib.spans import Feature

NOISE_WINDOWS = 16
"""Training windows that output noise is measured on."""

TIMED_BLOCKS, TIMED_QUESTIONS = 6, 16
"""Blocks at most, and questions, that the sweep is timed on against evaluating every cell from the start."""

SAME_TIME = 1.05
"""Candidates take the same time where the slowest takes less than so many times that of the fastest."""

Group = tuple[int, str]


class Layerwise:
    """Sweep and search of one run's switchable model.

    Attributes:
        seen, held_out: questions for the search, and for judging what it found; no paragraph is in both.
    """

    def __init__(self, study: Study, model: SwitchableModel) -> None:
        self.study, self.model, self.params = study, model, study.params
        self.groups = names_by_group(model.infos)
        paragraphs = list(dict.fromkeys(q.paragraph for q in study.validation))
        searched = set(paragraphs[::2])
        self.seen = spread([q for q in study.validation if q.paragraph in searched], self.params.sensitivity.questions)
        self.held_out = spread([q for q in study.validation if q.paragraph not in searched], self.params.search.questions)

    @cached_property
    def _features(self) -> list[Feature]:
        return self.study.featurize(self.seen)

    @property
    def base(self) -> Precision:
        """What the search starts from."""
        return self.params.bases[0]

    def lowered(self, base: Precision) -> dict[str, tuple[str, int]]:
        """What of a layer is lowered, and to how many bits, by the name of the precision that it is at then."""
        found: dict[str, tuple[str, int]] = {}
        for bits in self.params.lowered_to(base):
            precisions = {
                "both": Precision(bits, bits),
                "weights": Precision(bits, base.a_bits),
                "activations": Precision(base.w_bits, bits),
            }
            for part in self.params.sensitivity.lowered:
                found[precisions[part].name] = part, bits
        return found

    # -- the sweep ------------------------------------------------------------------------------------------------

    def base_scores(self, base: Precision) -> pd.DataFrame:
        """Scores of the searched questions with every layer at the base."""
        return self.study.scores(self.model, f"all_at_{base.name}", [base], self.seen)

    def sweep(self, base: Precision) -> pd.DataFrame:
        """Every block × role alone at every precision, as changes against the base; one file a block, so that a kill costs one.

        Returns:
            One row a block, role, precision and question: `base`, `block`, `role`, `precision`, `lowered` (`both`,
            `weights` or `activations`), `bits`, `id`, `paragraph`, `loss_change` (nats), `f1_change`, `em_change` (points).
        """
        kinds = self.lowered(base)
        precisions = [Precision.parse(name) for name in kinds]
        parts = []
        with self.model.at(base):
            for block in range(len(self.model.blocks)):
                how = self.study.answering | {"description": f"block {block} from {base.name}"}
                compute = partial(sweep_block, self.model, self.seen, self._features, block, precisions, **how)
                parts.append(self.study.stage.table(f"sweep_{base.name}_block_{block}", compute, published=False))
        found = pd.concat(parts, ignore_index=True)
        changes = against(found, self.base_scores(base)).assign(precision=found["precision"].astype(str), base=base.name)
        lowered, bits = zip(*(kinds[p] for p in changes["precision"]), strict=True)
        return changes.assign(lowered=lowered, bits=bits)

    def noise(self, base: Precision) -> pd.DataFrame:
        """`output_noise` of what the sweep lowers, with the columns `base`, `lowered` and `bits` beside it."""
        kinds, windows = self.lowered(base), spread(self.study.train_features, NOISE_WINDOWS)
        with self.model.at(base):
            found = output_noise(self.model, windows, [Precision.parse(name) for name in kinds])
        lowered, bits = zip(*(kinds[p] for p in found["precision"]), strict=True)
        return found.assign(base=base.name, lowered=lowered, bits=bits)

    def reuse(self) -> pd.DataFrame:
        """Seconds of the same cells by the sweep and by whole passes, in turn, and whether the results are equal to the last bit.

        Returns:
            One row a block, of a few from the first to the last: `block`, `cells`, `questions`, `sweep_seconds`,
            `whole_seconds`, `equal`.
        """
        questions = spread(self.seen, TIMED_QUESTIONS)
        features = self.study.featurize(questions)
        precisions = self.candidates(self.base)[1:]
        rows = []
        with self.model.at(self.base):
            for p in precisions:  # codes are computed once, before anything is timed
                with self.model.at(p):
                    evaluate_spans(self.model, questions[:1], self.study.featurize(questions[:1]), **self.study.answering)
            for block in spread(range(len(self.model.blocks)), TIMED_BLOCKS):
                start = time.perf_counter()
                swept = sweep_block(self.model, questions, features, block, precisions, **self.study.answering)
                middle = time.perf_counter()
                whole = []
                roles = [role for at, role in self.groups if at == block]
                for role in roles:
                    for p in precisions:
                        with self.model.at(dict.fromkeys(self.groups[block, role], p)):
                            whole.append(evaluate_spans(self.model, questions, features, **self.study.answering))
                end = time.perf_counter()
                columns = ["id", "em", "f1", "loss"]
                equal = swept[columns].equals(pd.concat(whole, ignore_index=True)[columns])
                row = {"block": block, "cells": len(whole), "questions": len(questions), "sweep_seconds": middle - start}
                rows.append(row | {"whole_seconds": end - middle, "equal": equal})
        return pd.DataFrame(rows)

    # -- the search -----------------------------------------------------------------------------------------------

    def candidates(self, base: Precision) -> tuple[Precision, ...]:
        """What a search from a base may choose: the base, and all it is lowered to in both weights and activations."""
        return (base, *(Precision(b, b) for b in self.params.lowered_to(base)))

    def measured(self, sweep: pd.DataFrame, base: Precision | None = None) -> NDArray[np.float64]:
        """(groups, candidates): mean loss that each adds alone, as measured; noise may take it below 0.

        Args:
            base: what `sweep` lowers from; the search's own if left out.
        """
        base = base or self.base
        both = sweep[(sweep["lowered"] == "both") & (sweep["base"] == base.name)]
        mean = both.groupby(["block", "role", "bits"])["loss_change"].mean()
        bits = self.params.lowered_to(base)
        return np.array([[0.0, *(mean[block, role, b] for b in bits)] for block, role in self.groups])

    def problem(self, sweep: pd.DataFrame, base: Precision | None = None) -> Allocation:
        """Allocation of average weight bits among `candidates`, losses made `monotone`; arguments as `measured`."""
        precisions, loss = self.candidates(base or self.base), monotone(self.measured(sweep, base))
        return Allocation(tuple(self.groups), precisions, loss, weight_bits(self.model.infos, precisions))

    def pairs(self) -> list[tuple[int, int]]:
        """Indices of the groups that are lowered together."""
        kind, blocks = self.params.search.pairs, [block for block, _ in self.groups]
        if kind == "none":
            return []
        every = combinations(range(len(blocks)), 2)
        return [(i, j) for i, j in every if kind == "all" or blocks[i] == blocks[j]]

    def pair_losses(self, sweep: pd.DataFrame, at: int) -> pd.DataFrame:
        """What two groups lowered together add to the loss beyond what each was measured to add alone.

        Args:
            sweep: from the search's base.
            at: index of the candidate that they are lowered to.

        Returns:
            One row a pair: `first`, `second` (indices of groups), `extra_loss` (nats).
        """
        names, p = list(self.groups.values()), self.candidates(self.base)[at]
        places, losses = list(self.groups), self.measured(sweep)[:, at]
        base_loss = self.base_scores(self.base)["loss"].mean()
        rows = []
        for first, pairs in groupby(self.pairs(), key=itemgetter(0)):
            others = [second for _, second in pairs]
            changes = {str(j): dict.fromkeys([*names[first], *names[j]], p) for j in others}
            block, role = places[first]
            how = self.study.answering | {"description": f"pairs with {role} of block {block}"}
            with self.model.at(self.base):
                compute = partial(evaluate_changes, self.model, self.seen, self._features, block, changes, **how)
                found = self.study.stage.table(f"pairs_{first}", compute, published=False)
            loss = found.assign(change=found["change"].astype(str)).groupby("change")["loss"].mean()
            alone = losses[first] + losses[others]
            rows += [
                {"first": first, "second": j, "extra_loss": loss[str(j)] - base_loss - each}
                for j, each in zip(others, alone, strict=True)
            ]
        return pd.DataFrame(rows, columns=["first", "second", "extra_loss"])

    def interactions(self, problem: Allocation, pair_losses: pd.DataFrame, noise: pd.DataFrame, at: int) -> Interactions:
        """The second-order term of a problem, from its pairs' losses and the amplitudes of output noise."""
        count = len(problem.groups)
        extra = np.zeros((count, count))
        first, second = (pair_losses[name].to_numpy(int) for name in ("first", "second"))
        extra[first, second] = extra[second, first] = pair_losses["extra_loss"]
        decibel = noise.set_index(["block", "role", "precision"])["sqnr_db"]
        table = np.array([[decibel[(*group, p.name)] for p in problem.precisions[1:]] for group in problem.groups])
        amplitude = 10 ** ((table[:, [at - 1]] - table) / 20)
        return Interactions(extra, np.hstack([np.zeros((count, 1)), amplitude]))

    def learned(self, problem: Allocation, budget: float) -> Learned:
        """What `learn_allocation` finds; the params must have a `search.learned` section.

        Its shares are published as `learned_<budget>` (`block`, `role`, `precision`, `share`), its metrics as
        `learned_<budget>_metrics`.
        """
        settings = self.params.search.learned
        assert settings is not None
        how = settings.model_dump() | {"pad_id": self.study.pad_id, "seed": self.params.seed}
        how["description"] = f"learned allocation of {budget:g} bits"
        learn = partial(learn_allocation, self.model, self.study.train_features, problem, budget, **how)
        found = cache(learn)  # for both tables
        name = f"learned_{budget:g}".replace(".", "-")
        places = [(*group, p.name) for group in problem.groups for p in problem.precisions]
        choices = pd.DataFrame(places, columns=["block", "role", "precision"])
        shares = self.study.stage.table(name, lambda: choices.assign(share=found().shares.ravel()))
        metrics = self.study.stage.table(f"{name}_metrics", lambda: found().metrics)
        return Learned(shares["share"].to_numpy().reshape(problem.cost.shape), metrics)

    def in_bytes(self, problem: Allocation) -> Allocation:
        """The same with what each choice takes of memory, codes and scales by formula, in MB."""
        size = weight_bytes(self.model.infos, problem.precisions, self.model.quantizer.scale_group)
        return replace(problem, cost=size / 1e6)

    @property
    def workload(self) -> tuple[int, int]:
        """Windows and tokens of the pass whose latency is searched under: the first of `deployment`."""
        return self.params.deployment.batch_sizes[0], self.params.deployment.lengths[0]

    def latencies(self, problem: Allocation) -> pd.DataFrame:
        """Milliseconds that each block × role takes of a pass at each candidate, measured here.

        Returns:
            One row a group: `block`, `role`, and a column for every precision.
        """
        found = group_latencies(self.model, problem.precisions, math.prod(self.workload))
        columns = {p.name: found[:, i] for i, p in enumerate(problem.precisions)}
        return pd.DataFrame(problem.groups, columns=["block", "role"]).assign(**columns)

    def in_milliseconds(self, problem: Allocation, latencies: pd.DataFrame) -> Allocation:
        """The same with what each choice takes of time, as `latencies` measured it."""
        return replace(problem, cost=latencies[[p.name for p in problem.precisions]].to_numpy())

    def pass_latencies(self, configurations: Mapping[str, Configuration]) -> pd.DataFrame:
        """One row a configuration: `id`, and `pass_milliseconds` of the whole model, deployed."""
        found = pass_latencies(self.model, configurations, *self.workload)
        return pd.DataFrame({"id": list(found), "pass_milliseconds": list(found.values())})

    def at_share(self, problem: Allocation, share: float) -> Choice:
        """The choice of least predicted loss with at least this share of the layers below the base."""
        sizes = np.array([[len(self.groups[group])] for group in problem.groups], float)
        stays = np.hstack([sizes / sizes.sum(), np.zeros((len(sizes), len(problem.precisions) - 1))])
        return ilp(replace(problem, cost=stays), 1 - share)

    def judged(self, configurations: Mapping[str, Configuration], label: str) -> pd.DataFrame:
        """Scores of the held-out questions at every configuration; too many files to publish."""
        return self.study.scores(self.model, label, configurations, self.held_out, published=False)


def likeliest(problem: Allocation, learned: Learned) -> Allocation:
    """The problem whose best choice is the likeliest one under learned shares."""
    return replace(problem, loss=-np.log(learned.shares))


def learned_to(problem: Allocation, learned: Mapping[float, Learned]) -> str:
    """How learned allocations ended, in words: what they expect to spend of their budgets, and how far the choice was made."""
    spent = {budget: float((found.shares * problem.cost).sum()) for budget, found in learned.items()}
    parts = (f"{x:.2f} of {budget:g} ({'within' if x <= budget else 'beyond'})" for budget, x in spent.items())
    largest = np.mean([found.shares.max(1) for found in learned.values()])
    chosen = f"the likeliest candidate of a group has a share of {largest:.2f} on average, of 1 were the choice made"
    return f"Expected at the end to be spent: {', '.join(parts)}; {chosen}."


def against_uniform(problem: Allocation, shares: Iterable[float]) -> dict[tuple[str, float], list[Choice]]:
    """The integer program's choice and the best uniform one within each budget, for `listed`.

    Args:
        shares: budgets, as `Allocation.between`.
    """
    found: dict[tuple[str, float], list[Choice]] = {}
    for budget in map(problem.between, shares):
        found["ILP", budget] = [ilp(problem, budget)]
        if (uniform := best_uniform(problem, budget)) is not None:
            found["uniform", budget] = [uniform]
    return found


def listed(found: Mapping[tuple[str, float], Sequence[Choice]], problem: Allocation) -> pd.DataFrame:
    """The choices of every method and budget, equal ones under one `id`.

    Returns:
        One row a method, budget and draw: `method`, `budget` (text), `id`, `spent`, `choice`.
    """
    ids: dict[tuple[int, ...], str] = {}
    rows = []
    for (method, budget), choices in found.items():
        for choice in choices:
            name = ids.setdefault(tuple(choice.tolist()), f"c{len(ids):03d}")
            rows.append((method, f"{budget:g}", name, problem.spent(choice), choice))
    return pd.DataFrame(rows, columns=["method", "budget", "id", "spent", "choice"])


def no_tradeoff(problem: Allocation) -> str:
    """One sentence where a budget of milliseconds gives a search nothing to trade; empty where it does.

    That is where all candidates take about the same time, or the base, which loses nothing, is the fastest.
    """
    total = problem.cost.sum(0)
    times = f"all layers take {', '.join(f'{ms:.2f} ms at {p.name}' for ms, p in zip(total, problem.precisions, strict=True))}"
    if total.max() < SAME_TIME * total.min():
        return f"There is nothing to search under a budget of latency, since all candidates take about the same time: {times}."
    if total.argmin() == 0:
        return f"There is nothing to search under a budget of latency, since the base is the fastest of all: {times}."
    return ""


def standing(gaps: pd.DataFrame) -> str:
    """One sentence on the ILP against the other methods, by the intervals of a gap table whose column `budget` is text."""

    def named(rows: pd.DataFrame) -> str:
        budgets = rows.groupby("over", sort=False)["budget"].agg(", ".join)
        return "; ".join(f"{over} at a budget of {at}" for over, at in budgets.items()) or "no method at any budget"

    ahead, behind = gaps[gaps["difference_low"] > 0], gaps[gaps["difference_high"] < 0]
    return f"By their intervals, the ILP is ahead of {named(ahead)}; ahead of the ILP is {named(behind)}."


def by_method(choices: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Scores of configurations, whose ids `precision` holds, as scores of methods at budgets.

    Returns:
        In the results' schema, `model` being the method, `precision` the budget, and `seed` the draw.
    """
    drawn = choices[["method", "budget", "id"]].assign(draw=choices.groupby(["method", "budget"]).cumcount())
    joined = drawn.merge(scores, left_on="id", right_on="precision", suffixes=("_choice", ""))
    columns = {"method": "model", "budget": "precision", "draw": "seed"}
    return joined.drop(columns=["model", "precision", "seed"]).rename(columns=columns)[list(scores.columns)]


def against(found: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """Changes of `loss`, `f1` and `em` against the base's, question by question, in place of the three."""
    at_base = base.set_index("id")[["loss", "f1", "em"]].reindex(found["id"]).reset_index(drop=True)
    changes = {f"{name}_change": found[name].reset_index(drop=True) - at_base[name] for name in at_base}
    return found.reset_index(drop=True).drop(columns=["loss", "f1", "em"]).assign(**changes)


def cell_table(sweep: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """The heatmaps' cells: mean changes with intervals.

    Returns:
        One row a cell: `base`, `block`, `role`, `lowered`, `bits`, `loss_change`, `f1_change`, `em_change` (each with
        `_low`, `_high`), `n`.
    """
    keys = ["base", "block", "role", "lowered", "bits"]
    tables = []
    for place, rows in sweep.groupby(keys, sort=False):
        scores = rows.assign(model="cell", precision="", seed=0)
        table = results.mean_table(scores, ["loss_change", "f1_change", "em_change"], **options)
        where = pd.DataFrame([place], columns=keys)
        tables.append(where.join(table.drop(columns=["model", "precision", "paragraphs"])))
    return pd.concat(tables, ignore_index=True)


def effects(
    sweep: pd.DataFrame, parts: Mapping[str, Iterable[Group]], weights: Mapping[Group, int] | None = None
) -> pd.DataFrame:
    """Per question, what lowering one block × role costs on average over each part of the model.

    Args:
        sweep: of one base and one kind of lowering.
        parts: by name, the blocks and roles that are averaged over.
        weights: numbers of weights; with them it is the cost of lowering a million of them, and without that of a layer.

    Returns:
        In the results' schema: `model` (the part), `precision` (the bits), `seed`, `id`, `paragraph`, `loss_change`,
        `f1_change`, `em_change`.
    """
    metrics = ["loss_change", "f1_change", "em_change"]
    tables = []
    for name, groups in parts.items():
        chosen = set(groups)
        rows = sweep[[(b, r) in chosen for b, r in zip(sweep["block"], sweep["role"], strict=True)]]
        if weights is not None:
            millions = pd.Series([weights[b, r] / 1e6 for b, r in zip(rows["block"], rows["role"], strict=True)], rows.index)
            rows = rows.assign(**{metric: rows[metric] / millions for metric in metrics})
        mean = rows.groupby(["bits", "id", "paragraph"], sort=False)[metrics].mean().reset_index()
        tables.append(mean.assign(model=name, precision=mean["bits"].astype(str), seed=0).drop(columns="bits"))
    return pd.concat(tables, ignore_index=True)


def rank_correlation(x: Sequence[float], y: Sequence[float], **options: Any) -> stats.Estimate:
    """Spearman's rank correlation with a percentile bootstrap interval over the pairs."""
    return stats.over_pairs(lambda a, b: float(spearmanr(a, b).statistic), x, y, **options)
