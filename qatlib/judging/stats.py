"""Estimates with their uncertainty: paired differences, bootstrapped by paragraph and by training seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as students_t

Statistic = Callable[..., Any]

Column = Sequence[Any] | np.ndarray | pd.Series
"""One value an observation."""


def with_interval(value: float, low: float, high: float, spec: str = "z.1f") -> str:
    """A figure as prose has it: `1.2 [−0.3, 2.7]`."""
    return f"{value:{spec}} [{low:{spec}}, {high:{spec}}]".replace("-", "−")


@dataclass(frozen=True)
class Estimate:
    """A figure, its percentile bootstrap interval, and what it rests on."""

    value: float
    low: float
    high: float
    n: int
    """Questions (or paragraphs); seeds do not multiply them."""
    clusters: int
    """Paragraphs, the units that are drawn again."""
    seeds: int = 1
    """Trainings, drawn again as well."""
    p: float = float("nan")
    """Two-sided bootstrap p-value of 0 (of 1, for a ratio)."""

    def __format__(self, spec: str) -> str:
        return with_interval(self.value, self.low, self.high, spec or "z.1f")

    def above(self, bound: float) -> Estimate:
        """How far it lies above a bound."""
        return replace(self, value=self.value - bound, low=self.low - bound, high=self.high - bound)

    def below(self, bound: float) -> Estimate:
        """How far it lies below a bound."""
        return replace(self, value=bound - self.value, low=bound - self.high, high=bound - self.low)


def cluster_bootstrap(
    columns: Sequence[Column],
    clusters: Column,
    statistic: Statistic,
    *,
    seeds: Column | None = None,
    null: float = 0.0,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap in which whole clusters are drawn: questions of one paragraph are not independent.

    With several seeds the interval covers the luck of training too: to every draw, in which all seeds answer the clusters
    drawn, an error of their mean is added, which is distributed as Student's t of the seeds' own estimates. (Drawing three
    seeds again would never leave their range, which holds the mean of all seeds three times in four at most.)

    Args:
        columns: the observations, several columns of one length.
        clusters: each observation's paragraph.
        statistic: the estimate from the columns' totals, `statistic(total_of_column_1, …)`, vectorized; the totals
            are sums over the observations drawn.
        seeds: each observation's training seed; every seed must have every cluster. One seed if left out.
        null: what `Estimate.p` is the p-value of: counted over the draws, and where none lies beyond it by the tail of
            Student's t.
        resamples: bootstrap draws.
        confidence: mass inside the interval.

    Raises:
        ValueError: columns of different lengths, none at all, fewer than two clusters, or a seed that lacks one.

    Source: cluster bootstrap, Cameron, Gelbach and Miller 2008; the mean of few trainings, Student 1908.
    """
    frame = pd.DataFrame({i: np.asarray(c, dtype=float) for i, c in enumerate(columns)})
    of = [np.asarray(clusters), np.zeros(len(frame)) if seeds is None else np.asarray(seeds)]
    groups = frame.groupby(of, sort=True)
    sizes = groups.size().unstack()
    if len(sizes) < 2:
        raise ValueError(f"an interval needs at least two paragraphs, there is {len(sizes)}")
    if sizes.isna().to_numpy().any() or (sizes.nunique(axis=1) > 1).any():
        raise ValueError("the seeds answer different questions")
    totals = groups.sum().to_numpy().reshape(*sizes.shape, -1)  # (clusters, seeds, columns)
    by_cluster, by_t = _draws(*sizes.shape, resamples, seed)
    drawn = statistic(*(by_cluster @ totals.sum(1)).T)
    error, freedom, trainings = float(np.std(drawn)), len(sizes) - 1, sizes.shape[1]
    if trainings > 1:
        of_mean = float(np.std(statistic(*totals.sum(0).T), ddof=1)) / trainings**0.5
        drawn = drawn + by_t * of_mean
        error, freedom = float(np.hypot(error, of_mean)), min(freedom, trainings - 1)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    value = float(statistic(*totals.sum((0, 1))))
    beyond = min((drawn <= null).sum(), (drawn >= null).sum())
    p = min(1.0, 2 * (1 + beyond) / (1 + resamples))
    if not beyond and error > 0:  # further out than draws can count
        p = min(p, 2 * float(students_t.sf(abs(value - null) / error, freedom)))
    return Estimate(value, float(low), float(high), len(frame) // trainings, *sizes.shape, p)


@lru_cache(maxsize=8)  # a report's tables draw from a few sets of questions, thousands of times
def _draws(clusters: int, trainings: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each cluster is drawn in every resample, (resamples, clusters), and a t for the mean of the trainings."""
    rng = np.random.default_rng(seed)
    by_cluster = rng.multinomial(clusters, np.full(clusters, 1 / clusters), resamples).astype(float)
    return by_cluster, rng.standard_t(max(1, trainings - 1), resamples)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for being looked at together (Holm 1979): the chance of any false finding is kept."""
    order = np.argsort(p)
    scaled = np.asarray(p, float)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return [float(value) for value in corrected]


def over_pairs(
    statistic: Statistic, x: Column, y: Column, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Percentile bootstrap of a statistic of pairs (x, y), such as a correlation; draws in which it is not defined are left out.

    `n` and `clusters` of the estimate are the pairs.
    """
    pairs = np.column_stack([x, y]).astype(float)
    drawn = np.random.default_rng(seed).integers(len(pairs), size=(resamples, len(pairs)))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.array([statistic(*pairs[rows].T) for rows in drawn])
    low, high = np.nanquantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(statistic(*pairs.T)), float(low), float(high), len(pairs), len(pairs))


def mean(values: Column, clusters: Column, *, ends: tuple[float, float] | None = None, **options: Any) -> Estimate:
    """Mean of per-question values, or of paired differences of them; a missing value is no observation.

    `Estimate.n` counts it all the same.

    Args:
        ends: of the values' scale. Where all values are 0, or all at one end, which leaves the bootstrap nothing to draw, the
            interval makes room for as many paragraphs at the scale's ends as may be without one being seen (`unseen`).
    """
    found = np.asarray(values, dtype=float)
    there = ~np.isnan(found)
    estimate = cluster_bootstrap([values, there], clusters, lambda total, n: total / n, **options)
    if ends is None or not any((found[there] == one).all() for one in (0, *ends)):
        return estimate
    share = unseen(estimate.clusters, options.get("confidence", 0.95))
    low, high = (estimate.value + share * (end - estimate.value) for end in ends)
    return replace(estimate, low=low, high=high, p=1.0 if low <= options.get("null", 0.0) <= high else estimate.p)


def unseen(clusters: int, confidence: float = 0.95) -> float:
    """The largest share of all paragraphs that may be of a kind of which so many hold none.

    Source: Clopper and Pearson 1934, for no events; about 3.7 / clusters at 95 %.
    """
    return float(1 - ((1 - confidence) / 2) ** (1 / clusters))


def perplexity(nll: Column, tokens: Column, clusters: Column, **options: Any) -> Estimate:
    """exp(Σ nll / Σ tokens)."""
    return cluster_bootstrap([nll, tokens], clusters, lambda total, n: np.exp(total / n), **options)


def perplexity_ratio(nll: Column, reference: Column, tokens: Column, clusters: Column, **options: Any) -> Estimate:
    """Paired ratio of two perplexities on the same text: exp((Σ nll − Σ reference) / Σ tokens)."""
    return cluster_bootstrap([nll, reference, tokens], clusters, lambda a, b, n: np.exp((a - b) / n), null=1.0, **options)


def percentage(part: Column, whole: Column, clusters: Column, **options: Any) -> Estimate:
    """100 · Σ part / Σ whole."""
    return cluster_bootstrap([part, whole], clusters, lambda a, b: 100 * a / b, **options)
