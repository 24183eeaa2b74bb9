"""Bit-widths, precisions and configurations as plain data. There is no torch here, so a params file is checked fast."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from reprlib import repr as shown
from typing import Any, NamedTuple

import yaml

from qatlib.files import write_atomic
from qatlib.named import NAMED

FULL = 32
"""The bit-width that means 'not quantized'."""

BIT_WIDTHS = (*range(2, 17), FULL)

ROLES = ("qkv", "attn_out", "mlp_in", "mlp_out")
"""A layer's place in its block, independent of the architecture's names."""

OTHER = "other"
"""The role of a layer whose place can't be told."""

_PRECISION = re.compile(r"w(\d+)a(\d+)|(\d+)")

FAMILIES = {"attn": ("qkv", "attn_out"), "mlp": ("mlp_in", "mlp_out")}


class Precision(NamedTuple):
    """One layer's weight and activation bit-widths, each 2..16, or 32 for 'not quantized'.

    Example:
        >>> Precision.parse("w4a8")
        Precision(w_bits=4, a_bits=8)
        >>> Precision(8, 8).name
        '8'
        >>> Precision(4, 8) < Precision(8, 8)
        True
    """

    w_bits: int
    a_bits: int

    @property
    def name(self) -> str:
        """`8` if both widths are 8; `w4a8` if they differ. `Precision.parse` reads it back."""
        return str(self.w_bits) if self.w_bits == self.a_bits else f"w{self.w_bits}a{self.a_bits}"

    @classmethod
    def parse(cls, value: Any) -> Precision:
        """Read `8`, `"8"`, `"w4a8"`, `(4, 8)`, `{"w_bits": 4, "a_bits": 8}` or a `Precision`.

        Raises:
            ValueError: a bit-width is not in 2..16 and not 32, or the form is not listed here.
        """
        if isinstance(value, str) and (match := _PRECISION.fullmatch(value)):
            w, a, both = match.groups()
            bits: Sequence[Any] = (int(both or w), int(both or a))
        elif isinstance(value, int) and not isinstance(value, bool):
            bits = (value, value)
        elif isinstance(value, Mapping) and set(value) == {"w_bits", "a_bits"}:
            bits = (value["w_bits"], value["a_bits"])
        elif isinstance(value, (tuple, list)) and len(value) == 2:
            bits = value
        else:
            raise ValueError(f"{shown(value)} is no precision: give a bit-width such as 8, or weights and activations as 'w4a8'")
        for b in bits:
            if b not in BIT_WIDTHS or isinstance(b, (bool, float)):
                raise ValueError(
                    f"{shown(value)} has a bit-width of {shown(b)}: allowed are 2 to 16, and {FULL} for 'not quantized'"
                )
        return cls(*bits)


FULL_PRECISION = Precision(FULL, FULL)


def widest_first(precisions: Sequence[Precision]) -> list[Precision]:
    """By weight bits, then by activation bits."""
    return sorted(precisions, reverse=True)


@dataclass(frozen=True)
class LayerInfo:
    """What a configuration needs to know about one switchable layer."""

    name: str
    """Dotted module name, `transformer.h.0.attn.c_attn`."""
    block: int
    role: str
    weights: int
    """Number of weights, without bias and adapters."""
    channels: int
    """Number of output channels. Per-channel quantization has one weight scale for each."""
    fixed: int = 0
    """Weights of its block that are in no switchable layer and stay at 32 bits. The first layer of a block counts them."""


Group = tuple[int, str]
"""A block and a role. A sweep lowers these layers together, and a search gives them one precision."""


def names_by_group(layers: Iterable[LayerInfo]) -> dict[Group, list[str]]:
    """Names of the layers of each block and role, in the model's order: a Llama's q, k and v are one `qkv`."""
    found: dict[Group, list[str]] = {}
    for layer in layers:
        found.setdefault((layer.block, layer.role), []).append(layer.name)
    return found


def _matches(pattern: str, layer: LayerInfo) -> bool:
    """Whether the pattern fits: a role, a family (`attn`, `mlp`), or a glob on the dotted name, starting at any of its parts."""
    if pattern in (*ROLES, OTHER):
        return layer.role == pattern
    if pattern in FAMILIES:
        return layer.role in FAMILIES[pattern]
    parts = layer.name.split(".")
    return any(fnmatchcase(".".join(parts[i:]), pattern) for i in range(len(parts)))


@dataclass(frozen=True)
class Configuration(Mapping[str, Precision]):
    """A precision for every switchable layer, by layer name, in the model's order.

    Example:
        >>> configuration = Configuration.resolve({"attn": 8, "mlp": "w4a8"}, model.infos)
        >>> {info.role: configuration[info.name].name for info in model.infos}
        {'qkv': '8', 'attn_out': '8', 'mlp_in': 'w4a8', 'mlp_out': 'w4a8'}
        >>> configuration.save(Path("mine.yaml"))
        >>> model.set_precision("mine.yaml")
    """

    precisions: Mapping[str, Precision]

    def __getitem__(self, name: str) -> Precision:
        return self.precisions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.precisions)

    def __len__(self) -> int:
        return len(self.precisions)

    @classmethod
    def uniform(cls, precision: Any, layers: Iterable[LayerInfo]) -> Configuration:
        """The same precision everywhere."""
        p = Precision.parse(precision)
        return cls({layer.name: p for layer in layers})

    @classmethod
    def resolve(cls, spec: Any, layers: Sequence[LayerInfo], current: Configuration | None = None) -> Configuration:
        """Turn what a user writes into a precision for every layer.

        Args:
            spec: a precision (all layers); a name of `NAMED`, such as `C14`; a mapping from role, family (`attn`, `mlp`) or name
                pattern to a precision (later entries win; other layers stay as in `current`); a list with one `{"attn_bits": b,
                "mlp_bits": b}` per block; a path to a YAML or JSON file that holds one of these; a `Configuration`. By a name
                or a list, a layer of the role `other` gets the widest precision of its block.
            layers: the model's switchable layers.
            current: the configuration that a mapping changes; full precision by default.

        Raises:
            ValueError: a bit-width is not allowed, a name is unknown, a pattern fits no layer, a list does not have one entry per
                block, or a configuration belongs to another model.
            FileNotFoundError: the file does not exist.
        """
        names = [layer.name for layer in layers]
        if isinstance(spec, Configuration):
            if list(spec) != names:
                raise ValueError(f"the configuration is of another model: it names {len(spec)} layers, this one has {len(names)}")
            return spec
        if isinstance(spec, Path) or (isinstance(spec, str) and spec.endswith((".yaml", ".yml", ".json"))):
            return cls.resolve(read_spec(Path(spec)), layers, current)
        if isinstance(spec, str) and not _PRECISION.fullmatch(spec):
            return cls._of_name(spec, layers)
        if isinstance(spec, Mapping) and set(spec) != {"w_bits", "a_bits"}:
            chosen = dict(current) if current is not None else dict.fromkeys(names, FULL_PRECISION)
            for pattern, value in spec.items():
                hit = [layer.name for layer in layers if _matches(pattern, layer)]
                if not hit:
                    raise ValueError(
                        f"{pattern!r} names no layer: give a role ({', '.join((*ROLES, OTHER))}), 'attn', 'mlp', or a pattern "
                        f"on names such as {names[0]!r}"
                    )
                chosen.update(dict.fromkeys(hit, Precision.parse(value)))
            return cls(chosen)
        if isinstance(spec, list) and not (len(spec) == 2 and all(isinstance(b, int) for b in spec)):
            return cls._of_blocks(spec, layers)
        return cls.uniform(spec, layers)

    @classmethod
    def _of_name(cls, name: str, layers: Sequence[LayerInfo]) -> Configuration:
        if name not in NAMED:
            raise ValueError(
                f"{name!r} names no configuration: allowed are {', '.join(NAMED)}, a precision such as '8' or 'w4a8', and a "
                "path that ends in .yaml or .json"
            )
        blocks = max(layer.block for layer in layers) + 1
        bits = [dict(zip(ROLES, NAMED[name].of_block(i, blocks), strict=True)) for i in range(blocks)]
        bits = [block | {OTHER: max(block.values())} for block in bits]
        return cls({layer.name: Precision.parse(bits[layer.block][layer.role]) for layer in layers})

    @classmethod
    def _of_blocks(cls, blocks: Sequence[Any], layers: Sequence[LayerInfo]) -> Configuration:
        count = max(layer.block for layer in layers) + 1
        if len(blocks) != count:
            raise ValueError(f"the list of block precisions has {len(blocks)} entries, the model has {count} blocks")
        for i, block in enumerate(blocks):
            if not isinstance(block, Mapping) or set(block) != {"attn_bits", "mlp_bits"}:
                raise ValueError(f"block {i} is {shown(block)}: give {{'attn_bits': …, 'mlp_bits': …}}")
        chosen = {}
        for layer in layers:
            families = [name for name, roles in FAMILIES.items() if layer.role in roles] or FAMILIES
            chosen[layer.name] = max(Precision.parse(blocks[layer.block][f"{name}_bits"]) for name in families)
        return cls(chosen)

    def average_bits(self, layers: Iterable[LayerInfo]) -> tuple[float, float]:
        """Mean weight bits over all weights of the blocks, and mean activation bits, weighted by the same numbers of weights."""
        total = weights = activations = 0
        for layer in layers:
            total += layer.weights + layer.fixed
            weights += layer.weights * self[layer.name].w_bits + layer.fixed * FULL
            activations += layer.weights * self[layer.name].a_bits + layer.fixed * FULL
        return weights / total, activations / total

    def storage_bytes(self, layers: Iterable[LayerInfo], scale_group: int | None = None) -> float:
        """Bytes of the switchable layers' weights by formula: codes of `w_bits` bits and fp32 scales.

        There is one scale per channel, per group of `scale_group` weights, or, if that is 0, per layer. Biases, adapters,
        embeddings, norms and heads are not counted, because no configuration changes them.
        """
        total = 0.0
        for layer in layers:
            bits = self[layer.name].w_bits
            scales = layer.channels if scale_group is None else layer.weights / (scale_group or layer.weights)
            total += layer.weights * bits / 8 + (0 if bits == FULL else 4 * scales)
        return total

    def save(self, path: Path) -> None:
        """Write the configuration as YAML that `Configuration.resolve` reads back."""
        write_atomic(Path(path), yaml.safe_dump({name: p.name for name, p in self.items()}, sort_keys=False))


def read_spec(path: Path) -> Any:
    """Read a precision specification from a YAML or JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is no YAML, or no JSON, or nested too deeply.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except RecursionError:
        raise ValueError(f"{path}: is nested too deeply; a precision, a name, a mapping or a list of blocks is needed") from None
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: is not {'JSON' if path.suffix == '.json' else 'YAML'} ({reason})") from None
