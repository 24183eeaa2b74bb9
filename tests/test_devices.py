"""Every path of the library keeps to its model's device, whatever the quantizer, and finds there what it finds on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.quantizers import EVERY_OPTION

REPOSITORY = Path(__file__).parents[1]
QUANTIZERS: dict[str, dict[str, Any]] = {
    "default": {},
    "every option": EVERY_OPTION,
    "static": {"activations": "per_tensor_static", "weights": "per_tensor", "grid": "full"},
    "learned": {"learned_steps": True, "clipping": "mse", "nested": True},
}


def run(quantizer: dict[str, Any], *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.devices", json.dumps(quantizer), *more]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_path_runs_on_another_device_and_finds_the_same(name: str) -> None:
    done = run(QUANTIZERS[name])
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert len(found) > 25
    for path, each in found.items():
        cpu, other = (numbers(each[device]) for device in ("cpu", "elsewhere"))
        # A kernel that adds in another order may move a number to the next code: some thousandths of a loss.
        assert other == pytest.approx(cpu, rel=0.02, abs=0.02, nan_ok=True), path


@pytest.mark.slow
@pytest.mark.parametrize(
    "misplaced", ["qa_outputs.bias", "lm.transformer.h.0.attn.c_attn.bias", "lm.transformer.h.1.mlp.c_fc.adapters.8.lora_A"]
)
def test_a_tensor_that_stayed_behind_is_found(misplaced: str) -> None:
    done = run({}, misplaced)
    assert done.returncode and "Expected all tensors to be on the same device" in done.stderr


def numbers(value: Any) -> list[float]:
    """The numbers in nested lists, in order."""
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []
