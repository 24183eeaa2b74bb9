"""The stages: their order, the sections of the params that each reads, and its upstream stage. Nothing else lists them."""

from __future__ import annotations

from collections.abc import Mapping

STAGES = ("01_build", "02_switchable_train", "03_sensitivity_heatmaps", "04_cpt", "05_adversarial")


SECTIONS: Mapping[str, tuple[str, ...]] = {
    "01_build": ("seed", "model", "data", "quantizer", "teacher", "post_training", "evaluation", "compute"),
    "02_switchable_train": (
        *("precisions", "lora", "switchable", "comparisons", "tuning", "configurations", "deployment", "generative"),
    ),
    "03_sensitivity_heatmaps": ("sensitivity", "search"),
    "04_cpt": ("precisions", "lora", "switchable", "cpt"),
    "05_adversarial": ("precisions", "lora", "switchable", "adversarial"),
}
"""The sections of the params that a stage's results depend on, in addition to those of its upstream stages."""


BY_CONTENT: Mapping[str, tuple[str, tuple[str, ...]]] = {"05_adversarial": ("adversarial", ("shifted",))}
"""For some stages a section and the sources in it that are no part of the results key: the study keeps what it computes from them
under their content, so that another source costs none of the stage's other results."""


UPSTREAM: Mapping[str, str | None] = {
    "01_build": None,
    "02_switchable_train": "01_build",
    "03_sensitivity_heatmaps": "02_switchable_train",
    "04_cpt": "01_build",
    "05_adversarial": "01_build",
}


SEEDED = {"02_switchable_train": "comparisons", "04_cpt": "cpt", "05_adversarial": "adversarial"}
"""The section of the params that names the seeds of a stage's trainings."""


QUESTIONS: Mapping[str, str] = {
    "02_switchable_train": "What do fewer bits cost?",
    "04_cpt": "Does cyclic precision training help?",
    "05_adversarial": "Does random precision inference defend against attacks?",
}
"""The stages that answer the studies' questions. The first brief headline of such a stage is its answer."""
