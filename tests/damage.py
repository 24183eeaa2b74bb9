"""Files as they are found after a full disk, a killed copy or an edit by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from qatlib.pretrained import ModelError


def damages(path: Path) -> Iterator[tuple[str, bytes]]:
    """What may become of a file: a name, and the content."""
    raw = path.read_bytes()
    yield from {"cut": raw[:-20], "half": raw[: len(raw) // 2], "empty": b"", "zeros": bytes(len(raw))}.items()
    if path.suffix == ".json":
        yield from {"bytes": b"\xff\xfe" + raw, "a list": b"[]", "null": b"null", "deep": b"[" * 5000}.items()
    elif path.suffix == ".safetensors":
        tensors = load_file(path)
        name, tensor = next((n, t) for n, t in tensors.items() if t.ndim > 1)
        yield "one less", save({n: t for n, t in tensors.items() if n != name})
        yield "renamed", save({n if n != name else "other": t for n, t in tensors.items()})
        yield "another shape", save(tensors | {name: torch.cat([tensor, tensor])})
        yield "another type", save(tensors | {name: tensor.float() if tensor.dtype == torch.uint8 else tensor.long()})
        yield "nothing in it", save({})


def emptied(path: Path) -> Iterator[tuple[str, bytes]]:
    """A JSON file with one key less, or with nothing sensible at a key."""
    whole = json.loads(path.read_bytes())
    for key in whole:
        yield f"{key} gone", json.dumps({k: v for k, v in whole.items() if k != key}).encode()
        for value in (["x"], -1):
            yield f"{key} is {value}", json.dumps(whole | {key: value}).encode()


def check_refused(path: Path, contents: Iterator[tuple[str, bytes]], load: Callable[[], object], name: str | None = None) -> None:
    """Every content of the file at `path` must be refused in one line with its name; the file is then as it was."""
    raw = path.read_bytes()
    for what, content in contents:
        path.write_bytes(content)
        try:
            with pytest.raises(ModelError) as caught:
                load()
        except BaseException as error:
            raise AssertionError(f"{path.name}, {what}: {error!r}") from error
        finally:
            path.write_bytes(raw)
        assert (name or path.name) in str(caught.value) and len(str(caught.value).splitlines()) == 1, f"{what}: {caught.value}"
