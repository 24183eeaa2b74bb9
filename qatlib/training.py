"""One plain training loop over accelerate. A killed run resumes from a checkpoint and gives the same result."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
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
from qatlib.arithmetic import AUTO, autocast, continued, quick_attention, resolved
from qatlib.model import SwitchableModel
from qatlib.objectives import added_terms
from qatlib.precision import FULL, Configuration, Precision
from qatlib.qa.evaluate import device_of
from qatlib.qa.loss import Batch, batch_plan, collate, task_loss
from qatlib.qa.spans import Feature
from qatlib.schedule import Schedule
from qatlib.seeds import stream
from qatlib.switching import Output

Adversary = Callable[[Batch, Configuration], Tensor]
"""A batch and its configuration → embeddings (batch, tokens, width) that replace those of its tokens."""

Probe = Callable[[], Mapping[str, float]]
"""Measures the model between steps. It must not change random states or gradients."""


def learning_rate(step: int, args: TrainingArguments) -> float:
    """Linear warm-up over `warmup_steps`, then linear decay that reaches 0 after the last step."""
    if step < args.warmup_steps:
        return args.learning_rate * (step + 1) / args.warmup_steps
    return args.learning_rate * (args.steps - step) / (args.steps - args.warmup_steps)


def learning_rate_factor(configurations: Sequence[Configuration], factors: Mapping[Precision, float] | None) -> float:
    """Mean of the factors of all layers' precisions over the configurations of a step; 1 without factors (S2)."""
    if factors is None:
        return 1.0
    if missing := {p.name for configuration in configurations for p in configuration.values() if p not in factors}:
        raise ValueError(f"learning_rate_factors has none for the precision {min(missing)}")
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
    mixed_precision: str = AUTO,
    trackers: Sequence[str] = (),
    log_dir: Path | None = None,
    probe: Probe | None = None,
    description: str = "training",
) -> pd.DataFrame:
    """Train all parameters that require a gradient, on the configurations of `schedule`, with `objective`.

    Under `accelerate launch` or `notebook_launcher` each of n processes takes an n-th of every batch; `batch_size` is the
    total. Losses are means over the whole batch, and gradients are added up once per step. So on every process, figures and
    weights equal those of one process up to float rounding; only dropout masks differ. All processes read the checkpoint;
    only the main process writes it.

    Args:
        features: windows; those without an answer are left out.
        checkpoint: a file, written every `checkpoint_every` steps and at the end. If it exists, training resumes from it. The
            result equals that of an uninterrupted run, to the last bit on a CPU.
        objective: `average` by default.
        teacher: the model at full precision with its own span head, for an objective that learns from it. It is evaluated
            once per step, without gradients.
        learning_rate_factors: factors of the learning rate, by precision. A step's rate is multiplied by the mean factor over all
            layers and configurations of the step.
        adversary: for adversarial training (Madry et al. 2018); at random precision it is Double-Win Quant's (Fu et al. 2021).
            Its passes are not counted in the metrics.
        mixed_precision: `no`, `bf16` (autocast) or `auto`: bf16 where that is fast (`qatlib.arithmetic`). Weights, optimizer and
            probes stay in fp32. A training that is resumed in its middle goes on as it began.
        trackers: accelerate's trackers that also get the metrics (`tensorboard`). A resumed run continues the same log,
            `<log_dir>/<description>`.
        log_dir: by default the directory of the checkpoint.
        probe: called before the first step and at every checkpoint; its figures are added to that row of the metrics.

    Returns:
        One row per step: `step` (from 1), `passes` (forward-backward passes of this step), `teacher_passes` (forward passes of
        the teacher, if there is one), `learning_rate`, `w_bits` and `a_bits` (average bits of the trained configurations),
        `span_loss`, `lm_loss` (if it has a weight), `divergence` and `hidden_distance` (the objective's added terms before their
        weights, if it has them; 0 for the widest, which learns from no other), all as means over the step's configurations,
        `span_loss@<precision>` for uniform configurations, and `grad_norm`. Row 0 holds the first probe.

    Raises:
        ValueError: no feature holds an answer; no parameter requires a gradient; the batch is smaller than the number of
            processes; a teacher, a factor or blocks for gradient checkpointing are needed and missing; the schedule gives a step
            no configuration; the checkpoint is damaged, of another training or, in its middle, of another arithmetic; an argument
            is not one of those above.
        OSError: the checkpoint can't be written where it is named.
        ModuleNotFoundError: a tracker is not installed.

    Example:
        >>> args = TrainingArguments(steps=2, batch_size=4, learning_rate=1e-3)
        >>> pairs = make_schedule(ScheduleArguments("all"), precisions, model.infos, seed=0, steps=args.steps)
        >>> metrics = fit(model, features, args, pairs, pad_id=0, seed=0, checkpoint=Path("run/fit.safetensors"))
        >>> list(metrics["passes"].dropna())
        [2.0, 2.0]
    """
    objective, checkpoint = objective or ObjectiveArguments("average"), Path(checkpoint)
    device = device_of(model)
    arithmetic = resolved(mixed_precision, device)
    answered = [f for f in features if f.start >= 0]
    if not answered:
        raise ValueError("no training window holds an answer: give more questions or a larger max_length")
    if objective.rule.needs_teacher and teacher is None:
        raise ValueError(f"the objective {objective.name} needs a teacher: the model at full precision")
    if isinstance(trackers, str):
        raise ValueError(f"trackers is {trackers!r}; allowed is a list of names")
    for name in trackers:
        if find_spec(name) is None:  # accelerate would only log a line and leave it out
            raise ModuleNotFoundError(f"tracker {name} is not installed: pip install 'qatlib[{name}]'")
    # Neither model nor optimizer is given to accelerate, because it would wrap the model. Its wrapper for several processes fails
    # on adapters without a gradient. Its wrapper for autocast would also affect the probes.
    accelerator = Accelerator(cpu=device.type == "cpu", log_with=list(trackers) or None, project_dir=log_dir or checkpoint.parent)
    rank, processes = accelerator.process_index, accelerator.num_processes
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError("no parameter of the model requires a gradient, so there is nothing to train")
    optimizer = torch.optim.AdamW(trainable.values(), lr=args.learning_rate, weight_decay=args.weight_decay)
    plan = batch_plan([len(f.input_ids) for f in answered], args.batch_size, args.steps, seed)
    if len(plan[0]) < processes:
        raise ValueError(f"a batch of {len(plan[0])} windows can't be shared out among {processes} processes")

    checkpoints.check_writable(checkpoint)
    torch.manual_seed(stream(seed, "dropout", rank))
    done, rows, began = checkpoints.resume(checkpoint, trainable, optimizer, rank)
    if done > args.steps:
        raise ValueError(
            f"{checkpoint}: a checkpoint of {done} steps, and the training has {args.steps}; remove it or name another"
        )
    if 0 < done < args.steps:
        arithmetic = resolved(continued(mixed_precision, began, checkpoint), device)
    cast = autocast(model, arithmetic)
    for parameter in trainable.values() if processes > 1 else ():
        broadcast(parameter.data)  # each process may have drawn other weights; all must start equal
    if not rows:
        rows = [{"step": 0, **(probe() if probe else {})}]
    if done < args.steps:
        _start_trackers(accelerator, description, rows, done)
    progress = tqdm(range(done, args.steps), initial=done, total=args.steps, desc=description, mininterval=5, disable=rank > 0)
    with (
        _recomputed_activations(model, args.gradient_checkpointing),
        _quantized_gradients(model, args.gradient_bits),
        quick_attention(model, arithmetic),
    ):
        for step in progress:
            whole = [answered[i] for i in plan[step]]
            batch = collate(whole[rank::processes], pad_id, device, whole)
            # widest first: each learns from earlier ones, and only one graph is in memory at a time
            configurations = sorted(schedule(step), key=lambda c: c.average_bits(model.infos), reverse=True)
            if not configurations:
                raise ValueError(f"the schedule gives no configuration for step {step}; allowed are one or more")
            rate = learning_rate(step, args) * learning_rate_factor(configurations, learning_rate_factors)
            for group in optimizer.param_groups:
                group["lr"] = rate
            model.train()
            losses = _passes(model, batch, configurations, args.lm_weight, objective, teacher, adversary, cast)
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
                checkpoints.save(checkpoint, step + 1, rows, trainable, optimizer, accelerator, arithmetic)
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
    cast: AbstractContextManager[Any],
) -> dict[str, Tensor]:
    """Forward and backward passes of a step's configurations, widest first. Gradients add up in the parameters.

    Returns:
        `span_loss`, and `lm_loss`, `divergence` and `hidden_distance` if they are used: (configurations,) each.
    """
    taught = None
    if objective.rule.needs_teacher:
        assert teacher is not None
        with torch.no_grad(), cast:
            taught = teacher.eval()(batch.input_ids)
    share = 1 if objective.rule.sums else len(configurations)
    wider: list[Output] = []
    figures: dict[str, list[Tensor]] = defaultdict(list)
    for configuration in configurations:
        model.set_precision(configuration)
        with cast:
            output = model(batch.input_ids, inputs_embeds=adversary and adversary(batch, configuration))
            loss, parts = task_loss(model, output, batch, lm_weight)
            added = added_terms(objective, output, wider, taught, batch)
        for name, (weight, term) in added.items():
            loss = loss + weight * term
            parts[name] = term.detach()
        (loss / share).backward()
        wider.append(Output(output.hidden.detach(), output.start.detach(), output.end.detach()))
        for key, value in parts.items():
            figures[key].append(value)
    return {key: torch.stack(values) for key, values in figures.items()}


def _add_up(accelerator: Accelerator, parameters: Sequence[Tensor], figures: Mapping[str, Tensor]) -> None:
    """Add figures and gradients up over the processes, in place, in one message. The same parameters have gradients in all."""
    parts = [p.grad for p in parameters if p.grad is not None] + [*figures.values()]
    flat = accelerator.reduce(torch.cat([part.flatten() for part in parts]), "sum")
    for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
        part.copy_(total.view_as(part))


def _figures(model: SwitchableModel, configurations: Sequence[Configuration], losses: Mapping[str, Tensor]) -> dict[str, float]:
    """The columns of a step's row that describe its configurations."""
    w_bits, a_bits = np.mean([c.average_bits(model.infos) for c in configurations], axis=0)
    values = {key: tensor.tolist() for key, tensor in losses.items()}
    row = {"w_bits": float(w_bits), "a_bits": float(a_bits)} | {key: float(np.mean(v)) for key, v in values.items()}
    for configuration, loss in zip(configurations, values["span_loss"], strict=True):
        if len(widths := set(configuration.values())) == 1:
            row[f"span_loss@{widths.pop().name}"] = loss
    return row


def _start_trackers(accelerator: Accelerator, name: str, rows: Sequence[dict[str, float]], done: int) -> None:
    # Steps after a killed run's last checkpoint are logged again; `purge_step` hides their first log.
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
def _recomputed_activations(model: SwitchableModel, enabled: bool) -> Iterator[None]:
    """Gradient checkpointing of every decoder block (Chen et al. 2016), by transformers' own switch for it.

    Its `gradient_checkpointing_enable` would also make the embeddings require a gradient. The variant used here does not need
    that, and disabling would not undo it. A block is computed again with the same dropout masks and autocast. The model then
    still has the configuration of the forward pass, since every configuration is backpropagated before the next.
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
