"""A training's state in one safe file, from which it goes on to the same bits: weights, optimizer, random states, metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def save(
    path: Path,
    done: int,
    rows: Sequence[Mapping[str, float]],
    trainable: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> None:
    """One file, renamed into place when whole: weights, optimizer and random states, and the metrics so far."""
    random_states = _random_states(accelerator)
    if accelerator.is_main_process:
        tensors = {f"weight/{name}": p.detach().contiguous() for name, p in trainable.items()} | random_states
        names = list(trainable)
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{names[index]}/{key}": torch.as_tensor(value) for key, value in state.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, {"done": str(done), "rows": json.dumps(rows)})
        partial.replace(path)
    accelerator.wait_for_everyone()  # whoever looks for the file next finds it


def _random_states(accelerator: Accelerator) -> dict[str, Tensor]:
    """Of every process, (processes, bytes) each."""
    states = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random/cuda"] = torch.cuda.get_rng_state()
    return {key: accelerator.gather(state[None].to(accelerator.device)).cpu() for key, state in states.items()}


def resume(path: Path, trainable: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, rank: int) -> tuple[int, list[Any]]:
    """Steps done and metrics so far; (0, []) without a checkpoint.

    A process that the checkpoint has no random state of, one of more than wrote it, keeps its own.

    Raises:
        ValueError: a checkpoint of other parameters.
    """
    if not path.is_file():
        return 0, []
    state: dict[int, dict[str, Tensor]] = {}
    index = {name: i for i, name in enumerate(trainable)}
    with safe_open(path, "pt") as file:
        keys = file.keys()
        weights = {key.removeprefix("weight/"): key for key in keys if key.startswith("weight/")}
        shapes = {(name, tuple(file.get_slice(key).get_shape())) for name, key in weights.items()}
        if other := sorted(shapes ^ {(name, tuple(p.shape)) for name, p in trainable.items()}):
            what = f"a checkpoint of another training, whose {other[0][0]} is not this one's"
            raise ValueError(f"{path}: {what}; remove it or name another")
        for key in keys:
            kind, _, rest = key.partition("/")
            value = file.get_tensor(key)
            if kind == "weight":
                with torch.no_grad():  # not by way of `.data`, of which layers take no notice when their step sizes change
                    trainable[rest].copy_(value)
            elif kind == "optimizer":
                name, _, field = rest.rpartition("/")
                state.setdefault(index[name], {})[field] = value
            elif rank < len(value) and rest == "cpu":
                torch.set_rng_state(value[rank].clone())  # of a view torch 2.13 reads the wrong bytes, or crashes
            elif rank < len(value) and torch.cuda.is_available():
                torch.cuda.set_rng_state(value[rank].clone())
        about = file.metadata()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(about["done"]), json.loads(about["rows"])
