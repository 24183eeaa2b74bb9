"""What a rotation of the quantizer's basis costs: in a training step and in a deployed pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.inference import forward_of
from benchmarks.measure import Row, compare_times
from benchmarks.models import Settings, gpt2, llama, switchable
from benchmarks.training import step_of
from qatlib.arguments import QuantizerArguments
from qatlib.deployed import deploy
from qatlib.latency import Work, in_turn
from qatlib.rotation import ROTATIONS


def rotating(settings: Settings, device: torch.device) -> Iterator[Row]:
    """Milliseconds with 4-bit weights and activations, over the same without a rotation."""
    for family, shape in (("GPT-2", gpt2), ("SmolLM2", llama)):
        config = shape(settings.training_blocks, settings.width)
        steps: dict[str, Work] = {}
        passes: dict[str, Work] = {}
        ids = torch.randint(1000, settings.training_batch, generator=torch.Generator().manual_seed(0)).to(device)
        for name in ROTATIONS:
            model = switchable(config, device, (4,), QuantizerArguments(rotation=name))
            model.set_precision(4)
            passes[name] = forward_of(deploy(model, 4).lm, ids)
            steps[name] = step_of(model.lm, settings, device)
        batch, tokens = settings.training_batch
        for group, works in (("rotated training step", steps), ("rotated deployed pass", passes)):
            times = in_turn(works, settings.seconds, device)
            for name in ROTATIONS:
                if name != "none":
                    case = f"{family}, {settings.training_blocks} blocks, {batch} × {tokens}"
                    yield compare_times(group, case, times, name, "none", "≤ 1.08")
