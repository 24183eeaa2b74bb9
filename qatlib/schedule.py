"""Which configurations are trained at which step: pure functions of the seed and the step, so that a resume needs no state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from qatlib.arguments import ScheduleArguments, TrainingArguments
from qatlib.precision import Configuration, LayerInfo, Precision

Schedule = Callable[[int], Sequence[Configuration]]
"""Step number → the configurations whose losses make up that step."""


def random_per_layer(precisions: Sequence[Precision], layers: Sequence[LayerInfo], seed: int, passes: int = 1) -> Schedule:
    """Every layer draws its precision anew at every pass (S0's switchable training).

    Args:
        precisions: what is drawn from, uniformly.
        passes: configurations, and so forward-backward passes, a step.
    """

    def draw(step: int) -> list[Configuration]:
        choice = np.random.default_rng((seed, step)).integers(len(precisions), size=(passes, len(layers)))
        return [Configuration({x.name: precisions[i] for x, i in zip(layers, row, strict=True)}) for row in choice]

    return draw


def random_uniform(precisions: Sequence[Precision], layers: Sequence[LayerInfo], seed: int, passes: int = 1) -> Schedule:
    """One precision for all layers, drawn anew at every step; several passes draw without repetition."""
    uniform = [Configuration.uniform(p, layers) for p in precisions]

    def draw(step: int) -> list[Configuration]:
        choice = np.random.default_rng((seed, step)).permutation(len(uniform))[:passes]
        return [uniform[i] for i in choice]

    return draw


def every_precision(precisions: Sequence[Precision], layers: Sequence[LayerInfo]) -> Schedule:
    """Each precision for all layers, at every step: S1's average loss, S4's joint loss, cascaded distillation."""
    uniform = [Configuration.uniform(p, layers) for p in precisions]
    return lambda step: uniform


def sandwich(precisions: Sequence[Precision], layers: Sequence[LayerInfo], seed: int, passes: int = 4) -> Schedule:
    """The widest precision, the narrowest, and `passes` − 2 of the others drawn without repetition, or all there are.

    The sandwich rule of universally slimmable networks (Yu & Huang 2019), for bits in place of channels.
    """
    widest, *others, narrowest = widest_first(precisions) if len(precisions) > 1 else [*precisions, *precisions]
    drawn = random_uniform(others, layers, seed, passes - 2)
    ends = [Configuration.uniform(p, layers) for p in dict.fromkeys((widest, narrowest))]
    return lambda step: [*ends, *drawn(step)]


def cyclic(pattern: Sequence[Precision], layers: Sequence[LayerInfo]) -> Schedule:
    """The precisions of `pattern` for all layers, one a step, round and round (S2's cyclic and scheduled sampling)."""
    uniform = [Configuration.uniform(p, layers) for p in pattern]
    return lambda step: [uniform[step % len(uniform)]]


def progressive(precisions: Sequence[Precision], layers: Sequence[LayerInfo], steps: int) -> Schedule:
    """The widest precision first, the narrowest last, each of the K for one K-th of the steps (S2)."""
    uniform = [Configuration.uniform(p, layers) for p in widest_first(precisions)]
    return lambda step: [uniform[step * len(uniform) // steps]]


def widest_first(precisions: Sequence[Precision]) -> list[Precision]:
    """By weight bits, then by activation bits."""
    return sorted(precisions, reverse=True)


def make_schedule(
    args: ScheduleArguments, precisions: Sequence[Precision], layers: Sequence[LayerInfo], *, seed: int, steps: int
) -> Schedule:
    """The schedule that `args` name, over a training of so many steps.

    Args:
        precisions: what a switchable model is trained for, in the order listed, which `cyclic` keeps.
    """
    passes = args.passes_a_step(len(precisions))
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
    return lambda step: schedule(step // args.interval)


def at_passes(training: TrainingArguments, schedule: ScheduleArguments, precisions: int, passes: int) -> TrainingArguments:
    """The same training at a budget of forward-backward passes: as many steps as it pays for, and the learning rate's
    warm-up and the distance of the checkpoints stretched with them.

    Args:
        precisions: how many a switchable model is trained for.
        passes: the budget; a teacher's forward passes do not count.

    Raises:
        ValueError: the budget is smaller than one step.
    """
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
