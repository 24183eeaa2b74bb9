"""The second half of notebook 3: searches under a budget, each judged on held-out questions.

A search sees one half of the validation paragraphs. Its result is scored on the questions of the other half.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import combinations, groupby
from operator import itemgetter

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qatlib.latency import group_latencies, pass_latencies
from qatlib.learned import Learned, learn_allocation
from qatlib.precision import Configuration, Precision
from qatlib.search import Allocation, Choice, Interactions, best_uniform, ilp, monotone, weight_bits, weight_bytes
from qatlib.sensitivity import evaluate_changes
from qatlib.studies.layerwise import Layerwise
from qatlib.studies.pieces import Piece, run


class Allocations:
    """Searches that use a sweep's measurements of one model's layers."""

    def __init__(self, layerwise: Layerwise) -> None:
        self.layerwise, self.study = layerwise, layerwise.study
        self.model, self.params = layerwise.model, layerwise.params

    def measured(self, sweep: pd.DataFrame, base: Precision | None = None) -> NDArray[np.float64]:
        """(groups, candidates): measured mean loss that each adds alone. Noise may make it negative.

        Args:
            base: the precision that `sweep` lowers from; by default the search's own.
        """
        base = base or self.layerwise.base
        both = sweep[(sweep["lowered"] == "both") & (sweep["base"] == base.name)]
        mean = both.groupby(["block", "role", "bits"])["loss_change"].mean()
        bits = self.params.lowered_to(base)
        return np.array([[0.0, *(mean[block, role, b] for b in bits)] for block, role in self.layerwise.groups])

    def problem(self, sweep: pd.DataFrame, base: Precision | None = None) -> Allocation:
        """Allocation of average weight bits among `candidates`. Losses are made `monotone`. Arguments as in `measured`."""
        precisions, loss = self.layerwise.candidates(base or self.layerwise.base), monotone(self.measured(sweep, base))
        return Allocation(tuple(self.layerwise.groups), precisions, loss, weight_bits(self.model.infos, precisions))

    def pairs(self) -> list[tuple[int, int]]:
        """Indices of the groups that are lowered together."""
        kind, blocks = self.params.search.pairs, [block for block, _ in self.layerwise.groups]
        if kind == "none":
            return []
        every = combinations(range(len(blocks)), 2)
        return [(i, j) for i, j in every if kind == "all" or blocks[i] == blocks[j]]

    def pair_losses(self, sweep: pd.DataFrame, at: int) -> pd.DataFrame:
        """Loss added by two groups lowered together, minus the sum of the losses that each adds alone.

        Args:
            sweep: the sweep from the search's base.
            at: index of the candidate that both groups are lowered to.

        Returns:
            One row per pair: `first`, `second` (indices of groups), `extra_loss` (nats).
        """
        names, p = list(self.layerwise.groups.values()), self.layerwise.candidates(self.layerwise.base)[at]
        places, losses = list(self.layerwise.groups), self.measured(sweep)[:, at]
        base_loss = self.layerwise.base_scores(self.layerwise.base)["loss"].mean()

        def compute(first: int, others: Sequence[int]) -> pd.DataFrame:
            changes = {str(j): dict.fromkeys([*names[first], *names[j]], p) for j in others}
            block, role = places[first]
            how = self.study.answering | {"description": f"pairs with {role} of block {block}"}
            with self.model.at(self.layerwise.base):
                return evaluate_changes(self.model, self.layerwise.seen, self.layerwise.features, block, changes, **how)

        seconds = {first: [second for _, second in pairs] for first, pairs in groupby(self.pairs(), key=itemgetter(0))}
        pieces = [Piece(f"pairs_{i}", partial(compute, i, others), published=False) for i, others in seconds.items()]
        rows = []
        for (first, others), found in zip(seconds.items(), run(pieces, self.study.stage), strict=True):
            loss = found.assign(change=found["change"].astype(str)).groupby("change")["loss"].mean()
            alone = losses[first] + losses[others]
            rows += [
                {"first": first, "second": j, "extra_loss": loss[str(j)] - base_loss - each}
                for j, each in zip(others, alone, strict=True)
            ]
        return pd.DataFrame(rows, columns=["first", "second", "extra_loss"])

    def interactions(self, problem: Allocation, pair_losses: pd.DataFrame, noise: pd.DataFrame, at: int) -> Interactions:
        """The second-order term of a problem, from the losses of its pairs and the amplitudes of output noise."""
        count = len(problem.groups)
        extra = np.zeros((count, count))
        first, second = (pair_losses[name].to_numpy(int) for name in ("first", "second"))
        extra[first, second] = extra[second, first] = pair_losses["extra_loss"]
        decibel = noise.drop_duplicates(places := ["block", "role", "precision"]).set_index(places)["sqnr_db"]
        table = np.array([[decibel[(*group, p.name)] for p in problem.precisions[1:]] for group in problem.groups])
        amplitude = 10 ** ((table[:, [at - 1]] - table) / 20)
        return Interactions(extra, np.hstack([np.zeros((count, 1)), amplitude]))

    def learned(self, problem: Allocation, budget: float) -> Learned:
        """The result of `learn_allocation`. The params must have a `search.learned` section.

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
        """The same problem with memory as the cost of each choice: codes and scales by formula, in MB."""
        size = weight_bytes(self.model.infos, problem.precisions, self.model.quantizer.scale_group)
        return replace(problem, cost=size / 1e6)

    @property
    def workload(self) -> tuple[int, int]:
        """Windows and tokens of the pass whose latency is the search's budget: the first in `deployment`."""
        return self.params.deployment.batch_sizes[0], self.params.deployment.lengths[0]

    def latencies(self, problem: Allocation) -> pd.DataFrame:
        """Milliseconds that each block × role takes in a pass at each candidate, measured on this machine.

        Returns:
            One row per group: `block`, `role`, and one column per precision.
        """
        found = group_latencies(self.model, problem.precisions, math.prod(self.workload))
        columns = {p.name: found[:, i] for i, p in enumerate(problem.precisions)}
        return pd.DataFrame(problem.groups, columns=["block", "role"]).assign(**columns)

    def in_milliseconds(self, problem: Allocation, latencies: pd.DataFrame) -> Allocation:
        """The same problem with time as the cost of each choice, as measured by `latencies`."""
        return replace(problem, cost=latencies[[p.name for p in problem.precisions]].to_numpy())

    def pass_latencies(self, configurations: Mapping[str, Configuration]) -> pd.DataFrame:
        """One row per configuration: `id`, and `pass_milliseconds` of the whole deployed model."""
        found = pass_latencies(self.model, configurations, *self.workload)
        return pd.DataFrame({"id": list(found), "pass_milliseconds": list(found.values())})

    def at_share(self, problem: Allocation, share: float) -> Choice:
        """The choice with the lowest predicted loss that lowers at least this share of the layers below the base."""
        sizes = np.array([[len(self.layerwise.groups[group])] for group in problem.groups], float)
        stays = np.hstack([sizes / sizes.sum(), np.zeros((len(sizes), len(problem.precisions) - 1))])
        return ilp(replace(problem, cost=stays), 1 - share)

    def judged(self, configurations: Mapping[str, Configuration], label: str) -> pd.DataFrame:
        """Scores of the held-out questions at every configuration. They are not published: too many files."""
        return self.study.scores(self.model, label, configurations, self.layerwise.held_out, published=False)


def likeliest(problem: Allocation, learned: Learned) -> Allocation:
    """A problem whose best choice is the most likely one under the learned shares."""
    return replace(problem, loss=-np.log(learned.shares))


def against_uniform(problem: Allocation, shares: Iterable[float]) -> dict[tuple[str, float], list[Choice]]:
    """The integer program's choice and the best uniform one within each budget, for `listed`.

    Args:
        shares: budgets, as in `Allocation.between`.
    """
    found: dict[tuple[str, float], list[Choice]] = {}
    for budget in map(problem.between, shares):
        found["ILP", budget] = [ilp(problem, budget)]
        if (uniform := best_uniform(problem, budget)) is not None:
            found["uniform", budget] = [uniform]
    return found


def listed(found: Mapping[tuple[str, float], Sequence[Choice]], problem: Allocation) -> pd.DataFrame:
    """The choices of every method and budget. Equal choices share one `id`.

    Returns:
        One row per method, budget and draw: `method`, `budget` (text), `id`, `spent`, `choice`.
    """
    ids: dict[tuple[int, ...], str] = {}
    rows = []
    for (method, budget), choices in found.items():
        for choice in choices:
            name = ids.setdefault(tuple(choice.tolist()), f"c{len(ids):03d}")
            rows.append((method, f"{budget:g}", name, problem.spent(choice), choice))
    return pd.DataFrame(rows, columns=["method", "budget", "id", "spent", "choice"])
