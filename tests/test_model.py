"""Injection into five families, switching, saving; one sentence for what can't be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from qatlib import export, model, saving
from qatlib.arguments import QuantizerArguments
from qatlib.layers import SwitchableLinear
from qatlib.lora import SHARED, LoraSpec
from qatlib.model import SwitchableModel
from qatlib.precision import ROLES, Precision
from qatlib.pretrained import ModelError, load_pretrained
from qatlib.qa.calibration import set_static_range
from tests.damage import check_refused, damages, emptied

SPECS = {4: LoraSpec(2, 4), 8: LoraSpec(3, 6), 32: LoraSpec(4, 4)}
FAMILIES = {
    "gpt2": {"c_attn": "qkv", "attn.c_proj": "attn_out", "c_fc": "mlp_in", "mlp.c_proj": "mlp_out"},
    "llama": {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv"),
        "o_proj": "attn_out",
        **dict.fromkeys(("gate_proj", "up_proj"), "mlp_in"),
        "down_proj": "mlp_out",
    },
    "gpt_neox": {"query_key_value": "qkv", "attention.dense": "attn_out", "dense_h_to_4h": "mlp_in", "dense_4h_to_h": "mlp_out"},
    "phi": {**dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv"), "attn.dense": "attn_out", "fc1": "mlp_in", "fc2": "mlp_out"},
    "opt": {**dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv"), "out_proj": "attn_out", "fc1": "mlp_in", "fc2": "mlp_out"},
}


@pytest.fixture
def switchable(tiny_lm):
    def make(kind: str = "gpt2") -> SwitchableModel:
        model = SwitchableModel(tiny_lm(kind)).eval()
        model.add_adapters(SPECS)
        return model

    return make


@pytest.mark.parametrize("kind", FAMILIES)
def test_injection_changes_no_bit_of_the_output_and_finds_every_role(kind, tokens, switchable, tiny_lm):
    plain = tiny_lm(kind)(tokens).logits
    model = switchable(kind)
    assert torch.equal(model.lm(tokens).logits, plain)
    assert torch.equal(model.next_token_logits(model(tokens).hidden), plain)
    for info in model.infos:
        assert FAMILIES[kind][next(end for end in FAMILIES[kind] if info.name.endswith(end))] == info.role
    assert {info.block for info in model.infos} == {0, 1} and {info.role for info in model.infos} == set(ROLES)
    assert len(model.infos) == 2 * len(FAMILIES[kind])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_only_the_blocks_linear_layers_are_replaced(kind, switchable, tiny_lm):
    before = {n for n, m in tiny_lm(kind).named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
    model = switchable(kind)
    after = {n for n, m in model.lm.named_modules() if isinstance(m, SwitchableLinear)}
    assert before - after == {"lm_head"} and {info.name for info in model.infos} == after


def test_padding_on_the_right_changes_nothing_before_it(tokens, switchable):
    model = switchable()
    padded = torch.cat([tokens, torch.zeros(3, 6, dtype=tokens.dtype)], 1)
    assert torch.allclose(model(padded).start[:, :17], model(tokens).start, atol=1e-6)


def test_switching_is_exact_there_and_back(tokens, switchable):
    model = switchable()
    for layer in model.layers:
        torch.nn.init.normal_(layer.adapters["4"].lora_B)
    full = model(tokens).start
    with model.at(4):
        low = model(tokens).start
        with model.at({"mlp": 8}):
            assert {p.w_bits for p in model.configuration.values()} == {4, 8}
        assert torch.equal(model(tokens).start, low)
    assert torch.equal(model(tokens).start, full) and not torch.equal(low, full)


def test_a_wrong_switch_switches_nothing(switchable):
    model = switchable()
    model.set_precision({"qkv": 8, "mlp": 4})
    before = model.configuration
    with pytest.raises(ValueError, match="names no layer"):
        model.set_precision({"qkv": 2, "nothing": 4})
    assert model.configuration == before
    with pytest.raises(ZeroDivisionError), model.at(2):
        raise ZeroDivisionError
    assert model.configuration == before


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("gpt2", {}), ("llama", {}), ("llama", {"tie_word_embeddings": True}), ("gpt_neox", {}), ("phi", {}), ("opt", {})],
)
def test_saved_models_reload_equal_here_and_by_from_pretrained(kind, changes, tokens, tmp_path, byte_level_tokenizer, tiny_lm):
    lm = tiny_lm(kind, **changes)
    lm.generation_config.max_new_tokens = 7
    model = SwitchableModel(lm, QuantizerArguments(grid="full")).eval()
    model.add_adapters(SPECS)
    for p in model.parameters():
        p.data.add_(torch.randn_like(p) * 0.05)
    model.save(tmp_path, byte_level_tokenizer)
    again, tokenizer = SwitchableModel.load(tmp_path)
    again.eval()
    assert again.lora == SPECS and again.quantizer == model.quantizer
    assert tokenizer("the king")["input_ids"] == byte_level_tokenizer("the king")["input_ids"]
    for bits in (32, 8, 4):
        with model.at(bits), again.at(bits):
            assert torch.equal(model(tokens).start, again(tokens).start)
            assert torch.equal(model.lm(tokens).logits, again.lm(tokens).logits)
    base, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info  # neither missing nor unexpected keys
    assert base.generation_config.max_new_tokens == 7 and base.config.architectures == [type(lm).__name__]
    model.add_adapters({})
    assert torch.equal(base.eval()(tokens).logits, model.lm(tokens).logits)
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert {f"adapters/w{w}/adapter_model.safetensors" for w in SPECS} < files
    assert {f.rsplit(".", 1)[1] for f in files} <= {"safetensors", "json", "jinja", "txt"}


def test_a_model_saved_over_another_leaves_none_of_its_adapters(tmp_path, byte_level_tokenizer, switchable):
    model = switchable()
    model.save(tmp_path, byte_level_tokenizer)
    model.add_adapters({8: SPECS[8]})
    model.save(tmp_path, byte_level_tokenizer)
    assert [p.name for p in (tmp_path / "adapters").iterdir()] == ["w8"]
    assert set(SwitchableModel.load(tmp_path)[0].lora) == {8}
    (tmp_path / "adapters" / "w8").rename(tmp_path / "adapters" / "w7")
    with pytest.raises(ModelError, match="w8: no such directory"):
        SwitchableModel.load(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("module", [model, export, saving], ids=["weights", "adapters", "rest"])
def test_a_save_that_fails_leaves_what_was_there(module, error, tmp_path, byte_level_tokenizer, switchable, monkeypatch):
    def failing(tensors, path, metadata=None):
        path.write_bytes(b"half")
        raise error

    made = switchable()
    made.save(tmp_path / "m", byte_level_tokenizer)
    before = contents(tmp_path)
    made.add_adapters({4: SPECS[4]})
    monkeypatch.setattr("qatlib.rest.save_file" if module is saving else f"{module.__name__}.save_file", failing)
    for path in (tmp_path / "m", tmp_path / "new"):
        with pytest.raises(type(error)):
            made.save(path, byte_level_tokenizer)
    with pytest.raises(ValueError, match="saved with its tokenizer, a transformers tokenizer, and not with None"):
        made.save(tmp_path / "m", None)  # type: ignore[arg-type]
    assert contents(tmp_path) == before and [*tmp_path.iterdir()] == [tmp_path / "m"]
    assert set(SwitchableModel.load(tmp_path / "m")[0].lora) == set(SPECS)


def test_a_save_keeps_the_users_own_files_and_removes_its_own(tmp_path, byte_level_tokenizer, switchable):
    own = {"notes.txt": b"mine", "adapters/mine.bin": b"mine", "adapters/w4/README.md": b"mine", "adapters/w5/x": b"mine"}
    for name, text in own.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text)
    made = switchable()
    made.save(tmp_path, byte_level_tokenizer)
    made.add_adapters({SHARED: SPECS[8]})
    made.save(str(tmp_path), byte_level_tokenizer)  # type: ignore[arg-type]
    after = contents(tmp_path)
    assert own.items() <= after.items() and not any(b".saving" in text for text in after.values())
    assert {n for n in after if n.startswith("adapters/")} - own.keys() == {
        f"adapters/shared/adapter_{end}" for end in ("config.json", "model.safetensors")
    }
    (tmp_path / "switchable.json").write_text("cut")  # a damaged directory can be saved over, and nothing is guessed
    made.save(tmp_path, byte_level_tokenizer)
    assert set(SwitchableModel.load(tmp_path)[0].lora) == {SHARED}


def test_a_model_is_saved_over_the_directory_that_it_was_loaded_from(tokens, tmp_path, byte_level_tokenizer, switchable):
    switchable("llama").save(tmp_path, byte_level_tokenizer)
    made, tokenizer = SwitchableModel.load(tmp_path)
    for parameter in made.adapter_parameters(8):
        torch.nn.init.normal_(parameter)
    made.save(tmp_path, tokenizer)
    again, _ = SwitchableModel.load(tmp_path)
    with torch.no_grad(), made.at(8), again.at(8):
        assert torch.equal(made.lm(tokens).logits, again.lm(tokens).logits)


def test_mode_precision_scales_generation_config_and_head_come_back(tokens, tmp_path, byte_level_tokenizer, tiny_lm):
    lm = tiny_lm()
    lm.lm_head.weight = torch.nn.Parameter(torch.randn_like(lm.lm_head.weight))  # its own, under a config that says tied
    lm.generation_config.temperature, lm.generation_config.eos_token_id = 0.6, [0, 5]
    made = SwitchableModel(lm, QuantizerArguments(activations="per_tensor_static"))
    made.add_adapters({4: LoraSpec(2, 4, 0.3), 8: LoraSpec(2, 4, 0.3)})
    for parameter in made.adapter_parameters(8):
        torch.nn.init.normal_(parameter)
    set_static_range(made, 3.0)
    made.set_precision({"attn": 8, "mlp": 4})
    made.train().save(tmp_path, byte_level_tokenizer)
    again, _ = SwitchableModel.load(tmp_path)
    assert again.configuration == made.configuration and not any(m.training for m in again.modules())
    assert (again.lm.generation_config.temperature, again.lm.generation_config.eos_token_id) == (0.6, [0, 5])
    with torch.no_grad():
        assert torch.equal(again.lm(tokens).logits, made.eval().lm(tokens).logits)
        assert torch.equal(again(tokens).start, made(tokens).start)


def test_what_is_injected_takes_the_mode_of_what_it_replaces(tiny_lm):
    made = SwitchableModel(tiny_lm().eval())
    made.add_adapters({8: LoraSpec(2, 4, 0.3)})
    assert not any(module.training for module in made.modules())
    lm = tiny_lm().train()
    lm.transformer.h[0].mlp.eval()
    made = SwitchableModel(lm)
    made.add_adapters({8: LoraSpec(2, 4, 0.3)})
    assert {info.name for info, layer in zip(made.infos, made.layers, strict=True) if not layer.training} == {
        "transformer.h.0.mlp.c_fc",
        "transformer.h.0.mlp.c_proj",
    }
    assert made.training and made.qa_outputs.training and made.layers[0].adapters["8"].training


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (lambda: {"w4a8": LoraSpec(2, 4)}, "the bit-width of an adapter is 'w4a8'; allowed are 2 to 16, 32, and 0"),
        (lambda: {"8": LoraSpec(2, 4)}, "is '8'"),
        (lambda: {True: LoraSpec(2, 4)}, "is True"),
        (lambda: {8.0: LoraSpec(2, 4)}, "is 8.0"),
        (lambda: {4: LoraSpec(2, 4), 1: LoraSpec(2, 4)}, "is 1;"),
        (lambda: {17: LoraSpec(2, 4)}, "is 17;"),
        (lambda: {Precision(8, 8): LoraSpec(2, 4)}, r"is Precision\(w_bits=8"),
        (lambda: {4: (2, 4)}, r"the adapter for 4 bits is \(2, 4\); allowed is a LoraSpec"),
        (lambda: [LoraSpec(2, 4)], "adapters are given as a mapping"),
        (lambda: {4: LoraSpec(0, 16)}, "the rank of an adapter is 0; allowed is an integer of at least 1"),
        (lambda: {4: LoraSpec(2.0, 16)}, "the rank of an adapter is 2.0;"),
        (lambda: {4: LoraSpec(True, 16)}, "the rank of an adapter is True;"),
        (lambda: {4: LoraSpec(2, float("nan"))}, "the alpha of an adapter is nan; allowed is a finite number"),
        (lambda: {4: LoraSpec(2, "16")}, "the alpha of an adapter is '16'"),
        (lambda: {4: LoraSpec(2, 16, 1.0)}, "the dropout of an adapter is 1.0; allowed is a number from 0 to below 1"),
    ],
)
def test_wrong_adapters_are_refused_before_anything_changes(specs, message, tmp_path, byte_level_tokenizer, switchable):
    made = switchable()
    before = made.layers[-1].adapters
    with pytest.raises(ValueError, match=message):
        made.add_adapters(specs())
    assert made.lora == SPECS and all({*map(int, layer.adapters)} == set(SPECS) for layer in made.layers)
    assert made.layers[-1].adapters is before
    made.save(tmp_path, byte_level_tokenizer)


def test_other_odd_arguments_are_refused_in_one_sentence(switchable):
    made = switchable()
    with pytest.raises(ValueError, match="no adapter for 5-bit weights; there is one for 4, 8, 32 bits"):
        made.adapter_parameters(5)
    with pytest.raises(ValueError, match="'x' is no precision"):
        made.learn_steps(["x"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="no adapter for 5-bit weights"):
        made.layers[0].merge_adapter(5)


FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "model.safetensors",
    "switchable.json",
    "switchable.safetensors",
    "adapters/w8/adapter_config.json",
    "adapters/w8/adapter_model.safetensors",
]


@pytest.fixture
def saved(tmp_path, byte_level_tokenizer, tiny_lm):
    """A directory with a saved model that has one adapter."""
    made = SwitchableModel(tiny_lm())
    made.add_adapters({8: LoraSpec(2, 4)})
    made.save(tmp_path, byte_level_tokenizer)
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_in_one_sentence(name, saved):
    check_refused(saved / name, damages(saved / name), lambda: SwitchableModel.load(saved), str(saved))
    if name != "generation_config.json":
        (saved / name).unlink()
        with pytest.raises(ModelError, match=str(saved)):
            SwitchableModel.load(saved)


def test_settings_that_are_missing_or_of_another_model_are_named_in_one_sentence(saved):
    without = (item for item in emptied(saved / "switchable.json") if item[0] != "configuration gone")  # an older version's
    check_refused(saved / "switchable.json", without, lambda: SwitchableModel.load(saved))
    shallow = (saved / "config.json").read_text().replace('"n_layer": 2', '"n_layer": 1').encode()
    fewer = iter([("a shallow model", shallow)])
    check_refused(saved / "config.json", fewer, lambda: SwitchableModel.load(saved), "does not fit the config beside it")


def test_the_state_at_a_width_is_what_the_layers_compute_with(tokens, switchable, tiny_lm):
    model = switchable()
    model.add_adapters({})
    plain = tiny_lm()
    plain.load_state_dict(model.base_state("C14"))
    with model.at({role: f"w{b}a32" for role, b in zip(ROLES, (8, 8, 6, 8), strict=True)}):
        assert torch.allclose(plain(tokens).logits, model.lm(tokens).logits, atol=1e-5)
    assert not torch.allclose(plain(tokens).logits, model.lm(tokens).logits, atol=1e-5)


def test_a_deeper_variant_in_the_hubs_layout(tokens, tmp_path, byte_level_tokenizer, tiny_lm):
    """GPT-2 medium's shape, 24 blocks of 16 heads, in small: loading, switching by name, saving."""
    lm = tiny_lm(n_layer=24, n_head=16)
    lm.save_pretrained(tmp_path / "hub")
    byte_level_tokenizer.save_pretrained(tmp_path / "hub")
    model = SwitchableModel(load_pretrained(f"dir:{tmp_path / 'hub'}")[0]).eval()
    assert len(model.infos) == 96 and torch.equal(model.lm(tokens).logits, lm(tokens).logits)
    model.save(tmp_path / "ours", byte_level_tokenizer)
    again = SwitchableModel.load(tmp_path / "ours")[0].eval()
    for name in ("optimal", "C3", "C14", "mixed8648"):
        with model.at(name), again.at(name):
            assert torch.equal(model(tokens).start, again(tokens).start)
    model.set_precision("C3")
    assert {info.block for info in model.infos if model.configuration[info.name].w_bits == 8} == set(range(8))


def test_merging_keeps_the_full_precision_function(tokens, switchable):
    model = switchable()
    for layer in model.layers:
        torch.nn.init.normal_(layer.adapters["32"].lora_B, std=0.1)
    y = model(tokens).start
    model.merge_adapter()
    assert not model.lora and torch.allclose(model(tokens).start, y, atol=1e-5)  # fp32's rounding is 1e-7 of 0.3
    with pytest.raises(ValueError, match="no adapter at 32 bits"):
        model.merge_adapter()


def test_freezing_and_unfreezing(switchable):
    model = switchable()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(".adapters." in n or n.startswith("qa_outputs") for n in trained) and len(trained) > 2
    model.unfreeze_base()
    assert all(p.requires_grad for p in model.parameters())


def test_a_plain_model_directory_is_no_switchable_model(tmp_path, byte_level_tokenizer, tiny_lm):
    tiny_lm().save_pretrained(tmp_path)
    byte_level_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no switchable model was saved here"):
        SwitchableModel.load(tmp_path)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_groups_must_divide_the_inputs_of_every_layer(kind, tiny_lm):
    arguments = QuantizerArguments(weights="per_group", group_size=24)
    with pytest.raises(ModelError, match=r"group_size is 24; it must divide the \d+ inputs of .*\.0\."):
        SwitchableModel(tiny_lm(kind), arguments)
    model = SwitchableModel(tiny_lm(kind))
    with pytest.raises(ModelError, match=r"^quantizer.group_size is 24; it must divide"):
        model.set_quantizer(arguments)
    with pytest.raises(ModelError, match=r"^mine.group_size is 24"):
        model.check_quantizer(arguments, "mine")
    assert model.quantizer == model.layers[0].quantizer == QuantizerArguments()


def test_learned_steps_are_the_only_new_parameters_and_go_with_the_quantizer(tokens, switchable):
    model = switchable()
    before = {name for name, p in model.named_parameters() if p.requires_grad}
    model.learn_steps([Precision(4, 8), Precision(2, 8), Precision(32, 32)])
    new = {name for name, p in model.named_parameters() if p.requires_grad} - before
    assert {name.rpartition(".")[0].rpartition(".")[2] + "." + name.rpartition(".")[2] for name in new} == {
        "steps.2",
        "steps.4",
        "clips.8",
    }
    model.set_quantizer(QuantizerArguments(rotation="hadamard"))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == before
