"""Gradient attacks on the embeddings of a question's context: FGSM, PGD, and PGD in expectation over random precisions.

    δ ← Π_ε(δ + α · direction(E_c ∇_δ L(x + δ; c)))

over configurations c that the attacker draws (EOT, Athalye et al. 2018). With one configuration it is PGD (Madry et al. 2018).
With one configuration and a single step of length ε from the clean input it is FGSM (Goodfellow et al. 2015). Gradients use the
straight-through estimator at every rounding (BPDA, Athalye et al. 2018). Only tokens in `Batch.free` are changed: never the
question, never a given answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from qatlib.arguments import AttackArguments
from qatlib.attacks.defence import Draws
from qatlib.checks import filled, finite, one_of
from qatlib.model import SwitchableModel
from qatlib.qa.loss import Batch
from qatlib.seeds import stream
from qatlib.switching import Output

_AT_ONCE = 8192
"""This many tokens of a vocabulary are embedded together: a table of 256,000 may not fit beside the model."""


def own_seed(batch: Batch, seed: int, name: str, *of: int | str) -> int:
    """A `stream` seed from the batch's content. Draws differ between batches, but do not depend on the process."""
    return stream(seed, name, *of, hashlib.sha256(batch.input_ids.cpu().numpy().tobytes()).hexdigest())


@torch.no_grad()
def mean_embedding_norm(model: SwitchableModel) -> float:
    """Mean L2 norm over the vocabulary of the token embeddings that an attack moves, `model.embed`. It is the unit of epsilon."""
    tokens = vocabulary(model).split(_AT_ONCE)
    return float(torch.cat([model.embed(ids).float().norm(dim=1) for ids in tokens]).mean())


def vocabulary(model: SwitchableModel) -> Tensor:
    """All token ids of the model's embeddings (vocabulary,), on their device."""
    weight = model.lm.get_input_embeddings().weight
    return torch.arange(len(weight), device=weight.device)


def attack_embeddings(
    model: SwitchableModel, batch: Batch, attack: AttackArguments, draws: Draws, seed: int
) -> tuple[Tensor, Tensor]:
    """The strongest perturbation found for each window of a batch, judged by the attacker's own loss.

    Args:
        batch: windows. A window without an answer has no loss and is not changed.
        draws: the configurations that the attacker averages over at each step.
        seed: seed of the random starts.

    Returns:
        Embeddings (batch, tokens, width), and the attacker's mean loss there, (batch,), in nats or logits. If the first start is
        the clean input, it is one of the candidates. The loss is then never below the clean loss under the same draws.

    Example:
        >>> pgd = AttackArguments(epsilon=0.1, steps=10)
        >>> at_8_bits = lambda query: [Configuration.uniform(8, model.infos)]
        >>> attacked, loss = attack_embeddings(model, batch, pgd, at_8_bits, seed=0)
        >>> with model.at(4):  # the same perturbation at another precision
        ...     output = model(batch.input_ids, inputs_embeds=attacked)
    """
    training = model.training
    model.eval()
    clean, free, radius, generator = _ball(model, batch, attack, seed, "start of PGD")
    step = radius * min(1.0, attack.step_size if attack.step_size is not None else 2.5 / attack.steps)
    best = torch.zeros_like(clean)
    worst = torch.full((len(clean),), -torch.inf, device=clean.device)
    for restart in range(attack.restarts):
        delta = torch.zeros_like(clean)
        if attack.random_start or restart:
            delta = project(_random_point(clean, radius, attack.norm, generator), radius, attack.norm) * free
        for i in range(attack.steps + 1):
            query = restart * (attack.steps + 1) + i
            loss, gradient = expected_loss(model, clean, delta, batch, attack.loss, draws, query, i < attack.steps)
            better = loss > worst
            worst = torch.where(better, loss, worst)
            best = torch.where(better[:, None, None], delta, best)
            if gradient is not None:
                delta = project(delta + step * _direction(gradient, attack.norm), radius, attack.norm) * free
    model.train(training)
    return clean + best, worst


def expected_loss(
    model: SwitchableModel, clean: Tensor, delta: Tensor, batch: Batch, loss: str, draws: Draws, query: int, gradient: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Each window's loss (batch,), mean over the drawn configurations, and, on request, its gradient with respect to `delta`.

    The loss of a window without an answer is 0, and so is its gradient.

    Raises:
        ValueError: the attacker draws no configuration, or there is no such loss.
    """
    # alternate the order: a layer caches values for its current width, so the next query can start with this cache
    configurations = list(draws(query))[:: -1 if query % 2 else 1]
    filled(draws=configurations)
    losses, total = torch.zeros(len(clean), device=clean.device), torch.zeros_like(clean) if gradient else None
    for configuration in configurations:
        with model.at(configuration), _parameters_frozen(model), torch.set_grad_enabled(gradient):
            moved = delta.detach().requires_grad_(gradient)
            found = window_loss(model(batch.input_ids, inputs_embeds=clean + moved), batch, loss)
            if total is not None:
                (slope,) = torch.autograd.grad(found.sum(), moved)
                total += slope / len(configurations)
            found = found.detach()  # frees this pass's graph before the next pass
        losses += found / len(configurations)
    return losses, total


@contextmanager
def _parameters_frozen(model: SwitchableModel) -> Iterator[None]:
    """Layers do not keep inputs for weight gradients, which an attack does not need. This saves a fifth of a pass's memory."""
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in trained:
            p.requires_grad_(False)
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def window_loss(output: Output, batch: Batch, loss: str) -> Tensor:
    """The attacker's loss for every window (batch,): how far the model is from marking a token of any given answer.

    Mean over start and end, over context tokens, of −log p(right) or of the margin max(wrong logits) − max(right logits). The
    margin does not flatten when the model is sure of an answer (Carlini & Wagner 2017). All answers count because F1 uses the
    closest given answer. An attacker who only moves the ends away from the first answer may reach another answer, or a span
    one token away, and gains little. The loss is 0 for a window without an answer.

    Raises:
        ValueError: there is no such loss.
    """
    one_of(("cross_entropy", "margin"), loss=loss)
    answered = (batch.start >= 0)[:, None]
    right = torch.where(answered, batch.context & ~batch.free, batch.context)
    found = []
    for logits in (output.start, output.end):
        inside, outside = (logits.float().masked_fill(~where, -torch.inf) for where in (right, batch.context & ~right))
        if loss == "cross_entropy":
            found.append(torch.logaddexp(inside.logsumexp(1), outside.logsumexp(1)) - inside.logsumexp(1))
        else:
            found.append(outside.max(1).values - inside.max(1).values)
    mean = (found[0] + found[1]) / 2
    return mean.where(answered[:, 0] & torch.isfinite(mean), 0.0)


def project(delta: Tensor, radius: float, norm: str) -> Tensor:
    """Project every token's delta onto its ball: clamp the coordinates (`linf`), or shorten the token's vector (`l2`).

    Raises:
        ValueError: the norm is another, or the radius is negative.
    """
    one_of(("linf", "l2"), norm=norm)
    finite(0, radius=radius)
    if norm == "linf":
        return delta.clamp(-radius, radius)
    length = delta.norm(dim=-1, keepdim=True)
    return torch.where(length > radius, delta * (radius / length), delta)


def _direction(gradient: Tensor, norm: str) -> Tensor:
    """Direction of steepest ascent in the norm: the sign (L∞), or every token's unit vector (L2; 0 without a gradient)."""
    if norm == "linf":
        return gradient.sign()
    return gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)


def _random_point(like: Tensor, radius: float, norm: str, generator: torch.Generator) -> Tensor:
    """A random start: uniform in the cube (L∞), or a random direction at a uniform distance (L2)."""
    if norm == "linf":
        return (2 * torch.rand(like.shape, generator=generator).to(like) - 1) * radius
    point = torch.randn(like.shape, generator=generator).to(like)
    return _direction(point, norm) * radius * torch.rand((*like.shape[:-1], 1), generator=generator).to(like)


def random_noise(model: SwitchableModel, batch: Batch, attack: AttackArguments, seed: int) -> Tensor:
    """Embeddings moved to a random point on the ball's border (a corner of the cube, or the sphere): a control of equal norm."""
    clean, free, radius, generator = _ball(model, batch, attack, seed, "noise as large as an attack")
    return clean + _on_border(clean, radius, attack.norm, generator) * free


def _on_border(like: Tensor, radius: float, norm: str, generator: torch.Generator) -> Tensor:
    point = torch.randn(like.shape, generator=generator).to(like)
    return radius * _direction(point, norm)


@torch.no_grad()
def _ball(
    model: SwitchableModel, batch: Batch, attack: AttackArguments, seed: int, name: str
) -> tuple[Tensor, Tensor, float, torch.Generator]:
    """Clean embeddings (batch, tokens, width), what may move (batch, tokens, 1), the radius, and the batch's own generator."""
    clean = model.embed(batch.input_ids)
    free = batch.attackable[..., None]
    radius = attack.epsilon * mean_embedding_norm(model) / (clean.shape[-1] ** 0.5 if attack.norm == "linf" else 1)
    return clean, free, radius, torch.Generator().manual_seed(own_seed(batch, seed, name))


def random_search(
    model: SwitchableModel, batch: Batch, attack: AttackArguments, draws: Draws, seed: int
) -> tuple[Tensor, Tensor]:
    """An attack without gradients. It starts at a random point on the ball's border, redraws some tokens, keeps improvements.

    Like Square Attack (Andriushchenko et al. 2020), it changes half of the tokens at first and then fewer and fewer. It makes as
    many queries as `attack` has passes.

    Returns:
        As `attack_embeddings`; the clean input is not one of the candidates.
    """
    clean, free, radius, generator = _ball(model, batch, attack, seed, "tokens of a random search")
    best, worst = clean, torch.full((len(clean),), -torch.inf, device=clean.device)
    for query in range(attack.passes):
        share = 1.0 if query == 0 else 0.5 * 2 ** (-5 * query / attack.passes)
        anew = torch.rand((*clean.shape[:2], 1), generator=generator).to(clean.device) < share
        point = torch.Generator().manual_seed(own_seed(batch, seed, "points of a random search", query))
        moved = torch.where(anew, clean + _on_border(clean, radius, attack.norm, point) * free, best)
        loss, _ = expected_loss(model, clean, moved - clean, batch, attack.loss, draws, query, gradient=False)
        better = loss > worst
        worst, best = torch.where(better, loss, worst), torch.where(better[:, None, None], moved, best)
    return best, worst


def nonzero_gradients(model: SwitchableModel, batch: Batch, draws: Draws) -> float:
    """Share of the attackable coordinates with a nonzero gradient at the clean input, over windows with an answer."""
    with torch.no_grad():
        clean = model.embed(batch.input_ids)
    _, gradient = expected_loss(model, clean, torch.zeros_like(clean), batch, "cross_entropy", draws, 0)
    assert gradient is not None
    touched = gradient[batch.attackable]
    return float((touched != 0).float().mean())
