"""Comparisons of quantizers: every cell measured, the model given back as it was."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from qatlib.model import SwitchableModel
from qatlib.params.load import load_params
from qatlib.qa.toyqa import build_model
from qatlib.studies import scales as comparisons


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SwitchableModel(build_model(2, 2, 16, 0)).eval()


class Watcher:
    """A study that writes down under which settings it was asked to measure."""

    def __init__(self, monkeypatch):
        self.params, self.train_features, self.seen = load_params("smoke"), [], []
        monkeypatch.setattr(comparisons, "calibrate", lambda model, *a, **k: comparisons.set_static_range(model, 7.0))

    def quantize(self, model, quantizer, precisions):
        model.set_quantizer(quantizer)

    def scores(self, model, label, precisions, questions):
        for p in precisions:
            self.seen.append((label, p.name, model.quantizer, model.layers[0].observer.absmax))
        return pd.DataFrame({"model": label, "precision": [p.name for p in precisions]})

    def perplexities(self, model, label, precisions, paragraphs):
        return pd.DataFrame({"model": label, "precision": [p.name for p in precisions]})


def test_weight_scales_quantize_weights_alone_by_both_kinds(model, monkeypatch):
    study = Watcher(monkeypatch)
    scores, _ = comparisons.weight_scales(study, model)
    assert scores["precision"].tolist() == ["32", "w8a32", "w2a32", "w8a32", "w2a32"]
    assert [(label, q.weights) for label, _, q, _ in study.seen[1::2]] == [
        ("per_channel", "per_channel"),
        ("per_tensor", "per_tensor"),
    ]
    assert model.quantizer == study.params.quantizer


def test_activation_scales_use_the_range_their_name_says(model, monkeypatch):
    study = Watcher(monkeypatch)
    comparisons.activation_scales(study, model)
    kinds = {label: (q.activations, None if m is None else float(m)) for label, _, q, m in study.seen}
    assert kinds == {
        "per_token": ("per_token", None),
        "calibrated": ("per_tensor_static", 7.0),
        "carried_over": ("per_tensor_static", 7.0),
        "uncalibrated": ("per_tensor_static", 1.0),
    }
    assert {layer.observer.absmax for layer in model.layers} == {None}
    assert model.quantizer == study.params.quantizer


def test_more_bits_and_finer_scales_mean_less_noise(model):
    noise = comparisons.weight_noise(model, (2, 4, 8)).pivot_table(index="bits", columns="scales", values="sqnr_db")
    assert noise.index.is_monotonic_increasing
    assert (noise.diff().dropna() > 6).all().all()  # a bit is worth 6 dB, and each step is two or four of them
    assert (noise["per channel"] >= noise["per tensor"]).all()
