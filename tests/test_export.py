"""Adapters in PEFT's format: PEFT itself is the oracle."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from qatlib.arguments import QuantizerArguments
from qatlib.export import adapter_folder, load_adapter, read_spec
from qatlib.layers import SHARED, LoraSpec
from qatlib.model import SwitchableModel
from qatlib.precision import Precision
from qatlib.pretrained import ModelError

SPECS = {3: LoraSpec(2, 4.0), 8: LoraSpec(3, 5.0, 0.1), 32: LoraSpec(4, 4.0)}


@pytest.fixture
def saved(tiny_lm, tmp_path, byte_level_tokenizer):
    """A model with something to say in every adapter, and the directory it is saved in."""

    def make(kind: str, specs=SPECS, quantizer=None):
        torch.manual_seed(1)
        model = SwitchableModel(tiny_lm(kind), quantizer).eval()
        model.add_adapters(specs)
        for layer in model.layers:
            for adapter in layer.adapters.values():
                torch.nn.init.normal_(adapter.lora_B, std=0.2)
        model.save(tmp_path, byte_level_tokenizer)
        return model, tmp_path

    return make


ROTATED = QuantizerArguments(weights="per_group", group_size=8, clipping="mse", rotation="hadamard", learned_steps=True)


@pytest.mark.parametrize("quantizer", [None, ROTATED], ids=["plain", "rotated"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("w_bits", SPECS)
def test_peft_loads_every_adapter_and_gives_our_outputs(kind, w_bits, quantizer, saved, tokens):
    model, path = saved(kind, quantizer=quantizer)
    base = AutoModelForCausalLM.from_pretrained(path).eval()
    without = base(tokens).logits
    base.load_state_dict(model.base_state(w_bits))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # PEFT's own call of transformers
        theirs = PeftModel.from_pretrained(base, adapter_folder(path, w_bits)).eval()
    with torch.no_grad(), model.at(f"w{w_bits}a32"):
        ours = model.lm(tokens).logits
        assert torch.allclose(theirs(tokens).logits, ours, atol=2e-5)  # fp32's rounding is 6e-7 of 0.4
    assert not torch.allclose(without, ours, atol=1e-2)  # by 0.5 at most of them
    config = theirs.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == tuple(vars(SPECS[w_bits]).values())
    assert len([m for m in theirs.modules() if hasattr(m, "lora_A")]) == len(model.infos)


def test_an_adapter_of_all_widths_is_one_folder(saved, tokens):
    model, path = saved("gpt2", {SHARED: LoraSpec(2, 4.0)})
    assert [folder.name for folder in (path / "adapters").iterdir()] == ["shared"]
    again, _ = SwitchableModel.load(path)
    with model.at(5), again.eval().at(5):
        assert torch.equal(model.lm(tokens).logits, again.lm(tokens).logits)


def test_clips_and_learned_steps_are_saved_and_go_on_from_where_they_were(saved, tokens, byte_level_tokenizer):
    model, path = saved("llama", quantizer=ROTATED)
    precisions = [Precision(3, 4), Precision(8, 8)]
    model.learn_steps(precisions)
    for layer in model.layers:
        torch.nn.init.normal_(layer.steps["3"], std=0.1)
        torch.nn.init.constant_(layer.clips["4"], -0.2)
    model.save(path, byte_level_tokenizer)
    again, _ = SwitchableModel.load(path)
    for p in precisions:
        with torch.no_grad(), model.at(p), again.eval().at(p):
            assert torch.allclose(model.lm(tokens).logits, again.lm(tokens).logits, atol=1e-5)
    again.learn_steps(precisions)
    assert again.layers[0].steps["3"].requires_grad and torch.equal(again.layers[0].steps["3"], model.layers[0].steps["3"])


def test_what_peft_writes_is_read(saved, tiny_lm, tokens, tmp_path):
    """The same file names, tensor names and settings as PEFT's own."""
    model, _ = saved("gpt2")
    config = LoraConfig(r=2, lora_alpha=6, target_modules=[info.name for info in model.infos], fan_in_fan_out=True)
    theirs = get_peft_model(tiny_lm(), config).eval()
    for name, p in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.2)
    theirs.save_pretrained(tmp_path / "theirs")
    assert read_spec(tmp_path / "theirs") == LoraSpec(2, 6, 0.0)
    model.add_adapters({32: read_spec(tmp_path / "theirs")})
    load_adapter(tmp_path / "theirs", dict(zip([i.name for i in model.infos], model.layers, strict=True)), 32)
    assert torch.allclose(model.lm(tokens).logits, theirs(tokens).logits, atol=1e-5)
    ours, peft = (json.loads((p / "adapter_config.json").read_text()) for p in (tmp_path / "adapters/w8", tmp_path / "theirs"))
    assert set(ours) <= set(peft)


@pytest.fixture
def by_peft(tiny_lm, tmp_path):
    """Saves an adapter of PEFT with something to say in it, of every layer that is switched here."""

    def make(names, **options):
        torch.manual_seed(2)
        config = LoraConfig(r=4, lora_alpha=6, target_modules=names, fan_in_fan_out=True, **options)
        theirs = get_peft_model(tiny_lm(), config).eval()
        for name, p in theirs.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.2)
        theirs.save_pretrained(tmp_path / "theirs")
        return theirs, tmp_path / "theirs"

    return make


def plain(tiny_lm) -> tuple[SwitchableModel, dict]:
    model = SwitchableModel(tiny_lm())
    return model, {info.name: layer for info, layer in zip(model.infos, model.layers, strict=True)}


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"use_rslora": True, "lora_dropout": 0.2},
        {"init_lora_weights": False},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"layers_to_transform": [0, 1], "layers_pattern": "h"},
        {"exclude_modules": ["nothing"]},
    ],
    ids=str,
)
def test_an_adapter_that_peft_scaled_or_started_otherwise_gives_its_outputs(options, by_peft, tiny_lm, tokens):
    model, layers = plain(tiny_lm)
    short = ["c_attn", "c_proj", "c_fc"] if "layers_to_transform" in options else [*layers]
    theirs, folder = by_peft(short, **options)
    model.add_adapters({32: read_spec(folder)})
    load_adapter(folder, layers, 32)
    with torch.no_grad():
        ours = model.lm(tokens).logits
        assert torch.allclose(ours, theirs(tokens).logits, atol=1e-5)
        assert not torch.allclose(ours, tiny_lm()(tokens).logits, atol=1e-2)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"alpha_pattern": {"c_fc": 32}},
        {"rank_pattern": {"c_fc": 2}},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [1, 2]},
        {"target_parameters": ["transformer.wpe.weight"]},
        {"layer_replication": [[0, 2], [0, 1]]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"peft_type": "IA3"},
        {"r": 0},
        {"lora_alpha": "much"},
        {"lora_dropout": 2},
        {"of_a_later_version": {"a": 1}},
    ],
    ids=str,
)
def test_what_is_no_plain_lora_is_refused_by_its_name(options, by_peft, tiny_lm):
    """As PEFT writes it: options that it can't make of this model are written into its file."""
    _, folder = by_peft([*plain(tiny_lm)[1]])
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | options))
    (key,) = options
    said = "rank" if key == "r" else key.removeprefix("lora_")
    with pytest.raises(ModelError, match=f"adapter_config.json: .*{said}") as caught:
        read_spec(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_the_settings_that_peft_writes_by_default_are_known(by_peft, tiny_lm):
    """A new setting of a later version is refused unless it is empty, so this fails when one needs a look."""
    _, folder = by_peft([*plain(tiny_lm)[1]])
    assert read_spec(folder) == LoraSpec(4, 6, 0.0)


def test_an_adapter_of_another_scale_is_refused_and_nothing_is_read(by_peft, tiny_lm):
    model, layers = plain(tiny_lm)
    _, folder = by_peft([*layers], use_rslora=True)
    model.add_adapters({32: LoraSpec(4, 6)})
    with pytest.raises(ModelError, match=r"adapter_config.json: scales by 3, and the adapter of .*c_attn by 1.5"):
        load_adapter(folder, layers, 32)
    assert not any(layer.adapters["32"].lora_B.any() for layer in model.layers)
    with pytest.raises(ValueError, match="no adapter for 8-bit weights; there is one for 32 bits"):
        load_adapter(folder, layers, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: names[:-1], r"holds 16 tensors, the model's 7 layers"),
        (lambda names: [*names[:-1], "transformer.h.9.mlp.c_proj"], r"which has base_model.model.transformer.h.9.mlp.c_proj"),
    ],
)
def test_adapters_of_another_model_are_refused(change, message, saved):
    model, path = saved("gpt2")
    names = change([info.name for info in model.infos])
    with pytest.raises(ValueError, match=message) as caught:
        load_adapter(adapter_folder(path, 8), dict(zip(names, model.layers, strict=False)), 8)
    assert len(str(caught.value).splitlines()) == 1


def test_an_adapter_of_another_rank_is_refused(saved):
    model, path = saved("gpt2")
    model.add_adapters({8: LoraSpec(5, 5)})
    with pytest.raises(ValueError, match=r"lora_A.weight of shape \(5, 32\)"):
        load_adapter(adapter_folder(path, 8), dict(zip([i.name for i in model.infos], model.layers, strict=True)), 8)
