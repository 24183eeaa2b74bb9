"""Made-up scores whose answer is known."""

from __future__ import annotations

import numpy as np
import pandas as pd

from qatlib.precision import Precision


def scores(f1: dict[str, dict[str, float]], seeds=(0, 1, 2), n=40) -> pd.DataFrame:
    """Rows of models whose mean F1 at each precision is given; every question has its own level, the same for all."""
    level = np.random.default_rng(0).uniform(-5, 5, n)
    where = {"id": [f"q{i}" for i in range(n)], "paragraph": [f"p{i // 2}" for i in range(n)]}
    rows = [
        pd.DataFrame(where | {"f1": value + level}).assign(model=model, precision=precision, seed=seed, **widths(precision))
        for model, by_precision in f1.items()
        for precision, value in by_precision.items()
        for seed in seeds
    ]
    return pd.concat(rows, ignore_index=True)


def widths(precision: str) -> dict[str, int]:
    """The columns beside `precision`; a mean of several has none."""
    return {} if precision == "mean" else Precision.parse(precision)._asdict()


def said(table: pd.DataFrame) -> dict[str, str]:
    return table.groupby("claim")["verdict"].first().to_dict()
