"""Batches of windows, and the losses of extractive question answering on them: answer spans and next tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qatlib import checks
from qatlib.model import SwitchableModel
from qatlib.qa.spans import Feature
from qatlib.seeds import stream
from qatlib.switching import Output


@dataclass
class Batch:
    """Features padded on the right to the length of the longest, or one process's share of such a batch.

    Attributes:
        input_ids: (batch, tokens).
        context: (batch, tokens) bool, True on context tokens.
        real: (batch, tokens) bool, False on padding.
        free: (batch, tokens) bool, True on context tokens outside all given answers. An attacker may change only these.
        start, end: (batch,) token positions of the answer; −1 if the window has none.
        windows, targets: numbers of windows and of tokens to predict, by which losses are divided. They count the whole
            batch even for a share, so losses and gradients add up over the processes.
    """

    input_ids: Tensor
    context: Tensor
    real: Tensor
    free: Tensor
    start: Tensor
    end: Tensor
    windows: int
    targets: int

    @property
    def attackable(self) -> Tensor:
        """(batch, tokens) bool: `free` tokens of windows with an answer. Other windows have no loss to raise."""
        return self.free & (self.start >= 0)[:, None]


def collate(
    features: Sequence[Feature], pad_id: int, device: torch.device | str = "cpu", whole: Sequence[Feature] | None = None
) -> Batch:
    """Put features into one padded batch.

    Args:
        whole: the whole batch, if `features` are only a share of it.

    Raises:
        ValueError: there are no features.

    Example:
        >>> batch = collate(features[:8], pad_id=0)
        >>> batch.input_ids.shape == batch.real.shape
        True
    """
    checks.filled(features=features)
    lengths = torch.tensor([len(f.input_ids) for f in features])
    position = torch.arange(int(lengths.max()))
    real = position < lengths[:, None]
    input_ids = torch.full(real.shape, pad_id)
    input_ids[real] = torch.tensor([token for f in features for token in f.input_ids])
    first = torch.tensor([f.context_start for f in features])
    context = (position >= first[:, None]) & real
    free = context.clone()
    for row, feature in zip(free, features, strict=True):
        for start, end in feature.gold:
            row[start : end + 1] = False
    starts, ends = torch.tensor([f.start for f in features]), torch.tensor([f.end for f in features])
    whole = features if whole is None else whole
    tensors = {"input_ids": input_ids, "context": context, "real": real, "free": free, "start": starts, "end": ends}
    placed = {name: tensor.to(device) for name, tensor in tensors.items()}
    return Batch(**placed, windows=len(whole), targets=sum(len(f.input_ids) - 1 for f in whole))


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


def task_loss(model: SwitchableModel, output: Output, batch: Batch, lm_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Span loss plus `lm_weight` times the next-token loss, and both parts, detached.

    Every window of the batch must contain its answer. For a share of a batch, these are its parts of the whole batch's means.
    """
    span = span_nll(output, batch).sum() / batch.windows
    parts = {"span_loss": span.detach()}
    if lm_weight == 0:
        return span, parts
    lm = next_token_nll(model, output, batch).sum() / batch.targets
    return span + lm_weight * lm, parts | {"lm_loss": lm.detach()}


def span_logits(output: Output) -> Tensor:
    """Start and end logits (2, batch, tokens). A divergence uses nothing else."""
    return torch.stack((output.start, output.end)).float()


def batch_plan(lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> list[np.ndarray]:
    """The features in the batch of every step. A pure function, so that a resumed training continues in the same order.

    Every epoch is a new permutation. Groups of 50 batches are sorted by length before they are cut into batches. So the windows
    of a batch have similar lengths, with little padding. Then the batches of the group are shuffled.

    Args:
        lengths: number of tokens of each feature.

    Returns:
        `steps` index arrays of length `batch_size` (or less, if there are fewer features).

    Raises:
        ValueError: there are no features, the batch size is not positive, or the number of steps is negative.
    """
    checks.filled(lengths=lengths)
    checks.whole(1, batch_size=batch_size)
    checks.whole(0, steps=steps)
    rng = np.random.default_rng(stream(seed, "order of the data"))
    tokens = np.asarray(lengths)
    size = min(batch_size, len(tokens))
    plan: list[np.ndarray] = []
    while len(plan) < steps:
        whole = rng.permutation(len(tokens))[: len(tokens) // size * size].reshape(-1, size)
        for run in np.array_split(whole, max(1, len(whole) // 50)):
            ranked = run.ravel()[np.argsort(tokens[run.ravel()], kind="stable")].reshape(-1, size)
            plan.extend(ranked[i] for i in rng.permutation(len(ranked)))
    return plan[:steps]
