"""An adapter is its two factors times alpha over rank, adds nothing when it is fresh, and checks its options."""

from __future__ import annotations

import math

import pytest
import torch

from qatlib.lora import SHARED, Lora, LoraSpec, check_adapters


def test_an_adapter_is_the_product_of_its_factors_scaled_by_alpha_over_rank():
    torch.manual_seed(0)
    adapter, x = Lora(6, 5, LoraSpec(rank=2, alpha=3)), torch.randn(4, 6)
    assert not adapter(x).any()
    torch.nn.init.normal_(adapter.lora_B)
    assert torch.allclose(adapter(x), 1.5 * x @ adapter.lora_A.t() @ adapter.lora_B.t(), atol=1e-6)


def test_a_half_precision_input_gives_a_half_precision_output_of_fp32_factors():
    adapter = Lora(6, 5, LoraSpec(2, 2))
    assert adapter(torch.randn(1, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16 and adapter.lora_A.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((0, 1), "rank"),
        ((2.0, 1), "rank"),
        ((True, 1), "rank"),
        ((2, math.nan), "alpha"),
        ((2, 1, 1.0), "dropout"),
        ((2, 1, -0.1), "dropout"),
    ],
)
def test_odd_options_are_refused(options, said):
    with pytest.raises(ValueError, match=f"the {said} of an adapter is .*; allowed is"):
        LoraSpec(*options)


@pytest.mark.parametrize("specs", [[4], {33: LoraSpec(1, 1)}, {4.0: LoraSpec(1, 1)}, {4: 16}])
def test_adapters_are_given_by_their_width(specs):
    with pytest.raises(ValueError, match=r"adapter|LoraSpec") as error:
        check_adapters(specs)
    assert "\n" not in str(error.value)
    check_adapters({SHARED: LoraSpec(1, 1), 4: LoraSpec(1, 1), 32: LoraSpec(1, 1)})
