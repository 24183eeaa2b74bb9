"""Schedules are pure functions of seed and step, and draw what they say they draw."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from qatlib.precision import LayerInfo, Precision
from qatlib.schedule import SCHEDULES, random_per_layer, random_uniform

LAYERS = [LayerInfo(f"h.{i}.mlp", i, "mlp_in", 10, 2) for i in range(5)]
WIDTHS = [Precision(b, b) for b in (8, 4, 2)]


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(0, 99), st.lists(st.integers(0, 999), min_size=1, max_size=9))
def test_a_step_does_not_depend_on_the_steps_before(name, seed, steps):
    make = SCHEDULES[name]
    fresh = [make(WIDTHS, LAYERS, seed, 2)(step) for step in steps]
    once = make(WIDTHS, LAYERS, seed, 2)
    assert [once(step) for step in steps] == fresh


def test_per_layer_draws_every_width_in_every_layer_about_equally():
    schedule = random_per_layer(WIDTHS, LAYERS, seed=0)
    for layer in LAYERS:
        seen = Counter(schedule(step)[0][layer.name] for step in range(3000))
        assert set(seen) == set(WIDTHS) and all(900 < n < 1100 for n in seen.values())


def test_uniform_gives_one_width_to_all_layers_and_repeats_none_in_a_step():
    schedule = random_uniform(WIDTHS, LAYERS, seed=0, passes=3)
    for step in range(50):
        drawn = [set(configuration.values()) for configuration in schedule(step)]
        assert all(len(widths) == 1 for widths in drawn)
        assert set.union(*drawn) == set(WIDTHS)


def test_two_seeds_differ():
    assert random_per_layer(WIDTHS, LAYERS, 0)(3) != random_per_layer(WIDTHS, LAYERS, 1)(3)
