"""Injection into five families, switching, saving; one sentence for what can't be loaded."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from qatlib.arguments import QuantizerArguments
from qatlib.layers import LoraSpec, SwitchableLinear
from qatlib.model import SwitchableModel
from qatlib.precision import ROLES, Precision
from qatlib.pretrained import ModelError, load_pretrained

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
