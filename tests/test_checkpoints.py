"""A state that is saved and read back is the same to the last bit, and a file that is there is whole."""

import json

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qatlib import checkpoints
from tests.damage import check_refused, damages


def state(seed: int):
    """Weights of two shapes and an optimizer that has taken a step on one of them."""
    generator = torch.Generator().manual_seed(seed)
    weights = {f"layer.{i}.weight": torch.nn.Parameter(torch.randn(i + 1, 3, generator=generator)) for i in range(2)}
    optimizer = torch.optim.AdamW(weights.values(), lr=0.1)
    weights["layer.1.weight"].sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return weights, optimizer


def step(weights, optimizer) -> None:
    """One that depends on the random state."""
    sum((p * torch.randn_like(p)).sum() for p in weights.values()).backward()
    optimizer.step()
    optimizer.zero_grad()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.integers(0, 999))
def test_what_is_resumed_goes_on_as_what_was_saved(tmp_path_factory, seed, done):
    path = tmp_path_factory.mktemp("checkpoint") / "folder" / "c.safetensors"
    weights, optimizer = state(seed)
    rows = [{"step": done, "loss": 0.1 + seed}]
    checkpoints.save(path, done, rows, weights, optimizer, Accelerator(cpu=True), "bf16")
    step(weights, optimizer)
    other, fresh = state(seed + 1)
    assert checkpoints.resume(path, other, fresh, rank=0) == (done, rows, "bf16")
    step(other, fresh)
    assert all(torch.equal(weights[name], other[name]) for name in weights)
    assert [*path.parent.iterdir()] == [path]


def test_without_a_file_nothing_is_done_and_nothing_touched(tmp_path):
    weights, optimizer = state(0)
    before, random = {n: p.clone() for n, p in weights.items()}, torch.get_rng_state()
    assert checkpoints.resume(tmp_path / "none", weights, optimizer, rank=0) == (0, [], None)
    assert all(torch.equal(weights[n], before[n]) for n in weights) and torch.equal(torch.get_rng_state(), random)


def test_a_checkpoint_of_another_training_is_refused_and_left(tmp_path):
    path = tmp_path / "c.safetensors"
    weights, optimizer = state(0)
    checkpoints.save(path, 1, [], weights, optimizer, Accelerator(cpu=True), "no")
    other = {"layer.0.weight": weights["layer.0.weight"], "layer.1.weight": torch.nn.Parameter(torch.zeros(5, 3))}
    for trainable in (other, {**weights, "more": weights["layer.0.weight"]}, {"layer.0.weight": weights["layer.0.weight"]}):
        with pytest.raises(ValueError, match="a checkpoint of another training, whose (layer.1.weight|more) is not this one's"):
            checkpoints.resume(path, trainable, torch.optim.AdamW(trainable.values()), rank=0)
    assert path.is_file()


def test_a_failed_save_leaves_the_file_before_it(tmp_path, monkeypatch):
    path, (weights, optimizer), accelerator = tmp_path / "c", state(0), Accelerator(cpu=True)
    checkpoints.save(path, 1, [], weights, optimizer, accelerator, "no")
    whole = path.read_bytes()

    def full(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        checkpoints.save(path, 2, [], weights, optimizer, accelerator, "no")
    assert path.read_bytes() == whole and [*tmp_path.iterdir()] == [path]


def damaged_headers(path):
    with safe_open(path, "pt") as file:
        about = file.metadata()
    for name, other in {
        "no header": None,
        "no rows": {"done": about["done"]},
        "steps in words": about | {"done": "two"},
        "fewer than no steps": about | {"done": "-1"},
        "rows cut": about | {"rows": about["rows"][:-2]},
        "an arithmetic of no kind": about | {"mixed_precision": "auto"},
        "rows of another form": about | {"rows": json.dumps({"step": 1})},
    }.items():
        yield name, written(path, {}, other)


def damaged_states(path):
    with safe_open(path, "pt") as file:
        about = file.metadata()
    key = "optimizer/layer.1.weight"
    for changed in (
        {"random/cpu": None},
        {"random/cpu": torch.zeros(1, 7, dtype=torch.uint8)},
        {"random/cpu": torch.zeros(1, 5056)},
        {"random/tpu": torch.zeros(1, 7, dtype=torch.uint8)},
        {f"{key}/exp_avg": None},
        {f"{key}/exp_avg": torch.zeros(3)},
        {f"{key}/step": torch.zeros(3)},
        {"optimizer/other/step": torch.zeros(())},
        {"weight/layer.0.weight": torch.zeros(1, 3, dtype=torch.int64)},
        {"other": torch.zeros(1)},
    ):
        yield str({name: None if t is None else t.shape for name, t in changed.items()}), written(path, changed, about)


def written(path, changed, about) -> bytes:
    tensors = {name: tensor for name, tensor in (load_file(path) | changed).items() if tensor is not None}
    save_file(tensors, path.with_suffix(".other"), about)
    return path.with_suffix(".other").read_bytes()


@pytest.mark.parametrize("kind", [damages, damaged_headers, damaged_states])
def test_a_damaged_file_is_refused_before_anything_changes(kind, tmp_path):
    path, (weights, optimizer) = tmp_path / "c.safetensors", state(0)
    checkpoints.save(path, 1, [{"step": 1}], weights, optimizer, Accelerator(cpu=True), "no")
    other, fresh = state(1)
    before, random = {n: p.clone() for n, p in other.items()}, torch.get_rng_state()
    check_refused(path, kind(path), lambda: checkpoints.resume(path, other, fresh, rank=0))
    assert all(torch.equal(other[n], before[n]) for n in other) and torch.equal(torch.get_rng_state(), random)


def test_a_place_where_no_file_can_be_is_said_at_once(tmp_path):
    (tmp_path / "file").touch()
    checkpoints.check_writable(tmp_path / "new" / "c")
    assert not any((tmp_path / "new").iterdir())
    with pytest.raises(IsADirectoryError, match="new is a directory; the name of a file is needed for a checkpoint"):
        checkpoints.check_writable(tmp_path / "new")
    with pytest.raises(OSError, match="file"):
        checkpoints.check_writable(tmp_path / "file" / "c")


def test_a_process_that_did_not_write_keeps_its_own_random_state(tmp_path):
    path, (weights, optimizer) = tmp_path / "c", state(0)
    checkpoints.save(path, 1, [], weights, optimizer, Accelerator(cpu=True), "no")
    torch.manual_seed(7)
    random = torch.get_rng_state()
    assert checkpoints.resume(path, weights, optimizer, rank=1)[0] == 1
    assert torch.equal(torch.get_rng_state(), random)
