"""How a layer's weight becomes codes. Results for a frozen weight are cached."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qatlib.arguments import QuantizerArguments
from qatlib.kernels import CodeMatrix, FloatCodes
from qatlib.precision import FULL
from qatlib.quantizer import dequantize, fake_quantize, grouped, minmax_scale, mse_scale, narrowed, quantize
from qatlib.rotation import ROTATIONS

NESTED_IN = 8
"""With `QuantizerArguments.nested`, codes of fewer bits are derived from the codes of this bit-width."""

COMPENSATED_TO = 8
"""The widest codes that `QuantizerArguments.rounding` compensates. Wider ones have next to no error."""


class WeightQuantizer:
    """Scales, codes and floats of one layer's weight by bit-width. `InputQuantizer` is the counterpart for inputs.

    Every method takes the weight (out, in), the same one at each call. Results are cached. They are computed again if the
    weight or a learned step has changed in place; writes to `.data` are not noticed.

    Args:
        steps: the layer's own parameters: by bit-width, the log of the factor by which training has changed the scale.
        given: the layer's own compensated codes (out, in) by bit-width.
    """

    def __init__(self, quantizer: QuantizerArguments, steps: nn.ParameterDict, given: nn.ParameterDict) -> None:
        self.quantizer, self.rotation, self.steps, self.given = quantizer, ROTATIONS[quantizer.rotation], steps, given
        self._scales: dict[int, Tensor] = {}
        self._scales_of = 0  # the version of the weight from which they were computed
        self._held: dict[int, Tensor] = {}
        self._codes: dict[int, tuple[tuple[int, ...], Tensor]] = {}
        self._floats: tuple[tuple[int, ...], Tensor] | None = None
        self._matrix: tuple[tuple[int, ...], CodeMatrix | FloatCodes] | None = None

    def forget(self) -> None:
        """Empty the cache."""
        self._scales.clear()
        self._codes.clear()
        self._floats = self._matrix = None

    def hold(self, weight: Tensor, bits: int) -> None:
        """Let a trained weight keep the clipping that `mse` finds now: for each scale, the share of the largest magnitude.

        The search tries 28 scales, which takes longer than a product in bf16. The share follows from the shape of a distribution,
        which training changes slowly; the largest magnitude is cheap to follow. A frozen weight's scale is always searched.
        """
        if self.quantizer.clipping == "mse":
            with torch.no_grad():
                rotated = self.rotation.apply(weight)
                self._held[bits] = self._found_scale(rotated, bits) / self._widest_scale(rotated, bits)

    def release(self) -> None:
        """Undo `hold` for all widths."""
        self._held.clear()

    def scale(self, weight: Tensor, bits: int) -> Tensor:
        """The scale of a bit-width's codes, including its learned factor: (out, 1), a scalar or (out, groups, 1)."""
        if self._scales_of != weight._version:
            self.forget()
            self._scales_of = weight._version
        if bits not in self._scales:
            with torch.inference_mode(False), torch.no_grad():
                self._scales[bits] = self._found_scale(self.rotation.apply(weight), bits)
        return self._stepped(self._scales[bits], bits)

    def codes(self, weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """Integer codes (out, in) in the quantizer's basis, and their scale.

        With `nested`, codes of fewer than `NESTED_IN` bits are derived again at every call.

        Raises:
            RuntimeError: rounding is compensated, and these codes have not been computed.
        """
        with torch.inference_mode(False), torch.no_grad():
            scale, version = self.scale(weight, bits), self._made_of(weight, bits)
            if self.compensates(bits):
                return self._given(bits), scale
            if bits not in self._codes or self._codes[bits][0] != version:
                if self._is_derived(bits):
                    return narrowed(*self.codes(weight, NESTED_IN), scale, bits, self.quantizer.grid), scale
                groups = self._grouped(self.rotation.apply(weight))
                self._codes[bits] = version, quantize(groups, scale, bits, self.quantizer.grid).reshape(len(weight), -1)
            return self._codes[bits][1], scale

    def read_back(self, weight: Tensor, bits: int) -> Tensor:
        """The dequantized weight (out, in), in the weight's own basis."""
        return self.rotation.inverse(self._read_back(*self.codes(weight, bits), weight.dtype))

    def floats(self, weight: Tensor, bits: int) -> Tensor:
        """The floats of a frozen weight for a product, (out, in) in the quantizer's basis; not quantized at 32 bits.

        Codes are stored permanently. The floats of the width in use are kept until another width is used. So a pass over a
        data set dequantizes once, and a switch still writes a single attribute.
        """
        if bits == FULL and not self.rotation.rotates:
            return weight
        version = (bits, *self._made_of(weight, bits))
        if self._floats is None or self._floats[0] != version:
            with torch.inference_mode(False), torch.no_grad():
                full = bits == FULL
                floats = self.rotation.apply(weight) if full else self._read_back(*self.codes(weight, bits), weight.dtype)
                self._floats = version, floats
        return self._floats[1]

    def matrix(self, weight: Tensor, bits: int, kind: type[CodeMatrix | FloatCodes]) -> CodeMatrix | FloatCodes:
        """The codes of the width in use, for products of this kind; cached like the floats."""
        version = (bits, *self._made_of(weight, bits))
        if self._matrix is None or self._matrix[0] != version or type(self._matrix[1]) is not kind:
            with torch.inference_mode(False), torch.no_grad():
                self._matrix = version, kind(*self.codes(weight, bits))
        return self._matrix[1]

    def fake_quantized(self, weight: Tensor, bits: int, frozen: bool) -> Tensor:
        """As `floats`, but computed at every call, with gradients to the weight and to trained step sizes.

        Args:
            frozen: whether only the steps are trained. They then change the cached scale.

        Raises:
            RuntimeError: rounding is compensated, and the weight is trained or its codes have not been computed.
        """
        with torch.autocast(weight.device.type, enabled=False):  # its codes are those of the fp32 weight
            rotated = self.rotation.apply(weight)
        if bits == FULL:
            return rotated
        if self.compensates(bits):
            if not frozen:
                raise RuntimeError("compensated codes are those of a frozen weight; train it with rounding 'nearest'")
            return self._read_back(self._given(bits), self.scale(weight, bits), weight.dtype)
        if not frozen:
            scale = self._stepped(self._trained_scale(rotated, bits), bits)
        else:
            if self._is_derived(bits):
                rotated = self._read_back(*self.codes(weight, NESTED_IN), weight.dtype)
            scale = self.scale(weight, bits)
        clips = self.quantizer.clipping != "minmax" or str(bits) in self.steps
        return fake_quantize(self._grouped(rotated), scale, bits, self.quantizer.grid, clips=clips).reshape(rotated.shape)

    def compensates(self, bits: int) -> bool:
        """Whether the codes of a width are compensated ones: `qatlib.compensation` computes them, and not this class."""
        return self.quantizer.rounding == "compensated" and bits <= COMPENSATED_TO and not self._is_derived(bits)

    def _given(self, bits: int) -> Tensor:
        if str(bits) not in self.given:
            raise RuntimeError(f"no compensated codes of {bits} bits have been computed; `compensate` computes them")
        return self.given[str(bits)]

    def _made_of(self, weight: Tensor, bits: int) -> tuple[int, ...]:
        """A version that changes whenever the codes of this width change."""
        widths = {str(bits), str(NESTED_IN)} if self.quantizer.nested else {str(bits)}
        return (weight._version, *(step._version for key, step in self.steps.items() if key in widths))

    def _found_scale(self, rotated: Tensor, bits: int) -> Tensor:
        if self.quantizer.clipping == "minmax":
            return self._widest_scale(rotated, bits)
        return mse_scale(self._grouped(rotated), bits, self._dims, self.quantizer.grid)

    def _widest_scale(self, rotated: Tensor, bits: int) -> Tensor:
        return minmax_scale(self._grouped(rotated), bits, self._dims, self.quantizer.grid)

    def _trained_scale(self, rotated: Tensor, bits: int) -> Tensor:
        held = self._held.get(bits)
        return self._found_scale(rotated, bits) if held is None else held * self._widest_scale(rotated, bits)

    @property
    def _dims(self) -> int | None:
        return None if self.quantizer.weights == "per_tensor" else -1

    def _stepped(self, scale: Tensor, bits: int) -> Tensor:
        return scale * self.steps[str(bits)].exp() if str(bits) in self.steps else scale

    def _is_derived(self, bits: int) -> bool:
        return self.quantizer.nested and bits < NESTED_IN

    def _grouped(self, weight: Tensor) -> Tensor:
        """(out, in) → (out, groups, group size), if groups have their own scales."""
        return weight.unflatten(1, (-1, self.quantizer.group_size)) if self.quantizer.weights == "per_group" else weight

    @staticmethod
    def _read_back(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        return dequantize(grouped(codes, scale), scale, dtype).view_as(codes)
