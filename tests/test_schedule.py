"""Schedules are pure functions of seed and step, and give what they say they give."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatlib.arguments import TrainingArguments
from qatlib.precision import LayerInfo, Precision
from qatlib.schedule import at_passes, cosine_bits, make_schedule, random_per_layer, random_uniform
from qatlib.scheduling import CosineArguments, PhaseArguments, ScheduleArguments

LAYERS = [LayerInfo(f"h.{i}.mlp", i, "mlp_in", 10, 2) for i in range(5)]
WIDTHS = [Precision(b, b) for b in (4, 8, 2)]
MANY = [Precision(b, b) for b in (6, 32, 3, 8, 2, 4)]

INTEGERS = [Precision(b, b) for b in range(2, 17)]


def cpt(cycles=5, then=None, **cosine):
    return ScheduleArguments("cpt", cosine=CosineArguments(**({"cycles": cycles} | cosine)), then=then)


RANDOM = [ScheduleArguments("random_per_layer", passes=2, interval=3), ScheduleArguments("random_uniform", passes=2)]
FIXED = [
    ScheduleArguments("all"),
    ScheduleArguments("cyclic", interval=2),
    ScheduleArguments("progressive"),
    ScheduleArguments("scheduled", pattern=tuple(MANY), interval=4),
    cpt(),
    cpt(form="continuous", order="reversed", then=PhaseArguments(Precision(4, 4))),
]
EVERY = [*RANDOM, ScheduleArguments("sandwich"), ScheduleArguments("sandwich", passes=2, interval=5), *FIXED]


def make(args, precisions=MANY, seed=0, steps=1000):
    return make_schedule(args, precisions, LAYERS, seed=seed, steps=steps)


def uniform_widths(schedule, step):
    """The weight bits of a step's configurations, each of which gives all layers one precision."""
    drawn = [set(configuration.values()) for configuration in schedule(step)]
    assert all(len(precisions) == 1 and next(iter(precisions)).name.isdigit() for precisions in drawn)
    return [precisions.pop().w_bits for precisions in drawn]


@given(st.sampled_from(EVERY), st.integers(0, 99), st.lists(st.integers(0, 999), min_size=1, max_size=9))
def test_a_step_does_not_depend_on_the_steps_before(args, seed, steps):
    fresh = [make(args, seed=seed)(step) for step in steps]
    once = make(args, seed=seed)
    assert [once(step) for step in steps] == fresh


@given(st.sampled_from(EVERY), st.integers(1, 6), st.integers(0, 999))
def test_a_step_has_the_passes_it_is_said_to_cost(args, count, step):
    assert len(make(args, MANY[:count])(step)) == args.passes_a_step(count)


@given(st.sampled_from(EVERY), st.integers(0, 300))
def test_a_draw_or_a_place_is_held_for_the_interval(args, block):
    schedule = make(args)
    held = [schedule(block * args.interval + i) for i in range(args.interval)]
    assert all(configurations == held[0] for configurations in held)


@pytest.mark.parametrize("args", [*RANDOM, ScheduleArguments("sandwich")], ids=lambda args: args.name)
def test_what_is_drawn_depends_on_seed_and_step_and_nothing_else_does(args):
    assert any(make(args, seed=0)(step) != make(args, seed=1)(step) for step in range(9))
    assert len({str(make(args)(step)) for step in range(40)}) > 2


@pytest.mark.parametrize("args", FIXED, ids=lambda args: args.name)
def test_what_is_not_drawn_does_not_depend_on_the_seed(args):
    assert [make(args, seed=0)(step) for step in range(50)] == [make(args, seed=1)(step) for step in range(50)]


def test_per_layer_draws_every_width_in_every_layer_about_equally():
    schedule = random_per_layer(WIDTHS, LAYERS, seed=0)
    for layer in LAYERS:
        seen = Counter(schedule(step)[0][layer.name] for step in range(3000))
        assert set(seen) == set(WIDTHS) and all(900 < n < 1100 for n in seen.values())  # 1000 ± four times 26


def test_uniform_gives_one_width_to_all_layers_and_repeats_none_in_a_step():
    schedule = random_uniform(WIDTHS, LAYERS, seed=0, passes=3)
    assert all(sorted(uniform_widths(schedule, step)) == [2, 4, 8] for step in range(50))


@pytest.mark.parametrize(("passes", "others"), [(2, 0), (None, 2), (6, 4), (9, 4)])
def test_a_sandwich_is_the_ends_and_others_drawn_equally_often(passes, others):
    schedule = make(ScheduleArguments("sandwich", passes=passes))
    drawn = [uniform_widths(schedule, step) for step in range(2000)]
    assert all({32, 2} < {*widths} or others == 0 for widths in drawn)
    assert all(len(widths) == len({*widths}) == others + 2 for widths in drawn)
    inner = Counter(width for widths in drawn for width in widths if width not in (32, 2))
    # The standard error is 22 where two of four are drawn, else nothing is left to chance.
    assert all(abs(n - 2000 * others / 4) < 120 for n in inner.values()) and len(inner) == (4 if others else 0)


@pytest.mark.parametrize(("count", "widths"), [(1, [6]), (2, [32, 6])])
def test_a_sandwich_of_few_precisions_is_all_of_them_once(count, widths):
    assert uniform_widths(make(ScheduleArguments("sandwich"), MANY[:count]), 7) == widths


def test_cyclic_goes_round_in_the_order_listed():
    schedule = make(ScheduleArguments("cyclic", interval=2), WIDTHS)
    assert [uniform_widths(schedule, step) for step in range(8)] == [[4], [4], [8], [8], [2], [2], [4], [4]]


def test_a_pattern_may_come_back_the_way_it_went():
    pattern = tuple(Precision(b, b) for b in (8, 6, 4, 2, 4, 6, 8))
    schedule = make(ScheduleArguments("scheduled", pattern=pattern))
    assert [uniform_widths(schedule, step)[0] for step in range(9)] == [8, 6, 4, 2, 4, 6, 8, 8, 6]


@given(st.integers(1, 6), st.integers(6, 50))
def test_progressive_goes_down_in_equal_shares(count, steps):
    schedule = make(ScheduleArguments("progressive"), MANY[:count], steps=steps)
    widths = [uniform_widths(schedule, step)[0] for step in range(steps)]
    assert widths == sorted(widths, reverse=True)
    shares = Counter(widths).values()
    assert len(shares) == count and max(shares) - min(shares) <= 1


@given(st.integers(2, 8), st.integers(9, 16), st.integers(2, 40), st.integers(1, 6))
def test_cpt_is_the_papers_formula_for_whole_cycles(low, high, period, cycles):
    steps = period * cycles
    schedule = make(cpt(cycles, between=(Precision(low, low), Precision(high, high))), INTEGERS, steps=steps)
    one = [np.rint(low + 0.5 * (high - low) * (1 - math.cos(math.pi * (t % period) / period))) for t in range(period)]
    assert [uniform_widths(schedule, step)[0] for step in range(steps)] == one * cycles
    assert one[0] == low and all(a <= b for a, b in zip(one, one[1:], strict=False))


@given(st.integers(2, 8), st.integers(9, 16), st.integers(2, 40))
def test_the_studys_formula_falls_as_it_rose(low, high, period):
    between = (Precision(low, low), Precision(high, high))
    schedule = make(cpt(None, period=period, form="continuous", between=between), INTEGERS, steps=4 * period + 1)
    widths = [uniform_widths(schedule, step)[0] for step in range(4 * period + 1)]
    assert widths[0] == widths[2 * period] == low and widths[period] == widths[3 * period] == high
    assert widths[period : 2 * period] == widths[period:0:-1] and widths[: 2 * period] == widths[2 * period : -1]


@given(st.floats(1, 100), st.integers(0, 1000), st.sampled_from(["restart", "continuous"]))
def test_a_cosine_stays_between_its_ends(period, step, form):
    assert 3 <= cosine_bits(step, period, 3, 8, form) <= 8


@given(st.lists(st.sampled_from(MANY), min_size=2, unique=True), st.integers(1, 7), st.integers(7, 60))
def test_bits_are_rounded_to_the_nearest_precision_there_is(precisions, cycles, steps):
    schedule, widths = make(cpt(cycles), precisions, steps=steps), [p.w_bits for p in precisions]
    for step in range(steps):
        bits = cosine_bits(step, steps / cycles, min(widths), max(widths))
        (chosen,) = uniform_widths(schedule, step)
        assert abs(chosen - bits) == min(abs(w - bits) for w in widths)


@given(st.integers(1, 6), st.integers(6, 60), st.integers(0, 9))
def test_reversed_and_shuffled_train_each_width_as_often(cycles, steps, seed):
    orders = {}
    for order in ("forward", "reversed", "shuffled"):
        schedule = make(cpt(cycles, order=order), seed=seed, steps=steps)
        orders[order] = [uniform_widths(schedule, step)[0] for step in range(steps)]
    assert orders["reversed"] == orders["forward"][::-1]
    assert Counter(orders["shuffled"]) == Counter(orders["forward"])


def test_shuffled_is_another_order_for_another_seed():
    one, other, forward = make(cpt(order="shuffled")), make(cpt(order="shuffled"), seed=1), make(cpt())
    paths = [[uniform_widths(schedule, step)[0] for step in range(300)] for schedule in (one, other, forward)]
    assert all(a != b for a, b in itertools.combinations(paths, 2))


@pytest.mark.parametrize("share", [0.1, 0.25, 0.9])
def test_the_second_phase_is_the_last_share_and_the_first_has_all_its_cycles(share):
    schedule = make(cpt(2, then=PhaseArguments(Precision(4, 4), share)), WIDTHS, steps=200)
    widths = [uniform_widths(schedule, step)[0] for step in range(200)]
    start = 200 - round(200 * share)
    assert widths[start:] == [4] * (200 - start)
    whole = make(cpt(2), WIDTHS, steps=start)
    assert widths[:start] == [uniform_widths(whole, step)[0] for step in range(start)]


TRAINING = TrainingArguments(steps=600, batch_size=8, learning_rate=1e-3, warmup_steps=60, checkpoint_every=100)


def test_a_budget_of_passes_stretches_a_training():
    assert at_passes(TRAINING, ScheduleArguments("cyclic"), 6, 600) == TRAINING
    joint = at_passes(TRAINING, ScheduleArguments("all"), 6, 600)
    assert (joint.steps, joint.warmup_steps, joint.checkpoint_every) == (100, 10, 17)
    with pytest.raises(ValueError, match="a budget of 5 passes: a step of all over 6 precisions costs 6"):
        at_passes(TRAINING, ScheduleArguments("all"), 6, 5)


@given(st.sampled_from(EVERY), st.integers(1, 6), st.integers(6, 5000))
def test_a_budget_is_kept_and_less_than_a_step_of_it_is_left(args, count, passes):
    training, cost = at_passes(TRAINING, args, count, passes), args.passes_a_step(count)
    assert 0 <= passes - training.steps * cost < cost and training.warmup_steps <= training.steps


def test_an_unknown_form_of_the_cosine_is_refused():
    with pytest.raises(ValueError, match="form is 'saw'; allowed are 'restart' and 'continuous'"):
        cosine_bits(1, 4, 3, 8, "saw")
