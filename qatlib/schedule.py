"""Which configuration is trained at which step: pure functions of the seed and the step, so that a resume needs no state."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

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
    """One precision for all layers, drawn anew at every step; several passes draw without repetition.

    With as many passes as precisions every step trains all of them: S1's average loss.
    """
    uniform = [Configuration.uniform(p, layers) for p in precisions]

    def draw(step: int) -> list[Configuration]:
        choice = np.random.default_rng((seed, step)).permutation(len(uniform))[:passes]
        return [uniform[i] for i in choice]

    return draw


SCHEDULES = {"random_per_layer": random_per_layer, "random_uniform": random_uniform}
