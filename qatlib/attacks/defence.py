"""How a model answers: at one static configuration, or at randomly drawn precisions (random precision inference, RPI).

In the threat model, the attacker knows the set of precisions and their probabilities (all equal), but not the draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from qatlib.checks import filled
from qatlib.layers import SwitchableLinear, forwards_replaced
from qatlib.model import SwitchableModel
from qatlib.precision import Configuration, Precision
from qatlib.schedule import random_per_layer

Draws = Callable[[int], Sequence[Configuration]]
"""Index of a query → the configurations whose mean loss the attacker sees at this query."""


def static(precision: Precision, model: SwitchableModel) -> Draws:
    """One precision at every query: no defence."""
    configuration = Configuration.uniform(precision, model.infos)
    return lambda query: [configuration]


def every(precisions: Sequence[Precision], model: SwitchableModel) -> Draws:
    """All precisions at every query: the exact expectation over RPI with one precision for all layers.

    Raises:
        ValueError: there are no precisions.
    """
    filled(precisions=precisions)
    uniform = [Configuration.uniform(p, model.infos) for p in precisions]
    return lambda query: uniform


def per_layer(precisions: Sequence[Precision], model: SwitchableModel, seed: int, draws: int = 1) -> Draws:
    """`draws` configurations per query, in which every layer draws its own precision: a sampled expectation.

    Raises:
        ValueError: there are no precisions, or `draws` is not positive.
    """
    return random_per_layer(precisions, model.infos, seed, draws)


@contextmanager
def per_token(precisions: Sequence[Precision], model: SwitchableModel, generator: torch.Generator) -> Iterator[None]:
    """Every token draws a new precision at every layer and pass.

    A layer computes at all K precisions, and each token takes one of the results. So a pass costs as much as K passes.

    Raises:
        ValueError: there are no precisions.
    """
    filled(precisions=precisions)
    with (
        model.at(model.configuration),
        forwards_replaced({layer: partial(_token_by_token, layer, precisions, generator) for layer in model.layers}),
    ):
        yield


def _token_by_token(layer: SwitchableLinear, precisions: Sequence[Precision], generator: torch.Generator, x: Tensor) -> Tensor:
    choice = torch.randint(len(precisions), (*x.shape[:-1], 1), generator=generator).to(x.device)
    result = torch.empty(0)
    for i, y in enumerate(layer.at_each(precisions, x)):
        result = y if i == 0 else torch.where(choice == i, y, result)
    return result


Set = tuple[Precision, ...]
"""Precisions that random precision inference draws from, all equally likely."""


def set_name(precisions: Sequence[Precision]) -> str:
    """`{4, 8}`."""
    return f"{{{', '.join(p.name for p in precisions)}}}"
