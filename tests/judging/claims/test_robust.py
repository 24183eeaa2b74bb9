"""Verdicts on robustness, on scores under attack whose answer is known: everyone faces the worst of the same attacks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from qatlib.attacks.defence import set_name
from qatlib.judging.claims import robust
from qatlib.precision import Precision
from qatlib.studies.attackers import NO_ATTACK
from tests.judging.attacks import described, gradient
from tests.judging.claims.scores import said

FIRST = tuple(Precision.parse(p) for p in (4, 8))
RPI = f"RPI {set_name(FIRST)}"
OPTIONS = {"resamples": 100}
HALVES = {"": "all", ", even": "even", ", odd": "odd"}


def attacked(f1: dict[str, dict[str, float]], n: int = 40) -> pd.DataFrame:
    """Rows of attacks, ways of answering and their mean F1; every question has its own level, the same for all."""
    level = np.random.default_rng(0).uniform(-4, 4, n)
    where = {"id": [f"q{i}" for i in range(n)], "paragraph": [f"p{i // 2}" for i in range(n)], "em": 0.0, "loss": 1.0}
    parts = [
        pd.DataFrame(where | {"f1": value + level}).assign(attack=attack, answered=way)
        for attack, by_way in f1.items()
        for way, value in by_way.items()
    ]
    attacks = {name: NO_ATTACK if name == "none" else gradient(name, name) for name in f1}
    return described(pd.concat(parts, ignore_index=True), attacks)


CLEAN = {"32": 90.0, "8": 90, "4": 88}
PGD = {
    "PGD at 32": {"32": 20.0, "8": 40, "4": 50},
    "PGD at 8": {"32": 40.0, "8": 30, "4": 60},
    "EOT": {"32": 45.0, "8": 32, "4": 34},
}


def finer(**changes: dict[str, float]) -> pd.DataFrame:
    ways = {"per batch": 30.0, "per layer": 35, "per token": 36}
    by_attack = {"none": dict.fromkeys(ways, 88.0), "EOT, uniform": ways, "EOT, mixed": ways} | changes
    halves = {"per layer": ("per layer, even", "per layer, odd"), "per token": ("per token, even", "per token, odd")}
    each = {a: at | {half: at[way] for way, of in halves.items() for half in of} for a, at in by_attack.items()}
    return drawn(attacked(each))


def drawn(found: pd.DataFrame) -> pd.DataFrame:
    """With the columns that say what draws, and over which half of the draws a row is the mean."""
    kinds = {f"per {what}{said}": half for what in ("batch", "layer", "token") for said, half in HALVES.items()}
    ways = found["answered"].str.partition(", ")[0]
    return found.assign(drawn=ways, half=found["answered"].map(kinds))


def verdicts(
    perplexities: pd.DataFrame | None = None, draws: int = 20, undermined: bool = False, **changes: pd.DataFrame
) -> pd.DataFrame:
    text = attacked({"none": CLEAN, "at 32": {"32": 50.0, "8": 60, "4": 70}, "EOT": {"32": 55.0, "8": 58, "4": 66}})
    main = attacked({"none": CLEAN, **PGD})
    parts = {"main": main, "finer": finer(), "hotflip": text, "words": text, "trainings": trained(random=main)} | changes
    rows = pd.concat([part.assign(experiment=name) for name, part in parts.items()], ignore_index=True)
    return robust.verdicts(rows, noise(1.0) if perplexities is None else perplexities, [FIRST], draws, undermined, **OPTIONS)


def trained(**methods: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([part.assign(training=name, seed=seed) for name, part in methods.items() for seed in range(3)])


def noise(relative: float) -> pd.DataFrame:
    base = pd.DataFrame({"paragraph": list("abcdef"), "nll": 3.0, "tokens": 3, "noisy_tokens": 3, "noisy_unknown": 0})
    rises = {"32": 0.7, "8": 0.7 * relative}
    parts = [base.assign(noisy_nll=3 + 3 * np.log1p(rise), precision=p, random=False) for p, rise in rises.items()]
    return pd.concat(parts, ignore_index=True)


def test_every_way_faces_the_worst_of_the_same_attacks():
    table = verdicts().set_index("effect")["value"]
    lost_32, lost_8 = 90 - 20, 90 - 30
    assert table["PGD: F1 lost at 32 bits less that by 8"] == pytest.approx(lost_32 - lost_8)
    lost_rpi = (90 + 88) / 2 - (32 + 34) / 2  # EOT, though each of the two alone is worse off elsewhere
    assert table[f"percent of the drop at 8 bits that {RPI} takes away"] == pytest.approx(100 * (1 - lost_rpi / lost_8))
    assert table["HotFlip: F1 lost at 32 bits less that by 8"] == pytest.approx((90 - 50) - (90 - 58))
    assert table[f"F1 lost at 4 bits less that by {RPI}"] == pytest.approx((88 - 66) - (89 - 62))


def test_draws_that_win_only_against_a_weaker_attacker_do_not_win():
    assert said(verdicts())["C25"] == "reproduced"
    strong = {"per batch": 30.0, "per layer": 25, "per token": 26}
    assert said(verdicts(finer=finer(**{"EOT, mixed": strong})))["C25"] == "not reproduced"
    assert said(verdicts(draws=19))["C25"] == "not tested"


def test_the_bad_luck_of_the_draws_that_choose_an_attack_does_not_count():
    lucky = {"per batch": 30.0, "per layer, even": 20, "per layer, odd": 40, "per token, even": 40, "per token, odd": 20}
    unlucky = lucky | {"per layer, even": 40, "per layer, odd": 20}
    found = drawn(attacked({"none": dict.fromkeys(lucky, 88.0), "EOT, uniform": lucky, "EOT, mixed": unlucky}))
    effects = verdicts(finer=found).set_index("effect")["value"]
    # each attack is the worst over one half of the draws, by chance alone, and does little over the other
    assert effects["F1 of drawing per layer over per batch"] == pytest.approx(40 - 30)


def test_clean_accuracy_counts_where_a_claim_names_it():
    lower = verdicts().set_index("effect")["value"].filter(like="clean F1 at 32 bits less")
    assert lower.tolist() == pytest.approx([0, 1]) and said(verdicts())["C23"] == "undecided"


def test_rises_are_alike_in_proportion():
    assert said(verdicts())["C22"] == "reproduced"
    assert said(verdicts(perplexities=noise(1.3)))["C22"] == said(verdicts(perplexities=noise(0.7)))["C22"] == "not reproduced"


def test_what_a_run_leaves_out_is_said():
    table = verdicts(words=pd.DataFrame({"attack": []})).set_index("claim")
    assert table.loc[["C21", "C24", "C26"], "verdict"].tolist() == ["not tested"] * 3
    assert table.loc["C24", "effect"] == "takes {4, 8} and {4, 6, 8} in adversarial.sets"


def test_nothing_is_said_for_a_defence_after_an_attack_that_was_too_weak():
    table = verdicts(undermined=True)
    assert said(table)["C25"] == "undecided" and said(table)["C22"] == said(verdicts())["C22"] == "reproduced"


def test_where_nothing_is_lost_nothing_can_be_cut():
    harmless = attacked({"none": CLEAN, "at 32": CLEAN, "EOT": CLEAN})
    assert said(verdicts(words=harmless))["C21"] == "not tested" != said(verdicts())["C21"]


def test_noise_that_a_tokenizer_cannot_read_is_no_noise():
    unread = noise(1.0).assign(noisy_unknown=1)
    assert said(verdicts(perplexities=unread))["C22"] == "not tested"


def test_gains_of_several_trainings_are_paired():
    """Static 8 is the only one as good as RPI without an attack: RPI gains 5 points over it after one, 1 after the other."""
    gained = {
        name: attacked({"none": {"8": 90.0, "4": 86}, "EOT": {"8": 30.0, "4": 30 + 2 * gain}})
        for name, gain in (("random pair", 5.0), ("random", 0.0), ("consistency", 1.0))
    }
    table = verdicts(trainings=trained(**gained))
    assert said(table)["C26"] == "reproduced"
    assert table.set_index("claim").loc["C26", ["value", "seeds"]].tolist() == [pytest.approx(4), 3]
