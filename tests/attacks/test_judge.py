"""One attack is answered in every way that is asked for, as an evaluation would."""

from __future__ import annotations

import pandas as pd
import torch

from qatlib.attacks.judge import answers_at, judged
from qatlib.lora import SHARED, LoraSpec
from qatlib.model import SwitchableModel
from qatlib.precision import Precision
from qatlib.qa.evaluate import evaluate_spans
from qatlib.qa.spans import featurize
from qatlib.qa.toyqa import build_model, build_tokenizer, generate

TOKENIZER = build_tokenizer()
QUESTIONS = generate(12, 0)
FEATURES = featurize(QUESTIONS, TOKENIZER, 128, 32)
HOW = {"pad_id": 1, "batch_size": 5, "max_answer_tokens": 10}


def test_without_an_attack_answers_are_the_evaluations():
    torch.manual_seed(0)
    model = SwitchableModel(build_model(2, 2, 32, 0))
    model.add_adapters({SHARED: LoraSpec(2, 4)})
    crafted = []

    def craft(batch):
        crafted.append(len(batch.input_ids))
        return model.embed(batch.input_ids)

    ways = answers_at(model, (Precision(8, 8), Precision(3, 3)))
    found = judged(model, QUESTIONS, FEATURES, craft, ways, **HOW)
    assert sum(crafted) == len(FEATURES)  # once each, however many answers
    for name in ways:
        with model.at(int(name)):
            expected = evaluate_spans(model, QUESTIONS, FEATURES, **HOW)
        rows = found[found["answered"] == name].drop(columns="answered").reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, expected, check_exact=True)
