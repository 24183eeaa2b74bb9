"""The studies' claims: what each says, with which figures, and which notebooks test it. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """One claim, as stated by the studies."""

    says: str
    figures: str
    """The figures given by the study."""
    studies: str
    """S0 to S4."""
    stages: tuple[str, ...]
    """Notebooks that give the effects for its verdict."""
    about_training: bool = False
    """Whether it is about the effect of a training. Its verdict then needs several trainings."""
    counts: str = "questions"
    """The unit that `n` counts."""
    attacked: bool = False
    """Whether it is about robustness to an attack. Its verdict is then only as good as the attack."""


_BUILD, _SWITCHABLE, _LAYERS, _CPT, _ADVERSARIAL = (
    ("01_build",),
    ("02_switchable_train",),
    ("03_sensitivity_heatmaps",),
    ("04_cpt",),
    ("05_adversarial",),
)

CLAIMS: Mapping[str, Claim] = {
    "C01": Claim("8 bits cost little", "F1 74.03 of 76.80 at fp LoRA; 16 bits 75.42", "S1", _SWITCHABLE, True),
    "C02": Claim("6 bits cost little, 4 bits a lot", "F1 71.15 and 60.41 of 76.80", "S1", _SWITCHABLE, True),
    "C03": Claim(
        "training keeps about 98 % at 8 bits, 95 % at 4, 85 % at 2, and 96 % cyclically",
        "approximate, unmeasured",
        "S2",
        (*_SWITCHABLE, *_CPT),
        True,
    ),
    "C04": Claim(
        "8, 4 and 2 bits are about 2, 3 and 4 times as fast, and 4, 8 and 16 times smaller; mixed ones 2.5 and 6 times",
        "approximate, unmeasured",
        "S2",
        _SWITCHABLE,
        counts="files, rounds of timing",
    ),
    "C05": Claim("distillation is essential for stability across bit-widths", "none", "S1", _SWITCHABLE, True),
    "C06": Claim("2 bits are unstable", "removed from the supported set", "S0", _SWITCHABLE, True),
    "C07": Claim("a weight scale a channel is crucial at 4 to 6 bits", "one scale a matrix collapses", "S3", _BUILD),
    "C08": Claim(
        "static activation scales need a calibration pass for each precision", "very high perplexity without", "S3", _BUILD
    ),
    "C09": Claim(
        "mixed8648 costs 8 to 9 % perplexity against uniform8",
        "32.25 against 29.71 to 29.86",
        "S3",
        _SWITCHABLE,
        counts="paragraphs",
    ),
    "C10": Claim("the MLP tolerates low precision better than attention", "qualitative", "S3", _LAYERS),
    "C11": Claim("attn.c_proj is robust; attn.c_attn and mlp.c_fc are the most sensitive", "a heatmap", "S1", _LAYERS),
    "C12": Claim("mlp.c_proj is the most critical layer", "C7 and C8 against other configurations", "S4", _LAYERS),
    "C13": Claim("early blocks need more bits than late ones", "a heatmap", "S1", _LAYERS),
    "C14": Claim("F1 falls about linearly with the average bits", "a figure", "S4", _SWITCHABLE, counts="configurations"),
    "C15": Claim("with 83 % of the layers below 8 bits F1 is kept", "71.18 F1 of 74.03 at 8 bits", "S1", _LAYERS),
    "C16": Claim(
        "CPT is better with a shared adapter than with separate ones",
        "shared: F1 73.97, 73.80, 72.72, 69.65, 53.29 at 8, 7, 6, 5, 4 bits",
        "S1",
        _CPT,
        True,
    ),
    "C17": Claim("6 bits gain most from CPT", "F1 72.72 against 71.15", "S1", _CPT, True),
    "C18": Claim("CPT lifts 4 bits most", "F1 5.36 to 21.08; at 8 bits 20.05 to 24.27", "S4", _CPT, True),
    "C19": Claim("CPT's perplexity is no higher than static training's", "qualitative", "S3", _CPT, True, counts="paragraphs"),
    "C20": Claim(
        "RPI cuts the drop under PGD by at least 58 %",
        "31.72 % of F1 lost (0.030 to 0.020) without, 0 % (0.000 to 0.008) with; 10 questions",
        "S0",
        _ADVERSARIAL,
        attacked=True,
    ),
    "C21": Claim(
        "RPI cuts the drop under QA-Attack",
        "8 bits 10.57 to 8.11 %, 4 bits 16.35 to 10.32 % (F1); 15.06 to 7.18, 25.61 to 15.31 (EM)",
        "S1",
        _ADVERSARIAL,
        attacked=True,
    ),
    "C22": Claim(
        "character noise raises perplexity alike at every precision",
        "+70.3, +70.3, +71.3 %",
        "S3",
        _ADVERSARIAL,
        counts="paragraphs",
    ),
    "C23": Claim(
        "8 bits and RPI reduce the drop under PGD and HotFlip against 32 bits, partly by lower clean accuracy",
        "PGD −32.1, −6.4, −8.1; HotFlip −26.5, −7.4, −4.8",
        "S4",
        _ADVERSARIAL,
        attacked=True,
    ),
    "C24": Claim("drawing from 4 and 8 defends better than from 4, 6 and 8", "a conjecture", "S4", _ADVERSARIAL, attacked=True),
    "C25": Claim("finer draws defend better", "a conjecture", "S3", _ADVERSARIAL, attacked=True),
    "C26": Claim("consistency training weakens RPI", "a conjecture", "S4", _ADVERSARIAL, True, attacked=True),
}
"""Where a claim is vague, the effects in `qatlib.judging.claims` show how it was interpreted."""
