"""The arithmetic of trainings and attacks: what `mixed_precision` is on a device, and in what a resumed training goes on."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from qatlib.model import SwitchableModel
from qatlib.qa.evaluate import device_of

AUTO, NO, BF16 = "auto", "no", "bf16"
MIXED_PRECISIONS = (AUTO, NO, BF16)
"""What `mixed_precision` may be. `no` is fp32, and `auto` is `bf16` where that is fast."""


def resolved(mixed_precision: str, device: torch.device) -> str:
    """What `mixed_precision` is on a device: `no` or `bf16`. If that is a slow `bf16`, a warning says so, once per process.

    Raises:
        ValueError: it is none of `MIXED_PRECISIONS`.
    """
    if mixed_precision not in MIXED_PRECISIONS:
        raise ValueError(f"mixed_precision is {mixed_precision!r}; allowed are 'auto', 'no' and 'bf16'")
    fast = is_fast(device.type)
    if mixed_precision == AUTO:
        return BF16 if fast else NO
    if mixed_precision == BF16 and not fast:
        _warn()
    return mixed_precision


@functools.cache
def is_fast(device_type: str) -> bool:
    """Whether products in bf16 are faster than in fp32: on a GPU that has them, and on a CPU with AMX or AVX512-BF16."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    instructions = torch.cpu.get_capabilities() if device_type == "cpu" else {}
    return any(instructions.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


@functools.cache
def _warn() -> None:
    slow = "bf16 is slow on this device: a step may take ten times as long as with mixed_precision 'no'"
    warnings.warn(f"{slow} (fast are AMX, AVX512-BF16 and recent GPUs)", stacklevel=3)


def continued(mixed_precision: str, began: str | None, checkpoint: Path) -> str:
    """The `mixed_precision` that a training goes on with in its middle: the one it began with.

    Args:
        mixed_precision: the one it is given now.
        began: the one that its checkpoint says; None if the checkpoint is too old to say.

    Raises:
        ValueError: it is given another one than it began with, or `auto` while the checkpoint does not say.
    """
    if mixed_precision == AUTO and began is not None:
        return began
    if mixed_precision != AUTO and began in (mixed_precision, None):
        return mixed_precision
    said = f"of a training that began with mixed_precision {began!r}" if began else "that does not say how its training began"
    allowed = f"{began!r} and 'auto'" if began else "'no' and 'bf16', whichever it was"
    raise ValueError(f"{checkpoint}: a checkpoint {said}, and {mixed_precision!r} is given; allowed are {allowed}")


@contextmanager
def reduced_precision(model: SwitchableModel, mixed_precision: str) -> Iterator[None]:
    """Run forward and backward passes in bf16 if `mixed_precision` is that on the model's device; else change nothing."""
    with autocast(model, mixed_precision), quick_attention(model, mixed_precision):
        yield


def autocast(model: SwitchableModel, mixed_precision: str) -> AbstractContextManager[Any]:
    """torch's autocast to bf16, enabled or not. It can be entered again and again."""
    device = device_of(model)
    return torch.autocast(device.type, torch.bfloat16, enabled=resolved(mixed_precision, device) == BF16)


def quick_attention(model: SwitchableModel, mixed_precision: str) -> AbstractContextManager[Any]:
    """On a CPU the fused attention's bf16 backward took a third of a LoRA step of SmolLM2-135M (5.3 s against 4.0 s)."""
    device = device_of(model)
    slow = device.type == "cpu" and resolved(mixed_precision, device) == BF16
    return model.attending("eager") if slow else nullcontext()
