"""What each part of a quantization scheme is worth on the teacher, before any training."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from qatlib.arguments import QuantizerArguments
from qatlib.lora import LoraSpec
from qatlib.model import SwitchableModel
from qatlib.params.experiments import Ablation
from qatlib.params.sections import AdapterStart
from qatlib.precision import FULL_PRECISION
from qatlib.qa.calibration import start_adapters
from qatlib.studies.scales import Found, stacked
from qatlib.studies.study import Study

PLAIN, WHOLE = "plain", "all parts"


class Variant(NamedTuple):
    """One scheme: `PLAIN`, `WHOLE`, or one that differs from one of these in a single part."""

    name: str
    quantizer: QuantizerArguments
    start: AdapterStart
    part: str = ""
    """In what it differs: an option of the quantizer, or `start`, that of the adapters."""
    change: Literal["", "added", "removed"] = ""
    """Whether the part is added to `PLAIN` or removed from `WHOLE`."""

    @property
    def having(self) -> str:
        """Of this variant and the one it differs from, the name of that which has the part."""
        return WHOLE if self.change == "removed" else self.name

    @property
    def lacking(self) -> str:
        """The name of the other one."""
        return PLAIN if self.change == "added" else self.name


def variants(best: QuantizerArguments) -> list[Variant]:
    """`PLAIN`, it with each part, `WHOLE`, and it without each part.

    `PLAIN` is the scheme of the five studies: min-max scales, nearest codes, no rotation, adapters that start at zero. `WHOLE` is
    the best quantizer with adapters that start at the output error. Its parts are the options in which the two differ. A size of
    groups is no part of its own; it belongs to `weights`.
    """
    plain = QuantizerArguments()
    added = [Variant(PLAIN, plain, "zero"), Variant("with start", plain, "output_error", "start", "added")]
    removed = [Variant(WHOLE, best, "output_error"), Variant("without start", best, "zero", "start", "removed")]
    for part in (f.name for f in fields(QuantizerArguments) if f.name != "group_size"):
        if getattr(plain, part) != getattr(best, part):
            options = (part, "group_size") if part == "weights" else (part,)
            own, other = ({name: getattr(scheme, name) for name in options} for scheme in (best, plain))
            added.append(Variant(f"with {part}", replace(plain, **own), "zero", part, "added"))
            removed.append(Variant(f"without {part}", replace(best, **other), "output_error", part, "removed"))
    return [*added, *removed]


def ablation(study: Study, teacher: Path, section: Ablation) -> Found:
    """Every variant of `section.quantizer` on a saved teacher, at the precisions of the section; `PLAIN` at 32 bits as well.

    Returns:
        Scores and perplexities in the schema of `qatlib.judging.results`, with `divergence` from 32 bits in the latter.
    """

    @lru_cache(maxsize=1)  # neighbours differ in their adapters alone, and codes take minutes
    def quantized(quantizer: QuantizerArguments) -> SwitchableModel:
        model = study.saved_model(teacher)
        study.quantize(model, quantizer, section.precisions)
        return model

    def measured(variant: Variant) -> Found:
        model, adapted = quantized(variant.quantizer), variant.start == "output_error"
        model.add_adapters({p.w_bits: LoraSpec(section.rank, section.rank) for p in section.precisions} if adapted else {})
        if adapted:
            start_adapters(model, study.calibration_features, f"starting the adapters of {variant.name}")
        at = [FULL_PRECISION, *section.precisions] if variant.name == PLAIN else section.precisions
        label = f"ablation_{variant.name}".replace(" ", "_")
        scores = study.scores(model, label, at, section.questions, published=False)
        perplexities = study.perplexities(model, label, at, section.paragraphs, published=False, against=FULL_PRECISION)
        return scores.assign(model=variant.name), perplexities.assign(model=variant.name)

    @cache
    def found() -> Found:  # a finished ablation prepares no model again
        return stacked([measured(variant) for variant in variants(section.quantizer)])

    return study.stage.table("ablation_scores", lambda: found()[0]), study.stage.table(
        "ablation_perplexities", lambda: found()[1]
    )
