"""A training step: ours against PEFT's LoRA on unquantized weights, and against torchao's quantization-aware training."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from benchmarks.measure import Row, compare_bytes, compare_times
from benchmarks.models import Settings, gpt2, llama, peft_lora, switchable, torchao_qat
from qatlib.latency import Work, in_turn, peak_bytes
from qatlib.precision import Precision
from qatlib.schedule import cosine_cycles
from qatlib.scheduling import CosineArguments

_TARGETS = {"w4a32": "≤ 1.05"} | dict.fromkeys(("w4a4", "w4a8", "8, 4"), "≤ 1.10, on a GPU ≤ 1.25")


def step_of(lm: PreTrainedModel, settings: Settings, device: torch.device) -> Work:
    """Forward, backward and optimizer of a batch of windows with a span each; all but adapters and head is frozen."""
    shape = settings.training_batch
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(1000, shape, generator=generator).to(device)
    spans = torch.randint(shape[1], (2, shape[0]), generator=generator).to(device)
    head = nn.Linear(lm.config.hidden_size, 2).to(device)
    lm.train()
    optimizer = torch.optim.AdamW([*(p for p in lm.parameters() if p.requires_grad), *head.parameters()], lr=1e-4)

    def step() -> None:
        logits = head(lm.base_model(input_ids=input_ids, use_cache=False).last_hidden_state)
        loss = F.cross_entropy(logits[..., 0], spans[0]) + F.cross_entropy(logits[..., 1], spans[1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _ours(config: PretrainedConfig, precisions: str, settings: Settings, device: torch.device) -> Work:
    """At one precision, or at several in turn, one a step: then the weights of another width are read back every time."""
    parsed = [Precision.parse(p) for p in precisions.split(", ")]
    model = switchable(config, device, tuple(p.w_bits for p in parsed))
    step, following = step_of(model.lm, settings, device), cycle(parsed)

    def switch_and_step() -> None:
        model.set_precision(next(following))
        step()

    return switch_and_step


def training_step(settings: Settings, device: torch.device) -> Iterator[Row]:
    """Seconds and memory of a step. `32` is our layer with nothing quantized, `8, 4` switches every step."""
    for family, shape, precisions in (("GPT-2", gpt2, ("32", "w4a32", "w4a4", "8, 4")), ("SmolLM2", llama, ("w4a32", "w4a8"))):
        config = shape(settings.training_blocks, settings.width)
        peer = "PEFT LoRA"
        works = {p: _ours(config, p, settings, device) for p in precisions}
        works[peer] = step_of(peft_lora(config, device)[1], settings, device)
        pairs = [(p, peer) for p in precisions]
        if family == "SmolLM2" and find_spec("torchao"):  # it knows nn.Linear only, so not GPT-2
            for name, a_bits in (("torchao w4a32", 32), ("torchao w4a8", 8)):
                works[name] = step_of(torchao_qat(config, device, a_bits), settings, device)
                pairs += [(name, peer), (name.removeprefix("torchao "), name)]
        batch, tokens = settings.training_batch
        case = f"{family}, {settings.training_blocks} blocks, {batch} × {tokens}"
        times = in_turn(works, settings.seconds * len(works) / 3, device)
        for ours, other in pairs:
            yield compare_times("training step", case, times, ours, other, _TARGETS.get(ours, "") if other == peer else "")
        peaks = {name: peak_bytes(work, device) for name, work in works.items()}
        for ours, other in pairs:
            yield compare_bytes("peak memory of a step", case, (ours, peaks[ours]), (other, peaks[other]))


CYCLED = tuple(Precision(b, b) for b in (8, 6, 4))
CYCLE = 10
"""Steps of a cycle."""


def cyclic_training(settings: Settings, device: torch.device) -> Iterator[Row]:
    """Seconds of a cycle of cyclic precision training against as many steps of models that stay at the same widths."""
    config = gpt2(settings.training_blocks, settings.width)
    widths = tuple(p.w_bits for p in CYCLED)
    model = switchable(config, device, widths)
    schedule = cosine_cycles(CosineArguments(cycles=1), CYCLED, model.infos, seed=0, steps=CYCLE)
    cycling, resting = step_of(model.lm, settings, device), {}
    for p in CYCLED:
        still = switchable(config, device, (p.w_bits,))
        still.set_precision(p)
        resting[p] = step_of(still.lm, settings, device)

    def cyclic() -> None:
        for step in range(CYCLE):
            model.set_precision(schedule(step)[0])
            cycling()

    def static() -> None:
        for step in range(CYCLE):
            resting[next(iter(schedule(step)[0].values()))]()

    ours, peer = "cyclic 4 to 8", "static at the same widths"
    times = in_turn({ours: cyclic, peer: static}, settings.seconds, device)
    case = f"GPT-2, {settings.training_blocks} blocks, a cycle of {CYCLE} steps"
    yield compare_times("cyclic training", case, times, ours, peer, "≤ 1.05")
