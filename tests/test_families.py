"""What works on the causal families of transformers is what `docs/families.md` says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families import NAMES, row

PAGE = (Path(__file__).parents[1] / "docs/families.md").read_text().splitlines()
FAST = ("phi3", "falcon", "bert", "youtu", "qwen3_5_text", "mixtral", "mamba", "roberta")
"""Fused layers; parallel branches and a class of its own; an encoder as a decoder; latent and linear attention; refusals."""


def test_every_family_has_its_row_and_most_decoders_work():
    rows = [line.split("|") for line in PAGE if line.startswith("| ")]
    assert [family.strip() for _, family, *_ in rows[2:]] == [*NAMES]
    assert sum("| works" in line for line in PAGE) >= 90


@pytest.mark.parametrize("kind", [kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in NAMES])
def test_a_family_does_what_its_row_says(kind):
    assert row(kind) in PAGE
