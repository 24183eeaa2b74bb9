"""Tables of what lowering one block × role costs."""

from __future__ import annotations

import numpy as np
import pytest

from qatlib.judging import sweeps


def test_effects_are_means_over_cells_and_by_weight(layers, sweep):
    both = sweep[sweep["lowered"] == "both"]
    found = sweeps.effects(both, {"all": layers.groups, "one": [next(iter(layers.groups))]})
    one = both[(both["block"] == 0) & (both["role"] == "qkv") & (both["bits"] == 2)]
    mine = found[(found["model"] == "one") & (found["precision"] == "2")]
    assert mine["loss_change"].mean() == pytest.approx(one["loss_change"].mean())
    assert found[found["model"] == "all"]["loss_change"].mean() == pytest.approx(both["loss_change"].mean())
    halves = sweeps.effects(both, {"all": layers.groups}, dict.fromkeys(layers.groups, 500_000))
    assert halves["loss_change"].mean() == pytest.approx(2 * both["loss_change"].mean())


def test_cells_hold_their_means_between_their_bounds(sweep):
    table = sweeps.cell_table(sweep, resamples=100)
    assert len(table) == sweep.groupby(["block", "role", "lowered", "bits"]).ngroups
    assert ((table["loss_change_low"] <= table["loss_change"]) & (table["loss_change"] <= table["loss_change_high"])).all()
    assert table["loss_change"].mean() == pytest.approx(sweep["loss_change"].mean())


def test_rank_correlation_knows_order_alone():
    x = np.arange(20.0)
    same = sweeps.rank_correlation(x, np.exp(x), resamples=100)
    assert (same.low, same.value, same.high) == pytest.approx((1, 1, 1)) and same.n == len(x)
    turned = sweeps.rank_correlation(x, -(x**3), resamples=100)
    value, low, high = turned.value, turned.low, turned.high
    assert (value, low, high) == pytest.approx((-1, -1, -1))


@pytest.mark.parametrize("parts", [sweeps.by_role, sweeps.by_block])
def test_every_group_is_in_one_part(parts):
    groups = [(block, role) for block in range(3) for role in ("qkv", "mlp_in")]
    found = parts(iter(groups))
    assert sorted(group for part in found.values() for group in part) == sorted(groups)
    assert list(found) in (["qkv", "mlp_in"], ["block 0", "block 1", "block 2"])
