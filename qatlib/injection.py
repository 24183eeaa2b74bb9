"""Switchable layers into a decoder. Everything is checked before anything is replaced."""

from __future__ import annotations

import dis
import inspect
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

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
"""Modules that read a layer's weight only where they do not call the layer at all, as the pass shows (`slow_but_exact`)."""


@dataclass(frozen=True)
class Injection:
    """What injection found.

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

    The model's outputs are unchanged to the last bit. For this the model reads a few tokens, twice. Layers whose role can't be
    told get the role `other`, with one warning.

    Raises:
        ModelError: the model is no causal decoder that is made of linear layers, or a layer can't be quantized this way. Nothing
            was replaced then.
    """
    found = plan(lm)
    layers = {info.name: lm.get_submodule(info.name) for info in found.infos}
    for name, layer in layers.items():
        check_groups(name, layer.weight.shape[0 if isinstance(layer, Conv1D) else 1], quantizer)
    switchable = {layer: SwitchableLinear(layer, quantizer) for layer in layers.values()}
    for name, module in list(lm.named_modules(remove_duplicate=False)):  # a layer may stand in several places
        if module in switchable:
            lm.set_submodule(name, switchable[module])
    if unclear := {_anywhere(info.name) for info in found.infos if info.role == OTHER}:
        warnings.warn(
            f"{type(lm).__name__}: {', '.join(sorted(unclear))} have the role {OTHER!r}, since they neither write to the residual "
            "stream nor feed a layer that does",
            stacklevel=3,
        )
    return found


def check_groups(name: str, in_features: int, quantizer: QuantizerArguments, key: str = "quantizer") -> None:
    """Raise a `ModelError` if a layer's inputs can't be cut into the quantizer's groups."""
    if quantizer.weights == "per_group" and in_features % quantizer.group_size:
        raise ModelError(f"{key}.group_size is {quantizer.group_size}; it must divide the {in_features} inputs of {name}")


def plan(lm: PreTrainedModel) -> Injection:
    """Find the decoder blocks and their layers. Nothing is replaced.

    Raises:
        ModelError: as `inject`.
    """
    kind = type(lm).__name__
    _check_whole(lm, kind)
    stacks = _stacks(lm)
    if not stacks:
        raise ModelError(f"{kind} has no list of decoder blocks to put switchable layers in")
    _check_runs(lm, kind)
    modules = dict(lm.named_modules())
    layers = {name: m for name, m in modules.items() if _is_linear(m) and any(name.startswith(f"{stack}.") for stack in stacks)}
    try:
        trace = Trace(lm, [f"{name}.{i}" for name, stack in stacks.items() for i in range(len(stack))], layers)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{kind} can't read {TOKENS} tokens as a decoder ({type(error).__name__}: {reason})") from error
    if trace.ahead:
        raise ModelError(f"{kind} is no causal decoder: in {min(trace.ahead)}, a token depends on later ones")
    used = {name: stack for name, stack in stacks.items() if any(f"{name}.{i}" in trace.called for i in range(len(stack)))}
    matrices = {f"{name}.{key}": p for name, stack in used.items() for key, p in stack.named_parameters() if _is_matrix(p)}
    blocks = max(used, key=lambda name: sum(p.numel() for key, p in matrices.items() if key.startswith(f"{name}.")))
    called = {_anywhere(name) for name in trace.called}  # which experts are called, a few tokens decide
    faults = {name: "whose output is not that of nn.Linear" for name in trace.unlike}
    faults |= {name: "which is never called" for name in layers if _anywhere(name) not in called} | _read_apart(modules, layers)
    good = {name: layer for name, layer in layers.items() if name.startswith(f"{blocks}.") and name not in faults}
    left = {name: p.numel() for name, p in matrices.items() if name.rpartition(".")[0] not in good}
    share = f"{sum(left.values()) / sum(p.numel() for p in matrices.values()):.0%} of the weights in its blocks"
    for name in left:
        if fault := faults.get(owner := name.rpartition(".")[0]):
            raise ModelError(f"{kind}: {share} can't be quantized, among them {owner}, {fault}")
    if sum(left.values()) > MOST_LEFT * sum(p.numel() for p in matrices.values()):
        name = max(left, key=left.__getitem__)
        owner = type(modules[name.rpartition(".")[0]]).__name__
        raise ModelError(
            f"{kind}: {share} are not in plain linear layers, most of them in {name} of {owner}; allowed are {MOST_LEFT:.0%}"
        )
    return Injection(blocks, trace.width, tuple(_infos(blocks, good, left, _roles(trace, good))))


def _check_whole(lm: nn.Module, kind: str) -> None:
    """Refuse a model into which something else was put before."""
    for name, module in lm.named_modules():
        if isinstance(module, SwitchableLinear):
            raise ModelError(f"{kind} holds switchable layers already, such as {name}: load the model again to inject it anew")
        if type(module).__module__.startswith("peft."):
            raise ModelError(f"{kind} holds adapters of PEFT: merge them into the base first (merge_and_unload)")
    if getattr(lm, "hf_quantizer", None) is not None:
        raise ModelError(f"{kind} was loaded in quantized form: load it without a quantization_config")


def _check_runs(lm: nn.Module, kind: str) -> None:
    """Refuse a model that can't read a few tokens."""
    if not isinstance(lm, PreTrainedModel) or lm.config.is_encoder_decoder:
        raise ModelError(f"{kind} is no decoder alone: give a causal language model of transformers, such as GPT2LMHeadModel")
    if any(parameter.is_meta for parameter in lm.parameters()):
        raise ModelError(
            f"{kind} has weights on the meta device: load them first, since injection runs {TOKENS} tokens through it"
        )


def _stacks(lm: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of modules by name, without those inside another one."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in lm.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def _is_linear(module: nn.Module) -> bool:
    """Whether a module computes x Wᵀ + b of its own parameters, and nothing else."""
    changed = "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
    weight = module._parameters.get("weight")
    plain = weight is not None and weight.is_floating_point() and set(module._parameters) <= {"weight", "bias"}
    return type(module).forward in _FORWARDS and plain and not changed


def _infos(
    blocks: str, layers: Mapping[str, nn.Module], left: Mapping[str, int], roles: Mapping[str, str]
) -> Iterator[LayerInfo]:
    fixed: Counter[str] = Counter()
    for name, weights in left.items():
        fixed[name.removeprefix(f"{blocks}.").partition(".")[0]] += weights
    for name, layer in layers.items():
        block = name.removeprefix(f"{blocks}.").partition(".")[0]
        outputs = layer.weight.shape[1 if isinstance(layer, Conv1D) else 0]
        yield LayerInfo(name, int(block), roles[name], layer.weight.numel(), outputs, fixed.pop(block, 0))


def _roles(trace: Trace, layers: Collection[str]) -> dict[str, str]:
    """The role of every layer. One that the pass did not call has that of its likes in other places."""
    found: dict[str, set[str]] = defaultdict(set)
    for writer in trace.writers:
        reader, role = ("qkv", "attn_out") if writer in trace.mixing else ("mlp_in", "mlp_out")
        between = trace.between(writer)
        found[writer].add(role if between else OTHER)
        for name in between:
            found[name].add(reader)
    roles = {name: found[name].pop() if len(found[name]) == 1 else OTHER for name in layers if name in trace.called}
    likes = {_anywhere(name): role for name, role in roles.items()}
    return {name: roles.get(name, likes[_anywhere(name)]) for name in layers}


def _anywhere(name: str) -> str:
    """A module's name without the numbers of its block and its expert."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _is_matrix(parameter: Tensor) -> bool:
    return sum(size > 1 for size in parameter.shape) > 1


def _read_apart(modules: Mapping[str, nn.Module], layers: Collection[str]) -> dict[str, str]:
    """The layers whose weight the module around them reads, as a fused kernel does, perhaps on another device only."""
    found = {}
    for name in layers:
        parent, _, child = name.rpartition(".")
        kind = type(modules[parent])
        if kind.__name__ not in _NEVER_APART and child in _weights_read(kind):
            found[name] = f"whose weight {kind.__name__} reads itself"
    return found


@cache
def _weights_read(kind: type[nn.Module]) -> set[str]:
    """Names of the modules of which a class's methods read `self.NAME.weight`, for more than its type, device or shape."""
    found = set()
    for function in (f for parent in kind.__mro__ if issubclass(parent, nn.Module) for f in vars(parent).values()):
        code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
        steps = [] if code is None else [step.argval for step in dis.get_instructions(code)]
        for name, weight, then in zip(steps, steps[1:], steps[2:], strict=False):
            if weight == "weight" and then not in ("data", "dtype", "device", "shape") and isinstance(name, str):
                found.add(name)
    return found
