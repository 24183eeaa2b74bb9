"""Switchable layers in place of a decoder's linear layers. Everything is checked before anything is replaced."""

from __future__ import annotations

import dis
import inspect
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeGuard

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from qatlib.arguments import QuantizerArguments
from qatlib.layers import SwitchableLinear
from qatlib.precision import OTHER, LayerInfo
from qatlib.pretrained import ModelError
from qatlib.tracing import TOKENS, Trace

MOST_LEFT = 0.05
"""The largest share of the blocks' weights that may stay at 32 bits, such as a router or a depthwise convolution."""

_FORWARDS = {kind.forward for kind in (nn.Linear, Conv1D, FalconLinear)}
"""What a `SwitchableLinear` computes. A subclass with a forward of its own computes something else."""

_NEVER_APART = {"BloomAttention", "BloomMLP"}
"""Modules that read a layer's weight only where they do not call the layer at all, as the trace shows (`slow_but_exact`)."""

Layers = Mapping[str, nn.Linear | Conv1D]


@dataclass(frozen=True)
class Injection:
    """What is replaced.

    Attributes:
        blocks: name of the list of decoder blocks.
        width: of the model's hidden states.
        infos: the switchable layers, in the model's order.
    """

    blocks: str
    width: int
    infos: tuple[LayerInfo, ...]


def inject(lm: PreTrainedModel, quantizer: QuantizerArguments) -> Injection:
    """Replace every linear layer of the decoder blocks by a `SwitchableLinear`; embeddings, norms and head stay.

    The model's outputs are unchanged to the last bit. It reads a few tokens, which shows what each layer does. Layers whose role
    can't be told get the role `other`, with one warning.

    Raises:
        ModelError: the model is no causal decoder made of linear layers, or the quantizer does not fit. Nothing is replaced then.
    """
    plan = planned(lm)
    layers = {info.name: lm.get_submodule(info.name) for info in plan.infos}
    for name, layer in layers.items():
        check_groups(name, layer.weight.shape[0 if isinstance(layer, Conv1D) else 1], quantizer)
    switchable = {layer: SwitchableLinear(layer, quantizer) for layer in layers.values()}
    for name, module in list(lm.named_modules(remove_duplicate=False)):  # one layer may stand in several places
        if module in switchable:
            lm.set_submodule(name, switchable[module])
    places = _places(dict(lm.named_modules()))
    if unclear := sorted({places[info.name] for info in plan.infos if info.role == OTHER}):
        reason = "they neither write to the residual stream nor feed a layer that does"
        warnings.warn(f"{type(lm).__name__}: the role of {', '.join(unclear)} is {OTHER!r}, as {reason}", stacklevel=3)
    return plan


def check_groups(name: str, in_features: int, quantizer: QuantizerArguments, key: str = "quantizer") -> None:
    """Raise a `ModelError` if the quantizer's groups do not divide a layer's inputs."""
    if quantizer.weights == "per_group" and in_features % quantizer.group_size:
        raise ModelError(f"{key}.group_size is {quantizer.group_size}; it must divide the {in_features} inputs of {name}")


def planned(lm: PreTrainedModel) -> Injection:
    """Find the decoder blocks and their linear layers. Nothing is replaced.

    Raises:
        ModelError: the model is no causal decoder, or more than `MOST_LEFT` of its blocks' weights could not be switched.
    """
    kind = type(lm).__name__
    _check_unchanged(lm, kind)
    stacks = _stacks(lm)
    if not stacks:
        raise ModelError(f"{kind} has no list of decoder blocks to put switchable layers in")
    _check_decoder(lm, kind)
    modules = dict(lm.named_modules())
    layers = {name: module for name, module in modules.items() if _is_linear(module) and _inside(name, stacks)}
    trace = _traced(lm, kind, stacks, layers)
    used = {name: stack for name, stack in stacks.items() if any(f"{name}.{i}" in trace.called for i in range(len(stack)))}
    sizes = {f"{name}.{key}": p.numel() for name, stack in used.items() for key, p in stack.named_parameters() if _is_matrix(p)}
    blocks = max(used, key=lambda name: sum(size for key, size in sizes.items() if _inside(key, [name])))
    faults = _faults(modules, layers, trace)
    good = {name: layer for name, layer in layers.items() if _inside(name, [blocks]) and name not in faults}
    left = {key: size for key, size in sizes.items() if key.rpartition(".")[0] not in good}
    if not sizes:
        raise ModelError(f"the blocks of {kind} hold no linear layer")
    if (share := sum(left.values()) / sum(sizes.values())) > MOST_LEFT:
        key = max(left, key=left.__getitem__)
        owner = key.rpartition(".")[0]
        reason = faults.get(owner, f"of {type(modules[owner]).__name__}" if _inside(owner, [blocks]) else f"outside {blocks}")
        if isinstance(modules[owner], (nn.Linear, Conv1D)) and owner not in layers:
            reason += " with hooks or with a forward of its own"
        raise ModelError(
            f"{kind}: {share:.1%} of the weights in its blocks are not in linear layers that can be switched, such as {key}, "
            f"{reason}; allowed are {MOST_LEFT:.0%}"
        )
    return Injection(blocks, trace.width, tuple(_infos(blocks, good, left, _roles(modules, good, trace))))


def _check_unchanged(lm: nn.Module, kind: str) -> None:
    """Refuse a model in which something else has replaced layers."""
    for name, module in lm.named_modules():
        if isinstance(module, SwitchableLinear):
            raise ModelError(f"{kind} holds switchable layers already, such as {name}: load the model again to inject it anew")
        if type(module).__module__.startswith("peft."):
            raise ModelError(f"{kind} holds adapters of PEFT: merge them into the base first (merge_and_unload)")


def _check_decoder(lm: nn.Module, kind: str) -> None:
    """Refuse a model that can't read a few tokens and nothing else."""
    if not isinstance(lm, PreTrainedModel) or lm.config.is_encoder_decoder:
        raise ModelError(f"{kind} is no decoder alone: give a causal language model of transformers, such as GPT2LMHeadModel")
    if any(parameter.is_meta for parameter in lm.parameters()):
        raise ModelError(f"{kind} has weights on the meta device: load them first, as injection lets it read {TOKENS} tokens")


def _traced(lm: PreTrainedModel, kind: str, stacks: Mapping[str, nn.ModuleList], layers: Layers) -> Trace:
    try:
        trace = Trace(lm, [f"{name}.{i}" for name, stack in stacks.items() for i in range(len(stack))], layers)
    except Exception as error:  # transformers' models raise anything
        said = str(error).strip().partition("\n")[0]
        raise ModelError(f"{kind} can't read {TOKENS} tokens as a decoder: {type(error).__name__}: {said}") from error
    if trace.ahead:
        raise ModelError(f"{kind} is no causal decoder: at {min(trace.ahead)}, a token depends on later ones")
    if not trace.called & {f"{name}.{i}" for name, stack in stacks.items() for i in range(len(stack))}:
        raise ModelError(f"{kind} has no list of decoder blocks to put switchable layers in: it calls none of its lists")
    return trace


def _stacks(lm: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of modules by name, without those inside another one."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in lm.named_modules():
        if isinstance(module, nn.ModuleList) and not _inside(name, found):
            found[name] = module
    return found


def _inside(name: str, parents: Iterable[str]) -> bool:
    return any(name.startswith(f"{parent}.") for parent in parents)


def _is_linear(module: nn.Module) -> TypeGuard[nn.Linear | Conv1D]:
    """Whether a module computes x Wᵀ + b of its own parameters, and nothing else."""
    changed = "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
    weight = module._parameters.get("weight")
    plain = weight is not None and weight.is_floating_point() and module._parameters.keys() <= {"weight", "bias"}
    return type(module).forward in _FORWARDS and plain and not changed


def _is_matrix(parameter: Tensor) -> bool:
    return sum(size > 1 for size in parameter.shape) > 1


def _places(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """The names of modules with a star for their number in a list: likes in all blocks, and all experts, have one place."""
    found = {"": ""}
    for name in modules:
        parent, _, child = name.rpartition(".")
        if name:
            child = "*" if isinstance(modules[parent], nn.ModuleList) else child
            found[name] = f"{found[parent]}.{child}".removeprefix(".")
    return found


def _faults(modules: Mapping[str, nn.Module], layers: Layers, trace: Trace) -> dict[str, str]:
    """Why some layers can't be replaced, by their names."""
    found = dict.fromkeys(trace.unlike, "whose output is not that of nn.Linear")
    places = _places(modules)
    called = {places[name] for name in trace.called}  # the tokens decide which of the experts are called
    for name in layers:
        *parents, child = name.split(".")
        around: list[Any] = [type(modules[".".join(parents[:i])]) for i in range(len(parents), -1, -1)]
        if places[name] not in called:
            found[name] = "which is never called"
        elif reader := next((kind.__name__ for kind in around if child in _weights_read(kind)), None):
            found[name] = f"which {reader} reads without calling the layer"
    return found


@cache
def _weights_read(kind: Any) -> set[str]:
    """Names of the modules of which a class reads `NAME.weight` after it was made, for more than its type, device or shape.

    A fused kernel does, perhaps in training only or on a GPU only, where no trace on a CPU would show it.
    """
    found: set[str] = set()
    if kind.__name__ in _NEVER_APART:
        return found
    for function in (f for parent in kind.__mro__ if parent is not nn.Module for f in vars(parent).values()):
        code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
        names = [] if code is None or code.co_name == "_init_weights" else [step.argval for step in dis.get_instructions(code)]
        for name, weight, then in zip(names, names[1:], names[2:], strict=False):
            if weight == "weight" and then not in ("data", "dtype", "device", "shape"):
                found.add(name)
    return found


def _roles(modules: Mapping[str, nn.Module], layers: Layers, trace: Trace) -> dict[str, str]:
    """The role of every layer. One that was not called has that of its likes in other places."""
    found: dict[str, set[str]] = defaultdict(set)
    for writer in trace.writers:
        reads, writes = ("qkv", "attn_out") if writer in trace.mixing else ("mlp_in", "mlp_out")
        between = trace.between(writer)
        found[writer].add(writes if between else OTHER)
        for name in between:
            found[name].add(reads)
    roles = {name: found[name].pop() if len(found[name]) == 1 else OTHER for name in layers if name in trace.called}
    places = _places(modules)
    likes = {places[name]: role for name, role in roles.items()}
    return {name: roles.get(name, likes[places[name]]) for name in layers}


def _infos(blocks: str, layers: Layers, left: Mapping[str, int], roles: Mapping[str, str]) -> Iterator[LayerInfo]:
    fixed: Counter[str] = Counter()
    for key, weights in left.items():
        fixed[key.removeprefix(f"{blocks}.").partition(".")[0]] += weights
    for name, layer in layers.items():
        block = name.removeprefix(f"{blocks}.").partition(".")[0]
        channels = layer.weight.shape[1 if isinstance(layer, Conv1D) else 0]
        yield LayerInfo(name, int(block), roles[name], layer.weight.numel(), channels, fixed.pop(block, 0))
