"""Time and memory on this machine: times measured in turns, milliseconds of deployed layers and models, peak memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer

from qatlib.checks import filled, finite, whole
from qatlib.deployed import deploy
from qatlib.integer import IntegerLinear
from qatlib.model import SwitchableModel
from qatlib.precision import Group, Precision
from qatlib.qa.evaluate import device_of

LEAST_SECONDS = 0.2
"""Shortest time for which one latency is measured. The result is the median of its runs."""

Work = Callable[[], object]


@torch.inference_mode()  # where each layer rotates its own input
def group_latencies(model: SwitchableModel, precisions: Sequence[Precision], tokens: int) -> NDArray[np.float64]:
    """(groups, precisions): milliseconds of a pass of `tokens` rows through each block × role, deployed, its adapter included.

    The order is that of `names_by_group`. A layer's values do not change its time, so one layer of each shape is timed.

    Source: HAWQ-V3 (Yao et al. 2021), whose integer program uses latencies of layers measured alone.

    Raises:
        ValueError: there are no precisions, `tokens` is not positive, or a width has no adapter while others have one.
    """
    filled(precisions=precisions)
    whole(1, tokens=tokens)
    timed: dict[tuple[Any, ...], list[float]] = {}
    groups: dict[Group, NDArray[np.float64]] = {}
    for info, layer in zip(model.infos, model.layers, strict=True):
        ranks = tuple(lora.lora_A.shape[0] if (lora := layer.adapter(p.w_bits)) else 0 for p in precisions)
        shape = (layer.in_features, layer.out_features, layer.bias is None, ranks)
        if shape not in timed:
            x = torch.randn(tokens, layer.in_features, device=device_of(model))
            timed[shape] = [_milliseconds(_deployed(layer, p), x) for p in precisions]
        groups[info.block, info.role] = groups.get((info.block, info.role), 0) + np.array(timed[shape])
    return np.stack([*groups.values()])


def _deployed(layer: Any, precision: Precision) -> IntegerLinear:
    found = IntegerLinear.of(layer, [precision.w_bits])
    found.precision = precision
    return found


@torch.no_grad()
def pass_latencies(model: SwitchableModel, configurations: Mapping[str, Any], batch: int, tokens: int) -> dict[str, float]:
    """Milliseconds of a pass of the span model at each configuration, deployed: `batch` windows of `tokens` each.

    Raises:
        ValueError: there are no configurations, a number is not positive, or as `qatlib.deployed.deploy`.
    """
    filled(configurations=configurations)
    whole(1, batch=batch, tokens=tokens)
    ids = torch.randint(1, model.lm.config.vocab_size, (batch, tokens), device=device_of(model))
    return {name: _milliseconds(deploy(model, spec), ids) for name, spec in configurations.items()}


def _milliseconds(f: Callable[[torch.Tensor], Any], x: torch.Tensor) -> float:
    timer = Timer("f(x)", globals={"f": f, "x": x}, num_threads=torch.get_num_threads())
    return 1e3 * timer.blocked_autorange(min_run_time=LEAST_SECONDS).median


def in_turn(
    works: Mapping[str, Work], seconds: float, device: torch.device, least: int = 5, most: int = 100
) -> dict[str, np.ndarray]:
    """Run every piece of work once per round, for about `seconds`. The order is rotated by one from round to round.

    So a temporary slowdown of the machine affects all pieces alike.

    Args:
        seconds: total time of the rounds, after two rounds to warm up.
        least, most: smallest and largest number of rounds.

    Returns:
        Seconds of each round, by name.

    Raises:
        ValueError: there is no work, or a number is not allowed.
    """
    filled(works=works)
    finite(0, seconds=seconds)
    whole(1, least=least)
    whole(least, most=most)
    names = list(works)
    times: dict[str, list[float]] = {name: [] for name in names}
    end = float("inf")
    for i in range(-2, most):
        if i == 0:
            end = time.perf_counter() + seconds
        elif i >= least and time.perf_counter() > end:
            break
        shift = i % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            works[name]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if i >= 0:
                times[name].append(time.perf_counter() - start)
    return {name: np.array(series) for name, series in times.items()}


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Peak bytes of tensors that the work allocates, beyond those that exist before it. Its second run is measured."""
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # A process's peak shows what the allocator holds, not what the work needs. So allocations are added up.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return int(np.cumsum([bytes_ for _, bytes_ in changes]).max())
