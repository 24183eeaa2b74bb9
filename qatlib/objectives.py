"""The losses of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qatlib.model import Output, SwitchableModel
from qatlib.spans import Feature


@dataclass
class Batch:
    """Features padded on the right to the longest of them.

    Attributes:
        input_ids: (batch, tokens).
        context: (batch, tokens) bool, True on context tokens.
        real: (batch, tokens) bool, False on padding.
        start, end: (batch,) token positions of the answer; −1 where the window has none.
    """

    input_ids: Tensor
    context: Tensor
    real: Tensor
    start: Tensor
    end: Tensor


def collate(features: Sequence[Feature], pad_id: int, device: torch.device | str = "cpu") -> Batch:
    """Put features into one padded batch."""
    lengths = torch.tensor([len(f.input_ids) for f in features])
    position = torch.arange(int(lengths.max()))
    real = position < lengths[:, None]
    input_ids = torch.full(real.shape, pad_id)
    input_ids[real] = torch.tensor([token for f in features for token in f.input_ids])
    first = torch.tensor([f.context_start for f in features])
    context = (position >= first[:, None]) & real
    start, end = torch.tensor([f.start for f in features]), torch.tensor([f.end for f in features])
    return Batch(*(t.to(device) for t in (input_ids, context, real, start, end)))


def span_nll(output: Output, batch: Batch) -> Tensor:
    """Per window (batch,): mean of −log p(start) and −log p(end), softmax over context tokens; NaN without an answer."""
    answered = batch.start >= 0
    losses = [
        F.cross_entropy(logits.float().masked_fill(~batch.context, -torch.inf), target.clamp_min(0), reduction="none")
        for logits, target in ((output.start, batch.start), (output.end, batch.end))
    ]
    return ((losses[0] + losses[1]) / 2).where(answered, torch.nan)


def next_token_nll(model: SwitchableModel, output: Output, batch: Batch) -> Tensor:
    """Per token (batch, tokens − 1): −log p(next token); 0 on padding."""
    logits = model.next_token_logits(output.hidden[:, :-1])
    nll = F.cross_entropy(logits.float().flatten(0, 1), batch.input_ids[:, 1:].flatten(), reduction="none")
    return nll.view(batch.input_ids[:, 1:].shape) * batch.real[:, 1:]


def task_loss(model: SwitchableModel, batch: Batch, lm_weight: float) -> tuple[Tensor, dict[str, float]]:
    """Span loss plus `lm_weight` times the next-token loss, and both parts as figures.

    Every window of the batch must hold its answer.
    """
    output = model(batch.input_ids)
    span = span_nll(output, batch).mean()
    parts = {"span_loss": float(span.detach())}
    if lm_weight == 0:
        return span, parts
    lm = next_token_nll(model, output, batch).sum() / batch.real[:, 1:].sum()
    parts["lm_loss"] = float(lm.detach())
    return span + lm_weight * lm, parts
