"""An input is rotated once for all layers that are given it: q, k and v of a Llama block, then gate and up."""

from __future__ import annotations

import threading
import weakref

import torch
from torch import Tensor

from qatlib.rotation import Rotation


class _Rotated(weakref.ref[Tensor]):
    """A weak reference to an input, with what it becomes. That is dropped together with the input."""

    state: tuple[object, ...]
    value: Tensor | None


def _drop(rotated: _Rotated) -> None:
    rotated.value = None


class _Last(threading.local):
    """What this thread rotated last."""

    rotated: _Rotated | None = None


_last = _Last()


def rotated_input(x: Tensor, rotation: Rotation) -> Tensor:
    """`rotation.apply(x)`, or the same tensor as at the last call, if that was for the same `x` in the same state.

    One result is kept per thread, while its `x` exists. In-place changes of `x` are noticed, writes to `.data` are not. Layers
    that share a result also share its backward pass. Nothing is shared where a change could not be noticed, in inference mode,
    nor for a leaf that requires a gradient, which its own graph would keep in memory.
    """
    wants_gradient = x.requires_grad and torch.is_grad_enabled()
    if not rotation.rotates or torch.is_inference_mode_enabled() or x.is_inference() or (wants_gradient and x.is_leaf):
        return rotation.apply(x)
    here = x.device.type
    autocast = torch.get_autocast_dtype(here) if torch.is_autocast_enabled(here) else None
    state = (rotation, x._version, wants_gradient, autocast)
    last = _last.rotated
    if last is not None and last() is x and last.state == state and last.value is not None:
        return last.value
    value = rotation.apply(x)
    last = _Rotated(x, _drop)
    last.state, last.value, _last.rotated = state, value, last
    return value
