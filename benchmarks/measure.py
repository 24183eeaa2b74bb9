"""The row that every figure becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Row:
    """One figure beside its peer's."""

    group: str
    case: str
    """What was run: shape, batch, length."""
    ours: str
    peer: str
    unit: str
    """`ms` or `MB` (10⁶ bytes), of `value` and `peer_value`."""
    value: float
    peer_value: float
    ratio: float
    """Ours over the peer's; of times the median of the rounds' ratios."""
    low: float
    high: float
    """Quartiles of the rounds' ratios; the ratio itself for bytes, which do not vary."""
    rounds: int
    target: str = ""
    """What the ratio, or where it says so the value, is meant to be."""


def compare_bytes(group: str, case: str, ours: tuple[str, float], peer: tuple[str, float], target: str = "") -> Row:
    """A row of two sizes in bytes."""
    (name, value), (peer_name, peer_value) = ours, peer
    ratio = value / peer_value
    return Row(group, case, name, peer_name, "MB", value / 1e6, peer_value / 1e6, ratio, ratio, ratio, 1, target)


def compare_times(group: str, case: str, times: Mapping[str, np.ndarray], ours: str, peer: str, target: str = "") -> Row:
    """A row of two series of times in seconds that were taken in turn: the ratio is of the two times of one round."""
    low, ratio, high = np.percentile(times[ours] / times[peer], [25, 50, 75])
    value, peer_value = (1e3 * float(np.median(times[name])) for name in (ours, peer))
    return Row(group, case, ours, peer, "ms", value, peer_value, ratio, low, high, len(times[ours]), target)
