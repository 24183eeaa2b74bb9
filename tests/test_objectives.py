"""Batches and losses against direct computation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qatlib.arguments import ObjectiveArguments
from qatlib.model import Output, SwitchableModel
from qatlib.objectives import added_term, collate, divergence, next_token_nll, span_logits, span_nll, task_loss
from qatlib.qa.spans import Feature

FEATURES = [
    Feature(0, (5, 6, 7, 8, 9), 2, ((0, 1), (2, 3), (4, 5)), 3, 4),
    Feature(1, (5, 6, 7), 1, ((0, 1), (2, 3)), 2, 2),
    Feature(2, (4, 3, 2, 1), 2, ((0, 1), (2, 3)), -1, -1),
]


def test_collate_pads_on_the_right_and_marks_the_context():
    batch = collate(FEATURES, pad_id=1)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [5, 6, 7, 1, 1], [4, 3, 2, 1, 1]]
    assert batch.context.int().tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]
    assert batch.real.sum(1).tolist() == [5, 3, 4]


def test_span_loss_is_over_context_tokens_only():
    batch = collate(FEATURES, pad_id=1)
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    loss = span_nll(Output(torch.empty(0), logits[0], logits[1]), batch)
    for row, f in enumerate(FEATURES[:2]):
        inside = slice(f.context_start, len(f.input_ids))
        parts = [
            -torch.log_softmax(logits[i, row, inside], 0)[target - f.context_start] for i, target in enumerate((f.start, f.end))
        ]
        assert float(loss[row]) == pytest.approx(float(sum(parts)) / 2, rel=1e-5)  # fp32 rounds by 1e-7
    assert bool(loss[2].isnan())


def test_padding_changes_no_loss(tiny_lm):
    model = SwitchableModel(tiny_lm()).eval()
    batch = collate(FEATURES[:2], pad_id=1)
    together = next_token_nll(model, model(batch.input_ids), batch)
    for row, f in enumerate(FEATURES[:2]):
        alone = collate([f], pad_id=1)
        nll = next_token_nll(model, model(alone.input_ids), alone)
        assert torch.allclose(together[row, : len(f.input_ids) - 1], nll[0], atol=1e-5)  # fp32's rounding of 5, twenty times
        assert float(together[row, len(f.input_ids) - 1 :].abs().sum()) == 0


def test_task_loss_adds_the_weighted_parts(tiny_lm):
    model = SwitchableModel(tiny_lm()).eval()
    batch = collate(FEATURES[:2], pad_id=1)
    output = model(batch.input_ids)
    loss, parts = task_loss(model, output, batch, 0.3)
    assert float(loss.detach()) == pytest.approx(float(parts["span_loss"] + 0.3 * parts["lm_loss"]), rel=1e-5)
    alone, parts = task_loss(model, output, batch, 0)
    assert float(alone.detach()) == pytest.approx(float(parts["span_loss"])) and "lm_loss" not in parts


def test_losses_of_the_shares_of_a_batch_add_up_to_those_of_the_whole(tiny_lm):
    model = SwitchableModel(tiny_lm()).eval()
    features = [*FEATURES[:2], replace(FEATURES[0], input_ids=(9, 3, 7, 2, 5, 5, 1), offsets=((0, 1),) * 5)]
    whole = collate(features, pad_id=1)
    _, expected = task_loss(model, model(whole.input_ids), whole, 0.3)
    shares = [collate(features[i::2], pad_id=1, whole=features) for i in range(2)]
    parts = [task_loss(model, model(share.input_ids), share, 0.3)[1] for share in shares]
    for key in ("span_loss", "lm_loss"):
        assert float(parts[0][key] + parts[1][key]) == pytest.approx(float(expected[key]), rel=1e-5)


KINDS = ["kl", "js", "mse"]


def directly(kind, reference, logits, temperature):
    """The divergence of two vectors of logits, in float64, by its definition."""
    reference, logits = reference.double(), logits.double()
    if kind == "mse":
        return float(((logits - logits.mean()) - (reference - reference.mean())).square().mean())
    p, q = torch.softmax(reference / temperature, 0), torch.softmax(logits / temperature, 0)
    if kind == "kl":
        return temperature**2 * float((p * (p / q).log()).sum())
    middle = (p + q) / 2
    return temperature**2 * float((p * (p / middle).log() + q * (q / middle).log()).sum()) / 2


@settings(deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 2**20), st.sampled_from([1.0, 2.5]), st.sampled_from([0.1, 3.0, 9.0]))
def test_divergences_are_those_of_the_context_alone(kind, seed, temperature, size):
    args = ObjectiveArguments("distillation", divergence=kind, temperature=1.0 if kind == "mse" else temperature)
    batch = collate(FEATURES, pad_id=1)
    reference, logits = size * torch.randn(2, 2, 3, 5, generator=torch.Generator().manual_seed(seed))
    found = divergence(reference, logits, batch.context, args)
    for row, f in enumerate(FEATURES):
        inside = slice(f.context_start, len(f.input_ids))
        parts = [directly(kind, reference[i, row, inside], logits[i, row, inside], args.temperature) for i in range(2)]
        assert float(found[row]) == pytest.approx(sum(parts) / 2, rel=1e-3, abs=1e-5)  # fp32 loses 5e-7 of a small one


@pytest.mark.parametrize("kind", KINDS)
def test_question_and_padding_have_no_part_in_a_divergence(kind):
    args = ObjectiveArguments("cascaded", divergence=kind)
    batch = collate(FEATURES, pad_id=1)
    gradients, values = [], []
    for outside in (0.0, torch.nan, torch.inf, -1e30):
        reference, logits = torch.randn(2, 2, 3, 5, generator=torch.Generator().manual_seed(0))
        reference, logits = (x.masked_fill(~batch.context, outside).requires_grad_() for x in (reference, logits))
        value = divergence(reference, logits, batch.context, args)
        value.sum().backward()
        assert reference.grad is None and bool((logits.grad[:, ~batch.context] == 0).all())
        assert float(logits.grad[:, batch.context].abs().min()) > 0
        values.append(value.detach()), gradients.append(logits.grad)
    assert all(torch.equal(value, values[0]) for value in values)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_a_divergence_is_finite_where_answers_are_certain_and_nothing_where_they_agree(kind):
    args = ObjectiveArguments("consistency", divergence=kind)
    context = torch.ones(1, 4, dtype=torch.bool)
    sure = torch.tensor([[[300.0, 0, 0, 0]], [[0, 0, 0, 300.0]]])
    other = sure.flip(-1).requires_grad_()
    value = divergence(sure, other, context, args)
    value.sum().backward()
    assert bool(value.isfinite().all()) and bool(other.grad.isfinite().all()) and float(value.detach()) > 0.5
    assert float(divergence(sure, sure + 7, context, args)) == pytest.approx(0, abs=1e-5)


def test_temperature_keeps_the_size_of_the_gradient():
    """Hinton et al. 2015, section 2.1: at a high temperature T² · KL is half the mse of centred logits."""
    batch = collate(FEATURES[:1], pad_id=1)
    reference, logits = torch.randn(2, 2, 1, 5, generator=torch.Generator().manual_seed(0))
    hot = divergence(reference, logits, batch.context, ObjectiveArguments("distillation", temperature=200.0))
    mse = divergence(reference, logits, batch.context, ObjectiveArguments("distillation", divergence="mse"))
    assert float(hot) == pytest.approx(float(mse) / 2, rel=0.02)  # what is left is of the order of 1 / T: 0.004


def test_each_objective_learns_from_whom_it_says():
    batch = collate(FEATURES, pad_id=1)
    logits, widest, wider, teacher = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(0))

    def term(name, before):
        return added_term(ObjectiveArguments(name), logits, before, teacher, batch)

    def apart(reference):
        return divergence(reference, logits, batch.context, ObjectiveArguments("cascaded")).mean()

    assert term("average", [widest]) is None and term("joint", [widest]) is None
    assert torch.allclose(term("cascaded", [widest, wider]), (apart(widest) + apart(wider)) / 2)
    assert torch.allclose(term("consistency", [widest, wider]), apart(widest))
    assert torch.allclose(term("distillation", [widest, wider]), apart(teacher))
    assert float(term("cascaded", [])) == float(term("consistency", [])) == 0


def test_span_logits_are_start_then_end(tiny_lm):
    output = Output(torch.empty(0), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bfloat16))
    assert torch.equal(span_logits(output), torch.stack([torch.zeros(2, 3), torch.ones(2, 3)]))
