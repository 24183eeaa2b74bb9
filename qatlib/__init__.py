"""Switchable-precision quantization of causal language models.

The names in `__all__` are the public ones: `from qatlib import SwitchableModel`. Each is imported when it is first used, so
that `import qatlib` alone takes no time and no torch. Notebooks and the package's own modules import from the modules
themselves, since a content key follows literal imports (`qatlib.run.keys`).
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "AttackArguments": "arguments",
    "Configuration": "precision",
    "DeployedModel": "deploy",
    "LoraSpec": "layers",
    "Precision": "precision",
    "QuantizerArguments": "arguments",
    "ScheduleArguments": "arguments",
    "SwitchableModel": "model",
    "TrainingArguments": "arguments",
    "attack_embeddings": "attacks.embedding",
    "collate": "qa.loss",
    "deploy": "deploy",
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


class _Package(ModuleType):
    """The package, in which the public function `deploy` keeps its name once the module `qatlib.deploy` is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
