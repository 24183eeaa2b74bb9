"""The named configurations: what the studies print of them, and what depth does to them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatlib.named import BLOCKS, NAMED
from qatlib.precision import ROLES, Configuration, LayerInfo


def model(blocks: int) -> list[LayerInfo]:
    """Layers of equal size: the average by weights is then S4's, the plain mean over the layers."""
    return [LayerInfo(f"h.{b}.{role}", b, role, 100, 10) for b in range(blocks) for role in ROLES]


S4_AVERAGES = {  # its table 1
    "C1": 8.000,
    "C8": 5.000,
    "C4": 5.333,
    "C3": 5.333,
    "C5": 5.333,
    "C7": 5.000,
    "C10": 4.667,
    "C2": 4.000,
    "C9": 4.000,
    "C6": 5.000,
}


@pytest.mark.parametrize(("name", "average"), S4_AVERAGES.items())
def test_averages_are_those_that_s4_prints(name, average):
    layers = model(BLOCKS)
    assert Configuration.resolve(name, layers).average_bits(layers) == pytest.approx((average, average), abs=5e-4)  # printed so


def test_s1s_mix_leaves_about_its_share_of_layers_at_8_bits():
    bits = [p.w_bits for p in Configuration.resolve("optimal", model(BLOCKS)).values()]
    assert sum(b < 8 for b in bits) / len(bits) == pytest.approx(0.83, abs=0.05)  # 38 of 48; S1 says 83 %


@pytest.mark.parametrize("name", NAMED)
def test_every_name_has_a_meaning_and_resolves_at_any_depth(name):
    assert NAMED[name].meaning and NAMED[name].study in ("S0", "S1", "S3", "S4")
    for blocks in (1, 2, 5, 12, 24, 30):
        assert len(Configuration.resolve(name, model(blocks))) == 4 * blocks


@given(st.sampled_from(sorted(NAMED)), st.integers(2, 40))
def test_depth_keeps_the_ends_and_the_order_of_blocks(name, blocks):
    """The first and the last block stay what they are, and a deeper block is never taken from further up."""
    own = [NAMED[name].of_block(i, BLOCKS) for i in range(BLOCKS)]
    mapped = [NAMED[name].of_block(i, blocks) for i in range(blocks)]
    assert mapped[0] == own[0] and mapped[-1] == own[-1]
    position = 0
    for bits in mapped:
        position = own.index(bits, position)  # raises where the order is broken


@given(st.sampled_from(["C3", "C4", "C5", "C10"]), st.integers(BLOCKS, 80))
def test_depth_keeps_the_share_of_blocks_at_8_bits(name, blocks):
    def share(n: int) -> float:
        bits = [p.w_bits for p in Configuration.resolve(name, model(n)).values()]
        return bits.count(8) / len(bits)

    assert abs(share(blocks) - share(BLOCKS)) <= 1 / blocks + 1e-9


@given(st.integers(1, 80))
def test_front_and_back_are_mirror_images(blocks):
    front = [NAMED["C3"].of_block(i, blocks) for i in range(blocks)]
    back = [NAMED["C4"].of_block(i, blocks) for i in range(blocks)]
    assert blocks == 1 or front == back[::-1]
