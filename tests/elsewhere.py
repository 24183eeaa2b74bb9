"""An accelerator for tests: its tensors say another device and hold their data on the CPU.

A product of tensors of two devices raises, as on CUDA. `install()` makes the device known to torch for the rest of the
process, and `use()` gives it its factories.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "elsewhere"
torch.utils.rename_privateuse1_backend(NAME)
DEVICE = torch.device(NAME, 0)
aten = torch.ops.aten
_MOVES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default, aten._copy_from_and_resize.default}
"""Operations that may take tensors of two devices."""
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
"""Operations that take their indices from the CPU on CUDA as well."""


class Elsewhere(Tensor):
    """A tensor of the other device. `held` has its data."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        options = {"dtype": held.dtype, "device": DEVICE, "strides": held.stride(), "storage_offset": held.storage_offset()}
        made: Elsewhere = Tensor._make_wrapper_subclass(cls, held.size(), **options)
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Elsewhere({self.held})"

    def tolist(self) -> Any:
        return self.held.tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def storage(self) -> Any:
        return self.held.storage()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert a tensor of {DEVICE} to numpy; use Tensor.cpu() first")

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            memo[id(self)] = type(self)._like(self, self.detach().clone())
        return memo[id(self)]

    @staticmethod
    def _like(old: Tensor, new: Tensor) -> Tensor:
        return (
            torch.nn.Parameter(new, old.requires_grad)
            if isinstance(old, torch.nn.Parameter)
            else new.requires_grad_(old.requires_grad)
        )

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on what the tensors hold. Its results are elsewhere if an argument was, or if it says so."""
    tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
    there = [t for t in tensors if isinstance(t, Elsewhere)]
    device = kwargs.get("device")
    if device is not None:
        kwargs = kwargs | {"device": "cpu"}
    if there and func not in _MOVES:
        checked = [a for a in args if isinstance(a, Tensor)] if func in _INDEXED else tensors
        if strangers := [t for t in checked if not isinstance(t, Elsewhere) and t.dim()]:
            raise RuntimeError(
                f"{func}: Expected all tensors to be on the same device, but found {strangers[0].device} and {DEVICE}"
            )
    if func in _MOVES - {aten._to_copy.default}:
        target, source = (args[0], args[1]) if func is aten.copy_.default else (args[1], args[0])
        _held(target).copy_(_held(source))
        return target
    found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    to = torch.device(device).type == DEVICE.type if device is not None else bool(there)
    if func is aten._to_copy.default and found is _held(args[0]):
        found = found.clone()
    same = {id(_held(t)): t for t in tensors}  # an operation in place returns the tensor it was given
    return tree_map(lambda t: same.get(id(t), Elsewhere(t) if to else t) if isinstance(t, Tensor) else t, found)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value


class use(TorchDispatchMode):  # noqa: N801
    """Inside this `with` block tensors can be made on the device and moved there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def install() -> None:
    """Make the device known to torch."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    _kept.append(library)
    for name in ("empty.memory_format", "empty_strided", "_copy_from"):
        torch.library.impl(f"aten::{name}", "PrivateUse1")(_kernel(name))


def _kernel(name: str) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    func = getattr(getattr(aten, packet), overload or "default")
    return lambda *args, **kwargs: _run(func, args, kwargs)


_kept: list[torch.library.Library] = []
