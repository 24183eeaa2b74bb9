"""Every rotation keeps products and is undone by its inverse; nothing takes a rotation for its own inverse."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qatlib.arguments import QuantizerArguments, RotationName
from qatlib.attacks.rounding import noisy_rounding
from qatlib.export import load_adapter, save_adapter
from qatlib.layers import SwitchableLinear
from qatlib.lora import LoraSpec
from qatlib.model import SwitchableModel
from qatlib.precision import Precision
from qatlib.rotation import ROTATIONS, block_factors, factors, hadamard, has_hadamard

KNOWN = [1, 2, 4, 12, 20, 24, 28, 36, 44, 48, 60, 64, 76, 148]
"""Orders by doubling, by Paley's first (12, 20, 44) and by his second construction (28, 36, 76, 148)."""


@given(st.sampled_from([*ROTATIONS]), st.sampled_from([1, 3, 24, 64, 96, 576, 1792]), st.integers(0, 2**31))
def test_a_rotation_keeps_products_and_its_inverse_undoes_it(name, size, seed):
    a, b = torch.randn(2, 5, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rotated = ROTATIONS[name]
    assert torch.allclose(rotated.inverse(rotated.apply(a)), a, atol=1e-5)
    assert torch.allclose(rotated.apply(a) @ rotated.apply(b).t(), a @ b.t(), atol=1e-4)
    assert rotated.rotates == (name != "none") and set(ROTATIONS) == set(get_args(RotationName))


@pytest.mark.parametrize("n", KNOWN)
def test_a_hadamard_matrix_is_orthogonal_and_all_its_entries_have_one_size(n):
    signs = (hadamard(n).double() * n**0.5).round()
    assert torch.equal(signs.abs(), torch.ones(n, n, dtype=torch.float64))
    assert torch.equal(signs @ signs.t(), n * torch.eye(n, dtype=torch.float64))


@pytest.mark.parametrize("n", [0, 3, 6, 52, 92, 172])
def test_an_order_without_a_construction_is_refused(n):
    assert not has_hadamard(n)
    with pytest.raises(ValueError, match=f"no construction here gives a Hadamard matrix of order {n}"):
        hadamard(n)


@pytest.mark.parametrize(
    ("width", "expected"),
    [(64, (1, 64)), (576, (24, 24)), (768, (24, 32)), (1536, (32, 48)), (3072, (48, 64)), (4864, (64, 76)), (11008, (16, 16))],
)
def test_a_width_is_rotated_as_far_as_the_constructions_reach(width, expected):
    """11008 is 43 · 256, and no matrix of an order 43 · 2^k up to 256 is known here: it is rotated in blocks of 256."""
    assert factors(width) == expected
    size = expected[0] * expected[1]
    turned = ROTATIONS["hadamard"].apply(torch.eye(width)[:size:7])
    assert torch.allclose(turned[:, :size].abs(), torch.full((len(turned), size), size**-0.5))
    assert not turned[:, size:].any()


def test_blocks_have_at_most_64_features():
    assert torch.allclose(ROTATIONS["block"].apply(torch.eye(128))[:64, :64].abs(), torch.full((64, 64), 0.125))
    assert block_factors(576) == (1, 64) and block_factors(24) == (1, 8)


@pytest.fixture
def turned():
    """A quantizer with a rotation that is not its own inverse."""
    x = torch.eye(24)
    assert not torch.allclose(ROTATIONS["hadamard"].apply(x), ROTATIONS["hadamard"].inverse(x))
    return QuantizerArguments(rotation="hadamard")


X = torch.randn(9, 24, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_layers_ask_for_the_inverse_where_they_go_back(turned):
    torch.manual_seed(0)
    layer = SwitchableLinear(nn.Linear(24, 16), turned).eval()
    layer.precision = Precision(16, 16)
    assert torch.allclose(layer(X), nn.functional.linear(X, layer.weight, layer.bias), atol=1e-3)
    assert torch.allclose(layer.read_back(16), layer.weight, atol=1e-3)
    layer.add_adapters({32: LoraSpec(2, 4)})
    nn.init.normal_(layer.adapters["32"].lora_B)
    layer.precision = Precision(32, 32)
    before = layer(X)
    layer.merge_adapter(32)
    layer.adapters.clear()
    assert torch.allclose(layer(X), before, atol=1e-4)


@torch.no_grad()
def test_an_adapter_is_exported_for_inputs_that_are_not_rotated_and_comes_back(turned, tmp_path):
    layer, spec = SwitchableLinear(nn.Linear(24, 16), turned).eval(), LoraSpec(2, 2)
    layer.add_adapters({32: spec})
    nn.init.normal_(layer.adapters["32"].lora_B)
    base = nn.functional.linear(X, layer.weight, layer.bias)
    change = layer(X) - base
    save_adapter(tmp_path, {"it": layer}, 32, spec)
    plain = SwitchableLinear(nn.Linear(24, 16), QuantizerArguments()).eval()
    again = SwitchableLinear(nn.Linear(24, 16), turned).eval()
    for other in (plain, again):
        other.add_adapters({32: spec})
        load_adapter(tmp_path, {"it": other}, 32)
        found = other(X) - nn.functional.linear(X, other.weight, other.bias)
        assert torch.allclose(found, change, atol=1e-4)


@torch.no_grad()
def test_noise_in_the_rounding_is_added_in_the_rotated_basis_and_turned_back(turned, tiny_lm):
    model = SwitchableModel(tiny_lm(), turned).eval()
    layer, x = model.layers[0], torch.randn(3, model.layers[0].in_features)
    exact = layer(x)
    with noisy_rounding(model, torch.Generator().manual_seed(0)), model.at("w32a16"):
        assert torch.allclose(layer(x), exact, atol=1e-3)  # a step at 16 bits is 1e-4 of the input
