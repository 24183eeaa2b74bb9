"""Divergences by their definition, and whom each objective learns from."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qatlib.arguments import OBJECTIVES, ObjectiveArguments
from qatlib.objectives import added_terms, divergence, hidden_distance
from qatlib.qa.loss import collate, span_logits
from qatlib.qa.spans import Feature
from qatlib.switching import Output

FEATURES = [
    Feature(0, (5, 6, 7, 8, 9), 2, ((0, 1), (2, 3), (4, 5)), 3, 4),
    Feature(1, (5, 6, 7), 1, ((0, 1), (2, 3)), 2, 2),
    Feature(2, (4, 3, 2, 1), 2, ((0, 1), (2, 3)), -1, -1),
]


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


def outputs(count):
    hidden = torch.randn(count, 3, 5, 4, generator=torch.Generator().manual_seed(1))
    logits = torch.randn(count, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    return [Output(h, *pair) for h, pair in zip(hidden, logits, strict=True)]


def test_each_objective_learns_from_whom_it_says():
    batch = collate(FEATURES, pad_id=1)
    own, widest, wider, teacher = outputs(4)

    def terms(name, before, hidden_weight=0.0):
        return added_terms(ObjectiveArguments(name, hidden_weight=hidden_weight), own, before, teacher, batch)

    def term(name, before):
        ((weight, value),) = terms(name, before).values()
        assert weight == 1
        return value

    def apart(reference):
        return divergence(span_logits(reference), span_logits(own), batch.context, ObjectiveArguments("cascaded")).mean()

    assert set(OBJECTIVES) == set(get_args(get_type_hints(ObjectiveArguments)["name"]))
    assert terms("average", [widest]) == terms("joint", [widest]) == {}
    assert torch.allclose(term("cascaded", [widest, wider]), (apart(widest) + apart(wider)) / 2)
    assert torch.allclose(term("consistency", [widest, wider]), apart(widest))
    assert torch.allclose(term("distillation", [widest, wider]), apart(teacher))
    assert float(term("cascaded", [])) == float(term("consistency", [])) == 0
    weight, distance = terms("distillation", [widest], hidden_weight=3)["hidden_distance"]
    assert weight == 3 and torch.allclose(distance, hidden_distance(teacher.hidden, own.hidden, batch.real).mean())


def test_the_distance_of_hidden_states_is_that_of_real_tokens_in_the_size_of_the_reference():
    batch = collate(FEATURES, pad_id=1)
    reference, own = (output.hidden for output in outputs(2))
    own.requires_grad_()
    found = hidden_distance(reference, own, batch.real)
    for row, f in enumerate(FEATURES):
        ours, theirs = own[row, : len(f.input_ids)], reference[row, : len(f.input_ids)]
        assert torch.allclose(found[row], ((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).square().mean())
    assert torch.allclose(hidden_distance(10 * reference, 10 * own, batch.real), found)
    found.sum().backward()
    assert not own.grad[~batch.real].any() and own.grad[batch.real].any(-1).all()
    assert not hidden_distance(reference, reference, batch.real).any()
