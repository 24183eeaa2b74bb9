"""What a training step minimises beyond the task's loss: the distance of its precisions to each other, or to a teacher.

With L the task's loss of one configuration and D a divergence between two models' answers, a step of K configurations
minimises

    average       (1/K) Σ L                                                      S1
    joint         Σ L                                                            S4; K times the gradient, before clipping
    cascaded      (1/K) Σ (L + weight · mean of D(wider ‖ this) over all wider configurations of the step)
                                                                                 InstantNet, Fu et al. 2021
    distillation  (1/K) Σ (L + weight · T² · D(teacher ‖ this) at temperature T)    Hinton et al. 2015
    consistency   (1/K) Σ (L + weight · D(widest of the step ‖ this))

Wherever there is a D, `hidden_weight` · H may stand beside it, with H the distance of the last hidden states. At 2 bits, an
adapter learns more from these than from few logits (RILQ, Lee et al. 2025).

The left side of every D and H is detached. The widest configuration comes first. Each is backpropagated as soon as it is
computed; only the outputs of the earlier ones are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qatlib.arguments import ObjectiveArguments
from qatlib.qa.loss import Batch, span_logits
from qatlib.switching import Output


def divergence(reference: Tensor, logits: Tensor, context: Tensor, args: ObjectiveArguments) -> Tensor:
    """The divergence of answers from reference answers, per window (batch,): the mean over start and end, over context tokens.

    Args:
        reference, logits: `span_logits` of two models; the gradient flows into `logits` alone.
        context: (batch, tokens) bool; other tokens have no influence on the result.
        args: `kl`, KL(reference ‖ this), or `js`, Jensen-Shannon, in nats, both at `temperature` T and times T² (which keeps the
            size of the gradient, Hinton et al. 2015); `mse`, of logits that are first centred over the context, since a softmax
            does not depend on their mean.
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
    """Log-probabilities over context tokens; 0 elsewhere, because −∞ would make the gradient of a product NaN."""
    return torch.log_softmax(logits.masked_fill(~context, -torch.inf), -1).masked_fill(~context, 0)


def hidden_distance(reference: Tensor, hidden: Tensor, real: Tensor) -> Tensor:
    """‖h − h_ref‖² / ‖h_ref‖², the mean over the real tokens of each window: (batch,). Without a unit, so alike in all models.

    Args:
        reference, hidden: (batch, tokens, width); the gradient flows into `hidden` alone.
        real: (batch, tokens) bool; padding has no influence on the result.
    """
    reference = reference.detach().float()
    size = reference.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    apart = (hidden.float() - reference).square().sum(-1) / size
    return apart.masked_fill(~real, 0).sum(-1) / real.sum(-1)


def added_terms(
    args: ObjectiveArguments, output: Output, wider: Sequence[Output], teacher: Output | None, batch: Batch
) -> dict[str, tuple[float, Tensor]]:
    """The terms that the objective adds to one configuration's task loss: by name, the weight and the term before it.

    Args:
        output: of this configuration.
        wider: of the step's wider configurations, widest first. For the widest itself it is empty, and the terms are 0.
        teacher: of the full-precision teacher, for an objective that needs one.

    Returns:
        `divergence` if the objective learns from others, and `hidden_distance` if that has a weight.
    """
    match args.rule.learns_from:
        case None:
            return {}
        case "wider":
            references = wider
        case "widest":
            references = wider[:1]
        case "teacher":
            assert teacher is not None
            references = [teacher]
    logits = span_logits(output)
    parts = {"divergence": (args.weight, [divergence(span_logits(r), logits, batch.context, args) for r in references])}
    if args.hidden_weight:
        apart = [hidden_distance(r.hidden, output.hidden, batch.real) for r in references]
        parts["hidden_distance"] = args.hidden_weight, apart
    return {
        name: (weight, torch.stack([t.sum() / batch.windows for t in terms]).mean() if terms else logits.new_zeros(()))
        for name, (weight, terms) in parts.items()
    }
