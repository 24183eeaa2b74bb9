"""Switchable-precision quantization of causal language models.

The names in `__all__` are the public ones: `from qatlib import SwitchableModel`. Each is imported when it is first used, so
`import qatlib` alone is fast and does not import torch. Notebooks and the package's own modules import from the modules
themselves, because a content key follows literal imports (`qatlib.run.keys`).
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "AttackArguments": "arguments",
    "Configuration": "precision",
    "DeployedModel": "deployed",
    "LoraSpec": "lora",
    "Precision": "precision",
    "QuantizerArguments": "arguments",
    "ScheduleArguments": "scheduling",
    "SwitchableModel": "model",
    "TrainingArguments": "arguments",
    "attack_embeddings": "attacks.embedding",
    "collate": "qa.loss",
    "deploy": "deployed",
    "dequantize": "quantizer",
    "evaluate_spans": "qa.evaluate",
    "fake_quantize": "quantizer",
    "featurize": "qa.spans",
    "fit": "training",
    "load_pretrained": "pretrained",
    "make_schedule": "schedule",
    "minmax_scale": "quantizer",
    "quantize": "quantizer",
    "read_squad": "qa.squad",
}
"""The module of every public name."""

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
