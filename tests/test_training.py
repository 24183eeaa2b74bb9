"""The loop: data order, learning rate, resuming to the same bits, learning at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qatlib import training
from qatlib.arguments import TrainingArguments
from qatlib.layers import LoraSpec
from qatlib.model import SwitchableModel
from qatlib.precision import Precision
from qatlib.schedule import random_per_layer
from qatlib.spans import featurize
from qatlib.toyqa import build_model, build_tokenizer, generate
from qatlib.training import batch_plan, fit, learning_rate

ARGS = TrainingArguments(steps=6, batch_size=4, learning_rate=1e-2, warmup_steps=2, lm_weight=0.5, checkpoint_every=2)
WIDTHS = [Precision(8, 8), Precision(4, 4)]


@pytest.fixture(scope="module")
def features():
    return featurize(generate(60, 0), build_tokenizer(), 128, 32)


def model(dropout: float = 0.3) -> SwitchableModel:
    torch.manual_seed(0)
    made = SwitchableModel(build_model(1, 2, 16, 0))
    made.add_adapters({p.w_bits: LoraSpec(2, 4, dropout) for p in WIDTHS})
    return made


def train(made: SwitchableModel, features, path, **changes):
    schedule = random_per_layer(WIDTHS, made.infos, seed=5, passes=2)
    options = {"pad_id": 1, "seed": 3, "checkpoint": path} | changes
    return fit(made, features, options.pop("args", ARGS), schedule, **options)


@given(st.lists(st.integers(5, 90), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 30), st.integers(0, 9))
def test_a_plan_is_full_batches_and_every_epoch_sees_each_feature_once_at_most(lengths, size, steps, seed):
    plan = batch_plan(lengths, size, steps, seed)
    size = min(size, len(lengths))
    assert len(plan) == steps and all(len(batch) == len(set(batch.tolist())) == size for batch in plan)
    epoch = len(lengths) // size
    for start in range(0, steps - epoch + 1, epoch):
        indices = np.concatenate(plan[start : start + epoch])
        assert len(set(indices.tolist())) == len(indices)


@given(st.integers(1, 20), st.integers(0, 9))
def test_a_shorter_plan_is_the_beginning_of_a_longer_one(steps, seed):
    short, long = (batch_plan(list(range(5, 40)), 4, n, seed) for n in (steps, steps + 7))
    assert all(np.array_equal(a, b) for a, b in zip(short, long, strict=False))


def test_a_long_epoch_leaves_out_less_than_a_batch_whatever_the_lengths():
    lengths = np.random.default_rng(1).integers(10, 400, 4003).tolist()
    seen = np.concatenate(batch_plan(lengths, 8, 500, 0))
    assert len(set(seen.tolist())) == 4000


def test_batches_hold_windows_of_about_one_length():
    lengths = np.random.default_rng(0).integers(10, 400, 4000)
    spread = [np.ptp(lengths[batch]) for batch in batch_plan(lengths.tolist(), 8, 400, 0)]
    assert np.mean(spread) < 20


@given(st.integers(1, 50), st.integers(0, 50))
def test_learning_rate_rises_to_its_peak_and_falls_to_nothing(steps, warmup):
    warmup = min(warmup, steps)
    args = TrainingArguments(steps=steps, batch_size=1, learning_rate=0.1, warmup_steps=warmup)
    rates = [learning_rate(step, args) for step in range(steps)]
    assert max(rates) == pytest.approx(0.1) and min(rates) > 0
    assert rates[:warmup] == sorted(rates[:warmup]) and rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_training_learns_and_leaves_the_base_alone(features, tmp_path):
    made = model(0.0)
    before = {n: p.clone() for n, p in made.named_parameters() if not p.requires_grad}
    args = TrainingArguments(steps=60, batch_size=8, learning_rate=2e-2)
    rows = train(made, features[:8], tmp_path / "c.safetensors", args=args)
    assert rows["span_loss"].iloc[-1] < 0.8 * rows["span_loss"].iloc[1]
    assert all(torch.equal(p, before[n]) for n, p in made.named_parameters() if n in before)


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_a_killed_run_ends_with_the_same_weights_and_metrics(features, tmp_path, monkeypatch, mixed_precision):
    options = {"mixed_precision": mixed_precision, "probe": lambda: {"loss@8": 1.5}}
    whole, broken, resumed = model(), model(), model()
    expected = train(whole, features, tmp_path / "whole.safetensors", **options)
    path = tmp_path / "broken.safetensors"
    real, calls = training.task_loss, []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) > 9:  # two passes a step: in the middle of step 5, after the checkpoint of step 4
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(training, "task_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        train(broken, features, path, **options)
    monkeypatch.setattr(training, "task_loss", real)
    torch.manual_seed(12345)
    rows = train(resumed, features, path, **options)
    assert rows.equals(expected)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    again = train(model(), features, path, **options)  # a finished run is read, not repeated
    assert again.equals(expected) and not list(tmp_path.glob("*.partial"))


def test_an_adapter_that_was_not_drawn_stays_as_it_was(features, tmp_path):
    made = model(0.0)
    before = {n: p.clone() for n, p in made.named_parameters()}
    schedule = random_per_layer(WIDTHS[:1], made.infos, 0)
    fit(made, features, ARGS, schedule, pad_id=1, seed=0, checkpoint=tmp_path / "c.safetensors")
    changed = {n for n, p in made.named_parameters() if not torch.equal(p, before[n])}
    assert any(".adapters.8." in n for n in changed) and not any(".adapters.4." in n for n in changed)


def test_no_answers_no_training(features, tmp_path):
    from dataclasses import replace

    blank = [replace(f, start=-1, end=-1) for f in features]
    with pytest.raises(ValueError, match="no training window holds an answer"):
        train(model(), blank, tmp_path / "c.safetensors")


def test_probes_are_in_full_precision_while_training_is_in_bf16(features, tmp_path):
    made, seen = model(0.0), []
    train(
        made,
        features,
        tmp_path / "c",
        mixed_precision="bf16",
        probe=lambda: seen.append(made(torch.ones(1, 5, dtype=int)).start.dtype) or {},
    )
    assert set(seen) == {torch.float32}
