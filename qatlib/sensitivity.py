"""One layer lowered at a time: the cost of every block × role at every precision (S1's heatmaps; HAWQ, Dong et al. 2019).

Modules before the changed layer give the same outputs as before the change. For each batch these outputs are computed once.
The computation starts from the output of the previous block and ends with the block at the latest. Every change in the block
reuses them. So a sweep costs little more than half of the complete passes. The results are equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from itertools import takewhile
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from qatlib.checks import filled
from qatlib.layers import SwitchableLinear, forwards_replaced
from qatlib.model import SwitchableModel
from qatlib.precision import Precision, names_by_group
from qatlib.qa.evaluate import SpanFigures, answers, check_answering, device_of, over_batches, span_figures
from qatlib.qa.loss import Batch
from qatlib.qa.spans import Feature
from qatlib.qa.squad import Question

KEPT_BYTES = 4 * 2**30
"""At most so many bytes of hidden states are kept from one call for the next. Other batches start from the first block."""

Reached = dict[bytes, tuple[int, Any]]
"""By the tokens of a batch: the number of blocks computed so far, and the last one's output, one hidden state per window."""


@torch.no_grad()
def evaluate_changes(
    model: SwitchableModel,
    questions: Sequence[Question],
    features: Sequence[Feature],
    block: int,
    changes: Mapping[str, Mapping[str, Precision]],
    *,
    pad_id: int,
    batch_size: int,
    max_answer_tokens: int,
    reached: Reached | None = None,
    description: str | None = None,
) -> pd.DataFrame:
    """Answer every question once for each change of some layers. All other layers keep their precision.

    Args:
        block: the first block that any change touches. The closer the changes start to it, the more is reused.
        changes: by name, the new precision of each changed layer, by the layer's dotted name.
        reached: hidden states of an earlier call for an earlier block, of the same model at the same configuration. This
            call starts from these, and updates them for the next call.

    Returns:
        One row per change and question: `change`, and the columns of `evaluate_spans` except `prediction`.

    Raises:
        ValueError: as `evaluate_spans`; there is no such block, no change, no such layer, or a changed layer is before the block.
    """
    model.eval()
    if not 0 <= block < len(model.blocks):
        raise ValueError(f"block is {block}; allowed is an integer from 0 to {len(model.blocks) - 1}")
    layers = {info.name: layer for info, layer in zip(model.infos, model.layers, strict=True)}
    check_answering(questions, features, max_answer_tokens)
    filled(changes=changes)
    passed = {info.name for info in model.infos if info.block < block}
    if unknown := sorted({name for change in changes.values() for name in change} - layers.keys()):
        raise ValueError(f"a change of {unknown[0]}; allowed are the names in the model's infos, such as {model.infos[0].name}")
    if early := [name for change in changes.values() for name in change if name in passed]:
        raise ValueError(f"a change of {early[0]}, which is before block {block}")
    behind = {module for later in model.blocks[block + 1 :] for module in later.modules()}
    before = [*model.blocks[:block], *(module for module in model.blocks[block].modules() if module not in behind)]

    known: Reached = {} if reached is None else reached
    states = model.qa_outputs.in_features * 4 // 8  # bytes of fp32 hidden states for each byte of token ids

    def lower(batch: Batch) -> list[SpanFigures]:
        tokens = batch.input_ids.cpu().numpy().tobytes()
        through, output = known.get(tokens, (0, None))
        through = through if through <= block else 0
        past = _replayed(dict.fromkeys(model.blocks[:through], output))
        with past, _recorded(before) as outputs, _ended_after(model.blocks[block]):
            model(batch.input_ids)
        if block and (tokens in known or sum(map(len, known)) * states < KEPT_BYTES):
            known[tokens] = block, outputs[model.blocks[block - 1]]
        found = []
        for change in changes.values():
            with model.at(dict(change)), _replayed(_before(outputs, [layers[name] for name in change])):
                found.append(span_figures(model, batch))
        return found

    found = over_batches(features, batch_size, pad_id, device_of(model), lower, description)
    tables = []
    for i, name in enumerate(changes):
        scores = answers(questions, features, [(indices, each[i]) for indices, each in found], max_answer_tokens)
        tables.append(scores.drop(columns="prediction").assign(change=name))
    return pd.concat(tables, ignore_index=True)


def sweep_block(
    model: SwitchableModel,
    questions: Sequence[Question],
    features: Sequence[Feature],
    block: int,
    precisions: Sequence[Precision],
    **how: Any,
) -> pd.DataFrame:
    """Every role of one block alone at every precision. All other layers keep their precision.

    Args:
        how: as `evaluate_changes`, such as `reached`, which saves the passes through the earlier blocks.

    Returns:
        One row per role, precision and question: `block`, `role`, `precision`, and the columns of `evaluate_spans` except
        `prediction`.
    """
    filled(precisions=precisions)
    roles = names_by_group(model.infos)
    cells = {f"{role} {p.name}": (role, p) for at, role in roles if at == block for p in precisions}
    changes = {name: dict.fromkeys(roles[block, role], p) for name, (role, p) in cells.items()}
    found = evaluate_changes(model, questions, features, block, changes, **how)
    place = pd.DataFrame([(block, role, p.name) for role, p in cells.values()], list(cells), ["block", "role", "precision"])
    return place.loc[found["change"]].reset_index(drop=True).join(found.drop(columns="change"))


@torch.no_grad()
def output_noise(model: SwitchableModel, features: Sequence[Feature], precisions: Sequence[Precision]) -> pd.DataFrame:
    """Signal-to-quantization-noise ratio of every layer's output at a precision, relative to its present output.

    This is the cheap proxy of `sweep_block`: one pass over a few windows. Each layer gets its input at the model's present
    configuration. Windows are processed one by one, so padding has no influence.

    Returns:
        One row per block, role and precision: `block`, `role`, `precision`, `sqnr_db` (of the role's layers together).

    Raises:
        ValueError: there are no windows or no precisions.
    """
    filled(features=features, precisions=precisions)
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
            model(torch.tensor([feature.input_ids], device=device_of(model)))
    finally:
        for hook in hooks:
            hook.remove()
    rows = [(*key, float(10 * torch.log10(signal / noise))) for key, (signal, noise) in powers.items()]
    return pd.DataFrame(rows, columns=["block", "role", "precision", "sqnr_db"])


@contextmanager
def _recorded(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Any]]:
    """The outputs of `modules` in the `with` block, in the order in which they return: a part before the whole.

    Modules called more than once are left out, such as the dropout that Phi's attention and MLP share.
    """
    outputs: dict[nn.Module, Any] = {}
    again: set[nn.Module] = set()

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        again.update({module} & outputs.keys())
        outputs[module] = output

    hooks = [m.register_forward_hook(keep) for m in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
        for module in again:
            del outputs[module]


class _Ended(Exception):
    """A pass has reached the end of the last module of interest."""


@contextmanager
def _ended_after(module: nn.Module) -> Iterator[None]:
    """End every pass in the `with` block as soon as `module` has returned."""

    def end(*_: Any) -> None:
        raise _Ended

    hook = module.register_forward_hook(end)
    try:
        with suppress(_Ended):
            yield
    finally:
        hook.remove()


def _before(outputs: Mapping[nn.Module, Any], layers: Collection[nn.Module]) -> dict[nn.Module, Any]:
    """The `outputs` that were complete before the first of `layers`: whole attentions, norms, layers."""
    return dict(takewhile(lambda item: item[0] not in layers, outputs.items()))


def _replayed(outputs: Mapping[nn.Module, Any]) -> AbstractContextManager[None]:
    """Make modules return their recorded outputs without computing."""
    return forwards_replaced({module: partial(_replay, output) for module, output in outputs.items()})


def _replay(output: Any, *args: Any, **kwargs: Any) -> Any:
    return output
