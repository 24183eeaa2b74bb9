"""What the linear layers of a decoder do, found from two passes over a few tokens, whatever the family calls them.

The first pass follows the data. A block reads the residual stream and adds to it. Every tensor remembers which linear layers
it was computed from since the block's input. So each sum with the residual stream shows which layers write to it, and each
layer's input shows which layers it was computed from.

The second pass changes one token in the outputs of the layers that do not write. The writing layers return what they returned
before, so the stream stays the same. Attention moves the change to later tokens, an MLP does not. In a model that is not causal
it reaches earlier tokens as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from qatlib.layers import forwards_replaced
from qatlib.switching import body

TOKENS = 4

_TOLERANCE = 1e-4
"""As a share of a layer's largest input. Rounding changes less, and the second pass changes outputs by at least 1."""

_aten = torch.ops.aten
_SUMS = {_aten.add, _aten.add_, _aten.sub, _aten.sub_}
_PLAIN = _SUMS | {_aten.mul, _aten.mul_, _aten.div, _aten.div_, _aten.neg, _aten.clone, _aten.copy_, _aten._to_copy, _aten.where}
"""Pointwise operations that leave a layer's output what it is. Any other makes a gate of it."""
_BENDING = {_aten._softmax, _aten._safe_softmax, _aten.topk}
"""Nonlinear operations that are not pointwise."""


class Trace:
    """What two passes of a model over `TOKENS` tokens show. The model stays as it was.

    Attributes:
        width: of the hidden states that the model returns.
        called: names of the modules that were called.
        unlike: names of the layers of other classes whose output is not that of `nn.Linear`, bit for bit.
        writers: names of the layers that write to the residual stream.
        mixing: the writers whose input at a token depends on earlier tokens, as in attention.
        ahead: the writers whose input at a token depends on later tokens: the model is not causal.
    """

    def __init__(self, lm: PreTrainedModel, blocks: Collection[str], layers: Mapping[str, nn.Linear | Conv1D]) -> None:
        """Trace a model.

        Args:
            blocks: names of the modules that may be decoder blocks.
            layers: the linear layers in them, by name.
        """
        flow = _Flow()
        inputs: dict[str, list[Tensor]] = defaultdict(list)
        outputs: dict[str, list[Tensor]] = defaultdict(list)
        self.called: set[str] = set()
        self.unlike: set[str] = set()

        def seen(name: str, module: nn.Module, args: Any, output: Any) -> None:
            self.called.add(name)

        def kept(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
            inputs[name].append(args[0].clone())  # a sum may be written into it
            outputs[name].append(output.clone())
            layer = layers[name]
            if type(layer) not in (nn.Linear, Conv1D) and not torch.equal(F.linear(args[0], layer.weight, layer.bias), output):
                self.unlike.add(name)

        names = [name for name, _ in lm.named_modules() if name]
        with _hooked(lm, names, seen), _hooked(lm, layers, kept), flow.followed(lm, blocks, layers):
            self.width = _pass(lm)
        self.writers, self._reads, self._gates, tokens = flow.writers, flow.reads, flow.gates, flow.tokens

        before, inputs = inputs, defaultdict(list)
        readers = set().union(*(self.between(writer, gates=False) for writer in self.writers))

        def replayed(name: str, x: Tensor) -> Tensor:
            inputs[name].append(x.clone())
            return outputs[name].pop(0)

        def changed(name: str, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            return _with_another_token(output, tokens)

        again = forwards_replaced({layers[name]: partial(replayed, name) for name in self.writers})
        with again, _hooked(lm, readers, changed), _Flow():  # in a mode as before, so by the same kernels
            _pass(lm)
        moved = {name: _moved(before[name], inputs[name], tokens) for name in self.writers}
        self.ahead = {name for name, at in moved.items() if any(token < _middle(tokens) for token in at)}
        self.mixing = {name for name, at in moved.items() if any(token > _middle(tokens) for token in at)}

    def between(self, writer: str, *, gates: bool = True) -> set[str]:
        """The layers between the residual stream and a writer: those from which its input, or its gate, is computed."""
        found: set[str] = set()
        waiting = {writer}
        while waiting:
            read = [self._reads[name] | (self._gates[name] if gates else set()) for name in waiting]
            waiting = set().union(*read) - found - self.writers
            found |= waiting
        return found


def _pass(lm: PreTrainedModel) -> int:
    """Run the model below its head, in eval mode. Returns the width of its hidden states."""
    ids = torch.arange(1, TOKENS + 1, device=lm.get_input_embeddings().weight.device)[None]
    training = {module: module.training for module in lm.modules()}
    lm.eval()
    try:
        with torch.no_grad():
            width: int = body(lm)(input_ids=ids, use_cache=False).last_hidden_state.shape[-1]
            return width
    finally:
        for module, was in training.items():
            module.training = was


@contextmanager
def _hooked(lm: nn.Module, names: Collection[str], hook: Callable[[str, nn.Module, Any, Any], Any]) -> Iterator[None]:
    """Call `hook` with a module's name, itself, its inputs and its output after every call of these modules."""
    with ExitStack() as stack:
        for name in names:
            stack.callback(lm.get_submodule(name).register_forward_hook(partial(hook, name)).remove)
        yield


def _middle(tokens: int) -> int:
    """The token that the second pass changes. There are tokens before and after it."""
    return (tokens - 1) // 2


def _by_token(x: Tensor, tokens: int) -> Tensor | None:
    """(tokens, features), or None if `x` does not hold every token once, such as the input of an expert."""
    return x.reshape(tokens, -1) if x[..., 0].numel() == tokens else None


def _with_another_token(output: Tensor, tokens: int) -> Tensor | None:
    if _by_token(output, tokens) is None:
        return None
    changed = output.reshape(tokens, -1).clone()
    changed[_middle(tokens)] += torch.linspace(1, 2, changed.shape[1]).to(changed)
    return changed.view_as(output)


def _moved(before: Sequence[Tensor], after: Sequence[Tensor], tokens: int) -> set[int]:
    """The tokens at which an input changed, in any of its calls."""
    found: set[int] = set()
    for old, new in zip(before, after, strict=True):
        one, other = _by_token(old, tokens), _by_token(new, tokens)
        if one is not None and other is not None:
            change = (other.float() - one.float()).abs().amax(1)
            found.update((change > _TOLERANCE * one.float().abs().max()).nonzero().flatten().tolist())
    return found


@dataclass(frozen=True)
class _Sources:
    """The linear layers that a tensor was computed from since the block's input: as they are, or by a nonlinear function."""

    plain: frozenset[str] = frozenset()
    bent: frozenset[str] = frozenset()

    @property
    def all(self) -> frozenset[str]:
        return self.plain | self.bent


_STREAM = _Sources()
"""Of the residual stream, normalized or not."""


class _Flow(TorchDispatchMode):
    """Follows from which layers tensors are computed. Tensors count by their storage, as parts of one are written alone."""

    def __init__(self) -> None:
        super().__init__()
        self.writers: set[str] = set()
        self.reads: dict[str, set[str]] = defaultdict(set)
        self.gates: dict[str, set[str]] = defaultdict(set)
        self.tokens = 0
        self._known: dict[int, _Sources] = {}
        self._outputs: dict[str, int] = {}
        self._width = 0

    @contextmanager
    def followed(self, lm: nn.Module, blocks: Collection[str], layers: Collection[str]) -> Iterator[None]:
        """Follow a pass in the `with` block."""

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._known.clear()
            given = _floats((kwargs.get("hidden_states"), args, kwargs))
            hidden = next((x for x in given if x.ndim > 1), None)
            if hidden is not None:
                self._known[_storage(hidden)] = _STREAM
                self._width, self.tokens = hidden.shape[-1], hidden[..., 0].numel()

        def leave(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
            self.reads[name] |= self._known.get(_storage(args[0]), _STREAM).all
            self._known[_storage(output)] = _Sources(plain=frozenset({name}))
            self._outputs[name] = output.shape[-1]

        with ExitStack() as stack:
            for name in blocks:
                stack.callback(lm.get_submodule(name).register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.enter_context(_hooked(lm, layers, leave))
            stack.enter_context(self)
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        results = [*_floats(output)]
        known = (self._known.get(_storage(x)) for x in (*_floats(args), *_floats((kwargs or {}).values())))
        operands = [sources for sources in known if sources is not None]
        for x in results:
            if operands:
                self._known[_storage(x)] = self._combined(func, operands, results)
            else:
                self._known.pop(_storage(x), None)  # new, at the place of one that is gone
        return output

    def _combined(self, func: Any, operands: Sequence[_Sources], results: Sequence[Tensor]) -> _Sources:
        plain = frozenset().union(*(o.plain for o in operands))
        bent = frozenset().union(*(o.bent for o in operands))
        if func.overloadpacket not in _SUMS:
            for one, other in permutations(operands, 2):
                for name in one.plain:
                    self.gates[name] |= other.all - {name}
        elif _STREAM in operands and plain | bent and results[0].shape[-1] == self._width:
            self.writers |= {name for name in plain if self._outputs[name] == self._width}
            return _STREAM
        nonlinear = func.overloadpacket in _BENDING or (torch.Tag.pointwise in func.tags and func.overloadpacket not in _PLAIN)
        return _Sources(bent=plain | bent) if nonlinear else _Sources(plain, bent)


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _floats(x: Any) -> Iterator[Tensor]:
    """The tensors of real numbers in what an operation gets or returns."""
    if isinstance(x, Tensor):
        if x.is_floating_point():
            yield x
    elif isinstance(x, Iterable) and not isinstance(x, str):
        for inner in x.values() if isinstance(x, Mapping) else x:
            yield from _floats(inner)
