"""Integer codes packed to their real width."""

from __future__ import annotations

import torch
from torch import Tensor

from qatlib.grids import code_dtype


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes in two's complement with `bits` bits each, one after the other without gaps, low bits first.

    Above 8 bits all low bytes come first. The remaining bits of the codes follow, packed in the same way.

    Args:
        codes: integers of any shape, −2^(bits−1) … 2^(bits−1) − 1.

    Returns:
        uint8 (bytes,): `bits` bytes for every 8 codes; the last group is padded.

    Raises:
        ValueError: a code does not fit.
    """
    codes, half = codes.flatten(), 2 ** (bits - 1)
    if codes.numel() and not (-half <= int(codes.min()) and int(codes.max()) < half):
        raise ValueError(f"codes from {int(codes.min())} to {int(codes.max())} do not fit {bits} bits")
    if bits > 8:
        wide = codes.to(torch.int32)
        return torch.cat([pack((wide & 255) - 128, 8), pack(wide >> 8, bits - 8)])
    # Eight codes fill the low 8·bits bits of one 64-bit word; only its low `bits` bytes are kept.
    groups = torch.nn.functional.pad(codes, (0, -codes.numel() % 8)).view(-1, 8).to(torch.int64) & (2**bits - 1)
    words = (groups << _shifts(bits, codes.device)).sum(1)
    return words.view(torch.uint8).view(-1, 8)[:, :bits].flatten()


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack`: codes of that shape, int8 up to 8 bits and int16 above.

    Raises:
        ValueError: the number of bytes does not match the shape and the width.
    """
    count = torch.Size(shape).numel()
    if packed.numel() != packed_bytes(count, bits):
        raise ValueError(f"{packed.numel()} bytes are not {count} codes of {bits} bits, which take {packed_bytes(count, bits)}")
    if bits > 8:
        low, high = packed.split([packed_bytes(count, 8), packed_bytes(count, bits - 8)])
        low_bytes, high_bits = (unpack(part, b, shape).to(torch.int32) for part, b in ((low, 8), (high, bits - 8)))
        return ((high_bits << 8) + low_bytes + 128).to(code_dtype(bits))
    words = torch.nn.functional.pad(packed.view(-1, bits), (0, 8 - bits)).view(torch.int64)
    codes = (words >> _shifts(bits, packed.device)).flatten()[:count] & (2**bits - 1)
    half = 2 ** (bits - 1)
    return ((codes ^ half) - half).to(code_dtype(bits)).view(shape)


def packed_bytes(count: int, bits: int) -> int:
    """Number of bytes that `pack` makes from `count` codes."""
    return -(-count // 8) * bits


def _shifts(bits: int, device: torch.device) -> Tensor:
    return bits * torch.arange(8, device=device)
