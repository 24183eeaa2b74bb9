"""Estimates with uncertainty: paired differences, bootstrapped by paragraph and by training seed."""

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
"""One value per observation."""


def with_interval(value: float, low: float, high: float, spec: str = "z.1f") -> str:
    """A figure with its interval, for text: `1.2 [−0.3, 2.7]`."""
    return f"{value:{spec}} [{low:{spec}}, {high:{spec}}]".replace("-", "−")


@dataclass(frozen=True)
class Estimate:
    """A figure, its percentile bootstrap interval, and the numbers of observations."""

    value: float
    low: float
    high: float
    n: int
    """Number of questions (or paragraphs), not multiplied by the seeds."""
    clusters: int
    """Number of paragraphs, the units that are resampled."""
    seeds: int = 1
    """Number of trainings; the interval covers their variation too."""
    p: float = float("nan")
    """Two-sided bootstrap p-value of the null value 0 (1 for a ratio)."""

    def __format__(self, spec: str) -> str:
        return with_interval(self.value, self.low, self.high, spec or "z.1f")

    def above(self, bound: float) -> Estimate:
        """The estimate minus a bound."""
        return replace(self, value=self.value - bound, low=self.low - bound, high=self.high - bound)

    def below(self, bound: float) -> Estimate:
        """A bound minus the estimate."""
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
    """Percentile bootstrap that draws whole clusters, because questions on one paragraph are not independent.

    With several seeds the interval also covers the luck of training. In every draw, all seeds answer the drawn clusters. Then
    an error of the seeds' mean is added, distributed as Student's t with the spread of the seeds' own estimates. (Resampling
    three seeds would never leave their range, which contains the mean of all seeds at most three times in four.)

    Args:
        columns: the observations, several columns of one length.
        clusters: each observation's paragraph.
        statistic: the estimate from the columns' totals, `statistic(total_of_column_1, …)`, vectorized; the totals
            are sums over the observations drawn.
        seeds: each observation's training seed; every seed must have every cluster. One seed if left out.
        null: the null value of `Estimate.p`. p is counted over the draws; if no draw is beyond `null`, p is the tail of
            Student's t if this is smaller.
        resamples: bootstrap draws.
        confidence: mass inside the interval.

    Raises:
        ValueError: columns of different lengths, no columns, fewer than two clusters, or a seed without some cluster.

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
    # Not `@`: how BLAS adds depends on its threads. This adds cluster by cluster, whatever the machine.
    drawn = statistic(*np.einsum("cr,ck->kr", by_cluster, totals.sum(1)))
    error, freedom, trainings = float(np.std(drawn)), len(sizes) - 1, sizes.shape[1]
    if trainings > 1:
        of_mean = float(np.std(statistic(*totals.sum(0).T), ddof=1)) / trainings**0.5
        drawn = drawn + by_t * of_mean
        error, freedom = float(np.hypot(error, of_mean)), min(freedom, trainings - 1)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    value = float(statistic(*totals.sum((0, 1))))
    beyond = min((drawn <= null).sum(), (drawn >= null).sum())
    p = min(1.0, 2 * (1 + beyond) / (1 + resamples))
    if not beyond and error > 0:  # beyond all draws, so counting cannot resolve p
        p = min(p, 2 * float(students_t.sf(abs(value - null) / error, freedom)))
    return Estimate(value, float(low), float(high), len(frame) // trainings, *sizes.shape, p)


@lru_cache(maxsize=8)  # a report's tables draw from a few sets of questions, thousands of times
def _draws(clusters: int, trainings: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Count of each cluster in every resample, (clusters, resamples), and a draw of t for the mean of the trainings."""
    rng = np.random.default_rng(seed)
    by_cluster = rng.multinomial(clusters, np.full(clusters, 1 / clusters), resamples).astype(float)
    return np.ascontiguousarray(by_cluster.T), rng.standard_t(max(1, trainings - 1), resamples)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for multiple tests (Holm 1979). This controls the probability of any false finding."""
    order = np.argsort(p)
    scaled = np.asarray(p, float)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return [float(value) for value in corrected]


def over_pairs(
    statistic: Statistic, x: Column, y: Column, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Percentile bootstrap of a statistic of pairs (x, y), such as a correlation. Draws where it is undefined are left out.

    `n` and `clusters` of the estimate are the number of pairs.
    """
    pairs = np.column_stack([x, y]).astype(float)
    drawn = np.random.default_rng(seed).integers(len(pairs), size=(resamples, len(pairs)))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.array([statistic(*pairs[rows].T) for rows in drawn])
    low, high = np.nanquantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(statistic(*pairs.T)), float(low), float(high), len(pairs), len(pairs))


def mean(values: Column, clusters: Column, *, ends: tuple[float, float] | None = None, **options: Any) -> Estimate:
    """Mean of per-question values, or of their paired differences. Missing values are ignored.

    `Estimate.n` still counts them.

    Args:
        ends: the ends of the values' scale. If all values are 0, or all are at one end, the bootstrap has no variation. The
            interval is then widened to the Clopper–Pearson bound on paragraphs at the scale's ends (`unseen`).
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
    """Upper bound on the share of a kind of paragraph that does not occur among `clusters` paragraphs.

    Source: Clopper and Pearson 1934, for no events; about 3.7 / clusters at 95 %.
    """
    return float(1 - ((1 - confidence) / 2) ** (1 / clusters))


def perplexity(nll: Column, tokens: Column, clusters: Column, **options: Any) -> Estimate:
    """exp(Σ nll / Σ tokens)."""
    return cluster_bootstrap([nll, tokens], clusters, lambda total, n: np.exp(total / n), **options)


def perplexity_ratio(nll: Column, reference: Column, tokens: Column, clusters: Column, **options: Any) -> Estimate:
    """Paired ratio of two perplexities on the same text: exp((Σ nll − Σ reference) / Σ tokens)."""
    return cluster_bootstrap([nll, reference, tokens], clusters, lambda a, b, n: np.exp((a - b) / n), null=1.0, **options)


def ratio(part: Column, whole: Column, clusters: Column, **options: Any) -> Estimate:
    """Σ part / Σ whole."""
    return cluster_bootstrap([part, whole], clusters, lambda a, b: a / b, **options)


def percentage(part: Column, whole: Column, clusters: Column, **options: Any) -> Estimate:
    """100 · Σ part / Σ whole."""
    return cluster_bootstrap([part, whole], clusters, lambda a, b: 100 * a / b, **options)
