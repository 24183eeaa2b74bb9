"""A training's state in one file, for an exact resume to the last bit: weights, optimizer, random states, metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch import Tensor

from qatlib.arithmetic import BF16, NO
from qatlib.files import replacing
from qatlib.saving import ModelError, intact, save_file

_FLOATS = ("F64", "F32", "F16", "BF16")
_ADAMW = ("step", "exp_avg", "exp_avg_sq")
"""The optimizer's state of one parameter."""


def save(
    path: Path,
    done: int,
    rows: Sequence[Mapping[str, float]],
    trainable: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    mixed_precision: str,
) -> None:
    """Write one file with weights, optimizer, random states, the metrics so far, and the `mixed_precision` of the training.

    It gets its name only when complete.
    """
    random_states = _random_states(accelerator)
    if accelerator.is_main_process:
        tensors = {f"weight/{name}": p.detach().contiguous() for name, p in trainable.items()} | random_states
        names = list(trainable)
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{names[index]}/{key}": torch.as_tensor(value) for key, value in state.items()}
        with replacing(path) as scratch:
            save_file(tensors, scratch, {"done": str(done), "rows": json.dumps(rows), "mixed_precision": mixed_precision})
    accelerator.wait_for_everyone()  # every process can find the file from here on


def _random_states(accelerator: Accelerator) -> dict[str, Tensor]:
    """The random states of all processes, (processes, bytes) each."""
    states = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random/cuda"] = torch.cuda.get_rng_state()
    return {key: accelerator.gather(state[None].to(accelerator.device)).cpu() for key, state in states.items()}


def check_writable(path: Path) -> None:
    """Check that a checkpoint can be written, before hours of training and not after them.

    Raises:
        OSError: `path` is a directory, or its own directory can't be made or written to.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; the name of a file is needed for a checkpoint")
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=path.parent):
        pass


class State(NamedTuple):
    """What a checkpoint says of its training."""

    done: int
    """Steps; 0 without a checkpoint."""
    rows: list[Any]
    """The metrics so far."""
    mixed_precision: str | None
    """`no` or `bf16`; None without a checkpoint, or if it is older than this field."""


def resume(path: Path, trainable: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, rank: int) -> State:
    """Restore weights, optimizer and random states, if there is a checkpoint.

    If there are more processes now than when it was written, the additional ones keep their own random states.

    Raises:
        ModelError: the file is damaged, or a checkpoint of other parameters. Nothing is changed then.
    """
    if not path.is_file():
        return State(0, [], None)
    with intact(path), safe_open(path, "pt") as file:
        about = _about(path, file.metadata())
        keys = file.keys()
        parts = {key: file.get_slice(key) for key in keys}
        found = {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in parts.items()}
        _check(path, found, trainable)
        state: dict[int, dict[str, Tensor]] = {}
        index = {name: i for i, name in enumerate(trainable)}
        for key in found:
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
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return about


def _about(path: Path, metadata: Mapping[str, str] | None) -> State:
    """From the file's header."""
    try:
        header = metadata or {}
        state = State(int(header["done"]), json.loads(header["rows"]), header.get("mixed_precision"))
        listed = isinstance(state.rows, list) and all(isinstance(row, dict) for row in state.rows)
        if state.done >= 0 and listed and state.mixed_precision in (NO, BF16, None):
            return state
    except (KeyError, ValueError, RecursionError):
        pass
    raise ModelError(f"{path}: a damaged checkpoint, whose header does not hold the steps done, their metrics and arithmetic")


def _check(path: Path, found: Mapping[str, tuple[tuple[int, ...], str]], trainable: Mapping[str, Tensor]) -> None:
    """Check that a file's tensors, given by shape and type, are a state of these parameters."""
    own = {(f"weight/{name}", tuple(p.shape)) for name, p in trainable.items()}
    if other := sorted(own ^ {(key, shape) for key, (shape, _) in found.items() if key.startswith("weight/")}):
        what = f"a checkpoint of another training, whose {other[0][0].removeprefix('weight/')} is not this one's"
        raise ModelError(f"{path}: {what}; remove it or name another")
    random_bytes = len(torch.get_rng_state())
    for key, (shape, dtype) in found.items():
        kind, _, rest = key.partition("/")
        name, _, field = rest.rpartition("/")
        if kind == "random":
            right = dtype == "U8" and len(shape) == 2 and (rest == "cuda" or (rest == "cpu" and shape[1] == random_bytes))
        elif kind == "optimizer":
            complete = name in trainable and all(f"optimizer/{name}/{other}" in found for other in _ADAMW)
            right = (
                complete
                and field in _ADAMW
                and shape == (() if field == "step" else tuple(trainable[name].shape))
                and dtype in _FLOATS
            )
        else:
            right = kind == "weight" and dtype in _FLOATS
        if not right:
            raise ModelError(f"{path}: a damaged checkpoint, in which {key} of shape {shape} and type {dtype} is not right")
    if "random/cpu" not in found:
        raise ModelError(f"{path}: a damaged checkpoint, without random states")
