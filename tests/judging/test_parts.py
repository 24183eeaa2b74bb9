"""What a part is worth: above 0 where it helps, on the same questions and paragraphs."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest

from qatlib.judging.parts import worth_table

OPTIONS = {"resamples": 100}
PAIR = SimpleNamespace(part="rotation", change="added", having="with rotation", lacking="plain")


def measured(f1: dict[str, float], divergence: dict[str, float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two paragraphs with 2 and 4 tokens; each model has one F1 and one divergence per token, with a little noise."""
    widths = {"precision": "w2a8", "w_bits": 2, "a_bits": 8, "seed": 0}
    scores = [
        {"model": m, **widths, "id": f"q{i}", "paragraph": f"p{i % 2}", "f1": v + i, "em": 0.0, "loss": 1.0}
        for m, v in f1.items()
        for i in range(4)
    ]
    texts = [
        {"model": m, **widths, "paragraph": f"p{i}", "nll": 1.0, "tokens": 2 * i + 2, "correct": 0, "divergence": v * (2 * i + 2)}
        for m, v in divergence.items()
        for i in range(2)
    ]
    return pd.DataFrame(scores), pd.DataFrame(texts)


def test_a_part_that_helps_gains_points_and_saves_nats():
    table = worth_table(*measured({"plain": 40, "with rotation": 55}, {"plain": 3.0, "with rotation": 1.0}), [PAIR], **OPTIONS)
    (row,) = table.to_dict("records")
    assert row["gain"] == pytest.approx(15) and row["saved"] == pytest.approx(2.0)
    assert (row["part"], row["change"], row["precision"], row["w_bits"], row["a_bits"]) == ("rotation", "added", "w2a8", 2, 8)
    assert (row["n"], row["paragraphs"]) == (4, 2)


def test_the_order_of_the_pair_is_the_sign():
    found = measured({"plain": 40, "with rotation": 55}, {"plain": 3.0, "with rotation": 1.0})
    back = SimpleNamespace(part="rotation", change="removed", having="plain", lacking="with rotation")
    (row,) = worth_table(*found, [back], **OPTIONS).to_dict("records")
    assert row["gain"] == pytest.approx(-15) and row["saved"] == pytest.approx(-2.0)
