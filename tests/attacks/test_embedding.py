"""Attacks against hand-derived cases on a linear model, and what no attack may do on a real one."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from qatlib.arguments import AttackArguments
from qatlib.attacks.defence import every, per_layer, static
from qatlib.attacks.embedding import (
    attack_embeddings,
    expected_loss,
    mean_embedding_norm,
    project,
    random_noise,
    random_search,
    window_loss,
)
from qatlib.layers import SHARED, LoraSpec
from qatlib.model import SwitchableModel
from qatlib.precision import Precision
from qatlib.qa.loss import Batch, collate
from qatlib.qa.spans import featurize
from qatlib.qa.squad import Answer
from qatlib.qa.toyqa import build_model, build_tokenizer, generate
from qatlib.switching import Output, Switching
from tests.test_switching import ODD, PLAIN, family

WIDTH, TOKENS = 5, 6
U, V = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(3))
NORMS = st.sampled_from(["linf", "l2"])


class Linear(nn.Module):
    """Logits linear in the embeddings, which the embedding module scales; `gain` stands for a configuration."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        table = nn.Embedding(9, WIDTH)
        table.register_forward_hook(lambda module, ids, embedded: scale * embedded)
        with torch.no_grad():
            table.weight.copy_(torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(4)))
        self.lm = SimpleNamespace(get_input_embeddings=lambda: table)
        self.gain = 1.0

    def embed(self, input_ids):
        return self.lm.get_input_embeddings()(input_ids)

    def forward(self, input_ids, *, inputs_embeds):
        return Output(inputs_embeds, self.gain * inputs_embeds @ U, self.gain * inputs_embeds @ V)

    def at(self, gain):
        self.gain = gain
        return nullcontext()


def linear_batch() -> Batch:
    ids = torch.tensor([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
    context = torch.tensor([[False, False, True, True, True, True]] * 2)
    free = context & ~torch.tensor([[False, False, False, True, False, False], [False] * 6])
    return Batch(ids, context, context, free, torch.tensor([3, -1]), torch.tensor([3, -1]), 2, 10)


def by_hand(model, batch):
    """∇ of the first window's NLL: half of (p − 1[right]) u of the start, and of v of the end."""
    x = model.embed(batch.input_ids)[0].detach()
    gradient = torch.zeros_like(x)
    for w in (U, V):
        p = torch.softmax((x @ w).masked_fill(~batch.context[0], -torch.inf), 0)
        p[3] -= 1
        gradient += p[:, None] * w / 2
    return gradient * batch.free[0][:, None]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_is_the_hand_derived_step(norm):
    model, batch = Linear(), linear_batch()
    found, loss = attack_embeddings(model, batch, AttackArguments.fgsm(0.3, norm), lambda query: [1.0], 0)
    gradient, radius = by_hand(model, batch), 0.3 * mean_embedding_norm(model)
    if norm == "linf":
        expected = radius / WIDTH**0.5 * gradient.sign()
    else:
        expected = radius * gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-30)
    torch.testing.assert_close(found[0], model.embed(batch.input_ids)[0] + expected)
    assert torch.equal(found[1], model.embed(batch.input_ids)[1])  # no answer, no attack
    assert loss[0] == window_loss(model(batch.input_ids, inputs_embeds=found), batch, "cross_entropy")[0] and loss[1] == 0


def test_pgd_on_a_linear_margin_ends_at_the_border_in_the_gradients_direction():
    model, batch = Linear(), linear_batch()
    attack = AttackArguments(0.01, "l2", steps=20, random_start=False, loss="margin")
    found, loss = attack_embeddings(model, batch, attack, lambda query: [1.0], 0)
    x = model.embed(batch.input_ids)[0].detach()
    expected = torch.zeros_like(x)
    for w in (U, V):
        logits = (x @ w).masked_fill(~batch.free[0], -torch.inf)
        expected[logits.argmax()] += w
    radius = 0.01 * mean_embedding_norm(model)
    expected *= radius / expected.norm(dim=1, keepdim=True).clamp_min(1e-30)
    torch.testing.assert_close(found[0], x + expected)
    with torch.no_grad():
        before = window_loss(model(batch.input_ids, inputs_embeds=model.embed(batch.input_ids)), batch, "margin")[0]
    gained = (
        sum(float(expected[i] @ w) for w in (U, V) for i in [int((x @ w).masked_fill(~batch.free[0], -torch.inf).argmax())]) / 2
    )
    assert float(loss[0] - before) == pytest.approx(gained, abs=1e-5)


def test_eot_is_the_mean_over_configurations():
    model, batch = Linear(), linear_batch()
    clean = model.embed(batch.input_ids).detach()
    delta = torch.zeros_like(clean)
    parts = [expected_loss(model, clean, delta, batch, "cross_entropy", lambda query, g=g: [g], 0) for g in (0.5, 1.0, 3.0)]
    loss, gradient = expected_loss(model, clean, delta, batch, "cross_entropy", lambda query: [0.5, 1.0, 3.0], 0)
    torch.testing.assert_close(loss, torch.stack([p[0] for p in parts]).mean(0))
    torch.testing.assert_close(gradient, torch.stack([p[1] for p in parts]).mean(0))


def test_right_is_any_token_of_any_given_answer():
    ids = linear_batch().input_ids
    batch, output = linear_batch(), Linear()(ids, inputs_embeds=Linear().embed(ids))
    batch.free[0, 5] = False  # another answer, apart from the first
    p = [torch.softmax(logits[0, 2:], 0) for logits in (output.start, output.end)]
    expected = -sum((x[1] + x[3]).log() for x in p) / 2
    assert window_loss(output, batch, "cross_entropy").tolist() == pytest.approx([expected.item(), 0])
    margins = [max(logits[0, 2], logits[0, 4]) - max(logits[0, 3], logits[0, 5]) for logits in (output.start, output.end)]
    assert window_loss(output, batch, "margin").tolist() == pytest.approx([sum(m.item() for m in margins) / 2, 0])
    batch.free[0] = False  # nothing is wrong: nothing to win
    assert window_loss(output, batch, "cross_entropy").tolist() == [0, 0] == window_loss(output, batch, "margin").tolist()


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_windows_without_an_answer_have_no_gradient_and_none_is_nan(loss):
    model, batch = Linear(), linear_batch()
    clean = model.embed(batch.input_ids).detach()
    found, gradient = expected_loss(model, clean, torch.zeros_like(clean), batch, loss, lambda query: [1.0], 0)
    assert torch.isfinite(gradient).all() and gradient[0].any() and not gradient[1].any() and found[1] == 0


@given(st.integers(0, 99), st.just(0.0) | st.floats(1e-6, 5), NORMS)  # the square of less would vanish
def test_a_projection_is_the_nearest_point_of_the_ball_and_moves_nothing_inside(seed, radius, norm):
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(7, WIDTH, generator=generator).double() * 3
    delta[0] = 0
    found = project(delta, radius, norm)
    length = found.abs().amax(1) if norm == "linf" else found.norm(dim=1)
    assert (length <= radius * (1 + 1e-12)).all()
    inside = (delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)) <= radius
    assert torch.equal(found[inside], delta[inside]) and torch.allclose(project(found, radius, norm), found)
    for other in project(torch.randn(20, 7, WIDTH, generator=generator).double() * radius, radius, norm):
        assert ((delta - found).norm(dim=1) <= (delta - other).norm(dim=1) + 1e-9).all()


TOKENIZER = build_tokenizer()
QUESTIONS = generate(10, 0)
BATCH = collate(featurize(QUESTIONS, TOKENIZER, 128, 32), 1)
PRECISIONS = [Precision(b, b) for b in (8, 4, 2)]


def build() -> SwitchableModel:
    torch.manual_seed(0)
    made = SwitchableModel(build_model(2, 2, 32, 0))
    made.add_adapters({SHARED: LoraSpec(2, 4)})
    return made.eval()


@pytest.fixture(scope="module")
def model():
    return build()


ATTACKS = [
    AttackArguments.fgsm(0.5),
    AttackArguments(0.5, steps=3, restarts=2),
    AttackArguments(0.5, "l2", steps=3, loss="margin"),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=["FGSM", "PGD", "PGD in L2, margin"])
@pytest.mark.parametrize(
    "draws", [lambda m: static(PRECISIONS[1], m), lambda m: every(PRECISIONS, m), lambda m: per_layer(PRECISIONS, m, 0, 2)]
)
def test_what_an_attack_may_not_do(model, attack, draws):
    clean = model.embed(BATCH.input_ids).detach()
    before = model.configuration
    found, loss = attack_embeddings(model, BATCH, attack, draws(model), 1)
    moved = found - clean
    assert not moved[~BATCH.free].any() and moved[BATCH.free].any()
    radius = attack.epsilon * mean_embedding_norm(model)
    size = moved.abs().amax(-1) * clean.shape[-1] ** 0.5 if attack.norm == "linf" else moved.norm(dim=-1)
    assert (size <= radius * (1 + 1e-4)).all()
    assert model.configuration == before and all(p.grad is None for p in model.parameters())
    again, same = attack_embeddings(model, BATCH, attack, draws(model), 1)
    assert torch.equal(again, found) and torch.equal(same, loss)


def test_an_attack_holds_nothing_for_the_gradients_of_weights():
    model = build()

    def held() -> int:
        saved: list[torch.Tensor] = []
        with saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
            attack_embeddings(model, BATCH, ATTACKS[1], every(PRECISIONS, model), 1)
        return len(saved)

    trained = [p for p in model.parameters() if p.requires_grad]
    found = held()
    assert trained and all(p.requires_grad for p in trained)
    model.requires_grad_(False)
    assert found == held() > 0


def test_the_question_and_every_given_answer_are_protected():
    for row, (ids, free) in enumerate(zip(BATCH.input_ids, BATCH.free, strict=True)):
        touched = TOKENIZER.decode(ids[free])
        for answer in QUESTIONS[row].answers:
            assert answer.text in TOKENIZER.decode(ids[BATCH.context[row]])
        start, end = int(BATCH.start[row]), int(BATCH.end[row])
        assert not free[start : end + 1].any() and not free[: int(BATCH.context[row].int().argmax())].any()
        assert touched


def test_of_several_given_answers_all_are_protected():
    given = QUESTIONS[0]
    (first,) = given.answers
    other = next(w for w in re.finditer(r"\w+", given.context) if first.text not in w[0] and w[0] not in first.text)
    two = replace(given, answers=(first, Answer(other[0], other.start())))
    alone, both = (collate(featurize([q], TOKENIZER, 128, 32), 1) for q in (given, two))
    protected = alone.attackable & ~both.attackable
    assert TOKENIZER.decode(both.input_ids[protected]).strip() == other[0]
    assert not (both.attackable & ~alone.attackable).any()


def test_an_attack_raises_the_loss_it_is_aimed_at_and_more_with_a_larger_ball(model):
    draws, losses = static(PRECISIONS[0], model), []
    for epsilon in (0.0, 0.1, 1.0):
        losses.append(attack_embeddings(model, BATCH, AttackArguments(epsilon, steps=5), draws, 0)[1].mean())
    assert losses[0] < losses[1] < losses[2]
    with torch.no_grad(), model.at(8):
        noise = window_loss(
            model(inputs_embeds=random_noise(model, BATCH, AttackArguments(1.0), 0)), BATCH, "cross_entropy"
        ).mean()
    assert noise < losses[2]


def test_a_search_without_gradients_finds_more_than_its_first_point(model):
    draws, tried = static(PRECISIONS[0], model), [AttackArguments(1.0, steps=n) for n in (1, 30)]
    short, long = (random_search(model, BATCH, attack, draws, 0)[1] for attack in tried)
    assert (long >= short).all() and long.mean() > short.mean()


@pytest.mark.parametrize("kind", [*PLAIN, *ODD])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_noise_is_as_large_as_epsilon_says_in_every_family(kind, norm):
    lm = family(kind)
    model = Switching(lm, nn.Linear(32, 2), [])
    clean = model.embed(BATCH.input_ids)
    length = (random_noise(model, BATCH, AttackArguments(0.1, norm=norm), 0) - clean)[BATCH.attackable].norm(dim=-1)
    unit = model.embed(torch.arange(len(lm.get_input_embeddings().weight))).norm(dim=-1).mean()
    torch.testing.assert_close(length, (0.1 * unit).expand_as(length))


@pytest.mark.parametrize("words", [8191, 8192, 8193, 20000])
def test_the_unit_of_plain_embeddings_is_their_weights_mean_norm_to_the_last_bit(words):
    model = Linear()
    table = nn.Embedding(words, 64)
    model.lm.get_input_embeddings = lambda: table
    assert mean_embedding_norm(model) == float(table.weight.detach().norm(dim=1).mean())
