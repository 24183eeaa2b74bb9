"""Switching every layer of GPT-2 small: ours against PEFT's `set_adapter`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import torch

from benchmarks.measure import Row, compare_times
from benchmarks.models import WIDTHS, Settings, gpt2, peft_lora, switchable
from qatlib.arguments import QuantizerArguments
from qatlib.deployed import deploy_nested
from qatlib.latency import Work, in_turn
from qatlib.precision import Configuration


def switching(settings: Settings, device: torch.device) -> Iterator[Row]:
    """Milliseconds of one switch of all layers."""
    config = gpt2(settings.inference_blocks, settings.width)
    model = switchable(config, device)
    model.set_quantizer(QuantizerArguments(nested=True))
    nested = deploy_nested(model, WIDTHS)
    mixed = [Configuration.resolve({"attn": a, "mlp": b}, model.infos) for a, b in ((8, 4), (4, 8))]
    peft_model, _ = peft_lora(config, device, tuple(f"bits{w}" for w in WIDTHS))

    def turns(switch: object, values: list[object], times: int) -> Work:
        following = cycle(values)
        return lambda: [switch(next(following)) for _ in range(times)]  # type: ignore[operator]

    works = {
        "all layers to one width": turns(model.set_precision, list(WIDTHS), 20),
        "to a mixed configuration": turns(model.set_precision, list(mixed), 20),
        "deployed, to one width": turns(nested.set_precision, list(WIDTHS), 20),
        "PEFT set_adapter": turns(peft_model.set_adapter, [f"bits{w}" for w in WIDTHS], 20),
    }
    *ours, peer = works
    times = {name: series / 20 for name, series in in_turn(works, settings.seconds / 4, device).items()}
    case = f"GPT-2, {settings.inference_blocks} blocks, {len(model.infos)} layers"
    for name in ours:
        yield compare_times("switching", case, times, name, peer, "value ≤ 0.1 ms")
