"""A state that is saved and read back is the same to the last bit, and a file that is there is whole."""

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from qatlib import checkpoints


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
    checkpoints.save(path, done, rows, weights, optimizer, Accelerator(cpu=True))
    step(weights, optimizer)
    other, fresh = state(seed + 1)
    assert checkpoints.resume(path, other, fresh, rank=0) == (done, rows)
    step(other, fresh)
    assert all(torch.equal(weights[name], other[name]) for name in weights)
    assert [*path.parent.iterdir()] == [path]


def test_without_a_file_nothing_is_done_and_nothing_touched(tmp_path):
    weights, optimizer = state(0)
    before, random = {n: p.clone() for n, p in weights.items()}, torch.get_rng_state()
    assert checkpoints.resume(tmp_path / "none", weights, optimizer, rank=0) == (0, [])
    assert all(torch.equal(weights[n], before[n]) for n in weights) and torch.equal(torch.get_rng_state(), random)


def test_a_checkpoint_of_another_training_is_refused_and_left(tmp_path):
    path = tmp_path / "c.safetensors"
    weights, optimizer = state(0)
    checkpoints.save(path, 1, [], weights, optimizer, Accelerator(cpu=True))
    other = {"layer.0.weight": weights["layer.0.weight"], "layer.1.weight": torch.nn.Parameter(torch.zeros(5, 3))}
    for trainable in (other, {**weights, "more": weights["layer.0.weight"]}, {"layer.0.weight": weights["layer.0.weight"]}):
        with pytest.raises(ValueError, match="a checkpoint of another training, whose (layer.1.weight|more) is not this one's"):
            checkpoints.resume(path, trainable, torch.optim.AdamW(trainable.values()), rank=0)
    assert path.is_file()


def test_a_failed_save_leaves_the_file_before_it(tmp_path, monkeypatch):
    path, (weights, optimizer), accelerator = tmp_path / "c", state(0), Accelerator(cpu=True)
    checkpoints.save(path, 1, [], weights, optimizer, accelerator)
    whole = path.read_bytes()

    def full(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        checkpoints.save(path, 2, [], weights, optimizer, accelerator)
    assert path.read_bytes() == whole


def test_a_process_that_did_not_write_keeps_its_own_random_state(tmp_path):
    path, (weights, optimizer) = tmp_path / "c", state(0)
    checkpoints.save(path, 1, [], weights, optimizer, Accelerator(cpu=True))
    torch.manual_seed(7)
    random = torch.get_rng_state()
    assert checkpoints.resume(path, weights, optimizer, rank=1)[0] == 1
    assert torch.equal(torch.get_rng_state(), random)
