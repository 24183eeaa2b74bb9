"""The catalog holds every claim, and each is judged by the notebooks it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from qatlib.judging.claims.catalog import CLAIMS
from qatlib.run.stages import STAGES

MODULES = {
    "01_build": "scales",
    "02_switchable_train": "switchable",
    "03_sensitivity_heatmaps": "layers",
    "04_cpt": "cpt",
    "05_adversarial": "robust",
}


def test_all_26_claims_are_there():
    assert list(CLAIMS) == [f"C{i:02d}" for i in range(1, 27)]


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_is_judged_where_it_says(claim):
    root = Path(__file__).parents[3]
    for stage in STAGES:
        module = (root / "qatlib/judging/claims" / f"{MODULES[stage]}.py").read_text()
        assert (f'"{claim}"' in module) == (stage in CLAIMS[claim].stages)
        if stage in CLAIMS[claim].stages:
            assert f"{MODULES[stage]}.verdicts(" in (root / "notebooks" / f"{stage}.ipynb").read_text()
