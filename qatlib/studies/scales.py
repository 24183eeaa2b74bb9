"""Quantizers side by side on one trained model: kinds of weight scales, sources of activation scales, sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from qatlib.model import SwitchableModel
from qatlib.precision import FULL, FULL_PRECISION, Precision
from qatlib.qa.calibration import calibrate, set_static_range
from qatlib.qa.parts import spread
from qatlib.quantizer import fake_quantize_dynamic, sqnr_db
from qatlib.studies.study import Study

RANGE_WINDOWS = 64
"""Number of training windows in a calibration pass for static ranges."""

Found = tuple[pd.DataFrame, pd.DataFrame]
"""Scores and perplexities, in the schema of `qatlib.judging.results`."""


def weight_scales(study: Study, model: SwitchableModel) -> Found:
    """Only weights quantized: `per_channel` (one scale per output channel) against `per_tensor` (one scale per matrix)."""
    widths = [Precision(b, FULL) for b in study.params.post_training.comparison.bits]
    found = []
    study.quantize(model, replace(study.params.quantizer, weights="per_channel"), widths)
    found.append(_measure(study, model, "per_channel", [FULL_PRECISION, *widths]))
    study.quantize(model, replace(study.params.quantizer, weights="per_tensor"), widths)
    found.append(_measure(study, model, "per_tensor", widths))
    model.set_quantizer(study.params.quantizer)
    return stacked(found)


def activation_scales(study: Study, model: SwitchableModel) -> Found:
    """Weights and activations quantized to the same width, for each source of activation scales.

    `per_token` is dynamic. The others are static, with one scale per layer: `calibrated` by a pass at the same precision,
    `carried_over` to the other widths from a pass at the first, `uncalibrated` with a range of ±1.
    """
    widths = [Precision(b, b) for b in study.params.post_training.comparison.bits]
    study.quantize(model, study.params.quantizer, widths)
    windows = spread(study.train_features, RANGE_WINDOWS)
    found = [_measure(study, model, "per_token", [FULL_PRECISION, *widths])]
    study.quantize(model, replace(study.params.quantizer, activations="per_tensor_static"), widths)
    carried: list[Found] = []
    for p in widths:
        with model.at(p):
            calibrate(model, windows)
        found.append(_measure(study, model, "calibrated", [p]))
        if p == widths[0] and widths[1:]:
            carried.append(_measure(study, model, "carried_over", widths[1:]))
    found += carried
    set_static_range(model, 1.0)
    found.append(_measure(study, model, "uncalibrated", widths))
    set_static_range(model, None)
    model.set_quantizer(study.params.quantizer)
    return stacked(found)


def _measure(study: Study, model: SwitchableModel, label: str, precisions: Sequence[Precision]) -> Found:
    size = study.params.post_training.comparison
    scores = study.scores(model, label, precisions, size.questions)
    return scores, study.perplexities(model, label, precisions, size.paragraphs)


def stacked(found: Sequence[Found]) -> Found:
    """All scores in one frame, and all perplexities."""
    scores, perplexities = zip(*found, strict=True)
    return pd.concat(scores, ignore_index=True), pd.concat(perplexities, ignore_index=True)


def weight_noise(model: SwitchableModel, bits: Sequence[int]) -> pd.DataFrame:
    """SQNR of every switchable weight matrix: `layer`, `role`, `bits`, `scales` (their kind), `sqnr_db`."""
    rows = []
    for info, layer in zip(model.infos, model.layers, strict=True):
        weight = layer.oriented_weight.detach()
        for b in bits:
            for scales, dims in {"per channel": 1, "per tensor": None}.items():
                noise = sqnr_db(weight, fake_quantize_dynamic(weight, b, dims, model.quantizer.grid))
                rows.append({"layer": info.name, "role": info.role, "bits": b, "scales": scales, "sqnr_db": noise})
    return pd.DataFrame(rows)
