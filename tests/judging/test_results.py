"""Tables from result files: paired by question, refusing what is not paired."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from qatlib.judging.results import (
    Cell,
    accuracy_table,
    cells,
    gap_table,
    in_words,
    paired,
    perplexity_table,
    pick,
    readable,
    seed_table,
    signed,
    widths,
)
from qatlib.precision import Precision

OPTIONS = {"resamples": 200}


def scores(model: str, precision: str, shift: float = 0.0, n: int = 24) -> pd.DataFrame:
    f1 = np.clip(np.random.default_rng(0).uniform(20, 80, n) + shift, 0, 100)
    rows = {
        "id": [f"q{i}" for i in range(n)],
        "paragraph": [f"p{i // 3}" for i in range(n)],
        "f1": f1,
        "em": f1 - 20,
        "loss": 1.0,
    }
    return pd.DataFrame({"model": model, "precision": precision, "seed": 0} | rows)


TEACHER = Cell("teacher", "32")
BOTH = pd.concat([scores("teacher", "32"), scores("low", "4", -10), scores("low", "8")], ignore_index=True)


def test_a_shift_of_every_question_is_a_change_without_width():
    table = accuracy_table(BOTH, TEACHER, **OPTIONS).set_index(["model", "precision"])
    row = table.loc[("low", "4")]
    assert row["f1_change"] == pytest.approx(-10) and row["f1_change_low"] == pytest.approx(row["f1_change_high"])
    assert row["f1_high"] - row["f1_low"] > 1  # questions differ: 10 points
    assert table.loc[("low", "8")]["f1_kept"] == pytest.approx(100)
    assert (row["n"], row["paragraphs"]) == (24, 8)


def test_cells_keep_their_order_and_missing_ones_are_named():
    assert cells(BOTH) == [TEACHER, Cell("low", "4"), Cell("low", "8")]
    with pytest.raises(KeyError, match="no results of low at 2"):
        pick(BOTH, Cell("low", "2"))


def test_other_questions_are_no_pair():
    other = scores("low", "4").assign(id=lambda t: t["id"] + "x")
    with pytest.raises(ValueError, match="different questions"):
        paired(pd.concat([scores("teacher", "32"), other]), Cell("low", "4"), TEACHER, "f1")


def test_gaps_are_at_shared_precisions_only():
    frame = pd.concat([BOTH, scores("other", "4", 5)], ignore_index=True)
    gaps = gap_table(frame, [("other", "low")], "f1", **OPTIONS)
    assert gaps["precision"].tolist() == ["4"] and gaps["difference"].iloc[0] == pytest.approx(15)


def test_widths_stand_beside_the_precision_in_gaps_and_not_on_the_page():
    frame = pd.concat([scores(m, p).assign(w_bits=w, a_bits=8) for m in "ab" for p, w in (("8", 8), ("w2a8", 2))])
    assert widths(frame) == {"8": Precision(8, 8), "w2a8": Precision(2, 8)}
    gaps = gap_table(frame, [("a", "b")], "f1", **OPTIONS)
    assert gaps["w_bits"].tolist() == [8, 2] and not {"w bits", "a bits"} & {*readable(gaps)}
    with pytest.raises(KeyError):  # nothing falls back on the name
        widths(BOTH)


def test_seeds_are_paired_with_their_own_or_with_the_only_one():
    def seeded(model: str, shifts: tuple[float, ...]) -> pd.DataFrame:
        return pd.concat([scores(model, "4", shift).assign(seed=i) for i, shift in enumerate(shifts)])

    frame = pd.concat([scores("teacher", "32"), seeded("a", (-9, -10, -11)), seeded("b", (-4, -5, -6))], ignore_index=True)
    gap = gap_table(frame, [("b", "a")], "f1", **OPTIONS).iloc[0]
    assert gap["difference_low"] == pytest.approx(5) == gap["difference_high"] and gap["seeds"] == 3 and gap["n"] == 24
    table = accuracy_table(frame, TEACHER, **OPTIONS).set_index("model")
    assert table.loc["a", "f1_change"] == pytest.approx(-10) and table.loc["a", "f1_change_low"] < -10.5  # −11.9
    assert table["seeds"].tolist() == [1, 3, 3]


def test_gaps_of_one_table_are_corrected_together():
    rng = np.random.default_rng(0)
    noisy = [scores("b", p).assign(f1=lambda t: t["f1"] + rng.normal(2, 3, len(t))) for p in ("8", "4", "3")]
    frame = pd.concat([*(scores("a", p) for p in ("8", "4", "3")), *noisy], ignore_index=True)
    alone = [paired(frame, Cell("b", p), Cell("a", p), "f1", **OPTIONS).p for p in ("8", "4", "3")]
    assert all(q >= p for p, q in zip(alone, gap_table(frame, [("b", "a")], "f1", **OPTIONS)["p"], strict=True))


def test_two_models_that_make_no_error_are_not_shown_to_be_one():
    right = scores("teacher", "32").assign(f1=100.0)
    again = right.assign(model="again")
    frame = pd.concat([right, right.assign(model="low", precision="4", loss=right["loss"] + 0.1), again], ignore_index=True)
    table = accuracy_table(frame, TEACHER, **OPTIONS)
    own, other, same = (table.iloc[i] for i in range(3))
    assert (same["f1_change_low"], same["f1_kept_low"]) == (0, 100)  # but for the same loss on every question they are
    assert own["f1_low"] < 100 == own["f1_high"] and (own["f1_change_low"], own["f1_kept_low"]) == (0, 100)
    assert other["f1_change_low"] < 0 < other["f1_change_high"] == -other["f1_change_low"]
    assert other["f1_kept_low"] < 100 < other["f1_kept_high"]


def test_perplexity_changes_are_paired_percentages():
    base = pd.DataFrame({"paragraph": list("abcd"), "nll": [3.0, 4, 5, 6], "tokens": [3, 3, 4, 4], "correct": [1, 2, 2, 2]})
    base["seed"] = 0
    frame = pd.concat(
        [
            base.assign(model="teacher", precision="32"),
            base.assign(model="low", precision="4", nll=base["nll"] + base["tokens"] * 0.1),
        ]
    )
    table = perplexity_table(frame, TEACHER, **OPTIONS)
    change = table.iloc[1]
    assert change["perplexity_change"] == pytest.approx(100 * (np.exp(0.1) - 1))
    assert change["perplexity_change_low"] == pytest.approx(change["perplexity_change_high"])
    assert change["token_accuracy"] == pytest.approx(50)
    assert 100 / 3 <= change["token_accuracy_low"] < 50 < change["token_accuracy_high"] <= 200 / 3  # the paragraphs' own extremes


def test_perplexities_of_several_seeds_are_paired_with_their_own_or_with_the_only_one():
    base = pd.DataFrame({"paragraph": list("abcd"), "nll": [3.0, 4, 5, 6], "tokens": [3, 3, 4, 4], "correct": [1, 2, 2, 2]})

    def model(name, *shifts):
        nll = [base["nll"] + base["tokens"] * x for x in shifts]
        return pd.concat([base.assign(model=name, precision="32", seed=i, nll=x) for i, x in enumerate(nll)])

    frame = pd.concat([model("teacher", 0.0), model("a", 0.1, 0.2, 0.3), model("b", 0.2, 0.3, 0.4)], ignore_index=True)
    gap = gap_table(frame, [("b", "a")], "perplexity", **OPTIONS).iloc[0]
    assert gap["difference_low"] == pytest.approx(100 * np.expm1(0.1)) == gap["difference_high"]
    assert (gap["n"], gap["seeds"]) == (4, 3)
    table = perplexity_table(frame, TEACHER, **OPTIONS).set_index("model")
    assert table["seeds"].to_dict() == {"teacher": 1, "a": 3, "b": 3} and set(table["tokens"]) == {14}
    assert table.loc["a", "perplexity_change"] == pytest.approx(100 * np.expm1(0.2))
    assert table.loc["a", "perplexity_change_low"] < 100 * np.expm1(0.15)  # seeds differ: 0.3 %, and not 22 or 16


def test_no_pair_of_models_is_an_empty_table():
    table = gap_table(BOTH, [("low", "nobody")], "f1", **OPTIONS)
    assert table.empty and {"model", "difference_low", "p"} <= set(table)


def test_other_text_is_no_pair():
    base = pd.DataFrame({"paragraph": list("ab"), "nll": [3.0, 4], "tokens": [3, 3], "correct": [1, 1]})
    base = base.assign(model="teacher", precision="32", seed=0)
    other = base.assign(model="low", paragraph=["a", "c"])
    with pytest.raises(ValueError, match="different text"):
        perplexity_table(pd.concat([base, other]), TEACHER, **OPTIONS)


def test_readable_folds_intervals_and_names():
    shown = readable(accuracy_table(BOTH, TEACHER, **OPTIONS), ["loss", "paragraphs"])
    assert list(shown) == ["model", "precision", "F1", "EM", "F1 change", "EM change", "F1 kept", "n", "seeds"]
    assert shown["F1 change"].iloc[1] == "−10.0 [−10.0, −10.0]"


def test_readable_keeps_huge_figures_short():
    table = pd.DataFrame({"perplexity": [2.34, 4.758e8], "perplexity_low": [2.0, 9.9e4], "perplexity_high": [3.0, 6.05e8]})
    assert readable(table)["perplexity"].tolist() == ["2.3 [2.0, 3.0]", "4.8e+08 [99000.0, 6.0e+08]"]


def test_in_words_lists_every_precision():
    gaps = gap_table(
        BOTH.assign(model="a")[24:].pipe(lambda t: pd.concat([t, t.assign(model="b", f1=t["f1"] + 2)])),
        [("b", "a")],
        "f1",
        **OPTIONS,
    )
    assert in_words(gaps, "difference") == "4: +2.0 [+2.0, +2.0]; 8: +2.0 [+2.0, +2.0]"


def test_what_rounds_to_nothing_has_no_minus_sign():
    assert signed(-0.04, -0.05, 0.2) == "+0.0 [−0.1, +0.2]"
    assert readable(pd.DataFrame({"f1": [-0.04], "f1_low": [-1.0], "f1_high": [0.0]}))["F1"].tolist() == ["0.0 [−1.0, 0.0]"]


def test_of_nothing_no_share_is_kept_and_nothing_is_warned_about(recwarn):
    nothing = pd.concat([scores("teacher", "32"), scores("low", "4")]).assign(f1=0.0)
    table = accuracy_table(nothing, TEACHER, **OPTIONS)
    assert table["f1_kept"].isna().all() and readable(table)["F1 kept"].tolist() == ["–", "–"] and not recwarn.list


def test_seeds_lie_between_the_lowest_and_the_highest_training():
    trainings = [scores("m", "8", shift).assign(seed=seed) for seed, shift in enumerate([0.0, -4, 2])]
    table = seed_table(pd.concat([*trainings, scores("alone", "8")], ignore_index=True)).set_index("model")
    assert table["seeds"].to_dict() == {"m": 3, "alone": 1}
    assert table["range"].tolist() == pytest.approx([6, 0]) and (table["lowest"] <= table["highest"]).all()
