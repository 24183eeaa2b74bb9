"""Trials side by side: each against the first, at the same precision."""

from __future__ import annotations

import pandas as pd
import pytest

from qatlib.judging.trials import gains_in_words, tried_table

OPTIONS = {"resamples": 100}


def scores(**shifts: float) -> pd.DataFrame:
    rows = [
        {"model": trial, "precision": p, "w_bits": int(p), "a_bits": int(p), "seed": 0, "id": f"q{i}", "paragraph": f"p{i // 2}"}
        | {"em": 0.0, "f1": 50.0 + i + shift * (p == "2"), "loss": shift, "learning_rate": 1e-3, "rank": int(p), "passes": 4.0}
        for trial, shift in shifts.items()
        for p in ("4", "2")
        for i in range(6)
    ]
    return pd.DataFrame(rows)


def test_a_trial_is_compared_with_the_first_at_the_same_precision():
    table = tried_table(scores(own=0, faster=10, slower=-2), **OPTIONS).set_index(["model", "precision"])
    assert table["f1_change"].tolist() == pytest.approx([0, 0, 0, 10, 0, -2])
    assert table.loc[("faster", "2")][["rank", "n", "paragraphs"]].tolist() == [2, 6, 3]
    assert table.loc[("slower", "2"), "f1"] == pytest.approx(50.5)


def test_gains_are_means_over_precisions():
    assert (
        gains_in_words(scores(own=0, faster=10, slower=-2), **OPTIONS) == "faster: +5.0 [+5.0, +5.0]; slower: −1.0 [−1.0, −1.0]"
    )
