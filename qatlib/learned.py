"""A learned allocation: a differentiable choice of every group's precision, with a penalty above a bit budget.

This is EdMIPS (Cai & Vasconcelos 2020). A layer's output is the weighted mean of its outputs at all precisions. The weights
are a softmax whose logits are trained by gradient descent. At the end each group gets one precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from qatlib.checks import filled, finite, whole
from qatlib.layers import SwitchableLinear, forwards_replaced
from qatlib.model import SwitchableModel
from qatlib.precision import Precision, names_by_group
from qatlib.qa.evaluate import device_of
from qatlib.qa.loss import collate, span_nll
from qatlib.qa.spans import Feature
from qatlib.search import Allocation
from qatlib.seeds import stream


@dataclass
class Learned:
    """What `learn_allocation` found.

    Attributes:
        shares: (groups, precisions), the final softmax in each row.
        metrics: one row per step: `step`, `span_loss` (nats), `expected_cost`, in the unit of the problem's cost.
    """

    shares: np.ndarray
    metrics: pd.DataFrame


def learn_allocation(
    model: SwitchableModel,
    features: Sequence[Feature],
    problem: Allocation,
    budget: float,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    penalty: float,
    pad_id: int,
    seed: int,
    description: str | None = None,
) -> Learned:
    """Train only the choice; weights and adapters do not change.

    The loss is the mean span NLL plus `penalty` · max(0, expected cost / `budget` − 1), both in nats.

    Args:
        features: training windows; those without an answer are skipped.
        problem: gives groups, precisions and costs; its losses are not used.

    Raises:
        ValueError: no window holds an answer, the problem has other groups than the model, or a number is not allowed.
    """
    whole(1, steps=steps, batch_size=batch_size)
    finite(0, above=True, budget=budget, learning_rate=learning_rate)
    finite(0, penalty=penalty)
    with_answer = [f for f in features if f.start >= 0]
    filled(**{"features with an answer": with_answer})
    if set(problem.groups) != set(groups := names_by_group(model.infos)):
        raise ValueError(f"the problem has the groups {list(problem.groups)}; allowed are those of the model, {list(groups)}")
    model.eval()
    device = device_of(model)
    logits = torch.zeros(problem.cost.shape, device=device, requires_grad=True)
    cost = torch.tensor(problem.cost, dtype=torch.float32, device=device)
    optimizer = torch.optim.Adam([logits], lr=learning_rate)
    rng = np.random.default_rng(stream(seed, "batches of a learned allocation"))
    rows = []
    for step in tqdm(range(steps), desc=description, mininterval=5, disable=description is None):
        drawn = rng.choice(len(with_answer), min(batch_size, len(with_answer)), replace=False)
        batch = collate([with_answer[i] for i in drawn], pad_id, device)
        shares = logits.softmax(1)
        with _mixed(model, problem, shares):
            loss = span_nll(model(batch.input_ids), batch).nanmean()
        expected = (shares * cost).sum()
        total = loss + penalty * torch.relu(expected / budget - 1)
        (logits.grad,) = torch.autograd.grad(total, logits)  # gradients of the logits only: adapters collect none
        optimizer.step()
        rows.append({"step": step, "span_loss": float(loss.detach()), "expected_cost": float(expected.detach())})
    return Learned(logits.detach().double().softmax(1).cpu().numpy(), pd.DataFrame(rows))


@contextmanager
def _mixed(model: SwitchableModel, problem: Allocation, shares: Tensor) -> Iterator[None]:
    """Layers whose output is the weighted mean of their outputs at all precisions."""
    rows = dict(zip(problem.groups, shares, strict=True))
    mixtures: dict[nn.Module, Callable[..., Tensor]] = {
        layer: partial(_mixture, layer, problem.precisions, rows[info.block, info.role])
        for info, layer in zip(model.infos, model.layers, strict=True)
    }
    with model.at(model.configuration), forwards_replaced(mixtures):
        yield


def _mixture(layer: SwitchableLinear, precisions: Sequence[Precision], shares: Tensor, x: Tensor) -> Tensor:
    return torch.stack([share * y for share, y in zip(shares, layer.at_each(precisions, x), strict=True)]).sum(0)
