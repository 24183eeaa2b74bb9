"""Norms at low precision, and back to the last bit."""

from __future__ import annotations

import pytest
import torch

from qatlib.model import SwitchableModel
from qatlib.norms import quantized_norms

NORMS = {"gpt2": 5, "llama": 5, "gpt_neox": 5, "phi": 3, "opt": 5}


@pytest.fixture
def model(tiny_lm):
    def make(kind: str = "gpt2") -> SwitchableModel:
        lm = tiny_lm(kind)
        torch.manual_seed(2)
        for p in lm.parameters():
            if p.ndim == 1:
                p.data.add_(torch.randn_like(p) * 0.3)  # gains and biases of a trained model differ
        return SwitchableModel(lm).eval()

    return make


@pytest.mark.parametrize("kind", NORMS)
def test_off_means_off_to_the_last_bit(kind, model, tokens):
    m = model(kind)
    before, state = m.lm(tokens).logits, {k: v.clone() for k, v in m.state_dict().items()}
    with quantized_norms(m, 32) as names:
        assert not names and torch.equal(m.lm(tokens).logits, before)
    with quantized_norms(m, 4) as names:
        assert len(names) == NORMS[kind] and not torch.equal(m.lm(tokens).logits, before)
    with pytest.raises(ZeroDivisionError), quantized_norms(m, 4):
        raise ZeroDivisionError
    assert torch.equal(m.lm(tokens).logits, before)
    assert all(torch.equal(v, state[k]) for k, v in m.state_dict().items())


def test_gains_and_outputs_are_on_their_grids(model, tokens):
    m, seen = model(), []
    with quantized_norms(m, 3):
        hook = m.lm.transformer.h[0].ln_1.register_forward_hook(lambda module, args, output: seen.append(output))
        m.lm(tokens)
        gain = m.lm.transformer.h[0].ln_1.weight
        hook.remove()
    assert len(gain.detach().abs().unique()) > 4  # restored
    with quantized_norms(m, 3):
        assert len(m.lm.transformer.h[0].ln_1.weight.detach().unique()) <= 7
    for token in seen[0].flatten(0, 1):
        assert len(token.unique()) <= 7


def test_wider_norms_are_nearer(model, tokens):
    m = model()
    exact = m.lm(tokens).logits
    distance = []
    for bits in (3, 6, 12):
        with quantized_norms(m, bits):
            distance.append(float((m.lm(tokens).logits - exact).norm()))
    assert distance[0] > distance[1] > distance[2] > 0


def test_the_gradient_passes_straight_through(model, tokens):
    m = model()
    embedded = m.lm.get_input_embeddings()(tokens).detach().requires_grad_()
    with quantized_norms(m, 4):
        m.lm(inputs_embeds=embedded).logits.square().mean().backward()
    assert (embedded.grad != 0).float().mean() > 0.9  # all of them; rounding alone passes none


def test_wrong_use_is_refused(model):
    m = model()
    with pytest.raises(ValueError, match="bit-width of 1"), quantized_norms(m, 1):
        pass
    m.unfreeze_base()
    with pytest.raises(ValueError, match="being trained"), quantized_norms(m, 4):
        pass
