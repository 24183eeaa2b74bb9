"""HotFlip (Ebrahimi et al. 2018): replace single tokens by those that raise the loss most, by a first-order estimate."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from qatlib.attacks.defence import Draws
from qatlib.attacks.embedding import expected_loss, vocabulary
from qatlib.checks import whole
from qatlib.model import SwitchableModel
from qatlib.qa.loss import Batch


def hotflip(
    model: SwitchableModel, batch: Batch, flips: int, draws: Draws, allowed: Tensor, loss: str = "cross_entropy"
) -> tuple[Tensor, Tensor]:
    """Replace up to `flips` free tokens of every window, one after the other. All windows of the batch are processed together.

    The gain of token v at place i is estimated as ∇_i L · (e_v − e_{x_i}). The gradient is the mean over the drawn
    configurations. A window without an answer is not changed.

    Args:
        allowed: (vocabulary,) bool, the tokens that may be inserted.

    Returns:
        Token ids (batch, tokens) with the highest loss that the attacker saw, and that loss (batch,).

    Raises:
        ValueError: `flips` is negative, or `allowed` does not say of every token whether it may be inserted, or allows none.
    """
    whole(0, flips=flips)
    model.eval()
    with torch.no_grad():
        table = model.embed(vocabulary(model))
    if allowed.shape != table.shape[:1] or allowed.dtype != torch.bool or not allowed.any():
        given = f"{int(allowed.sum())} of {tuple(allowed.shape)} tokens, as {allowed.dtype}"
        raise ValueError(f"allowed has {given}; allowed is a bool for each of {len(table)} tokens, at least one of them true")
    ids, free = batch.input_ids.clone(), batch.attackable
    best, worst = ids.clone(), torch.full((len(ids),), -torch.inf, device=ids.device)
    for flip in range(flips + 1):
        with torch.no_grad():
            clean = model.embed(ids)
        flipped = replace(batch, input_ids=ids)
        found, gradient = expected_loss(model, clean, torch.zeros_like(clean), flipped, loss, draws, flip, flip < flips)
        better = found > worst
        worst, best = torch.where(better, found, worst), torch.where(better[:, None], ids, best)
        if gradient is None:
            break
        for row in range(len(ids)):  # one window at a time: (tokens, vocabulary) is already large
            places = free[row].nonzero()[:, 0]
            if not len(places):
                continue
            gains = gradient[row, places] @ table.T - (gradient[row, places] * clean[row, places]).sum(-1, keepdim=True)
            gains = gains.masked_fill(~allowed, -torch.inf).scatter(1, ids[row, places][:, None], -torch.inf)
            place, token = divmod(int(gains.argmax()), len(table))
            ids[row, places[place]] = token
            free[row, places[place]] = False
    return best, worst
