"""One layer lowered at a time: what every block × role costs at every precision (S1's heatmaps; HAWQ, Dong et al. 2019).

What stands before the changed layer gives what it gave before. It is computed once a batch and replayed for every change
behind it, so that a sweep costs about half the passes, with results equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import takewhile
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from qatlib.evaluate import SpanFigures, answers, over_batches, span_figures
from qatlib.layers import SwitchableLinear
from qatlib.model import SwitchableModel
from qatlib.objectives import Batch
from qatlib.precision import Precision
from qatlib.spans import Feature
from qatlib.squad import Question


@torch.no_grad()
def sweep_block(
    model: SwitchableModel,
    questions: Sequence[Question],
    features: Sequence[Feature],
    block: int,
    precisions: Sequence[Precision],
    *,
    pad_id: int,
    batch_size: int,
    max_answer_tokens: int,
    description: str | None = None,
) -> pd.DataFrame:
    """Every role of one block alone at every precision, all other layers as they are.

    Returns:
        One row a role, precision and question: `block`, `role`, `precision`, and what `evaluate_spans` returns but for
        `prediction`.

    Raises:
        ValueError: no such block.
    """
    model.eval()
    roles = _roles(model, block)
    changes = [(role, p) for role in roles for p in precisions]

    def lower(batch: Batch) -> list[SpanFigures]:
        own = [module for layers in roles.values() for module in layers.values()]
        with _recorded([*model.blocks[:block], *own]) as outputs:
            model(batch.input_ids)
        found = []
        for role, p in changes:
            with model.at(dict.fromkeys(roles[role], p)), _replayed(_before(outputs, list(roles[role].values()))):
                found.append(span_figures(model, batch))
        return found

    device = model.qa_outputs.weight.device
    found = over_batches(features, batch_size, pad_id, device, lower, description)
    tables = []
    for i, (role, p) in enumerate(changes):
        scores = answers(questions, features, [(indices, each[i]) for indices, each in found], max_answer_tokens)
        place = {"block": block, "role": role, "precision": p.name}
        tables.append(pd.DataFrame(place, index=scores.index).join(scores.drop(columns="prediction")))
    return pd.concat(tables, ignore_index=True)


@torch.no_grad()
def output_noise(model: SwitchableModel, features: Sequence[Feature], precisions: Sequence[Precision]) -> pd.DataFrame:
    """Signal-to-quantization-noise ratio of what every layer gives at a precision, against what it gives now.

    The cheap proxy of `sweep_block`: a pass over a few windows, each layer given what it is given at the model's present
    configuration. Windows go one by one, so that no padding counts.

    Returns:
        One row a block, role and precision: `block`, `role`, `precision`, `sqnr_db` (of the role's layers together).
    """
    model.eval()
    places = {layer: (info.block, info.role) for info, layer in zip(model.infos, model.layers, strict=True)}
    powers: dict[tuple[int, str, str], Tensor] = {}

    def compare(layer: SwitchableLinear, args: tuple[Tensor], y: Tensor) -> None:
        now = layer.precision
        for p in precisions:
            layer.precision = p
            noise = layer.forward(*args) - y
            power = torch.stack([y.double().square().sum(), noise.double().square().sum()]).cpu()
            key = (*places[layer], p.name)
            powers[key] = powers[key] + power if key in powers else power
        layer.precision = now

    hooks = [layer.register_forward_hook(compare) for layer in model.layers]
    try:
        for feature in features:
            model(torch.tensor([feature.input_ids], device=model.qa_outputs.weight.device))
    finally:
        for hook in hooks:
            hook.remove()
    rows = [(*key, float(10 * torch.log10(signal / noise))) for key, (signal, noise) in powers.items()]
    return pd.DataFrame(rows, columns=["block", "role", "precision", "sqnr_db"])


def _roles(model: SwitchableModel, block: int) -> dict[str, dict[str, nn.Module]]:
    """The layers of a block by role and name, in the model's order."""
    found: dict[str, dict[str, nn.Module]] = {}
    for info, layer in zip(model.infos, model.layers, strict=True):
        if info.block == block:
            found.setdefault(info.role, {})[info.name] = layer
    if not found:
        raise ValueError(f"block is {block}; allowed is an integer from 0 to {len(model.blocks) - 1}")
    return found


@contextmanager
def _recorded(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Any]]:
    """What each of `modules` returns in the `with` block, in the order they are called in."""
    outputs: dict[nn.Module, Any] = {}
    hooks = [m.register_forward_hook(lambda m, args, output: outputs.update({m: output})) for m in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _before(outputs: Mapping[nn.Module, Any], layers: Collection[nn.Module]) -> dict[nn.Module, Any]:
    """Those of `outputs` that were there when the first of `layers` was called."""
    return dict(takewhile(lambda item: item[0] not in layers, outputs.items()))


@contextmanager
def _replayed(outputs: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Modules that give what they gave, at once."""
    for module, output in outputs.items():
        module.__dict__["forward"] = partial(_replay, output)  # before the class's own
    try:
        yield
    finally:
        for module in outputs:
            del module.__dict__["forward"]


def _replay(output: Any, *args: Any, **kwargs: Any) -> Any:
    return output
