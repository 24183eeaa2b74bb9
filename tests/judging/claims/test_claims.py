"""An effect is judged by how far it lies on the claim's side of its bound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatlib.judging.claims import Effect, verdict_table
from qatlib.judging.published import PublishedError
from qatlib.judging.stats import Estimate

NUMBERS = st.floats(-100, 100)


@given(NUMBERS, NUMBERS, st.floats(0, 10))
def test_above_and_below_are_mirror_images(value, bound, width):
    e = Estimate(value, value - width, value + 2 * width, 10, 5)
    above, below = Effect("x", e, "t", above=bound).judged, Effect("x", e, "t", below=bound).judged
    assert above.value == pytest.approx(-below.value) and above.low == pytest.approx(-below.high)
    assert (above.low > 0) == (e.low > bound) and (below.low > 0) == (e.high < bound)


def test_figures_stay_as_measured_and_what_was_not_says_why():
    kept = Effect("percent kept", Estimate(97, 96, 98, 10, 5, 3), "c15", above=95, margin=2)
    table = verdict_table({"C15": [kept], "C10": "takes attention", "C11": "not here"})
    assert table["verdict"].tolist() == ["reproduced", "not tested", "not tested"]
    assert table["effect"].tolist() == ["percent kept", "takes attention", "not here"]
    row = table.iloc[0]
    assert (row["must_be"], row["value"], row["value_low"], row["margin"]) == ("> 95", 97, 96, 2)


def test_an_effect_rests_on_a_table_that_its_stage_publishes():
    lost = Effect("percent kept", Estimate(97, 96, 98, 10, 5, 3), "c51", above=95)
    with pytest.raises(PublishedError, match="C15: no table 'c51' is declared for 03_sensitivity_heatmaps"):
        verdict_table({"C15": [lost]})
