"""What saved models are made of: files that are written whole, and read with one sentence for what is wrong in them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import safetensors.torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qatlib.arguments import sentence

T = TypeVar("T")


class ModelError(ValueError):
    """A model can't be loaded, injected or saved: one sentence."""


def read_json(path: Path, form: type[T], whole: str | None = None) -> T:
    """Read a JSON file.

    Args:
        form: the type that the file must hold, such as a dataclass.
        whole: a section in which no key may be left to its default.

    Raises:
        ModelError: the file is missing, is no JSON, or does not hold that type.
    """
    try:
        raw = path.read_bytes()
        found = TypeAdapter(form).validate_json(raw, strict=True)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        raise ModelError(f"{path}: {sentence(error)}") from error
    if whole and (missing := sorted(asdict(getattr(found, whole)).keys() - json.loads(raw)[whole].keys())):
        raise ModelError(f"{path}: {whole}.{missing[0]} is missing")
    return found


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ModelError: the file is missing, cut or damaged.
    """
    with intact(path):
        return safetensors.torch.load_file(path, device)


def tensor_types(path: Path) -> dict[str, str]:
    """The types of a safetensors file's tensors, such as `F32`, by their names. Only its header is read.

    Raises:
        ModelError: the file is missing, cut or damaged.
    """
    with intact(path), safetensors.safe_open(path, "pt") as file:
        names = file.keys()
        return {name: file.get_slice(name).get_dtype() for name in names}


@contextmanager
def intact(path: Path) -> Iterator[None]:
    """Raise as a `ModelError` that a safetensors file is missing, cut or damaged."""
    try:
        yield
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise ModelError(f"{path}: not a whole safetensors file: {error}") from error


def save_file(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Raises:
        OSError: it cannot be written, because the disk is full for example.
    """
    try:
        safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)
    except safetensors.SafetensorError as error:
        raise OSError(f"{path}: {error}") from error


def check_tensors(
    path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], owner: str = "the model beside it"
) -> None:
    """Check that a file holds exactly the tensors that are expected, all of their shapes, and floats where floats are expected.

    Args:
        path: the file, for the error.
        owner: who has the expected tensors, for the error.

    Raises:
        ModelError: names the first tensor that is missing, different, or not expected.
    """
    for name, own in expected.items():
        if name not in tensors or tensors[name].shape != own.shape:
            raise ModelError(f"{path}: does not fit {owner}, which has {name} of shape {tuple(own.shape)}")
        if tensors[name].is_floating_point() != own.is_floating_point():
            raise ModelError(f"{path}: {name} is of type {tensors[name].dtype}, and {owner} has {own.dtype} there")
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise ModelError(f"{path}: does not fit {owner}, which has no {unknown[0]}")


def check_files(path: Path, names: Iterable[str], what: str) -> None:
    """Check that a directory has all files of one kind of saved model.

    Args:
        what: the kind of model.

    Raises:
        ModelError: a file is missing, so that no such model was saved there, or a save was stopped.
    """
    for name in names:
        if not (path / name).is_file():
            stopped = next(path.glob(f".saving-*/*/{name}"), None)
            left = f"; a save was killed, and {stopped.parent.parent} has its files and those before it" if stopped else ""
            raise ModelError(f"{path}: no {name} in it, so no {what} was saved here{left}")


def save_surroundings(folder: Path, lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write all but the weights: `config.json`, `generation_config.json` and the tokenizer, as `from_pretrained` reads them."""
    lm.config.architectures, lm.config.dtype = [type(lm).__name__], lm.dtype
    lm.config.save_pretrained(folder)
    # `save_pretrained` refuses a temperature without sampling, which models of the hub have and `from_pretrained` reads
    lm.generation_config.to_json_file(folder / "generation_config.json")
    tokenizer.save_pretrained(folder)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise a `ValueError` if it is no tokenizer, before anything is written."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(f"a model is saved with its tokenizer, a transformers tokenizer, and not with {tokenizer!r}")


def ties(lm: PreTrainedModel) -> Mapping[str, str]:
    """The weights that a loaded model of this config shares with others: from their names to the names of those."""
    return lm.get_expanded_tied_weights_keys(all_submodels=True)


def untied(lm: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a file of a model's state must hold: all but the weights that are tied again when it is loaded.

    A head of its own is kept, whatever the config says, and so is a weight that is tied here but would not be there.
    """
    sources, kept, stored = ties(lm), {}, set()
    for name, value in state.items():
        source = state.get(sources.get(name, ""))
        if source is not None and _key(source) == _key(value):
            continue
        shared = value.untyped_storage().data_ptr() in stored
        kept[name] = value.clone() if shared else value
        stored.add(value.untyped_storage().data_ptr())
    return kept


def _key(tensor: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()
