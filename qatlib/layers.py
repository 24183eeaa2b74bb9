"""A linear layer whose precision is an attribute, with one LoRA adapter per weight bit-width, or one for all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qatlib.arguments import QuantizerArguments
from qatlib.kernels import FloatCodes, exact_kernel
from qatlib.lora import SHARED, Lora, LoraSpec, check_adapters
from qatlib.precision import FULL, FULL_PRECISION, Precision
from qatlib.products import CODE_BITS, AdapterFactors, InputQuantizer, code_product
from qatlib.quantizer import EMAObserver, Observer, fake_quantize, quantize_gradient
from qatlib.rotation import Rotation
from qatlib.sharing import rotated_input
from qatlib.weights import WeightQuantizer


@contextmanager
def forwards_replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace what modules compute inside a `with` block. Their hooks still run."""
    for module, forward in forwards.items():
        module.__dict__["forward"] = forward  # found before the class's own forward
    try:
        yield
    finally:
        for module in forwards:
            del module.__dict__["forward"]


@contextmanager
def multiplied_as_floats(layers: Sequence[SwitchableLinear]) -> Iterator[None]:
    """Use no integer kernels inside a `with` block: the simulation of a deployed model."""
    for layer in layers:
        layer.by_integers = False
    try:
        yield
    finally:
        for layer in layers:
            layer.by_integers = True


class SwitchableLinear(nn.Module):
    """Drop-in for `nn.Linear` and GPT-2's `Conv1D` with a precision that is data.

    At precision (w, a): y = Q_w(W) Q_a(x) + b + LoRA_w(Q_a(x)). All inputs pass the activation quantizer, including the adapter's
    input, so an adapter can't bypass it. The base weight W is frozen, so the codes of a bit-width are computed once. A step
    dequantizes them if its width differs from the last one. If W or its step sizes are trained, W is fake-quantized at every
    call, with a straight-through gradient.

    With a `QuantizerArguments.rotation` R, W and x are quantized as R(W) and R(x), and adapters get R(x) at every precision. At
    full precision the product itself is not changed.

    Attributes:
        weight: the base weight in the replaced layer's own layout: (out, in) of `nn.Linear`, (in, out) of `Conv1D`.
        precision: the active `Precision`; switching writes only this.
        gradient_bits: bit-width of the output's gradient in the backward pass; 32 means not quantized.
        adapters: one `Lora` per weight bit-width, keyed by its decimal string, or a single one under `SHARED`.
        clips: by activation bit-width, the log of the share of a token's largest magnitude at which the grid ends.
        steps: by weight bit-width, the log of the factor by which training has changed its scale, of the scale's shape.
        compensated: by weight bit-width, codes that `give_codes` has set, for compensated rounding.
        weight_quantizer: computes the codes of the base weight, and caches them.
        by_integers: whether it uses integer kernels, if the device's are exact. Else codes are multiplied as floats, with the
            same results.
        observer: gets the layer's inputs while `observing`; an `EMAObserver` gives static activation scales.
    """

    def __init__(self, base: nn.Linear | Conv1D, quantizer: QuantizerArguments) -> None:
        super().__init__()
        self.weight = nn.Parameter(base.weight.detach(), requires_grad=False)
        self.bias = None if base.bias is None else nn.Parameter(base.bias.detach(), requires_grad=False)
        self.fan_in_fan_out = isinstance(base, Conv1D)
        self.in_features, self.out_features = self.oriented_weight.shape[1], self.oriented_weight.shape[0]
        self.precision = FULL_PRECISION
        self.gradient_bits = FULL
        self.adapters = nn.ModuleDict()
        self.clips = nn.ParameterDict()
        self.steps = nn.ParameterDict()
        self.compensated = nn.ParameterDict()
        self.weight_quantizer = WeightQuantizer(quantizer, self.steps, self.compensated)
        self.observer: Observer = EMAObserver()
        self.observing = False
        self.by_integers = True
        self.train(base.training)

    @property
    def oriented_weight(self) -> Tensor:
        """The base weight as a view (out, in): `F.linear` on it runs the same kernel as the replaced layer."""
        return self.weight.t() if self.fan_in_fan_out else self.weight

    @property
    def quantizer(self) -> QuantizerArguments:
        """How weight and input are quantized."""
        return self.weight_quantizer.quantizer

    @property
    def rotation(self) -> Rotation:
        """The basis that weight and input are quantized in."""
        return self.weight_quantizer.rotation

    def set_quantizer(self, quantizer: QuantizerArguments) -> None:
        """Change the quantizer. Codes are computed again; learned scales, clips and compensated codes are deleted."""
        for own in (self.steps, self.clips, self.compensated):
            own.clear()
        self.weight_quantizer = WeightQuantizer(quantizer, self.steps, self.compensated)

    def give_codes(self, codes: Mapping[int, Tensor]) -> None:
        """Set the compensated codes (out, in) of some bit-widths. They belong to the present weight and scales."""
        for bits, value in codes.items():
            self.compensated[str(bits)] = nn.Parameter(value, requires_grad=False)
        self.weight_quantizer.forget()

    def add_adapters(self, specs: Mapping[int, LoraSpec]) -> None:
        """Add a fresh adapter for each weight bit-width, or for `SHARED`, replacing what was there.

        Raises:
            ValueError: as `check_adapters`; no adapter is changed then.
        """
        check_adapters(specs)
        self.adapters = nn.ModuleDict({str(w): Lora(self.in_features, self.out_features, s) for w, s in specs.items()})
        self.adapters.to(self.weight.device).train(self.training)

    def learn_steps(self, w_bits: Iterable[int], a_bits: Iterable[int]) -> None:
        """Make the scales of these bit-widths parameters, starting at their present values. Logs keep them positive."""
        for bits in w_bits:
            start = self.steps.get(str(bits), torch.zeros_like(self.weight_quantizer.scale(self.oriented_weight, bits)))
            self.steps[str(bits)] = nn.Parameter(start.detach().clone())
        for bits in a_bits:
            start = self.clips.get(str(bits), torch.zeros((), device=self.weight.device))
            self.clips[str(bits)] = nn.Parameter(start.detach().clone())

    @torch.no_grad()
    def merge_adapter(self, w_bits: int) -> None:
        """Add the adapter of that weight bit-width to the base weight. The adapter itself is not removed.

        Raises:
            ValueError: there is no such adapter.
        """
        adapter = self.own_adapter(w_bits)
        self.oriented_weight.add_(adapter.lora_B @ (self.rotation.inverse(adapter.lora_A) * adapter.scaling))
        self.compensated.clear()  # they were those of another weight
        self.weight_quantizer.forget()

    def codes(self, w_bits: int) -> tuple[Tensor, Tensor]:
        """Integer codes (out, in) and scale of the base weight, computed once per bit-width, as `WeightQuantizer.codes`."""
        return self.weight_quantizer.codes(self.oriented_weight, w_bits)

    def read_back(self, w_bits: int) -> Tensor:
        """The dequantized base weight (out, in) at a bit-width, in the weight's own basis."""
        return self.weight_quantizer.read_back(self.oriented_weight, w_bits)

    def input_quantizer(self, a_bits: int) -> InputQuantizer:
        """The quantizer of the input at an activation bit-width, with the present clip and observer's range."""
        clip = self.clips.get(str(a_bits), None)
        return InputQuantizer(
            a_bits, self.quantizer, None if clip is None else clip.exp(), getattr(self.observer, "absmax", None)
        )

    def _quantized_weight(self, w_bits: int) -> Tensor:
        """The weight (out, in) in the quantizer's basis: cached, or computed anew if the weight or its step is trained."""
        steps_trained = self.training and torch.is_grad_enabled() and str(w_bits) in self.steps
        if self.weight.requires_grad or steps_trained:
            return self.weight_quantizer.fake_quantized(self.oriented_weight, w_bits, frozen=not self.weight.requires_grad)
        return self.weight_quantizer.floats(self.oriented_weight, w_bits)

    def _quantized_input(self, x: Tensor, a_bits: int) -> Tensor:
        if self.observing:
            self.observer.observe(x)
        if a_bits == FULL:
            return x
        quantizer = self.input_quantizer(a_bits)
        clips = quantizer.clip is not None or self.quantizer.activations != "per_token"
        return fake_quantize(x, quantizer.scale(x), a_bits, quantizer.grid, clips=clips)

    def _answers_by_codes(self, x: Tensor) -> bool:
        """Whether only the output is needed (no gradient), outside autocast, at widths that integer kernels support."""
        wants_gradient = self.training or torch.is_grad_enabled() or self.observing
        narrow = x.dtype != torch.float64 and not torch.is_autocast_enabled(x.device.type)
        return not wants_gradient and narrow and max(self.precision) <= CODE_BITS

    def _code_product(self, x: Tensor) -> Tensor:
        w_bits, a_bits = self.precision
        kind = exact_kernel(self.weight.device) if self.by_integers else FloatCodes
        matrix, lora = self.weight_quantizer.matrix(self.oriented_weight, w_bits, kind), self.adapter(w_bits)
        factors = None if lora is None else AdapterFactors(lora.lora_A * lora.scaling, lora.lora_B, self.bias, type(matrix))
        rows = rotated_input(x.float(), self.rotation).reshape(-1, self.in_features)
        y = code_product(rows, self.input_quantizer(a_bits), matrix, factors, self.bias)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (…, in_features) → (…, out_features).

        Without gradients it multiplies codes and equals the deployed layer to the last bit. With gradients it multiplies
        dequantized codes, which is the same except for fp32 rounding.

        Raises:
            RuntimeError: activation scales are static, and there was no calibration pass.
            ValueError: a weight bit-width has no adapter while other bit-widths have one.
        """
        if self._answers_by_codes(x):
            return self._code_product(x)
        w_bits, a_bits = self.precision
        full = w_bits == a_bits == FULL
        unused = full and not (self.adapters or self.observing)
        seen = self._quantized_input(x if unused else rotated_input(x, self.rotation), a_bits)
        y = F.linear(x, self.oriented_weight, self.bias) if full else F.linear(seen, self._quantized_weight(w_bits), self.bias)
        adapter = self.adapter(w_bits)
        y = y if adapter is None else y + adapter(seen)
        return y if self.gradient_bits == FULL else quantize_gradient(y, self.gradient_bits)

    def at_each(self, precisions: Iterable[Precision], x: Tensor) -> Iterator[Tensor]:
        """The layer's outputs at one precision after the other, even if its `forward` is replaced. The last one stays active."""
        for precision in precisions:
            self.precision = precision
            yield SwitchableLinear.forward(self, x)

    def adapter(self, w_bits: int) -> Lora | None:
        """The adapter in use at a weight bit-width: its own or the shared one. At 32 bits there may be none.

        Raises:
            ValueError: a narrower width has no adapter while others have one.
        """
        for key in (w_bits, SHARED):
            if str(key) in self.adapters:
                return self.own_adapter(key)
        return self.own_adapter(w_bits) if w_bits != FULL and self.adapters else None

    def own_adapter(self, w_bits: int) -> Lora:
        """The adapter that was added for a weight bit-width, or the one for `SHARED`.

        Raises:
            ValueError: there is none.
        """
        if str(w_bits) not in self.adapters:
            raise ValueError(f"no adapter for {w_bits}-bit weights; there is one for {', '.join(self.adapters) or 'no'} bits")
        found = self.adapters[str(w_bits)]
        assert isinstance(found, Lora)
        return found

    def _apply(self, fn: Any, recurse: bool = True) -> SwitchableLinear:
        self.weight_quantizer.forget()
        if isinstance(self.observer, EMAObserver) and self.observer.absmax is not None:
            self.observer.absmax = fn(self.observer.absmax)
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.weight_quantizer.forget()
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, precision={self.precision.name}"
