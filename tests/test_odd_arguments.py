"""Empty lists and odd arguments of the library's functions: one sentence, before any work, and the model stays as it was."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from qatlib import cost, landscape, latency, learned, schedule, search, sensitivity
from qatlib.arguments import TrainingArguments
from qatlib.attacks import candidates, characters, defence, embedding, judge, tokens
from qatlib.attacks.words import WordAttack
from qatlib.integer import IntegerLinear
from qatlib.model import SwitchableModel
from qatlib.precision import Configuration, Precision
from qatlib.qa import evaluate, generate, loss, spans, squad, toyqa
from qatlib.scheduling import CosineArguments, ScheduleArguments

TOKENIZER = toyqa.build_tokenizer()
QUESTIONS = toyqa.generate(3, 0)
FEATURES = spans.featurize(QUESTIONS, TOKENIZER, 128, 32)
BLANK = [f for f in spans.featurize(QUESTIONS, TOKENIZER, 40, 2) if f.start < 0]
BATCH = loss.collate(FEATURES, 1)
P = [Precision(8, 8), Precision(4, 4)]
NAN, BATCHES = float("nan"), {"pad_id": 1, "batch_size": 2}
HOW = BATCHES | {"max_answer_tokens": 5}
PARAGRAPHS = {"paragraphs": ["Anna was born in Dover."], "max_length": 32} | BATCHES


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SwitchableModel(toyqa.build_model(2, 2, 32, 0)).eval()


def featurize(questions):
    return spans.featurize(questions, TOKENIZER, 128, 32)


def attacker(model, configurations=None, **changes):
    given = [Configuration.uniform(8, model.infos)] if configurations is None else configurations
    return WordAttack(model, featurize, given, lambda q, s: ["x"], **(BATCHES | changes))


def problem(model, **changes):
    groups = tuple(dict.fromkeys((info.block, info.role) for info in model.infos))
    table = np.tile([0.0, 1.0], (len(groups), 1))
    return search.Allocation(**({"groups": groups, "precisions": tuple(P), "loss": table, "cost": 1 - table} | changes))


def choose(model, **changes):
    how = {"budget": 4.0, "steps": 1, "batch_size": 2, "learning_rate": 0.1, "penalty": 1.0, "pad_id": 1, "seed": 0} | changes
    how = {"features": FEATURES, "problem": problem(model)} | how
    return learned.learn_allocation(model, how.pop("features"), how.pop("problem"), how.pop("budget"), **how)


def cosine(model, precisions=P, steps=4, **changes):
    return schedule.cosine_cycles(CosineArguments(**({"cycles": 1} | changes)), precisions, model.infos, 0, steps)


CASES = {
    # qa
    "evaluate_spans: no questions": lambda m: evaluate.evaluate_spans(m, [], FEATURES, **HOW),
    "evaluate_spans: no windows": lambda m: evaluate.evaluate_spans(m, QUESTIONS, [], **HOW),
    "evaluate_spans: windows of others": lambda m: evaluate.evaluate_spans(m, QUESTIONS[:1], FEATURES, **HOW),
    "evaluate_spans: batches of 0": lambda m: evaluate.evaluate_spans(m, QUESTIONS, FEATURES, **(HOW | {"batch_size": 0})),
    "evaluate_spans: batches of -1": lambda m: evaluate.evaluate_spans(m, QUESTIONS, FEATURES, **(HOW | {"batch_size": -1})),
    "evaluate_spans: batches of 2.0": lambda m: evaluate.evaluate_spans(m, QUESTIONS, FEATURES, **(HOW | {"batch_size": 2.0})),
    "evaluate_spans: no answers": lambda m: evaluate.evaluate_spans(m, QUESTIONS, FEATURES, **(HOW | {"max_answer_tokens": 0})),
    "mean_span_loss: no windows": lambda m: evaluate.mean_span_loss(m, [], **BATCHES),
    "mean_span_loss: no answers": lambda m: evaluate.mean_span_loss(m, BLANK, **BATCHES),
    "evaluate_perplexity: none": lambda m: evaluate.evaluate_perplexity(m, TOKENIZER, **(PARAGRAPHS | {"paragraphs": []})),
    "evaluate_perplexity: a text": lambda m: evaluate.evaluate_perplexity(m, TOKENIZER, **(PARAGRAPHS | {"paragraphs": "Anna"})),
    "evaluate_perplexity: length 1": lambda m: evaluate.evaluate_perplexity(m, TOKENIZER, **(PARAGRAPHS | {"max_length": 1})),
    "calibrate: no windows": lambda m: evaluate.calibrate(m, []),
    "calibrate: momentum": lambda m: evaluate.calibrate(m, FEATURES, momentum=1.0),
    "calibrate_clips: no windows": lambda m: evaluate.calibrate_clips(m, [], [8]),
    "calibrate_clips: no widths": lambda m: evaluate.calibrate_clips(m, FEATURES, []),
    "calibrate_clips: 32 bits": lambda m: evaluate.calibrate_clips(m, FEATURES, [32]),
    "set_static_range: 0": lambda m: evaluate.set_static_range(m, 0.0),
    "greedy_answers: no prompts": lambda m: generate.greedy_answers(m, TOKENIZER, [], pad_id=1, max_answer_tokens=2),
    "greedy_answers: an empty one": lambda m: generate.greedy_answers(m, TOKENIZER, [[]], pad_id=1, max_answer_tokens=2),
    "greedy_answers: 0 tokens": lambda m: generate.greedy_answers(m, TOKENIZER, [[2]], pad_id=1, max_answer_tokens=0),
    "evaluate_answers: no questions": lambda m: generate.evaluate_answers(m, TOKENIZER, [], **HOW, max_length=96),
    "evaluate_answers: length 4": lambda m: generate.evaluate_answers(m, TOKENIZER, QUESTIONS, **HOW, max_length=4),
    "evaluate_answers: batches of 0": lambda m: generate.evaluate_answers(
        m, TOKENIZER, QUESTIONS, **(HOW | {"batch_size": 0}), max_length=96
    ),
    "collate: nothing": lambda m: loss.collate([], 1),
    "batch_plan: nothing": lambda m: loss.batch_plan([], 2, 2, 0),
    "batch_plan: batches of 0": lambda m: loss.batch_plan([4, 5], 0, 2, 0),
    "batch_plan: -1 steps": lambda m: loss.batch_plan([4, 5], 1, -1, 0),
    "best_spans: no logits": lambda m: spans.best_spans(FEATURES, [], [], 3, 5),
    "best_spans: no questions": lambda m: spans.best_spans(FEATURES, [[0.0]] * len(FEATURES), [[0.0]] * len(FEATURES), 0, 5),
    "best_spans: 0 tokens": lambda m: spans.best_spans([], [], [], 3, 0),
    "sizes: no windows": lambda m: spans.sizes([], []),
    "sample: -1": lambda m: squad.sample(QUESTIONS, -1, 0),
    "generate: -1": lambda m: toyqa.generate(-1, 0),
    "build_model: 0 layers": lambda m: toyqa.build_model(0, 2, 32, 0),
    "build_model: heads": lambda m: toyqa.build_model(1, 5, 32, 0),
    # attacks
    "every: none": lambda m: defence.every([], m),
    "per_layer: none": lambda m: defence.per_layer([], m, 0),
    "per_layer: 0 draws": lambda m: defence.per_layer(P, m, 0, 0),
    "per_token: none": lambda m: defence.per_token([], m, torch.Generator()).__enter__(),
    "expected_loss: no draws": lambda m: embedding.nonzero_gradients(m, BATCH, lambda query: []),
    "window_loss: hinge": lambda m: embedding.window_loss(m(BATCH.input_ids), BATCH, "hinge"),
    "project: l1": lambda m: embedding.project(torch.ones(1, 2), 1.0, "l1"),
    "project: nan": lambda m: embedding.project(torch.ones(1, 2), NAN, "l2"),
    "hotflip: -1": lambda m: tokens.hotflip(m, BATCH, -1, defence.static(8, m), torch.ones(len(TOKENIZER)).bool()),
    "hotflip: none allowed": lambda m: tokens.hotflip(m, BATCH, 1, defence.static(8, m), torch.zeros(len(TOKENIZER)).bool()),
    "hotflip: another vocabulary": lambda m: tokens.hotflip(m, BATCH, 1, defence.static(8, m), torch.ones(5).bool()),
    "character_noise: 1.5": lambda m: characters.character_noise(QUESTIONS[0], 1.5, 0),
    "character_noise: nan": lambda m: characters.character_noise(QUESTIONS[0], NAN, 0),
    "character_noise: no kinds": lambda m: characters.character_noise(QUESTIONS[0], 0.5, 0, ()),
    "character_noise: a kind": lambda m: characters.character_noise(QUESTIONS[0], 0.5, 0, ("leet",)),
    "vocabulary: -1": lambda m: candidates.vocabulary([["a", "b"]], -1, 0),
    "masked_lm: 0": lambda m: candidates.masked_lm(m.lm, TOKENIZER, 0),
    "masked_lm: no mask": lambda m: candidates.masked_lm(m.lm, TOKENIZER, 5),
    "WordAttack: no configurations": lambda m: attacker(m, []),
    "WordAttack: batches of 0": lambda m: attacker(m, batch_size=0),
    "WordAttack: no questions": lambda m: attacker(m).attack([], "both", 1),
    "WordAttack: a ranking": lambda m: attacker(m).attack(QUESTIONS, "gradient", 1),
    "WordAttack: -1 words": lambda m: attacker(m).attack(QUESTIONS, "both", -1),
    "judged: no questions": lambda m: judge.judged(m, [], FEATURES, lambda b: None, judge.answers_at(m, P), **HOW),
    "judged: no ways": lambda m: judge.judged(m, QUESTIONS, FEATURES, lambda b: None, {}, **HOW),
    "averaged: an unknown way": lambda m: judge.averaged(pd.DataFrame({"answered": ["8"], "f1": [1.0]}), ["4"], "RPI"),
    "averaged: none": lambda m: judge.averaged(pd.DataFrame({"answered": ["8"], "f1": [1.0]}), [], "RPI"),
    # sweeps and searches
    "evaluate_changes: none": lambda m: sensitivity.evaluate_changes(m, QUESTIONS, FEATURES, 0, {}, **HOW),
    "evaluate_changes: no block": lambda m: sensitivity.evaluate_changes(m, QUESTIONS, FEATURES, -1, {"a": {}}, **HOW),
    "evaluate_changes: a layer": lambda m: sensitivity.evaluate_changes(m, QUESTIONS, FEATURES, 0, {"a": {"x": P[0]}}, **HOW),
    "evaluate_changes: no questions": lambda m: sensitivity.evaluate_changes(m, [], FEATURES, 0, {"a": {}}, **HOW),
    "sweep_block: no precisions": lambda m: sensitivity.sweep_block(m, QUESTIONS, FEATURES, 0, [], **HOW),
    "sweep_block: no block": lambda m: sensitivity.sweep_block(m, QUESTIONS, FEATURES, 2, P, **HOW),
    "output_noise: no windows": lambda m: sensitivity.output_noise(m, [], P),
    "output_noise: no precisions": lambda m: sensitivity.output_noise(m, FEATURES, []),
    "Allocation: no groups": lambda m: problem(m, groups=(), loss=np.zeros((0, 2)), cost=np.zeros((0, 2))),
    "Allocation: a list": lambda m: problem(m, loss=[1.0, 2.0]),
    "ilp: nan": lambda m: search.ilp(problem(m), NAN),
    "greedy_down: nan": lambda m: search.greedy_down(problem(m), NAN),
    "greedy_up: inf": lambda m: search.greedy_up(problem(m), math.inf),
    "random_choices: -1": lambda m: next(search.random_choices(problem(m), 8.0, -1, 0)),
    "weight_bits: no layers": lambda m: search.weight_bits([], P),
    "weight_bytes: no precisions": lambda m: search.weight_bytes(m.infos, []),
    "monotone: one column": lambda m: search.monotone(np.zeros((3, 1))),
    "monotone: nan": lambda m: search.monotone(np.full((3, 2), NAN)),
    "exchange: other groups": lambda m: search.exchange(
        problem(m), search.Interactions(np.zeros((3, 3)), np.zeros((3, 2))), 8.0, np.zeros(8, int)
    ),
    "pareto: unpaired": lambda m: search.pareto([1.0], []),
    "learn_allocation: 0 steps": lambda m: choose(m, steps=0),
    "learn_allocation: batches of 0": lambda m: choose(m, batch_size=0),
    "learn_allocation: no answers": lambda m: choose(m, features=BLANK),
    "learn_allocation: budget": lambda m: choose(m, budget=0.0),
    "learn_allocation: rate": lambda m: choose(m, learning_rate=NAN),
    "learn_allocation: other groups": lambda m: choose(
        m, problem=problem(m, groups=((0, "qkv"),), loss=np.zeros((1, 2)), cost=np.ones((1, 2)))
    ),
    "sharpness: no radii": lambda m: landscape.sharpness(m, QUESTIONS, FEATURES, [], 1, 0, **HOW),
    "sharpness: -1": lambda m: landscape.sharpness(m, QUESTIONS, FEATURES, [-1.0], 1, 0, **HOW),
    "sharpness: 0 draws": lambda m: landscape.sharpness(m, QUESTIONS, FEATURES, [0.1], 0, 0, **HOW),
    # costs
    "named_table: no layers": lambda m: cost.named_table([]),
    "named_table: a name": lambda m: cost.named_table(m.infos, ["Z1"]),
    "cost_table: nothing": lambda m: cost.cost_table(m, {}),
    "training_bitops: no layers": lambda m: cost.training_bitops(m.configuration, []),
    "training_bitops: another model": lambda m: cost.training_bitops(Configuration({}), m.infos),
    "training_bitops: 1 bit": lambda m: cost.training_bitops(m.configuration, m.infos, 1),
    "group_latencies: no precisions": lambda m: latency.group_latencies(m, [], 4),
    "group_latencies: no tokens": lambda m: latency.group_latencies(m, P, 0),
    "pass_latencies: nothing": lambda m: latency.pass_latencies(m, {}, 1, 4),
    "pass_latencies: no tokens": lambda m: latency.pass_latencies(m, {"a": 8}, 1, 0),
    "in_turn: nothing": lambda m: latency.in_turn({}, 0.1, torch.device("cpu")),
    "in_turn: nan": lambda m: latency.in_turn({"a": lambda: None}, NAN, torch.device("cpu")),
    "in_turn: no rounds": lambda m: latency.in_turn({"a": lambda: None}, 0.1, torch.device("cpu"), 5, 4),
    "IntegerLinear: no widths": lambda m: IntegerLinear.of(m.layers[0], []),
    "IntegerLinear: 1 bit": lambda m: IntegerLinear.of(m.layers[0], [1]),
    "IntegerLinear: another width": lambda m: IntegerLinear.of(m.layers[0], [8]).codes(4),
    # schedules
    "random_per_layer: none": lambda m: schedule.random_per_layer([], m.infos, 0),
    "random_per_layer: no layers": lambda m: schedule.random_per_layer(P, [], 0),
    "random_uniform: 0 passes": lambda m: schedule.random_uniform(P, m.infos, 0, 0),
    "random_uniform: none": lambda m: schedule.random_uniform([], m.infos, 0),
    "every_precision: none": lambda m: schedule.every_precision([], m.infos),
    "sandwich: none": lambda m: schedule.sandwich([], m.infos, 0),
    "sandwich: 0 passes": lambda m: schedule.sandwich(P, m.infos, 0, 0),
    "cyclic: none": lambda m: schedule.cyclic([], m.infos),
    "progressive: none": lambda m: schedule.progressive([], m.infos, 4),
    "progressive: 0 steps": lambda m: schedule.progressive(P, m.infos, 0),
    "cosine_bits: period 0": lambda m: schedule.cosine_bits(1, 0, 2, 8),
    "cosine_cycles: none": lambda m: cosine(m, []),
    "cosine_cycles: 0 steps": lambda m: cosine(m, steps=0),
    "cosine_cycles: between others": lambda m: cosine(m, between=(Precision(2, 2), Precision(3, 3))),
    "two_phases: -1": lambda m: schedule.two_phases(schedule.cyclic(P, m.infos), P[0], m.infos, -1),
    "make_schedule: none": lambda m: schedule.make_schedule(ScheduleArguments("all"), [], m.infos, seed=0, steps=4),
    "make_schedule: 0 steps": lambda m: schedule.make_schedule(ScheduleArguments("all"), P, m.infos, seed=0, steps=0),
    "at_passes: 0 precisions": lambda m: schedule.at_passes(TrainingArguments(4, 2, 0.1), ScheduleArguments("all"), 0, 4),
    "passes_a_step: 0": lambda m: ScheduleArguments("all").passes_a_step(0),
}


@pytest.mark.parametrize("name", CASES)
def test_odd_arguments_are_refused_in_one_sentence(name, model):
    before = model.configuration
    with pytest.raises(ValueError) as error:
        CASES[name](model)
    said = str(error.value)
    assert "allowed" in said and "\n" not in said and len(said) < 400
    assert type(error.value).__module__ in ("builtins", "qatlib.qa.squad") and error.value.__cause__ is None
    assert model.configuration == before and not any(layer.observing for layer in model.layers)


def test_a_paragraph_without_a_token_to_predict_has_none(model):
    texts = ["", "Anna was born in Dover.", "   "]
    bare = toyqa.build_tokenizer()
    bare.bos_token = None
    for tokenizer in (TOKENIZER, bare):
        found = evaluate.evaluate_perplexity(model, tokenizer, texts, max_length=32, **BATCHES)
        alone = evaluate.evaluate_perplexity(model, tokenizer, texts[1:2], max_length=32, **BATCHES)
        assert found["tokens"].tolist() == [0, alone["tokens"][0], 0] and found["nll"].tolist() == [0, alone["nll"][0], 0]
        assert found["correct"].tolist() == [0, alone["correct"][0], 0]
        only = evaluate.evaluate_perplexity(model, tokenizer, [""], max_length=32, **BATCHES)
        assert only[["nll", "tokens", "correct"]].to_numpy().tolist() == [[0, 0, 0]]


def test_a_question_without_a_window_has_an_empty_answer_and_no_loss(model):
    some = [f for f in FEATURES if f.question != 1]
    found = evaluate.evaluate_spans(model, QUESTIONS, some, **HOW)
    assert found["prediction"][1] == "" and np.isnan(found["loss"][1]) and np.isfinite(found["loss"][[0, 2]]).all()
