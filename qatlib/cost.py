"""The cost of configurations by formula, and the accuracy per bit: average bits, bytes, compression."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from qatlib.checks import filled, one_of
from qatlib.model import SwitchableModel
from qatlib.named import NAMED
from qatlib.precision import BIT_WIDTHS, FULL, FULL_PRECISION, Configuration, LayerInfo


def named_table(layers: Sequence[LayerInfo], names: Iterable[str] = NAMED) -> pd.DataFrame:
    """The named configurations on a model: `configuration`, `study`, `meaning`, and `w_bits`, `layer_bits` as in `cost_table`.

    Raises:
        ValueError: there are no layers, or a name is unknown.
    """
    filled(layers=layers)
    rows = []
    for name in names:
        one_of(NAMED, names=name)
        known, configuration = NAMED[name], Configuration.resolve(name, layers)
        row = {"configuration": name, "study": known.study, "meaning": known.meaning}
        rows.append(row | {"w_bits": configuration.average_bits(layers)[0], "layer_bits": _layer_bits(configuration)})
    return pd.DataFrame(rows)


def cost_table(model: SwitchableModel, configurations: Mapping[str, Any]) -> pd.DataFrame:
    """Bits and bytes by formula; nothing here is measured.

    Args:
        configurations: by name, any form that `Configuration.resolve` reads.

    Returns:
        One row per configuration: `configuration`; `w_bits` and `a_bits`, means weighted by the number of weights; `layer_bits`,
            the plain mean of the weight bits over the layers, as S4 prints it; `switchable_bytes` (codes and scales);
            `rest_bytes`, embeddings, norms, biases and the language model's head in fp32 (a tied head is counted once); `bytes`,
            their sum; `switchable_compression` and `compression`, the ratios of the fp32 size to this size. Adapters and span
            head are left out.

    Raises:
        ValueError: there are no configurations, or as `Configuration.resolve`.
    """
    filled(configurations=configurations)
    layers = model.infos
    weights = sum(info.weights for info in layers)
    inside = tuple(f"{info.name}." for info in layers)
    outside = sum(p.numel() for name, p in model.lm.named_parameters() if not name.startswith(inside))
    rest = FULL // 8 * (outside + sum(layer.out_features for layer in model.layers if layer.bias is not None))
    rows = []
    for name, spec in configurations.items():
        configuration = Configuration.resolve(spec, layers)
        w_bits, a_bits = configuration.average_bits(layers)
        codes = configuration.storage_bytes(layers, model.quantizer.scale_group)
        rows.append(
            {
                "configuration": name,
                "w_bits": w_bits,
                "a_bits": a_bits,
                "layer_bits": _layer_bits(configuration),
                "switchable_bytes": codes,
                "rest_bytes": rest,
                "bytes": codes + rest,
                "switchable_compression": FULL / 8 * weights / codes,
                "compression": (FULL / 8 * weights + rest) / (codes + rest),
            }
        )
    return pd.DataFrame(rows)


def _layer_bits(configuration: Configuration) -> float:
    return sum(p.w_bits for p in configuration.values()) / len(configuration)


def training_bitops(configuration: Configuration, layers: Sequence[LayerInfo], gradient_bits: int = FULL) -> float:
    """Bit operations of one forward-backward pass by formula, as a share of those of a pass at 32 bits.

    This is CPT's own figure: the mean of w·a (forward), w·g and a·g (gradients of inputs and of weights), divided by 32² and
    averaged over the layers by their weights. Training an adapter needs no gradient of the weights. The figure counts it
    nevertheless, to be comparable with CPT's. Nothing here is measured.

    Source: the training code of Fu et al. 2021, where w = a.

    Raises:
        ValueError: there are no layers, a layer has no precision, or the gradients have no such bit-width.
    """
    filled(layers=layers)
    one_of(BIT_WIDTHS, gradient_bits=gradient_bits)
    for info in layers:
        one_of(configuration, layers=info.name)
    total = sum(info.weights + info.fixed for info in layers)
    products = 0.0
    for info in layers:
        for weights, (w, a) in ((info.weights, configuration[info.name]), (info.fixed, FULL_PRECISION)):
            products += weights * (w * a + w * gradient_bits + a * gradient_bits) / 3
    return products / total / FULL**2
