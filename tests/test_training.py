"""The loop: data order, learning rate, objectives, resuming to the same bits, logs, several processes, learning at all."""

from __future__ import annotations

import contextlib
import os
import runpy
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qatlib import arithmetic, training
from qatlib.arguments import ObjectiveArguments, TrainingArguments
from qatlib.lora import SHARED, LoraSpec
from qatlib.model import SwitchableModel
from qatlib.precision import Configuration, Precision
from qatlib.qa.loss import batch_plan, collate, span_nll
from qatlib.qa.spans import Feature, featurize
from qatlib.qa.toyqa import build_model, build_tokenizer, generate
from qatlib.schedule import every_precision, make_schedule, random_per_layer
from qatlib.scheduling import CosineArguments, ScheduleArguments
from qatlib.training import fit, learning_rate, learning_rate_factor

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


def teacher() -> SwitchableModel:
    torch.manual_seed(7)
    return SwitchableModel(build_model(1, 2, 16, 1)).eval()


def train(made: SwitchableModel, features, path, **changes):
    schedule = random_per_layer(WIDTHS, made.infos, seed=5, passes=2)
    options = {"pad_id": 1, "seed": 3, "checkpoint": path, "mixed_precision": "no"} | changes
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
    assert np.mean(spread) < 20  # 7 tokens; eight windows at random are 300 apart


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
    assert rows["span_loss"].iloc[-1] < 0.8 * rows["span_loss"].iloc[1]  # 0.48 of it, and 0.29 to 0.45 with three other seeds
    assert all(torch.equal(p, before[n]) for n, p in made.named_parameters() if n in before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixed_precision": "fp16"}, "mixed_precision is 'fp16'; allowed are 'auto', 'no' and 'bf16'"),
        ({"mixed_precision": "BF16"}, "mixed_precision is 'BF16'"),
        ({"mixed_precision": None}, "mixed_precision is None"),
        ({"trackers": "tensorboard"}, "trackers is 'tensorboard'; allowed is a list of names"),
        ({"learning_rate_factors": {WIDTHS[0]: 1.0}}, "learning_rate_factors has none for the precision 4"),
    ],
)
def test_an_argument_that_is_not_known_is_refused_with_what_is_allowed(options, message, features, tmp_path):
    made = model()
    before = [p.clone() for p in made.parameters()]
    with pytest.raises(ValueError, match=message) as caught:
        train(made, features, tmp_path / "c", **options)
    assert len(str(caught.value).splitlines()) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, made.parameters(), strict=True))


def test_what_cannot_be_trained_is_refused_before_the_first_step(features, tmp_path):
    made = model()
    with pytest.raises(ValueError, match="the schedule gives no configuration for step 0"):
        fit(made, features, ARGS, lambda step: [], pad_id=1, seed=0, checkpoint=tmp_path / "c")
    with pytest.raises(IsADirectoryError, match="the name of a file is needed for a checkpoint"):
        train(made, features, tmp_path)
    train(made, features, str(tmp_path / "c"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="c: a checkpoint of 6 steps, and the training has 3; remove it or name another"):
        train(made, features, tmp_path / "c", args=replace(ARGS, steps=3))
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        train(made.requires_grad_(False), features, tmp_path / "other")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mixed_precision": "bf16", "objective": ObjectiveArguments("consistency", divergence="mse")},
        {"objective": ObjectiveArguments("distillation", temperature=2.0), "args": replace(ARGS, gradient_checkpointing=True)},
        {"objective": ObjectiveArguments("cascaded", divergence="js"), "learning_rate_factors": {WIDTHS[0]: 1.0, WIDTHS[1]: 0.5}},
        {"args": replace(ARGS, gradient_bits=8)},
    ],
    ids=["average", "bf16 consistency", "distillation", "cascaded", "quantized gradients"],
)
def test_a_killed_run_ends_with_the_same_weights_and_metrics(features, tmp_path, monkeypatch, options):
    options = {"probe": lambda: {"loss@8": 1.5}, "teacher": teacher(), **options}
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


@pytest.mark.parametrize("began", ["no", "bf16"])
def test_a_training_in_its_middle_goes_on_in_the_arithmetic_it_began_in(features, tmp_path, monkeypatch, began):
    path, other, expected = tmp_path / "c.safetensors", {"no": "bf16", "bf16": "no"}[began], model()
    train(expected, features, tmp_path / "whole", mixed_precision=began)

    draw = random_per_layer(WIDTHS, model().infos, seed=5, passes=2)

    def killed(step):
        if step == 3:
            raise KeyboardInterrupt
        return draw(step)

    with pytest.raises(KeyboardInterrupt):
        fit(model(), features, ARGS, killed, pad_id=1, seed=3, checkpoint=path, mixed_precision=began)
    with pytest.raises(ValueError, match=f"c.safetensors: a checkpoint of a training that began with mixed_precision '{began}'"):
        train(model(), features, path, mixed_precision=other)
    monkeypatch.setattr(arithmetic, "is_fast", lambda device_type: other == "bf16")
    resumed = model()
    train(resumed, features, path, mixed_precision="auto")
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), resumed.parameters(), strict=True))
    again = train(model(), features, path, mixed_precision=other)  # a finished training stays valid
    assert again["step"].max() == ARGS.steps


def test_a_run_killed_inside_a_cycle_goes_on_at_the_right_width(features, tmp_path, monkeypatch):
    cycle = ScheduleArguments("cpt", cosine=CosineArguments(cycles=2))
    precisions = [Precision(b, b) for b in (8, 6, 4)]

    def run(path):
        made = model()
        made.add_adapters({SHARED: LoraSpec(2, 4, 0.3)})
        schedule = make_schedule(cycle, precisions, made.infos, seed=5, steps=10)
        args = replace(ARGS, steps=10, checkpoint_every=3)
        return made, fit(made, features, args, schedule, pad_id=1, seed=3, checkpoint=path)

    whole, expected = run(tmp_path / "whole.safetensors")
    assert expected["w_bits"].tolist()[1:] == [4, 4, 6, 6, 8, 4, 4, 6, 6, 8]
    real, calls = training.task_loss, []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) > 8:  # in step 9, the last but one of the second cycle; the checkpoint is of step 6, its first
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(training, "task_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken.safetensors")
    monkeypatch.setattr(training, "task_loss", real)
    torch.manual_seed(12345)
    resumed, rows = run(tmp_path / "broken.safetensors")
    assert rows.equals(expected)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_gradients_are_quantized_while_training_and_not_after(features, tmp_path):
    exact, quantized = model(0.0), model(0.0)
    rows = [
        train(made, features, tmp_path / name, args=replace(ARGS, gradient_bits=bits))
        for made, name, bits in ((exact, "a.safetensors", 32), (quantized, "b.safetensors", 2))
    ]
    assert rows[0]["span_loss"][1] == rows[1]["span_loss"][1]  # the first forward pass knows nothing of it
    assert rows[0]["grad_norm"][1] != rows[1]["grad_norm"][1]
    assert {layer.gradient_bits for layer in quantized.layers} == {32}


def test_an_adversary_is_asked_for_every_pass_at_its_configuration(features, tmp_path):
    made, asked = model(0.0), []

    def adversary(batch, configuration):
        asked.append(configuration)
        assert made.configuration == configuration and made.training
        return made.embed(batch.input_ids) * 1.5

    rows = train(made, features, tmp_path / "a.safetensors", adversary=adversary)
    assert len(asked) == rows["passes"].sum() == 12
    plain = train(model(0.0), features, tmp_path / "b.safetensors")
    same = train(
        model(0.0), features, tmp_path / "c.safetensors", adversary=lambda batch, _: made.embed(batch.input_ids).detach()
    )
    assert rows["span_loss"][1] != plain["span_loss"][1]
    assert same["span_loss"].equals(plain["span_loss"])  # embeddings of the tokens themselves change nothing


def test_an_adapter_that_was_not_drawn_stays_as_it_was(features, tmp_path):
    made = model(0.0)
    before = {n: p.clone() for n, p in made.named_parameters()}
    schedule = random_per_layer(WIDTHS[:1], made.infos, 0)
    fit(made, features, ARGS, schedule, pad_id=1, seed=0, checkpoint=tmp_path / "c.safetensors")
    changed = {n for n, p in made.named_parameters() if not torch.equal(p, before[n])}
    assert any(".adapters.8." in n for n in changed) and not any(".adapters.4." in n for n in changed)


def test_no_answers_no_training(features, tmp_path):
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


@pytest.mark.parametrize("name", ["average", "joint", "cascaded", "distillation", "consistency"])
def test_a_step_is_the_loss_that_the_objective_is_defined_by(features, tmp_path, name):
    """Against autograd on the whole loss at once, of every configuration, with teachers detached by hand."""
    batch = collate([f for f in features if f.start >= 0][:3], pad_id=1)
    weight = 1.0 if name in ("average", "joint") else 0.7
    made, guide = model(0.0), teacher()

    def answers(output):
        return [x.masked_fill(~batch.context, -torch.inf).log_softmax(-1)[batch.context] for x in (output.start, output.end)]

    def kl(reference, mine):
        return sum((r.detach().exp() * (r.detach() - m)).sum() for r, m in zip(reference, mine, strict=True)) / 2 / 3

    outputs = {}
    for p in (8, 4):
        with made.at(p):
            outputs[p] = made(batch.input_ids)
    losses = torch.stack([span_nll(output, batch).mean() for output in outputs.values()])
    wide, narrow = map(answers, outputs.values())
    taught, nothing = answers(guide(batch.input_ids)), torch.tensor(0.0)
    between = torch.stack([nothing, kl(wide, narrow)])
    own = {"distillation": torch.stack([kl(taught, wide), kl(taught, narrow)]), "cascaded": between, "consistency": between}
    added = own.get(name, torch.zeros(2))
    total = (losses + weight * added).sum() / (1 if name == "joint" else 2)
    gradients = torch.autograd.grad(total, [p for p in made.parameters() if p.requires_grad])

    args = TrainingArguments(steps=1, batch_size=3, learning_rate=1e-3)
    schedule = every_precision(WIDTHS[::-1], made.infos)
    options = {"objective": ObjectiveArguments(name, weight=weight), "teacher": guide, "mixed_precision": "no"}
    first = [f for f in features if f.start >= 0][:3]
    row = fit(made, first, args, schedule, pad_id=1, seed=0, checkpoint=tmp_path / "c", **options).iloc[1]
    # fp32 rounds norms and losses by 1e-6 of them, and loses 2e-8 of a divergence of 4.5e-6 between 8 bits and 4.
    assert row["grad_norm"] == pytest.approx(float(torch.nn.utils.get_total_norm(gradients)), rel=1e-4)
    assert [row["span_loss@8"], row["span_loss@4"]] == pytest.approx(losses.tolist(), rel=1e-5)
    assert row["span_loss"] == pytest.approx((row["span_loss@8"] + row["span_loss@4"]) / 2)
    assert row["passes"] == 2 and row.get("teacher_passes") == (1 if name == "distillation" else None)
    assert row.get("divergence", 0) == pytest.approx(float(added.detach().mean()), rel=1e-4, abs=2e-7)
    assert ("divergence" in row) == (name not in ("average", "joint"))


def test_distillation_alone_needs_a_teacher_and_leaves_it_as_it_was(features, tmp_path):
    with pytest.raises(ValueError, match="the objective distillation needs a teacher"):
        train(model(), features, tmp_path / "c", objective=ObjectiveArguments("distillation"))
    guide = teacher()
    before = [p.clone() for p in guide.parameters()]
    train(model(), features, tmp_path / "c", objective=ObjectiveArguments("distillation"), teacher=guide)
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(guide.parameters(), before, strict=True))


def test_learning_rates_are_adapted_to_the_widths_of_the_step(features, tmp_path):
    made, factors = model(0.0), {WIDTHS[0]: 1.0, WIDTHS[1]: 0.25}
    rows = train(made, features, tmp_path / "c", learning_rate_factors=factors)
    schedule = random_per_layer(WIDTHS, made.infos, seed=5, passes=2)
    for step in range(ARGS.steps):
        widths = [p.w_bits for configuration in schedule(step) for p in configuration.values()]
        share = widths.count(8) / len(widths)
        expected = learning_rate(step, ARGS) * (share + 0.25 * (1 - share))
        assert rows["learning_rate"][step + 1] == pytest.approx(expected)
    mixed = Configuration({"a": WIDTHS[0], "b": WIDTHS[1]})
    assert learning_rate_factor([mixed], factors) == 0.625 and learning_rate_factor([mixed], None) == 1


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "phi", "opt"])
def test_activations_computed_again_give_the_same_weights(tiny_lm, tmp_path, kind):
    """To the last bit, with dropout and several precisions a step."""
    ids = np.random.default_rng(0).integers(1, 97, (8, 12)).tolist()
    windows = [Feature(i, tuple(row), 2, ((0, 1),) * 10, 3, 4) for i, row in enumerate(ids)]
    calls, weights = [0, 0], []
    for enabled in (False, True):
        torch.manual_seed(0)
        made = SwitchableModel(tiny_lm(kind))
        made.add_adapters({p.w_bits: LoraSpec(2, 4, 0.3) for p in WIDTHS})

        def count(*_, enabled=enabled):
            calls[enabled] += 1

        made.layers[0].register_forward_hook(count)
        train(made, windows, tmp_path / f"{enabled}", args=replace(ARGS, steps=3, gradient_checkpointing=enabled))
        weights.append([p.detach() for p in made.parameters()])
    assert calls == [6, 12]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    made.train()
    made(torch.ones(1, 5, dtype=int)).start.sum().backward()
    assert calls == [6, 13]  # switched off again


def test_a_model_without_blocks_can_not_compute_them_again(features, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "GradientCheckpointingLayer", SwitchableModel)
    made = model()
    monkeypatch.setattr(made, "modules", lambda: iter(()))
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no blocks that can be computed again"):
        train(made, features, tmp_path / "c", args=replace(ARGS, gradient_checkpointing=True))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a log."""
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_a_resumed_run_goes_on_in_the_same_log(features, tmp_path, monkeypatch):
    options = {"trackers": ["tensorboard"], "log_dir": tmp_path / "logs", "probe": lambda: {"loss@8": 1.5}, "description": "run"}
    schedule, calls = random_per_layer(WIDTHS, model().infos, seed=5), []

    def killed(step):
        calls.append(step)
        if len(calls) == 4:  # in step 4, when 1 to 3 are logged and the checkpoint is of 2
            raise KeyboardInterrupt
        return schedule(step)

    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt):
            rows = fit(model(), features, ARGS, killed, pad_id=1, seed=3, checkpoint=tmp_path / "c", **options)
    assert calls == [0, 1, 2, 3, 2, 3, 4, 5]
    found = scalars(tmp_path / "logs" / "run")
    assert set(found) == set(rows.columns)
    for tag, column in rows.set_index("step", drop=False).items():
        expected = column.dropna()
        assert [step for step, _ in found[tag]] == expected.index.tolist()
        assert [value for _, value in found[tag]] == pytest.approx(expected.tolist(), rel=1e-6)  # TensorBoard writes fp32: 2^-24
    logged = [*(tmp_path / "logs" / "run").iterdir()]
    fit(model(), features, ARGS, killed, pad_id=1, seed=3, checkpoint=tmp_path / "c", **options)
    assert [*(tmp_path / "logs" / "run").iterdir()] == logged  # a finished run has nothing to log


def test_a_tracker_that_is_not_there_is_missed(features, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"tracker tensorboard is not installed: pip install 'qatlib\[tensorboard\]'"):
        train(model(), features, tmp_path / "c", trackers=["tensorboard"])


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> tuple[Path, Path]:
    """What tests/processes.py finds in one process, and in two."""
    script = Path(__file__).with_name("processes.py")
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    runpy.run_path(str(script))["measure"](one)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        command = [sys.executable, str(script), str(two), str(free.getsockname()[1])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)  # hangs; else 20 s
    assert result.returncode == 0, result.stderr[-3000:]
    return one, two


@pytest.mark.slow
def test_two_processes_train_to_the_figures_and_weights_of_one(processes):
    one, two = processes
    expected, weights = pd.read_csv(one / "0.plain.csv"), load_file(one / "0.plain.weights")
    del weights["qa_outputs.bias"]  # it moves no softmax: its gradient is rounding alone, and Adam makes a step of that
    for rank in "01":
        # Their sums round otherwise: 8e-6 of a figure, 3e-8 of a weight, and more where a code falls on the other side of a
        # half. A gradient of one share alone is 1e-2 off, and so are the weights: Adam makes steps of the learning rate.
        pd.testing.assert_frame_equal(pd.read_csv(two / f"{rank}.plain.csv"), expected, rtol=1e-3)
        found = load_file(two / f"{rank}.plain.weights")
        assert all(torch.allclose(found[name], weights[name], atol=1e-4) for name in weights)


@pytest.mark.slow
def test_two_processes_agree_and_resume_to_the_last_bit(processes):
    for folder in processes:
        for suffix in ("csv", "weights"):
            assert len({path.read_bytes() for run in ("whole", "broken") for path in folder.glob(f"?.{run}.{suffix}")}) == 1
            assert (folder / f"0.whole.{suffix}").read_bytes() != (folder / f"0.plain.{suffix}").read_bytes()  # dropout


@pytest.mark.slow
def test_two_processes_evaluate_as_one(processes):
    for name in ("scores.csv", "perplexity.csv"):
        found = [path.read_bytes() for folder in processes for path in sorted(folder.glob(f"?.{name}"))]
        assert len(found) == 3 and len(set(found)) == 1
    one, first, second = [int(path.read_text()) for folder in processes for path in sorted(folder.glob("?.passes"))]
    assert one == first + second and abs(first - second) <= 2  # 8 and 6: at most a batch apart in each of two evaluations


@pytest.mark.slow
def test_the_main_process_alone_writes(processes):
    for folder in processes:
        assert [len([*(folder / "logs" / run).iterdir()]) for run in ("plain", "whole", "broken")] == [1, 1, 2]
