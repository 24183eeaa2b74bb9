"""One plain training loop over accelerate, with checkpoints from which a killed run goes on to the same result."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute
from tqdm import tqdm
from transformers.modeling_layers import GradientCheckpointingLayer

from qatlib import checkpoints
from qatlib.arguments import ObjectiveArguments, TrainingArguments
from qatlib.model import SwitchableModel
from qatlib.objectives import added_term
from qatlib.precision import FULL, Configuration, Precision
from qatlib.qa.evaluate import device_of
from qatlib.qa.loss import Batch, batch_plan, collate, span_logits, task_loss
from qatlib.qa.spans import Feature
from qatlib.schedule import Schedule
from qatlib.seeds import stream

BF16 = "bf16"
"""The mixed precision that is one; `no` is none."""

Adversary = Callable[[Batch, Configuration], Tensor]
"""A batch and the configuration it is trained at → the embeddings (batch, tokens, width) put in place of its tokens'."""

Probe = Callable[[], Mapping[str, float]]
"""Measures the model between steps, without touching random states or gradients."""


def learning_rate(step: int, args: TrainingArguments) -> float:
    """Linear warm-up over `warmup_steps`, then linear decay that reaches 0 after the last step."""
    if step < args.warmup_steps:
        return args.learning_rate * (step + 1) / args.warmup_steps
    return args.learning_rate * (args.steps - step) / (args.steps - args.warmup_steps)


def learning_rate_factor(configurations: Sequence[Configuration], factors: Mapping[Precision, float] | None) -> float:
    """Mean of the factors of all layers' precisions over the configurations of a step; 1 without factors (S2)."""
    if factors is None:
        return 1.0
    return float(np.mean([factors[p] for configuration in configurations for p in configuration.values()]))


def fit(
    model: SwitchableModel,
    features: Sequence[Feature],
    args: TrainingArguments,
    schedule: Schedule,
    *,
    pad_id: int,
    seed: int,
    checkpoint: Path,
    objective: ObjectiveArguments | None = None,
    teacher: SwitchableModel | None = None,
    learning_rate_factors: Mapping[Precision, float] | None = None,
    adversary: Adversary | None = None,
    mixed_precision: str = "no",
    trackers: Sequence[str] = (),
    log_dir: Path | None = None,
    probe: Probe | None = None,
    description: str = "training",
) -> pd.DataFrame:
    """Train what requires a gradient, on the configurations of `schedule`, towards `objective`.

    Under `accelerate launch` or `notebook_launcher` each of n processes takes an n-th of every batch (`batch_size` is of
    all together), losses are means over the whole batch, and gradients are added up once a step, so that figures and
    weights are those of one process to float rounding, on every process; with dropout the masks are others. All of them
    read the checkpoint; the main process alone writes.

    Args:
        features: windows; those without an answer are left out.
        checkpoint: a file, written every `checkpoint_every` steps and at the end. If it exists, training goes on
            from it; the result is the same as that of an unbroken run, to the last bit on a CPU.
        objective: `average` if left out.
        teacher: the model at full precision, for an objective that learns from it, with a span head of its own; it is
            evaluated, without gradients, once a step.
        learning_rate_factors: factors on the learning rate, by precision; a step's rate is multiplied by the mean
            factor over the layers' precisions in the step's configurations.
        adversary: for adversarial training (Madry et al. 2018); at random precision it is Double-Win Quant's (Fu et al. 2021).
            Its passes are not counted in the metrics.
        mixed_precision: `no` or `bf16` (autocast); weights, optimizer and probes stay in fp32.
        trackers: accelerate's trackers that the metrics go to as well (`tensorboard`); a resumed run goes on in the
            same log, `<log_dir>/<description>`.
        log_dir: the directory of the checkpoint if left out.
        probe: called before the first step and at every checkpoint; its figures join that row of the metrics.

    Returns:
        One row a step: `step` (1 is the first), `passes` (forward-backward passes of this step), `teacher_passes` (forward
        passes of the teacher, where there is one), `learning_rate`, `w_bits` and `a_bits` (average bits of the
        configurations trained), `span_loss`, `lm_loss` (where it has a weight) and `divergence` (the objective's added
        term before its weight, where it has one; 0 for the widest, which learns from none) as means over the step's
        configurations, `span_loss@<precision>` of the uniform ones among them, `grad_norm`; row 0 holds the first probe.

    Raises:
        ValueError: no feature holds an answer; a batch smaller than the number of processes; an objective without the
            teacher it needs; gradient checkpointing of a model that has no blocks for it.
        ModuleNotFoundError: a tracker that is not installed.

    Example:
        >>> args = TrainingArguments(steps=2, batch_size=4, learning_rate=1e-3)
        >>> pairs = make_schedule(ScheduleArguments("all"), precisions, model.infos, seed=0, steps=args.steps)
        >>> metrics = fit(model, features, args, pairs, pad_id=0, seed=0, checkpoint=Path("run/fit.safetensors"))
        >>> list(metrics["passes"].dropna())
        [2.0, 2.0]
    """
    objective = objective or ObjectiveArguments("average")
    answered = [f for f in features if f.start >= 0]
    if not answered:
        raise ValueError("no training window holds an answer: give more questions or a larger max_length")
    if objective.rule.needs_teacher and teacher is None:
        raise ValueError(f"the objective {objective.name} needs a teacher: the model at full precision")
    for name in trackers:
        if find_spec(name) is None:  # accelerate would leave it out with no more than a line in the log
            raise ModuleNotFoundError(f"tracker {name} is not installed: pip install 'qatlib[{name}]'")
    device = device_of(model)
    # Neither model nor optimizer is handed to accelerate: it would wrap the model, for several processes in a way that
    # stumbles over adapters without a gradient, and for autocast in a way that catches the probes as well.
    accelerator = Accelerator(cpu=device.type == "cpu", log_with=list(trackers) or None, project_dir=log_dir or checkpoint.parent)
    rank, processes = accelerator.process_index, accelerator.num_processes
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision == BF16)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=args.learning_rate, weight_decay=args.weight_decay)
    plan = batch_plan([len(f.input_ids) for f in answered], args.batch_size, args.steps, seed)
    if len(plan[0]) < processes:
        raise ValueError(f"a batch of {len(plan[0])} windows can't be shared out among {processes} processes")

    torch.manual_seed(stream(seed, "dropout", rank))
    done, rows = checkpoints.resume(checkpoint, trainable, optimizer, rank)
    for parameter in trainable.values() if processes > 1 else ():
        broadcast(parameter.data)  # whatever each process drew: they must start alike
    if not rows:
        rows = [{"step": 0, **(probe() if probe else {})}]
    if done < args.steps:
        _start_trackers(accelerator, description, rows, done)
    progress = tqdm(range(done, args.steps), initial=done, total=args.steps, desc=description, mininterval=5, disable=rank > 0)
    with (
        _recomputed_activations(model, args.gradient_checkpointing),
        _quantized_gradients(model, args.gradient_bits),
        _quick_attention(model, mixed_precision),
    ):
        for step in progress:
            whole = [answered[i] for i in plan[step]]
            batch = collate(whole[rank::processes], pad_id, device, whole)
            # widest first: each learns from those before it, and only one graph is in memory at a time
            configurations = sorted(schedule(step), key=lambda c: c.average_bits(model.infos), reverse=True)
            rate = learning_rate(step, args) * learning_rate_factor(configurations, learning_rate_factors)
            for group in optimizer.param_groups:
                group["lr"] = rate
            model.train()
            losses = _passes(model, batch, configurations, args.lm_weight, objective, teacher, adversary, autocast)
            if processes > 1:
                _add_up(accelerator, [*trainable.values()], losses)
            norm = torch.nn.utils.clip_grad_norm_(trainable.values(), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            row: dict[str, float] = {"step": step + 1, "passes": len(configurations)}
            row |= {"teacher_passes": 1} if objective.rule.needs_teacher else {}
            row |= {"learning_rate": rate, **_figures(model, configurations, losses), "grad_norm": float(norm)}
            progress.set_postfix(loss=f"{row['span_loss']:.3f}", refresh=False)
            rows.append(row)
            at_checkpoint = (step + 1) % args.checkpoint_every == 0 or step + 1 == args.steps
            if at_checkpoint and probe:
                row |= probe()
            accelerator.log(row, step=step + 1)
            if at_checkpoint:
                checkpoints.save(checkpoint, step + 1, rows, trainable, optimizer, accelerator)
    for tracker in accelerator.trackers:
        tracker.finish()
    model.eval()
    return pd.DataFrame(rows)


def _passes(
    model: SwitchableModel,
    batch: Batch,
    configurations: Sequence[Configuration],
    lm_weight: float,
    objective: ObjectiveArguments,
    teacher: SwitchableModel | None,
    adversary: Adversary | None,
    autocast: AbstractContextManager[Any],
) -> dict[str, Tensor]:
    """Forward and backward of every configuration of a step, widest first; gradients add up in the parameters.

    Returns:
        `span_loss`, and `lm_loss` and `divergence` where they count: (configurations,) each.
    """
    taught = None
    if objective.rule.needs_teacher:
        assert teacher is not None
        with torch.no_grad(), autocast:
            taught = span_logits(teacher.eval()(batch.input_ids))
    share = 1 if objective.rule.sums else len(configurations)
    wider: list[Tensor] = []
    figures: dict[str, list[Tensor]] = defaultdict(list)
    for configuration in configurations:
        model.set_precision(configuration)
        with autocast:
            output = model(batch.input_ids) if adversary is None else model(inputs_embeds=adversary(batch, configuration))
            loss, parts = task_loss(model, output, batch, lm_weight)
            logits = span_logits(output)
            added = added_term(objective, logits, wider, taught, batch)
        if added is not None:
            loss = loss + objective.weight * added
            parts["divergence"] = added.detach()
        (loss / share).backward()
        wider.append(logits.detach())
        for key, value in parts.items():
            figures[key].append(value)
    return {key: torch.stack(values) for key, values in figures.items()}


def _add_up(accelerator: Accelerator, parameters: Sequence[Tensor], figures: Mapping[str, Tensor]) -> None:
    """Add up over the processes, in place and in one message: figures, and the gradients there are, in all the same ones."""
    parts = [p.grad for p in parameters if p.grad is not None] + [*figures.values()]
    flat = accelerator.reduce(torch.cat([part.flatten() for part in parts]), "sum")
    for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
        part.copy_(total.view_as(part))


def _figures(model: SwitchableModel, configurations: Sequence[Configuration], losses: Mapping[str, Tensor]) -> dict[str, float]:
    """The columns of a step's row that are about its configurations."""
    w_bits, a_bits = np.mean([c.average_bits(model.infos) for c in configurations], axis=0)
    values = {key: tensor.tolist() for key, tensor in losses.items()}
    row = {"w_bits": float(w_bits), "a_bits": float(a_bits)} | {key: float(np.mean(v)) for key, v in values.items()}
    for configuration, loss in zip(configurations, values["span_loss"], strict=True):
        if len(widths := set(configuration.values())) == 1:
            row[f"span_loss@{widths.pop().name}"] = loss
    return row


def _start_trackers(accelerator: Accelerator, name: str, rows: Sequence[dict[str, float]], done: int) -> None:
    # What a killed run logged after its last checkpoint is logged again: from `purge_step` on the first time is hidden.
    accelerator.init_trackers(name, init_kwargs={"tensorboard": {"purge_step": done + 1 if done else 0}})
    if not done:
        accelerator.log(rows[0], step=0)


@contextmanager
def _quantized_gradients(model: SwitchableModel, bits: int) -> Iterator[None]:
    for layer in model.layers:
        layer.gradient_bits = bits
    try:
        yield
    finally:
        for layer in model.layers:
            layer.gradient_bits = FULL


@contextmanager
def reduced_precision(model: SwitchableModel, mixed_precision: str) -> Iterator[None]:
    """Passes forward and backward in bf16 where `mixed_precision` says so, and else as they are."""
    with (
        torch.autocast(device_of(model).type, torch.bfloat16, enabled=mixed_precision == BF16),
        _quick_attention(model, mixed_precision),
    ):
        yield


def _quick_attention(model: SwitchableModel, mixed_precision: str) -> AbstractContextManager[Any]:
    """On a CPU the fused attention's bf16 backward took a third of a LoRA step of SmolLM2-135M (5.3 s against 4.0 s)."""
    slow = device_of(model).type == "cpu" and mixed_precision == BF16
    return model.attending("eager") if slow else nullcontext()


@contextmanager
def _recomputed_activations(model: SwitchableModel, enabled: bool) -> Iterator[None]:
    """Gradient checkpointing of every decoder block (Chen et al. 2016), by transformers' own switch for it.

    Its `gradient_checkpointing_enable` makes the embeddings require a gradient as well, which the variant used here does
    not need and which outlives its disabling. A block is computed again, dropout masks and autocast included, while the
    model still has the configuration of the forward pass, as every configuration is backpropagated before the next.
    """
    blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)] if enabled else []
    if enabled and not blocks:
        raise ValueError(f"gradient checkpointing: {type(model.lm).__name__} has no blocks that can be computed again")
    for block in blocks:
        block.gradient_checkpointing, block._gradient_checkpointing_func = True, partial(recompute, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            block.gradient_checkpointing = False
