"""The losses of a training step: of the task, and between the precisions of a step or a teacher and them.

With L the task's loss of one configuration and D a divergence between two models' answers, a step of K configurations
minimises

    average       (1/K) Σ L                                                      S1
    joint         Σ L                                                            S4; K times the gradient before it is clipped
    cascaded      (1/K) Σ (L + weight · mean of D(wider ‖ this) over all wider configurations of the step)
                                                                                 InstantNet, Fu et al. 2021
    distillation  (1/K) Σ (L + weight · T² · D(teacher ‖ this) at temperature T)    Hinton et al. 2015
    consistency   (1/K) Σ (L + weight · D(widest of the step ‖ this))

The left side of every D is detached. Configurations come widest first, so each can be backpropagated as soon as it is
computed: of those before it only their logits are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qatlib.arguments import ObjectiveArguments
from qatlib.model import Output, SwitchableModel
from qatlib.qa.spans import Feature


@dataclass
class Batch:
    """Features padded on the right to the longest of them; or one process's share of them.

    Attributes:
        input_ids: (batch, tokens).
        context: (batch, tokens) bool, True on context tokens.
        real: (batch, tokens) bool, False on padding.
        free: (batch, tokens) bool, True on context tokens of no given answer: all that an attacker may touch.
        start, end: (batch,) token positions of the answer; −1 where the window has none.
        windows, targets: what losses are means over: windows, and tokens to be predicted, of the whole batch,
            whatever the share, so that losses and gradients add up over the processes.
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
        """(batch, tokens) bool: `free` tokens of windows that have an answer, and so a loss to raise."""
        return self.free & (self.start >= 0)[:, None]


def collate(
    features: Sequence[Feature], pad_id: int, device: torch.device | str = "cpu", whole: Sequence[Feature] | None = None
) -> Batch:
    """Put features into one padded batch.

    Args:
        whole: the batch that `features` are a share of, if they are one.

    Example:
        >>> batch = collate(features[:8], pad_id=0)
        >>> batch.input_ids.shape == batch.real.shape
        True
    """
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

    Every window of the batch must hold its answer. Of a share of a batch these are its parts of the whole batch's means.
    """
    span = span_nll(output, batch).sum() / batch.windows
    parts = {"span_loss": span.detach()}
    if lm_weight == 0:
        return span, parts
    lm = next_token_nll(model, output, batch).sum() / batch.targets
    return span + lm_weight * lm, parts | {"lm_loss": lm.detach()}


def span_logits(output: Output) -> Tensor:
    """Start and end logits (2, batch, tokens), the only thing a divergence looks at."""
    return torch.stack((output.start, output.end)).float()


def divergence(reference: Tensor, logits: Tensor, context: Tensor, args: ObjectiveArguments) -> Tensor:
    """Per window (batch,): how far answers are from reference answers, the mean over start and end, over context tokens.

    Args:
        reference, logits: `span_logits` of two models; the gradient flows into `logits` alone.
        context: (batch, tokens) bool; nothing outside it has any part in the result.
        args: `kl`, KL(reference ‖ this), or `js`, Jensen-Shannon, in nats, both at `temperature` T and times T² (which
            keeps the size of the gradient, Hinton et al. 2015); `mse`, of logits that are centred over the context
            first, since a softmax does not see their mean.
    """
    reference = reference.detach()
    if args.divergence == "mse":
        tokens = context.sum(-1, keepdim=True)
        apart = (logits - reference).masked_fill(~context, 0)
        centred = (apart - apart.sum(-1, keepdim=True) / tokens).masked_fill(~context, 0)
        return (centred.square() / tokens).sum(-1).mean(0)
    p, q = (_log_softmax(x / args.temperature, context) for x in (reference, logits))
    if args.divergence == "kl":
        nats = p.exp() * (p - q)
    else:
        middle = torch.logaddexp(p, q) - math.log(2)
        nats = (p.exp() * (p - middle) + q.exp() * (q - middle)).masked_fill(~context, 0) / 2
    return args.temperature**2 * nats.sum(-1).mean(0)


def _log_softmax(logits: Tensor, context: Tensor) -> Tensor:
    """Over context tokens; 0 elsewhere, where −∞ would make the gradient of a product NaN."""
    return torch.log_softmax(logits.masked_fill(~context, -torch.inf), -1).masked_fill(~context, 0)


def added_term(
    args: ObjectiveArguments, logits: Tensor, wider: Sequence[Tensor], teacher: Tensor | None, batch: Batch
) -> Tensor | None:
    """What the objective adds to one configuration's task loss, before its weight; None if it has no such term.

    Args:
        logits: `span_logits` of this configuration.
        wider: those of the step's configurations before it, widest first; the widest itself has none, and 0 to add.
        teacher: those of the full-precision teacher, for `distillation`.
    """
    if args.name == "cascaded":
        references = wider
    elif args.name == "consistency":
        references = wider[:1]
    elif args.name == "distillation":
        assert teacher is not None
        references = [teacher]
    else:
        return None
    terms = [divergence(reference, logits, batch.context, args).sum() / batch.windows for reference in references]
    return torch.stack(terms).mean() if terms else logits.new_zeros(())
