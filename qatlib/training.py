"""One plain training loop over accelerate, with checkpoints from which a killed run goes on to the same result."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from qatlib.arguments import TrainingArguments
from qatlib.model import SwitchableModel
from qatlib.objectives import collate, task_loss
from qatlib.schedule import Schedule
from qatlib.spans import Feature

Probe = Callable[[], Mapping[str, float]]
"""Measures the model between steps, without touching random states or gradients."""


def batch_plan(lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> list[np.ndarray]:
    """Which features make up the batch of every step: a pure function, so that a resume goes on in the same order.

    Every epoch is a new permutation. Runs of 50 batches are sorted by length before they are cut, so that a batch
    holds windows of about one length and little is padded; then the batches of the run are shuffled.

    Args:
        lengths: tokens of each feature.

    Returns:
        `steps` index arrays of `batch_size` (fewer where there are fewer features).
    """
    rng = np.random.default_rng(seed)
    tokens = np.asarray(lengths)
    size = min(batch_size, len(tokens))
    plan: list[np.ndarray] = []
    while len(plan) < steps:
        whole = rng.permutation(len(tokens))[: len(tokens) // size * size].reshape(-1, size)
        for run in np.array_split(whole, max(1, len(whole) // 50)):
            ranked = run.ravel()[np.argsort(tokens[run.ravel()], kind="stable")].reshape(-1, size)
            plan.extend(ranked[i] for i in rng.permutation(len(ranked)))
    return plan[:steps]


def learning_rate(step: int, args: TrainingArguments) -> float:
    """Linear warm-up over `warmup_steps`, then linear decay that reaches 0 after the last step."""
    if step < args.warmup_steps:
        return args.learning_rate * (step + 1) / args.warmup_steps
    return args.learning_rate * (args.steps - step) / (args.steps - args.warmup_steps)


def fit(
    model: SwitchableModel,
    features: Sequence[Feature],
    args: TrainingArguments,
    schedule: Schedule,
    *,
    pad_id: int,
    seed: int,
    checkpoint: Path,
    mixed_precision: str = "no",
    probe: Probe | None = None,
    description: str = "training",
) -> pd.DataFrame:
    """Train what requires a gradient; the loss of a step is the average over the configurations of `schedule`.

    Args:
        features: windows; those without an answer are left out.
        checkpoint: a file, written every `checkpoint_every` steps and at the end. If it exists, training goes on
            from it; the result is the same as that of an unbroken run, to the last bit on a CPU.
        mixed_precision: `no` or `bf16` (autocast); weights, optimizer and probes stay in fp32.
        probe: called before the first step and at every checkpoint; its figures join that row of the metrics.

    Returns:
        One row a step: `step` (1 is the first), `learning_rate`, `w_bits` and `a_bits` (average bits of the
        configurations trained), `span_loss`, `lm_loss` (where it has a weight), `grad_norm`; row 0 holds the first probe.

    Raises:
        ValueError: no feature holds an answer.
    """
    answered = [f for f in features if f.start >= 0]
    if not answered:
        raise ValueError("no training window holds an answer: give more questions or a larger max_length")
    accelerator = Accelerator(cpu=model.qa_outputs.weight.device.type == "cpu")
    # autocast is entered here and not left to accelerate, which would wrap the model's forward for probes as well
    autocast = torch.autocast(accelerator.device.type, torch.bfloat16, enabled=mixed_precision == "bf16")
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=args.learning_rate, weight_decay=args.weight_decay)
    prepared, prepared_optimizer = accelerator.prepare(model, optimizer)
    plan = batch_plan([len(f.input_ids) for f in answered], args.batch_size, args.steps, seed)

    torch.manual_seed(seed)
    done, rows = _resume(checkpoint, trainable, optimizer)
    if not rows:
        rows = [{"step": 0, **(probe() if probe else {})}]
    progress = tqdm(range(done, args.steps), initial=done, total=args.steps, desc=description, mininterval=5)
    for step in progress:
        batch = collate([answered[i] for i in plan[step]], pad_id, accelerator.device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        configurations = schedule(step)
        parts: list[dict[str, float]] = []
        prepared.train()
        for configuration in configurations:
            model.set_precision(configuration)
            with autocast:
                loss, figures = task_loss(prepared, batch, args.lm_weight)
            accelerator.backward(loss / len(configurations))
            w_bits, a_bits = configuration.average_bits(model.infos)
            parts.append({"w_bits": w_bits, "a_bits": a_bits, **figures})
        norm = accelerator.clip_grad_norm_(trainable.values(), args.max_grad_norm)
        prepared_optimizer.step()
        prepared_optimizer.zero_grad()
        row: dict[str, float] = {"step": step + 1, "learning_rate": learning_rate(step, args)}
        row |= {key: float(np.mean([part[key] for part in parts])) for key in parts[0]} | {"grad_norm": float(norm)}
        progress.set_postfix(loss=f"{row['span_loss']:.3f}", refresh=False)
        rows.append(row)
        if (step + 1) % args.checkpoint_every == 0 or step + 1 == args.steps:
            if probe:
                row |= probe()
            _save(checkpoint, step + 1, rows, trainable, optimizer)
    model.eval()
    return pd.DataFrame(rows)


def _save(path: Path, done: int, rows: list[Any], trainable: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """One file, renamed into place when whole: weights, optimizer and random states, and the metrics so far."""
    tensors = {f"weight/{name}": p.detach().contiguous() for name, p in trainable.items()}
    names = list(trainable)
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{names[index]}/{key}": torch.as_tensor(value) for key, value in state.items()}
    tensors["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, {"done": str(done), "rows": json.dumps(rows)})
    partial.replace(path)


def _resume(path: Path, trainable: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> tuple[int, list[Any]]:
    """Steps done and metrics so far; (0, []) without a checkpoint."""
    if not path.is_file():
        return 0, []
    state: dict[int, dict[str, Tensor]] = {}
    index = {name: i for i, name in enumerate(trainable)}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 (not a mapping: `in` is not there)
            kind, _, rest = key.partition("/")
            value = file.get_tensor(key)
            if kind == "weight":
                trainable[rest].data.copy_(value)
            elif kind == "optimizer":
                name, _, field = rest.rpartition("/")
                state.setdefault(index[name], {})[field] = value
            elif key == "random/cpu":
                torch.set_rng_state(value)
            elif torch.cuda.is_available():
                torch.cuda.set_rng_state(value)
        about = file.metadata()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(about["done"]), json.loads(about["rows"])
