"""The configurations trained at each step: pure functions of the seed and the step, so that a resume needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from qatlib.arguments import TrainingArguments
from qatlib.checks import filled, finite, whole
from qatlib.precision import Configuration, LayerInfo, Precision, widest_first
from qatlib.scheduling import CosineArguments, ScheduleArguments
from qatlib.seeds import stream

Schedule = Callable[[int], Sequence[Configuration]]
"""Step number → the configurations whose losses make up that step."""


def random_per_layer(precisions: Sequence[Precision], layers: Sequence[LayerInfo], seed: int, passes: int = 1) -> Schedule:
    """Every layer draws its precision anew at every pass (S0's switchable training).

    Args:
        precisions: the precisions to draw from, uniformly.
        passes: configurations per step, which is also the number of forward-backward passes.

    Raises:
        ValueError: there are no precisions or no layers, or `passes` is not positive.
    """
    filled(precisions=precisions, layers=layers)
    whole(1, passes=passes)

    def draw(step: int) -> list[Configuration]:
        choice = np.random.default_rng(stream(seed, "precision of a layer", step)).integers(
            len(precisions), size=(passes, len(layers))
        )
        return [Configuration({x.name: precisions[i] for x, i in zip(layers, row, strict=True)}) for row in choice]

    return draw


def random_uniform(precisions: Sequence[Precision], layers: Sequence[LayerInfo], seed: int, passes: int = 1) -> Schedule:
    """One precision for all layers, drawn anew at every step; several passes draw without repetition.

    Raises:
        ValueError: there are no precisions or no layers, or `passes` is not positive.
    """
    whole(1, passes=passes)
    return _drawn(_each(precisions, layers), seed, passes)


def _each(precisions: Sequence[Precision], layers: Sequence[LayerInfo]) -> list[Configuration]:
    """Each precision for all layers."""
    filled(precisions=precisions, layers=layers)
    return [Configuration.uniform(p, layers) for p in precisions]


def _drawn(uniform: Sequence[Configuration], seed: int, passes: int) -> Schedule:
    """Some of the configurations at every step, drawn without repetition."""

    def draw(step: int) -> list[Configuration]:
        choice = np.random.default_rng(stream(seed, "precision of a step", step)).permutation(len(uniform))[:passes]
        return [uniform[i] for i in choice]

    return draw


def every_precision(precisions: Sequence[Precision], layers: Sequence[LayerInfo]) -> Schedule:
    """Each precision for all layers, at every step: S1's average loss, S4's joint loss, cascaded distillation.

    Raises:
        ValueError: there are no precisions or no layers.
    """
    uniform = _each(precisions, layers)
    return lambda step: uniform


def sandwich(precisions: Sequence[Precision], layers: Sequence[LayerInfo], seed: int, passes: int = 4) -> Schedule:
    """The widest precision, the narrowest, and `passes` − 2 of the others drawn without repetition, or all there are.

    This is the sandwich rule of universally slimmable networks (Yu & Huang 2019), for bits instead of channels.

    Raises:
        ValueError: there are no precisions or no layers, or `passes` is not positive.
    """
    filled(precisions=precisions, layers=layers)
    whole(1, passes=passes)
    widest, *others, narrowest = widest_first(precisions) if len(precisions) > 1 else [*precisions, *precisions]
    drawn = _drawn([Configuration.uniform(p, layers) for p in others], seed, max(0, passes - 2))
    ends = [Configuration.uniform(p, layers) for p in dict.fromkeys((widest, narrowest))]
    return lambda step: [*ends, *drawn(step)]


def cyclic(pattern: Sequence[Precision], layers: Sequence[LayerInfo]) -> Schedule:
    """The precisions of `pattern` for all layers, one per step, repeated (S2's cyclic and scheduled sampling).

    Raises:
        ValueError: there are no precisions or no layers.
    """
    uniform = _each(pattern, layers)
    return lambda step: [uniform[step % len(uniform)]]


def progressive(precisions: Sequence[Precision], layers: Sequence[LayerInfo], steps: int) -> Schedule:
    """From the widest to the narrowest precision. Each of the K gets one K-th of the steps (S2).

    Raises:
        ValueError: there are no precisions or no layers, or `steps` is not positive.
    """
    whole(1, steps=steps)
    uniform = _each(widest_first(precisions), layers)
    return lambda step: [uniform[step * len(uniform) // steps]]


def cosine_bits(step: int, period: float, low: float, high: float, form: str = "restart") -> float:
    """B_t = low + ½ (high − low) (1 − cos(π t / T)), not rounded: from `low` at t = 0 towards `high` at t = T, the period.

    Args:
        form: `restart`: t starts again in every period (equation 1 of Fu et al. 2021, CPT). `continuous`: t goes on, so that the
            bit-width falls from T to 2T as it rose before (S0's equation as printed).

    Raises:
        ValueError: `form` is none of these.
    """
    if form not in ("restart", "continuous"):
        raise ValueError(f"form is {form!r}; allowed are 'restart' and 'continuous'")
    finite(0, above=True, period=period)
    # t is folded, which does not change the cosine, so that it falls through exactly the values of the rise
    t = step % period if form == "restart" else period - abs(period - step % (2 * period))
    return low + 0.5 * (high - low) * (1 - math.cos(math.pi * t / period))


def cosine_cycles(
    args: CosineArguments, precisions: Sequence[Precision], layers: Sequence[LayerInfo], seed: int, steps: int
) -> Schedule:
    """Cyclic precision training: one precision for all layers per step, the one whose weight bits are nearest to the cosine.

    Half-way between two bit-widths the even one is taken, as in rounding to integers. Of two even ones, the narrower is taken.

    Args:
        precisions: the allowed precisions; each also gives the activations' bit-width.
        steps: number of steps of the training, divided among `cycles` (a continuous cycle rises and falls). `reversed`
            starts from the last step. `shuffled` does not change how often each precision is trained.

    Raises:
        ValueError: there are no precisions or no layers, none of them is between those of `args`, or `steps` is not positive.
    """
    filled(precisions=precisions, layers=layers)
    whole(1, steps=steps)
    ranked = widest_first(precisions)
    low, high = args.between or (ranked[-1], ranked[0])
    ladder = [p for p in ranked if low.w_bits <= p.w_bits <= high.w_bits]
    if not ladder:
        raise ValueError(f"between is {low.name} and {high.name}; allowed are some of {', '.join(p.name for p in ranked)}")
    turns = 2 if args.form == "continuous" else 1
    period = args.period or steps / (turns * (args.cycles or 1))
    sequence = []
    for step in range(steps):
        bits = cosine_bits(step, period, low.w_bits, high.w_bits, args.form)
        sequence.append(min(ladder, key=lambda p: (abs(p.w_bits - bits), p.w_bits % 2, p.w_bits)))
    if args.order == "reversed":
        sequence.reverse()
    elif args.order == "shuffled":
        sequence = [sequence[i] for i in np.random.default_rng(stream(seed, "shuffled cycles")).permutation(steps)]
    uniform = {p: Configuration.uniform(p, layers) for p in ladder}
    return lambda step: [uniform[sequence[step]]]


def two_phases(first: Schedule, precision: Precision, layers: Sequence[LayerInfo], start: int) -> Schedule:
    """`first`, then from step `start` one precision for all layers (S2's cyclic, then static training).

    Raises:
        ValueError: there are no layers, or `start` is negative.
    """
    filled(layers=layers)
    whole(0, start=start)
    static = [Configuration.uniform(precision, layers)]
    return lambda step: first(step) if step < start else static


def make_schedule(
    args: ScheduleArguments, precisions: Sequence[Precision], layers: Sequence[LayerInfo], *, seed: int, steps: int
) -> Schedule:
    """The schedule that `args` name, over a training of so many steps.

    Args:
        precisions: the precisions of a switchable model. `cyclic` keeps their order.

    Raises:
        ValueError: there are no precisions or no layers, or `steps` is not positive.

    Example:
        >>> draw = make_schedule(ScheduleArguments("random_uniform"), precisions, model.infos, seed=0, steps=100)
        >>> [configuration] = draw(0)  # of step 0
        >>> model.set_precision(configuration)
    """
    filled(precisions=precisions, layers=layers)
    whole(1, steps=steps)
    passes = args.passes_a_step(len(precisions))
    first_phase = steps - round(args.then.share * steps) if args.then else steps
    match args.name:
        case "random_per_layer":
            schedule = random_per_layer(precisions, layers, seed, passes)
        case "random_uniform":
            schedule = random_uniform(precisions, layers, seed, passes)
        case "all":
            schedule = every_precision(precisions, layers)
        case "sandwich":
            schedule = sandwich(precisions, layers, seed, passes)
        case "cyclic":
            schedule = cyclic(precisions, layers)
        case "progressive":
            schedule = progressive(precisions, layers, steps)
        case "scheduled":
            schedule = cyclic(args.pattern or (), layers)
        case "cpt":
            assert args.cosine
            schedule = cosine_cycles(args.cosine, precisions, layers, seed, first_phase)
    held: Schedule = lambda step: schedule(step // args.interval)  # noqa: E731
    return two_phases(held, args.then.precision, layers, first_phase) if args.then else held


def at_passes(training: TrainingArguments, schedule: ScheduleArguments, precisions: int, passes: int) -> TrainingArguments:
    """The same training at a budget of forward-backward passes. The number of steps follows from the budget. The learning rate's
    warm-up and the distance of the checkpoints are scaled in proportion.

    Args:
        precisions: number of precisions of a switchable model.
        passes: the budget; a teacher's forward passes do not count.

    Raises:
        ValueError: the budget is smaller than one step, or a number is not positive.
    """
    whole(1, precisions=precisions, passes=passes)
    cost = schedule.passes_a_step(precisions)
    steps = passes // cost
    if steps < 1:
        raise ValueError(f"a budget of {passes} passes: a step of {schedule.name} over {precisions} precisions costs {cost}")
    factor = steps / training.steps
    return replace(
        training,
        steps=steps,
        warmup_steps=round(factor * training.warmup_steps),
        checkpoint_every=max(1, round(factor * training.checkpoint_every)),
    )
