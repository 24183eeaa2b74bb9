"""A shared rotation changes no result, is never that of another input, and does not outlive its input."""

from __future__ import annotations

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from qatlib import integer, layers
from qatlib.arguments import QuantizerArguments
from qatlib.deployed import deploy
from qatlib.layers import SwitchableLinear
from qatlib.lora import LoraSpec
from qatlib.model import SwitchableModel
from qatlib.precision import Precision
from qatlib.rotation import ROTATIONS, Rotation
from qatlib.sharing import rotated_input

TURN = ROTATIONS["hadamard"]
ROTATED = QuantizerArguments(rotation="hadamard")


@pytest.fixture
def x():
    return torch.randn(5, 7, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def unshared(monkeypatch):
    """Let every layer rotate its own input from now on."""

    def apply(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        return rotation.apply(x)

    def start() -> None:
        for module in (layers, integer):
            monkeypatch.setattr(module, "rotated_input", apply)

    return start


def projections() -> list[SwitchableLinear]:
    """Two layers that can be given the same input."""
    torch.manual_seed(0)
    found = [SwitchableLinear(nn.Linear(24, 16), ROTATED) for _ in range(2)]
    for layer in found:
        layer.precision = Precision(4, 8)
    return found


def test_the_same_input_is_rotated_once(x):
    first = rotated_input(x, TURN)
    assert rotated_input(x, TURN) is first and torch.equal(first, TURN.apply(x))
    assert rotated_input(x, ROTATIONS["none"]) is x


@given(
    st.lists(st.sampled_from(["change", "copy", "block", "none", "gradient", "no gradient", "autocast", "inference"]), max_size=8)
)
def test_whatever_happens_between_two_calls_the_rotation_is_that_of_the_input_as_it_is(events):
    x, rotation, autocast, inference = torch.randn(3, 24), TURN, False, False
    for event in events:
        rotated_input(x, TURN)
        if event == "change":
            x.mul_(2)
        elif event == "copy":
            x = x.clone() + 1
        elif event in ("block", "none"):
            rotation = ROTATIONS[event]
        elif event == "gradient":
            x = x + torch.zeros(24, requires_grad=True)
        elif event == "no gradient":
            x = x.detach()
        autocast, inference = autocast ^ (event == "autocast"), inference ^ (event == "inference")
        with torch.inference_mode(inference), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found, expected = rotated_input(x, rotation), rotation.apply(x)
        assert torch.equal(found, expected) and found.dtype == expected.dtype
        assert (found.requires_grad, found.is_inference()) == (expected.requires_grad, expected.is_inference())


def test_an_input_without_a_version_is_not_shared():
    with torch.inference_mode():
        x = torch.randn(3, 24)
        before = rotated_input(x, TURN)
        x.mul_(2)
        assert torch.equal(rotated_input(x, TURN), 2 * before)


def test_a_gradient_that_is_asked_for_later_is_not_lost(x):
    leaf = x.clone().requires_grad_()
    for given_one in (x, leaf + 0):
        with torch.no_grad():
            rotated_input(given_one, TURN)
        given_one.requires_grad_()
        (gradient,) = torch.autograd.grad(rotated_input(given_one, TURN).sum(), given_one)
        assert torch.allclose(gradient, TURN.inverse(torch.ones_like(x)), atol=1e-5)


def test_each_thread_has_its_own(x):
    mine = rotated_input(x, TURN)
    with ThreadPoolExecutor(1) as other:
        theirs = other.submit(rotated_input, x, TURN).result()
    assert theirs is not mine and torch.equal(theirs, mine) and rotated_input(x, TURN) is mine


def test_it_goes_with_its_input_also_where_there_is_a_graph():
    parameter = torch.zeros(24, requires_grad=True)
    for given_one in (torch.randn(3, 24), torch.randn(3, 24) + parameter):
        kept = weakref.ref(rotated_input(given_one, TURN))
        assert kept() is not None
        del given_one
    assert kept() is None


@pytest.mark.parametrize("backward", [True, False])
def test_a_leaf_that_wants_a_gradient_is_not_kept_by_its_own_graph(backward):
    x = torch.randn(3, 24, requires_grad=True)
    kept = weakref.ref(x)
    y = rotated_input(x, TURN).sum()
    if backward:
        y.backward()
    del x, y
    assert kept() is None


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("precision", ["4", "w4a32", "32"])
def test_a_model_computes_the_same_with_and_without(kind, precision, tiny_lm, tokens, unshared):
    model = SwitchableModel(tiny_lm(kind), ROTATED)
    model.add_adapters({4: LoraSpec(2, 4), 32: LoraSpec(2, 4)})
    for layer in model.layers:
        for adapter in layer.adapters.values():
            nn.init.normal_(adapter.lora_B, std=0.1)
    model.set_precision(precision)
    deployed = deploy(model, precision)

    def results() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        model.zero_grad()
        with torch.no_grad():
            answers = [model.eval()(tokens).start, deployed(tokens).start]
        embeds = model.embed(tokens).detach().requires_grad_()
        trained = model.train()(inputs_embeds=embeds).start
        trained.square().sum().backward()
        return [*answers, trained.detach()], [embeds.grad, *(p.grad for p in model.parameters() if p.grad is not None)]

    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    answers, gradients = results()
    unshared()
    others, other_gradients = results()
    assert all(torch.equal(a, b) for a, b in zip(answers, others, strict=True))
    for a, b in zip(gradients, other_gradients, strict=True):  # three are added before they are rotated back, not afterwards
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_layers_give_the_same_gradients(x, reentrant):
    q, k = projections()
    found = []
    for run in (partial(checkpoint, use_reentrant=reentrant), lambda layer, x: layer(x)):
        leaf = x.clone().requires_grad_()
        given_one = leaf + 0
        (run(q, given_one) + run(k, given_one)).square().sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-4)


def test_each_layer_can_go_backward_on_its_own(x):
    q, k = projections()
    leaf = x.clone().requires_grad_()
    given_one = leaf + 0
    q(given_one).sum().backward()
    of_q = leaf.grad.clone()
    k(given_one).sum().backward()
    alone = x.clone().requires_grad_()
    k(alone).sum().backward()
    torch.testing.assert_close(leaf.grad - of_q, alone.grad, rtol=1e-4, atol=1e-4)


def test_a_model_keeps_nothing_of_its_inputs(tiny_lm, tokens):
    model = SwitchableModel(tiny_lm("llama"), ROTATED)
    model.set_precision(4)
    seen: list[weakref.ref[torch.Tensor]] = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda layer, x: seen.append(weakref.ref(rotated_input(x[0], layer.rotation))))
    model.train()(tokens).start.sum().backward()
    assert seen and not [ref for ref in seen if ref() is not None]
    copied = copy.deepcopy(model)
    whole = [weakref.ref(model), weakref.ref(copied)]
    del model, copied, layer
    gc.collect()
    assert not [ref for ref in whole if ref() is not None]


@torch.no_grad()
def test_the_seven_layers_of_a_llama_block_are_given_four_inputs(tiny_lm, tokens):
    model = SwitchableModel(tiny_lm("llama"), ROTATED).eval()
    seen: list[torch.Tensor] = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda layer, x: seen.append(rotated_input(x[0], layer.rotation)))
    model(tokens)
    assert len(seen) == 7 * len(model.blocks) and len({id(x) for x in seen}) == 4 * len(model.blocks)
