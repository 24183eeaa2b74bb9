"""Gradient attacks on the embeddings of a question's context: FGSM, PGD, and PGD in expectation over random precisions.

    δ ← Π_ε(δ + α · direction(E_c ∇_δ L(x + δ; c)))

over configurations c that the attacker draws (EOT, Athalye et al. 2018): one alone is PGD (Madry et al. 2018), one alone and
a single step of length ε from the clean input FGSM (Goodfellow et al. 2015). Gradients go straight through every rounding
(BPDA, Athalye et al. 2018). Only tokens that `Batch.free` allows are touched: never the question, never a given answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from qatlib.arguments import AttackArguments
from qatlib.attacks.defence import Draws
from qatlib.model import SwitchableModel
from qatlib.qa.loss import Batch
from qatlib.seeds import stream
from qatlib.switching import Output


def own_seed(batch: Batch, seed: int, name: str, *of: int | str) -> int:
    """`stream` by what is in the batch, so that draws are new for every batch, and the same whichever process has it."""
    return stream(seed, name, *of, hashlib.sha256(batch.input_ids.cpu().numpy().tobytes()).hexdigest())


def mean_embedding_norm(model: SwitchableModel) -> float:
    """Mean L2 norm of the token embeddings over the vocabulary, the unit of epsilon."""
    weight = model.lm.get_input_embeddings().weight.detach()
    return float(weight.float().norm(dim=1).mean())


def attack_embeddings(
    model: SwitchableModel, batch: Batch, attack: AttackArguments, draws: Draws, seed: int
) -> tuple[Tensor, Tensor]:
    """The strongest perturbation found for each window of a batch, by the attacker's own loss.

    Args:
        batch: windows; one without an answer has no loss and is left as it is.
        draws: what the attacker averages over at each of its steps.
        seed: of the random starts.

    Returns:
        Embeddings (batch, tokens, width), and the attacker's mean loss there, (batch,), nats or logits; where the first start
        is the clean input that counts as found, and the loss is never below its own under the same draws.

    Example:
        >>> pgd = AttackArguments(epsilon=0.1, steps=10)
        >>> at_8_bits = lambda query: [Configuration.uniform(8, model.infos)]
        >>> attacked, loss = attack_embeddings(model, batch, pgd, at_8_bits, seed=0)
        >>> with model.at(4):  # the same perturbation at another precision
        ...     output = model(inputs_embeds=attacked)
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
    """Mean over the drawn configurations of each window's loss (batch,), and its gradient with respect to `delta` if asked.

    The loss of a window without an answer is 0, and so is its gradient.
    """
    # to and fro, so that what a layer keeps of the width in use serves the last pass of a query and the first of the next
    configurations = list(draws(query))[:: -1 if query % 2 else 1]
    losses, total = torch.zeros(len(clean), device=clean.device), torch.zeros_like(clean) if gradient else None
    for configuration in configurations:
        with model.at(configuration), _parameters_frozen(model), torch.set_grad_enabled(gradient):
            moved = delta.detach().requires_grad_(gradient)
            found = window_loss(model(inputs_embeds=clean + moved), batch, loss)
            if total is not None:
                (slope,) = torch.autograd.grad(found.sum(), moved)
                total += slope / len(configurations)
            found = found.detach()  # so that two passes' graphs are never held at once
        losses += found / len(configurations)
    return losses, total


@contextmanager
def _parameters_frozen(model: SwitchableModel) -> Iterator[None]:
    """No layer keeps its input for a gradient of its weights, which an attack does not move: a fifth of what a pass holds."""
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in trained:
            p.requires_grad_(False)
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def window_loss(output: Output, batch: Batch, loss: str) -> Tensor:
    """Of every window (batch,): how far the model is from marking what is right, any token of any given answer.

    Mean over start and end, over context tokens: −log p(right), or the margin max(wrong logits) − max(right logits), which does
    not flatten where an answer is already sure (Carlini & Wagner 2017). F1 counts the tokens shared with the nearest of the
    given answers: an attacker who only drives the ends away from the first one's may end at another's, or one token on, and
    has won little. 0 for a window without an answer.
    """
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
    """The nearest point of the ball of every token: coordinates clamped (L∞), or the token's vector shortened (L2)."""
    if norm == "linf":
        return delta.clamp(-radius, radius)
    length = delta.norm(dim=-1, keepdim=True)
    return torch.where(length > radius, delta * (radius / length), delta)


def _direction(gradient: Tensor, norm: str) -> Tensor:
    """Of steepest ascent in the norm: the sign, or every token's unit vector (0 where there is no gradient)."""
    if norm == "linf":
        return gradient.sign()
    return gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)


def _random_point(like: Tensor, radius: float, norm: str, generator: torch.Generator) -> Tensor:
    """Uniform in the cube; in L2 a random direction at a uniform distance."""
    if norm == "linf":
        return (2 * torch.rand(like.shape, generator=generator).to(like) - 1) * radius
    point = torch.randn(like.shape, generator=generator).to(like)
    return _direction(point, norm) * radius * torch.rand((*like.shape[:-1], 1), generator=generator).to(like)


def random_noise(model: SwitchableModel, batch: Batch, attack: AttackArguments, seed: int) -> Tensor:
    """Embeddings moved to a random point of the ball's border, the control of equal norm: corners of the cube, or the sphere."""
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
    """An attacker without gradients: of a random point of the ball's border draw some tokens' part anew, and keep what helps.

    As Square Attack (Andriushchenko et al. 2020) it changes half of the tokens at first and ever fewer of them; as many
    queries as `attack` has passes.

    Returns:
        As `attack_embeddings`; the clean input does not count as found.
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
    """Share of the coordinates an attacker may move whose gradient at the clean input is not 0; of windows with an answer."""
    with torch.no_grad():
        clean = model.embed(batch.input_ids)
    _, gradient = expected_loss(model, clean, torch.zeros_like(clean), batch, "cross_entropy", draws, 0)
    assert gradient is not None
    touched = gradient[batch.attackable]
    return float((touched != 0).float().mean())
