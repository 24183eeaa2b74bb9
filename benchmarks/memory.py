"""All widths in one model: bytes in memory, bytes on disk beside bytes by formula, and what the first use of a width costs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import torch

from benchmarks.measure import Row, compare_bytes, compare_times
from benchmarks.models import WIDTHS, Settings, gpt2, switchable
from qatlib.arguments import QuantizerArguments
from qatlib.deployed import deploy, deploy_nested
from qatlib.latency import in_turn
from qatlib.qa.toyqa import build_tokenizer


@torch.no_grad()
def memory(settings: Settings, device: torch.device) -> Iterator[Row]:
    """The blocks' weights; adapters, embeddings and norms are the same in all of these and left out."""
    model = switchable(gpt2(settings.inference_blocks, settings.width), device)
    model.set_quantizer(QuantizerArguments(nested=True))
    case = f"GPT-2, {settings.inference_blocks} blocks, widths {', '.join(map(str, WIDTHS))}"
    nested, only8 = deploy_nested(model, WIDTHS), deploy(model, 8)
    alone = "8-bit codes and scales alone", float(sum(only8.memory().values()))
    yield compare_bytes("memory", case, ("all widths stored", sum(nested.memory().values())), alone, "≤ 1.15")
    batch, tokens = settings.inference_batches[-1]
    input_ids = torch.randint(1000, (batch, tokens), generator=torch.Generator().manual_seed(0)).to(device)
    nested.set_precision(4)
    nested(input_ids)
    yield compare_bytes("memory", case, ("all widths, 4 bits in use", sum(nested.memory().values())), alone)
    apart = sum(sum(deploy(model, w).memory().values()) for w in WIDTHS)  # compensated codes can't be derived
    yield compare_bytes("memory", case, ("codes of its own for each width", apart), alone)
    separate = sum(deploy(model, w).configuration.storage_bytes(model.infos) for w in WIDTHS)
    yield compare_bytes("memory", case, ("a packed copy a width, by formula", separate), alone)
    yield compare_bytes("memory", case, ("fp32", 4.0 * sum(info.weights for info in model.infos)), alone)

    turns = cycle([4, 3])

    def derive_and_run() -> None:
        nested.set_precision(next(turns))
        nested(input_ids)

    works = {"first pass at a derived width": derive_and_run, "a pass at 8 bits": lambda: only8(input_ids)}
    times = in_turn(works, settings.seconds / 4, device, least=3)
    yield compare_times("memory", f"{case}, {batch} × {tokens}", times, *works)

    for w in WIDTHS:
        deployed = deploy(model, w)
        with tempfile.TemporaryDirectory() as folder:
            deployed.save(Path(folder), build_tokenizer())
            on_disk = (Path(folder) / "weights.safetensors").stat().st_size
        formula = deployed.configuration.storage_bytes(model.infos)
        yield compare_bytes("disk", case, (f"{w} bits on disk", on_disk), ("by formula", formula), "0.98 to 1.02")
