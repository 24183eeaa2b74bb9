"""The deployed model against the unquantized one in fp32 and bf16: latency and throughput over batch and length."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.measure import Row, compare_times
from benchmarks.models import Settings, gpt2, plain, switchable
from qatlib.deployed import deploy
from qatlib.latency import Work, in_turn


def forward_of(lm: PreTrainedModel, input_ids: Tensor) -> Work:
    @torch.no_grad()
    def forward() -> Tensor:
        hidden: Tensor = lm.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        return hidden

    return forward


def inference(settings: Settings, device: torch.device) -> Iterator[Row]:
    """Milliseconds of a forward pass up to the last hidden state.

    The peers are the model with its adapters merged. The deployed model can't merge them; without them it is what integers
    alone gain.
    """
    config = gpt2(settings.inference_blocks, settings.width)
    model = switchable(config, device)
    with_adapters = deploy(model, 8).lm, deploy(model, 4).lm
    model.add_adapters({})
    models: dict[str, PreTrainedModel] = {
        "int8": with_adapters[0],
        "int8, no adapter": deploy(model, 8).lm,
        "int4 weights, int4 activations": with_adapters[1],
        "fp32": plain(config, device),
        "bf16": plain(config, device, torch.bfloat16),
    }
    del model
    for batch, tokens in settings.inference_batches:
        input_ids = torch.randint(1000, (batch, tokens), generator=torch.Generator().manual_seed(0)).to(device)
        works = {name: forward_of(lm, input_ids) for name, lm in models.items()}
        times = in_turn(works, settings.seconds, device)
        *ours, fp32, bf16 = models
        case = f"GPT-2, {settings.inference_blocks} blocks, {batch} × {tokens}"
        for name in ours:
            for peer in (fp32, bf16):
                yield compare_times("inference", case, times, name, peer, "< 1" if (batch, tokens) == (16, 165) else "")
