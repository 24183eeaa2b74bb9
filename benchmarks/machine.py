"""What a machine does to a training step: bf16 where it is slow, and another process that keeps a core busy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from signal import SIGCONT, SIGSTOP

import torch

from benchmarks.measure import Row, compare_times
from benchmarks.models import Settings, gpt2, switchable
from benchmarks.training import step_of
from qatlib.arithmetic import AUTO, BF16, NO, reduced_precision, resolved
from qatlib.latency import Work, in_turn


def mixed_precision(settings: Settings, device: torch.device) -> Iterator[Row]:
    """Seconds of a step in forced bf16 against those in what `auto` is on this machine. It is small, since bf16 may take long."""
    settings = replace(settings, training_batch=(2, settings.training_batch[1]))
    model = switchable(gpt2(1, settings.width), device)
    model.set_precision(4)
    step, became = step_of(model.lm, settings, device), resolved(AUTO, device)

    def stepping(mixed_precision: str) -> Work:
        def work() -> None:
            with reduced_precision(model, mixed_precision):
                step()

        return work

    ours, peer = "bf16", f"auto, which is {became}"
    times = in_turn({ours: stepping(BF16), peer: stepping(AUTO)}, settings.seconds / 2, device, least=3)
    batch, tokens = settings.training_batch
    case = f"GPT-2, 1 block, {batch} × {tokens}"
    yield compare_times("mixed precision", case, times, ours, peer, "≥ 8" if became == NO and device.type == "cpu" else "")


STEPS = 5
"""Steps of one round: the busy process is stopped in between."""


def busy(settings: Settings, device: torch.device) -> Iterator[Row]:
    """Seconds of steps beside a process that keeps one core busy against those of the same steps alone, on all cores.

    The model is as wide as the embedded one: its many short parallel regions suffer most from a thread that has to wait.
    """
    if device.type != "cpu":
        return
    settings = replace(settings, width=min(settings.width, 1 / 6))
    model = switchable(gpt2(settings.training_blocks, settings.width), device)
    model.set_precision(4)
    step = step_of(model.lm, settings, device)

    def alone() -> None:
        for _ in range(STEPS):
            step()

    ours, peer = "beside a busy process", "alone"
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:

        def beside() -> None:
            other.send_signal(SIGCONT)
            alone()
            other.send_signal(SIGSTOP)

        try:
            other.send_signal(SIGSTOP)
            times = in_turn({ours: beside, peer: alone}, settings.seconds / 2, device)
        finally:
            other.kill()
    batch, tokens = settings.training_batch
    threads = torch.get_num_threads()
    case = f"GPT-2, {settings.training_blocks} blocks, {batch} × {tokens}, {threads} threads"
    yield compare_times("busy machine", case, times, ours, peer, "≤ 2.5")
