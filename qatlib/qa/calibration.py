"""What a few training windows show before training: ranges, clips, compensated codes, and where adapters start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm import tqdm

from qatlib.checks import filled, finite, one_of
from qatlib.compensation import GramObserver, compensated, low_rank_correction
from qatlib.grids import GRIDS
from qatlib.layers import SwitchableLinear
from qatlib.lora import SHARED
from qatlib.model import SwitchableModel
from qatlib.precision import BIT_WIDTHS, FULL
from qatlib.qa.evaluate import device_of
from qatlib.qa.spans import Feature
from qatlib.quantizer import ClipObserver, EMAObserver, Observer

GRAM_BYTES = 2**30
"""The most memory that the Gram matrices of `compensate` take at once. Larger models are observed in several passes."""


@contextmanager
def _observing(layers: Sequence[SwitchableLinear], observers: Sequence[Observer]) -> Iterator[None]:
    """Let observers see the inputs of layers inside a `with` block. Then the layers have their own ones again."""
    kept = [layer.observer for layer in layers]
    for layer, observer in zip(layers, observers, strict=True):
        layer.observer, layer.observing = observer, True
    try:
        yield
    finally:
        for layer, observer in zip(layers, kept, strict=True):
            layer.observer, layer.observing = observer, False


def _pass(model: SwitchableModel, features: Sequence[Feature]) -> None:
    """Run the windows one by one, in the given order, so that no layer sees padding."""
    for feature in features:
        model(torch.tensor([feature.input_ids], device=device_of(model)))


@torch.no_grad()
def calibrate(model: SwitchableModel, features: Sequence[Feature], *, momentum: float = 0.9) -> None:
    """A calibration pass for static activation scales, at the model's current configuration.

    Every layer gets a new EMA observer, which sees the windows one by one. During the pass, weights are at their width but
    activations are not quantized, because their scales are not known yet.

    Raises:
        ValueError: there are no windows, or the momentum is not from 0 to below 1.
    """
    filled(features=features)
    _check_momentum(momentum)
    model.eval()
    set_static_range(model, None, momentum)
    weights_alone = {name: {"w_bits": p.w_bits, "a_bits": FULL} for name, p in model.configuration.items()}
    with _observing(model.layers, [layer.observer for layer in model.layers]), model.at(weights_alone):
        _pass(model, features)


@torch.no_grad()
def calibrate_clips(model: SwitchableModel, features: Sequence[Feature], a_bits: Sequence[int]) -> None:
    """Find, for every layer and activation bit-width, the clipping ratio with the lowest squared error.

    The ratio is a share of each token's largest magnitude. Every layer sees the windows one by one at full precision. One ratio
    per layer serves all its tokens, so at run time a clipped scale costs the same as a min-max scale
    (`QuantizerArguments.clipping`).

    Raises:
        ValueError: there are no windows or no bit-widths, or a bit-width is not from 2 to 16.
    """
    filled(features=features, a_bits=a_bits)
    for bits in a_bits:
        one_of(BIT_WIDTHS[:-1], a_bits=bits)
    model.eval()
    observers = [ClipObserver(a_bits, GRIDS[model.quantizer.grid].activations) for _ in model.layers]
    with _observing(model.layers, observers), model.at(FULL):
        _pass(model, features)
    for layer, observer in zip(model.layers, observers, strict=True):
        for bits in a_bits:
            clip = torch.tensor(observer.best(bits), device=layer.weight.device).log()
            layer.clips[str(bits)] = torch.nn.Parameter(clip, requires_grad=False)


@torch.no_grad()
def compensate(
    model: SwitchableModel, features: Sequence[Feature], w_bits: Sequence[int], description: str | None = None
) -> None:
    """Compute the codes of compensated rounding for every layer (`QuantizerArguments.rounding`), and keep them in the model.

    Every layer sees the windows one by one at full precision, so its codes do not depend on the widths of other layers. Widths
    that are not compensated, such as 16 bits or those derived from 8-bit codes, are passed over.

    Args:
        description: of a progress bar over the layers; without one there is no bar.

    Raises:
        ValueError: there are no windows or no bit-widths, a bit-width is not from 2 to 16, or rounding is not compensated.
    """
    filled(features=features, w_bits=w_bits)
    for bits in w_bits:
        one_of(BIT_WIDTHS[:-1], w_bits=bits)
    one_of(["compensated"], rounding=model.quantizer.rounding)
    model.eval()
    for layer, gram in _grams(model, features, description):
        quantizer, weight = layer.weight_quantizer, layer.oriented_weight.detach()
        scales = {bits: quantizer.scale(weight, bits) for bits in sorted(set(w_bits)) if quantizer.compensates(bits)}
        if scales:
            layer.give_codes(compensated(layer.rotation.apply(weight), gram, scales, layer.quantizer.grid))


@torch.no_grad()
def start_adapters(model: SwitchableModel, features: Sequence[Feature], description: str | None = None) -> None:
    """Start every adapter of a quantized width at the best correction of its layer's output error on the windows.

    The correction is in closed form (`compensation.low_rank_correction`). Adapters at 32 bits and shared ones have no error of
    their own, and keep their start. A rank above a side of the weight is used as far as there is something to correct.

    Args:
        description: as in `compensate`.

    Raises:
        ValueError: there are no windows.
        RuntimeError: codes are to be compensated and have not been computed.
    """
    filled(features=features)
    widths = [bits for bits in model.lora if bits not in (SHARED, FULL)]
    model.eval()
    for layer, gram in _grams(model, features, description) if widths else ():
        weight = layer.rotation.apply(layer.oriented_weight.detach())
        for bits in widths:
            adapter, error = layer.own_adapter(bits), weight - layer.weight_quantizer.floats(layer.oriented_weight, bits)
            rank = min(len(adapter.lora_A), *error.shape)
            down, up = low_rank_correction(error, gram, rank)
            adapter.lora_A[:rank] = down / adapter.scaling**0.5
            adapter.lora_B[:, :rank] = up / adapter.scaling**0.5


def _grams(
    model: SwitchableModel, features: Sequence[Feature], description: str | None
) -> Iterator[tuple[SwitchableLinear, Tensor]]:
    """Every layer with the Gram matrix of its inputs at full precision, in the quantizer's basis."""
    with tqdm(total=len(model.layers), desc=description, disable=description is None, mininterval=5) as bar:
        for layers in _portions(model.layers):
            observers = [GramObserver() for _ in layers]
            with _observing(layers, observers), model.at(FULL):
                _pass(model, features)
            for layer, observer in zip(layers, observers, strict=True):
                assert observer.gram is not None
                yield layer, observer.gram
                bar.update()


def _portions(layers: Sequence[SwitchableLinear]) -> Iterator[list[SwitchableLinear]]:
    """Layers whose Gram matrices fit into `GRAM_BYTES`; at least one."""
    portion: list[SwitchableLinear] = []
    for layer in layers:
        if portion and 4 * sum(other.in_features**2 for other in (*portion, layer)) > GRAM_BYTES:
            yield portion
            portion = []
        portion.append(layer)
    yield portion


def set_static_range(model: SwitchableModel, absmax: float | None, momentum: float = 0.9) -> None:
    """Give every layer a new observer: empty (`absmax` None), or starting at one magnitude.

    Raises:
        ValueError: the magnitude is not positive, or the momentum is not from 0 to below 1.
    """
    _check_momentum(momentum)
    if absmax is not None:
        finite(0, above=True, absmax=absmax)
    for layer in model.layers:
        layer.observer = EMAObserver(momentum)
        if absmax is not None:
            layer.observer.absmax = torch.tensor(absmax, device=layer.weight.device)


def _check_momentum(momentum: float) -> None:
    finite(0, momentum=momentum)
    if momentum >= 1:
        raise ValueError(f"momentum is {momentum}; allowed is a number from 0 to below 1")
