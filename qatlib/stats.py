"""Estimates with their uncertainty: paired differences, bootstrapped by paragraph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

Statistic = Callable[..., Any]

Column = Sequence[Any] | np.ndarray | pd.Series
"""One value an observation."""


@dataclass(frozen=True)
class Estimate:
    """A figure, its percentile bootstrap interval, and what it rests on."""

    value: float
    low: float
    high: float
    n: int
    """Questions (or paragraphs)."""
    clusters: int
    """Paragraphs, the units that are drawn again."""

    def __format__(self, spec: str) -> str:
        spec = spec or ".1f"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def cluster_bootstrap(
    columns: Sequence[Column],
    clusters: Column,
    statistic: Statistic,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap in which whole clusters are drawn: questions of one paragraph are not independent.

    Args:
        columns: the observations, several columns of one length.
        clusters: each observation's paragraph.
        statistic: the estimate from the columns' totals, `statistic(total_of_column_1, …)`, vectorized; the totals
            are sums over the observations drawn.
        resamples: bootstrap draws.
        confidence: mass inside the interval.

    Raises:
        ValueError: columns of different lengths, none at all, or fewer than two clusters.

    Source: cluster bootstrap, Cameron, Gelbach and Miller 2008; scipy.stats.bootstrap draws.
    """
    frame = pd.DataFrame({i: np.asarray(c, dtype=float) for i, c in enumerate(columns)})
    totals = frame.groupby(np.asarray(clusters), sort=True).sum()
    if len(totals) < 2:
        raise ValueError(f"an interval needs at least two paragraphs, there is {len(totals)}")

    def of_sample(*samples: np.ndarray, axis: int = -1) -> Any:
        return statistic(*(s.sum(axis=axis) for s in samples))

    data = tuple(totals[c].to_numpy() for c in totals)
    drawn = bootstrap(
        data,
        of_sample,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 4_000_000 // len(totals)),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(float(of_sample(*data)), float(drawn.low), float(drawn.high), len(frame), len(totals))


def mean(values: Column, clusters: Column, **options: Any) -> Estimate:
    """Mean of per-question values, or of paired differences of them."""
    return cluster_bootstrap([values, np.ones(len(values))], clusters, lambda total, n: total / n, **options)


def perplexity(nll: Column, tokens: Column, clusters: Column, **options: Any) -> Estimate:
    """exp(Σ nll / Σ tokens)."""
    return cluster_bootstrap([nll, tokens], clusters, lambda total, n: np.exp(total / n), **options)


def perplexity_ratio(nll: Column, reference: Column, tokens: Column, clusters: Column, **options: Any) -> Estimate:
    """Paired ratio of two perplexities on the same text: exp((Σ nll − Σ reference) / Σ tokens)."""
    return cluster_bootstrap([nll, reference, tokens], clusters, lambda a, b, n: np.exp((a - b) / n), **options)
