"""A sweep is exact, whatever it does not compute again."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from qatlib.lora import LoraSpec
from qatlib.model import SwitchableModel
from qatlib.precision import Precision
from qatlib.qa.evaluate import evaluate_spans
from qatlib.qa.spans import featurize
from qatlib.qa.toyqa import build_tokenizer, generate
from qatlib.sensitivity import Reached, evaluate_changes, output_noise, sweep_block

TOKENIZER = build_tokenizer()
QUESTIONS = generate(12, 0)
FEATURES = featurize(QUESTIONS, TOKENIZER, 96, 32)
HOW = {"pad_id": 1, "batch_size": 5, "max_answer_tokens": 10}
LOWERED = [Precision.parse(p) for p in (3, "w3a8", "w8a3")]


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("gpt_neox", "phi", "opt")]


@pytest.fixture(params=["gpt2", "llama", *SLOW])
def model(request, tiny_lm):
    positions = {"n_positions": 96} if request.param == "gpt2" else {"max_position_embeddings": 96}
    model = SwitchableModel(tiny_lm(request.param, vocab_size=len(TOKENIZER), **positions))
    model.add_adapters({b: LoraSpec(2, 4) for b in (3, 8, 32)})
    for parameter in model.adapter_parameters(3):
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize("base", [8, 32])
def test_sweep_is_that_of_whole_passes(model, base):
    model.set_precision(base)
    before, reached = model.configuration, Reached()
    for block in (0, 1, 1, 0):  # on and on, from where it is, and from the start again
        swept = sweep_block(model, QUESTIONS, FEATURES, block, LOWERED, **HOW, reached=reached)
        roles = {info.role: [] for info in model.infos}
        for info in model.infos:
            if info.block == block:
                roles[info.role].append(info.name)
        assert set(swept["role"]) == set(roles)
        for (role, name), rows in swept.groupby(["role", "precision"]):
            with model.at(dict.fromkeys(roles[role], Precision.parse(name))):
                whole = evaluate_spans(model, QUESTIONS, FEATURES, **HOW).drop(columns="prediction")
            pd.testing.assert_frame_equal(rows[whole.columns].reset_index(drop=True), whole, check_exact=True)
    assert model.configuration == before


def test_nothing_of_a_sweep_stays(model):
    ids = torch.tensor([FEATURES[0].input_ids])
    before = model(ids).start
    sweep_block(model, QUESTIONS[:3], featurize(QUESTIONS[:3], TOKENIZER, 96, 32), 1, LOWERED, **HOW)
    output_noise(model, FEATURES[:2], LOWERED)
    assert torch.equal(model(ids).start, before)
    assert not any("forward" in vars(module) or module._forward_hooks for module in model.modules())


def test_changes_over_several_blocks_are_exact_too(model):
    """Two layers lowered at once, as interactions are measured."""
    model.set_precision(8)
    names = [info.name for info in model.infos]
    pair = {names[1]: LOWERED[0], names[-1]: LOWERED[1]}
    found = evaluate_changes(model, QUESTIONS, FEATURES, 0, {"pair": pair, "none": {}}, **HOW)
    for change, spec in {"pair": pair, "none": {}}.items():
        with model.at(dict(spec)):
            whole = evaluate_spans(model, QUESTIONS, FEATURES, **HOW).drop(columns="prediction")
        mine = found[found["change"] == change][whole.columns].reset_index(drop=True)
        pd.testing.assert_frame_equal(mine, whole, check_exact=True)


def test_changes_that_nothing_stands_before_are_refused(model):
    with pytest.raises(ValueError, match="^block is 2; allowed is an integer from 0 to 1$"):
        evaluate_changes(model, QUESTIONS, FEATURES, 2, {}, **HOW)
    first = model.infos[0].name
    with pytest.raises(ValueError, match=f"^a change of {first}, which is before block 1$"):
        evaluate_changes(model, QUESTIONS, FEATURES, 1, {"early": {first: LOWERED[0]}}, **HOW)


def test_noise_of_an_output_falls_with_the_bits(model):
    model.set_precision(32)
    found = output_noise(model, FEATURES[:4], [Precision.parse(p) for p in (3, 8, 32)])
    assert len(found) == 2 * 4 * 3
    table = found.pivot_table(index=["block", "role"], columns="precision", values="sqnr_db")
    assert (table["32"] == math.inf).all() and (table["8"] > table["3"] + 10).all()


class _WithALoneLayer(torch.nn.Module):
    def __init__(self, mlp: torch.nn.Module) -> None:
        super().__init__()
        self.mlp, self.lone = mlp, torch.nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(x) + self.lone(x)


def test_layers_of_the_role_other_are_swept_like_all(tiny_lm):
    lm = tiny_lm("llama", vocab_size=len(TOKENIZER), max_position_embeddings=96)
    lm.model.layers[1].mlp = _WithALoneLayer(lm.model.layers[1].mlp)
    with pytest.warns(UserWarning, match=r"layers.\*.mlp.lone is 'other'"):
        model = SwitchableModel(lm).eval()
    swept = {b: sweep_block(model, QUESTIONS, FEATURES, b, [Precision(3, 3)], **HOW) for b in (0, 1)}
    assert [*swept[0]["role"].unique(), "other"] == [*swept[1]["role"].unique()]
    with model.at({"other": 3}):
        whole = evaluate_spans(model, QUESTIONS, FEATURES, **HOW)
    found = swept[1][swept[1]["role"] == "other"]
    assert found["loss"].tolist() == pytest.approx(whole["loss"].tolist(), nan_ok=True, abs=0)
    assert set(output_noise(model, FEATURES[:2], [Precision(3, 3)])["role"]) == {*swept[1]["role"]}
