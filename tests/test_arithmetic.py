"""What `mixed_precision` becomes on a device, and what a training goes on with."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from qatlib import arithmetic
from qatlib.arithmetic import continued, is_fast, reduced_precision, resolved
from qatlib.model import SwitchableModel
from qatlib.qa.toyqa import build_model

CPU = torch.device("cpu")


@pytest.fixture
def processor(monkeypatch):
    """Makes this machine one whose processor has some instructions."""

    def have(**instructions: bool) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
        is_fast.cache_clear()

    yield have
    is_fast.cache_clear()


@pytest.mark.parametrize(
    ("instructions", "became"),
    [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"), ({"avx512_f": True, "amx_bf16": False}, "no"), ({}, "no")],
)
def test_auto_is_bf16_where_the_processor_has_it(processor, instructions, became):
    processor(**instructions)
    assert resolved("auto", CPU) == became
    assert resolved("no", CPU) == "no"


def test_auto_is_bf16_on_a_gpu_that_has_it_and_fp32_on_a_device_that_is_not_known(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: asked.append(including_emulation) or True)
    is_fast.cache_clear()
    assert resolved("auto", torch.device("cuda")) == "bf16" and asked == [False]
    assert resolved("auto", torch.device("cuda")) == "bf16" and len(asked) == 1  # asked once
    is_fast.cache_clear()
    assert resolved("auto", torch.device("meta")) == "no"


def test_a_slow_bf16_is_told_once_and_a_fast_one_never(processor):
    arithmetic._warn.cache_clear()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        processor(amx_bf16=True)
        assert resolved("bf16", CPU) == "bf16" and not told
        processor()
        assert [resolved(word, CPU) for word in ("auto", "no")] == ["no", "no"] and not told
        assert [resolved("bf16", CPU) for _ in range(3)] == ["bf16"] * 3
    assert len(told) == 1 and "bf16 is slow on this device" in str(told[0].message)


@pytest.mark.parametrize("word", ["bf-16", "BF16", None])
def test_another_word_is_refused(word):
    with pytest.raises(ValueError, match=f"^mixed_precision is {word!r}; allowed are 'auto', 'no' and 'bf16'$"):
        resolved(word, CPU)


@pytest.mark.parametrize("began", ["no", "bf16"])
def test_a_training_in_its_middle_goes_on_as_it_began_or_stops(began):
    other = {"no": "bf16", "bf16": "no"}[began]
    assert continued("auto", began, Path("c")) == continued(began, began, Path("c")) == began
    assert continued(began, None, Path("c")) == began  # an older checkpoint does not say
    with pytest.raises(ValueError, match=f"^c: .* began with mixed_precision '{began}', .*; allowed are '{began}' and 'auto'$"):
        continued(other, began, Path("c"))
    with pytest.raises(ValueError, match="^c: .* does not say .*; allowed are 'no' and 'bf16', whichever it was$"):
        continued("auto", None, Path("c"))


def test_passes_are_in_the_arithmetic_and_what_follows_is_not(processor):
    model, seen = SwitchableModel(build_model(1, 2, 16, 0)), []
    attention = model.lm.config._attn_implementation
    for instructions in ({}, {"amx_bf16": True}):
        processor(**instructions)
        for word in ("auto", "no", "bf16"):
            with reduced_precision(model, word):
                seen.append((torch.is_autocast_enabled("cpu"), model.lm.config._attn_implementation == "eager"))
            assert not torch.is_autocast_enabled("cpu") and model.lm.config._attn_implementation == attention
    fp32, bf16 = (False, attention == "eager"), (True, True)
    assert seen == [fp32, fp32, bf16, bf16, fp32, bf16]
