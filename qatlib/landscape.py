"""How sharp a minimum is: the loss under random perturbation of the trained weights.

Every filter is perturbed in proportion to its own norm. So networks can be compared whose weights differ in scale (Li et al.
2018, "Visualizing the loss landscape of neural nets", section 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from qatlib.checks import filled, finite, whole
from qatlib.model import SwitchableModel
from qatlib.qa.evaluate import evaluate_spans
from qatlib.qa.spans import Feature
from qatlib.qa.squad import Question
from qatlib.seeds import stream


def filter_normalized(weight: Tensor, generator: torch.Generator) -> Tensor:
    """A random Gaussian direction of the shape (filters, inputs) of `weight`, each row as long as that row of `weight`."""
    direction = torch.randn(weight.shape, generator=generator).to(weight)
    return direction * (weight.norm(dim=1, keepdim=True) / direction.norm(dim=1, keepdim=True))


def weights_in_use(model: SwitchableModel) -> Iterator[Tensor]:
    """The trained weights in use at the present configuration, each (filters, inputs).

    For every layer these are both matrices of its adapter, or the base weight if it has no adapter.
    """
    for layer in model.layers:
        adapter = layer.adapter(layer.precision.w_bits)
        yield from (layer.oriented_weight,) if adapter is None else adapter.parameters()


@torch.no_grad()
def sharpness(
    model: SwitchableModel,
    questions: Sequence[Question],
    features: Sequence[Feature],
    radii: Sequence[float],
    draws: int,
    seed: int,
    **answering: Any,
) -> pd.DataFrame:
    """Loss and F1 at points around the model's weights, at its present configuration. The weights are restored exactly.

    Args:
        radii: lengths of the step, as shares of each filter's norm.
        draws: random directions, the same for every radius.
        answering: `pad_id`, `batch_size`, `max_answer_tokens` of `evaluate_spans`.

    Returns:
        One row per direction, radius and question: `draw`, `radius`, `id`, `paragraph`, `loss_change` (nats), `f1_change`
        (points), against the unperturbed model.

    Raises:
        ValueError: as `evaluate_spans`; there are no radii, a radius is negative, or `draws` is not positive.
    """
    filled(radii=radii)
    for radius in radii:
        finite(0, radii=radius)
    whole(1, draws=draws)
    weights = list(weights_in_use(model))
    before = [w.clone() for w in weights]
    base = evaluate_spans(model, questions, features, **answering)
    parts = []
    try:
        for draw in range(draws):
            generator = torch.Generator().manual_seed(stream(seed, "direction", draw))
            directions = [filter_normalized(w, generator) for w in before]
            for radius in radii:
                for weight, start, direction in zip(weights, before, directions, strict=True):
                    weight.copy_(start + radius * direction)
                moved = evaluate_spans(model, questions, features, **answering)
                changes = {f"{metric}_change": moved[metric] - base[metric] for metric in ("loss", "f1")}
                parts.append(base[["id", "paragraph"]].assign(draw=draw, radius=radius, **changes))
    finally:
        for weight, start in zip(weights, before, strict=True):
            weight.copy_(start)
    return pd.concat(parts, ignore_index=True)
