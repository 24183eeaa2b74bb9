"""Changes are paired, effects are plain means, and no paragraph is on both sides."""

from __future__ import annotations

import copy

import pandas as pd

from qatlib.params.load import load_params
from qatlib.studies import layerwise

REST = ["lora.dropouts=[0,0,0]", "cpt.untrained=[]", "adversarial.sets=[[8,4]]"]


def test_no_paragraph_is_on_both_sides(layers):
    assert layers.seen and layers.held_out
    assert not {q.paragraph for q in layers.seen} & {q.paragraph for q in layers.held_out}


def test_a_sweep_lowers_weights_and_activations_together_and_apart(layers, sweep):
    kinds = layers.lowered(layers.base).set_index("precision")
    assert kinds.loc["4"].tolist() == ["both", 4, 4, 4] and kinds.loc["w2a8"].tolist() == ["weights", 2, 2, 8]
    assert kinds.loc["w8a2"].tolist() == ["activations", 2, 8, 2]
    assert len(sweep) == len(layers.groups) * 6 * len(layers.seen)
    assert set(sweep.groupby("precision").size()) == {len(layers.groups) * len(layers.seen)}


def test_a_layer_is_lowered_to_what_was_trained(layers):
    found = copy.copy(layers)
    found.params = load_params("quick", ["precisions=[32,8,w2a8]", *(f"lora.{k}=[1,1,1]" for k in ("ranks", "alphas")), *REST])
    assert [p.name for p in found.params.bases] == ["8", "32"]
    assert [p.name for p in found.candidates(found.base)] == ["8", "w2a8"]
    kinds = [["both", 2, "w2a8", 2, 8], ["weights", 2, "w2a8", 2, 8]]  # activations have nowhere to go
    assert found.lowered(found.base).to_numpy().tolist() == kinds


def test_changes_are_against_the_base_question_by_question():
    base = pd.DataFrame({"id": ["a", "b"], "loss": [1.0, 2], "f1": [50.0, 100], "em": [0.0, 100]})
    found = pd.DataFrame({"id": ["b", "a"], "loss": [2.5, 1], "f1": [0.0, 60], "em": [0.0, 100], "role": ["x", "y"]})
    changes = layerwise.against(found, base)
    assert changes["loss_change"].tolist() == [0.5, 0] and changes["f1_change"].tolist() == [-100, 10]
    assert changes["em_change"].tolist() == [-100, 100] and changes["role"].tolist() == ["x", "y"]


def test_the_sweep_is_timed_beside_whole_passes(layers):
    found = layers.reuse()
    assert (
        found["block"].tolist() == [0, 1]
        and found["equal"].all()
        and (found["cells"] == 4 * layers.lowered(layers.base)["precision"].nunique()).all()
    )
    assert (found[["sweep_seconds", "whole_seconds"]] > 0).all(axis=None)
