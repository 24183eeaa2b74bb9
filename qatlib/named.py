"""The studies' hand-made configurations by name, for GPT-2's 12 blocks. Other depths use them by relative depth.

If a study does not define a name, the plain reading is used, and `meaning` states it. S4 prints an average bit-width (the
plain mean over the 48 layers) for its first ten configurations. This average says more than the names: `front8 back4` at
5.333 means a third of the blocks, not half; `qkv8 proj4` and `qkv4 proj8` at 5.000 mean one role of four at 8 bits. No
text or figure of S4 shows a C11 or a C20, so there is none here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BLOCKS = 12
"""GPT-2's number of blocks, for which `NamedConfiguration.bits` is written."""

_ALL = range(BLOCKS)


@dataclass(frozen=True)
class NamedConfiguration:
    """One named configuration; weights and activations have the same bit-width."""

    study: str
    """S0 to S4, as in the claims."""
    meaning: str
    bits: Mapping[range, tuple[int, int, int, int]]
    """For runs of the 12 blocks, the bit-widths of qkv, attn_out, mlp_in, mlp_out. The first run that has a block counts."""

    def of_block(self, block: int, blocks: int) -> tuple[int, int, int, int]:
        """Bit-widths of qkv, attn_out, mlp_in and mlp_out in block `block` of a model of `blocks` blocks.

        The middle of this block has a relative depth. The bit-widths are those of GPT-2's block at that depth, so the share of
        blocks at a bit-width stays the same. The first and last blocks always get those of GPT-2's first and last blocks.
        """
        from_end = min(block, blocks - 1 - block)  # counted from the nearer end, so that both halves are rounded in the same way
        at = ((2 * from_end + 1) * BLOCKS // 2 - 1) // blocks if from_end else 0
        at = at if block == from_end else BLOCKS - 1 - at
        return next(bits for run, bits in self.bits.items() if at in run)


def _uniform(study: str, bits: int, meaning: str) -> NamedConfiguration:
    return NamedConfiguration(study, meaning, {_ALL: (bits,) * 4})


def _three(digits: str) -> NamedConfiguration:
    """S4's three digits: attention, mlp_in, mlp_out."""
    attention, mlp_in, mlp_out = map(int, digits)
    meaning = f"attention at {attention} bits, mlp_in at {mlp_in}, mlp_out at {mlp_out}"
    return NamedConfiguration("S4", meaning, {_ALL: (attention, attention, mlp_in, mlp_out)})


def _blocks_at_8(high: tuple[range, ...], meaning: str) -> NamedConfiguration:
    return NamedConfiguration("S4", meaning, dict.fromkeys(high, (8,) * 4) | {_ALL: (4,) * 4})


NAMED: Mapping[str, NamedConfiguration] = {
    "fp32": _uniform("S0", 32, "nothing quantized"),
    "int8": _uniform("S0", 8, "every layer at 8 bits"),
    "int4": _uniform("S0", 4, "every layer at 4 bits"),
    "int2": _uniform("S0", 2, "every layer at 2 bits"),
    "mixed": NamedConfiguration(
        "S0", "attention at 8 bits, MLP at 4 (S0 names it, but does not say what it is)", {_ALL: (8, 8, 4, 4)}
    ),
    "uniform8": _uniform("S3", 8, "every layer at 8 bits"),
    "mixed8648": NamedConfiguration(
        "S3",
        "qkv at 6 bits and mlp_in at 4, as S3's table has it; attn_out and mlp_out, the name's two eights, at 8",
        {_ALL: (6, 8, 4, 8)},
    ),
    "optimal": NamedConfiguration(
        "S1",
        "S1's optimal mix; its rows 4–9 and 9–11 overlap, and block 9 counts to the last, which S1 finds tolerates 4 bits",
        {range(4): (6, 4, 6, 6), range(4, 9): (8, 6, 6, 8), range(9, 12): (4, 4, 4, 4)},
    ),
    "C0": _uniform("S4", 6, "every layer at 6 bits"),
    "C1": _uniform("S4", 8, "every layer at 8 bits"),
    "C2": _uniform("S4", 4, "every layer at 4 bits"),
    "C3": _blocks_at_8((range(4),), "front8 back4: the first third of the blocks at 8 bits, the rest at 4"),
    "C4": _blocks_at_8((range(8, 12),), "back8 front4: the last third of the blocks at 8 bits, the rest at 4"),
    "C5": _blocks_at_8(
        (range(2), range(10, 12)), "sandwich: the first and the last sixth of the blocks at 8 bits, the rest at 4"
    ),
    "C6": NamedConfiguration("S4", "qkv8 proj4: qkv at 8 bits, the rest at 4", {_ALL: (8, 4, 4, 4)}),
    "C7": NamedConfiguration("S4", "qkv4 proj8: attn_out at 8 bits, the rest at 4", {_ALL: (4, 8, 4, 4)}),
    "C8": NamedConfiguration("S4", "mlpfc4 mlpproj8: mlp_out at 8 bits, the rest at 4", {_ALL: (4, 4, 4, 8)}),
    "C9": _uniform(
        "S4", 4, "layernorm fp32: every layer at 4 bits, norms unquantized, as they are in all of these; so the same as C2"
    ),
    "C10": _blocks_at_8(
        (range(1), range(11, 12)),
        "mixed budget: the first and the last block at 8 bits, the rest at 4 (S4 gives its average alone)",
    ),
    "C12": _three("688"),
    "C13": _three("488"),
    "C14": _three("868"),
    "C15": _three("848"),
    "C16": _three("886"),
    "C17": _three("884"),
    "C18": _three("666"),
    "C19": _three("648"),
    "C21": _three("448"),
    "C22": _three("484"),
    "C23": _three("844"),
    "C24": _three("866"),
}
"""The named configurations, in the order of the studies."""
