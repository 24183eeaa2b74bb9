"""Variations of the attack on a model of the smoke profile: each says in its columns what sets it apart."""

from __future__ import annotations

import pytest

from qatlib.studies.variations import Variations


@pytest.fixture(scope="module")
def variations(robustness, model) -> Variations:
    return Variations(robustness, model)


def test_a_variation_differs_from_the_own_attack_in_the_column_it_names(variations):
    own = variations.section.attack
    found = variations.static_variants(variations.ends[1]).drop_duplicates("attack").set_index("attack")
    moved = found[found["family"] == "gradient"]
    assert set(moved["target"]) == {"4"} and moved.index[moved["varied"] == "nothing"].tolist() == ["PGD"]
    assert moved.loc[moved["varied"] == "epsilon", "epsilon"].tolist() == list(variations.section.epsilons)
    for column, varied, same in (("steps", {"steps", "one step"}, own.steps), ("objective", {"objective"}, own.loss)):
        assert set(moved.loc[moved[column] != same, "varied"]) <= varied and (moved[column] != same).any()
    assert found.loc["none", ["family", "epsilon", "passes"]].tolist() == ["none", 0, 0]
    assert found.index[found["family"] == "search"].tolist() == ["random search"]


def test_adaptive_variants_are_made_against_the_set(variations):
    found = variations.adaptive_variants().drop_duplicates("attack")
    assert set(found["target"]) == {"{8, 4}"}
    assert found["varied"].tolist() == ["objective", "steps", "method"]
    assert found["family"].tolist() == ["gradient", "gradient", "search"]


def test_the_attack_stays_within_its_radius_and_moves_no_other_token(variations):
    (reach,) = variations.reach().itertuples()
    assert 0.5 < reach.moved <= 1 + 1e-4 and reach.others == 0
