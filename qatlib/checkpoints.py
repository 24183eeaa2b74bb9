"""A training's state in one file, for an exact resume to the last bit: weights, optimizer, random states, metrics."""

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
    """Write one file with weights, optimizer, random states and the metrics so far. It gets its name only when complete."""
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
    accelerator.wait_for_everyone()  # every process can find the file from here on


def _random_states(accelerator: Accelerator) -> dict[str, Tensor]:
    """The random states of all processes, (processes, bytes) each."""
    states = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random/cuda"] = torch.cuda.get_rng_state()
    return {key: accelerator.gather(state[None].to(accelerator.device)).cpu() for key, state in states.items()}


def resume(path: Path, trainable: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, rank: int) -> tuple[int, list[Any]]:
    """Steps done and metrics so far; (0, []) without a checkpoint.

    If there are more processes now than when it was written, the additional ones keep their own random states.

    Raises:
        ValueError: the checkpoint has other parameters.
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
                with torch.no_grad():  # not through `.data`: layers would not notice that their step sizes have changed
                    trainable[rest].copy_(value)
            elif kind == "optimizer":
                name, _, field = rest.rpartition("/")
                state.setdefault(index[name], {})[field] = value
            elif rank < len(value) and rest == "cpu":
                torch.set_rng_state(value[rank].clone())  # given a view, torch 2.13 reads the wrong bytes or crashes
            elif rank < len(value) and torch.cuda.is_available():
                torch.cuda.set_rng_state(value[rank].clone())
        about = file.metadata()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(about["done"]), json.loads(about["rows"])
