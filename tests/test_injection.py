"""Injection takes a decoder as a whole or refuses it in one sentence, and then has changed nothing."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.integrations.bitnet import AutoBitLinear

from qatlib.arguments import QuantizerArguments
from qatlib.cost import cost_table, training_bitops
from qatlib.deployed import DeployedModel, deploy
from qatlib.injection import inject, planned
from qatlib.layers import SwitchableLinear
from qatlib.lora import LoraSpec
from qatlib.model import SwitchableModel
from qatlib.precision import FULL, OTHER, Configuration, Precision
from qatlib.pretrained import ModelError
from qatlib.search import weight_bits
from tests.families import build

WIDTH, INSIDE = 32, 48


class Mlp(nn.Module):
    """An MLP that defines its layers in the wrong order, has a gate of one output, and a router that no one else has."""

    def __init__(self, router: type[nn.Linear] | None = None) -> None:
        super().__init__()
        self.down = nn.Linear(INSIDE, WIDTH, bias=False)
        self.router = (router or nn.Linear)(WIDTH, 2, bias=False)
        self.up = nn.Linear(WIDTH, INSIDE, bias=False)
        self.gate = nn.Linear(WIDTH, 1, bias=False)

    def forward(self, x):
        weights = self.router(x).softmax(-1)
        return torch.sigmoid(self.gate(x)) * self.down(F.silu(self.up(x))) * weights[..., :1]


class Experts(nn.Module):
    """Experts in a list, of which a token chooses one."""

    def __init__(self) -> None:
        super().__init__()
        self.choice = nn.Linear(WIDTH, 8, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, WIDTH)) for _ in range(8))

    def forward(self, x):
        y = torch.zeros_like(x)
        weights, chosen = self.choice(x).softmax(-1).max(-1)
        for i in chosen.unique().tolist():
            y[chosen == i] = self.experts[i](x[chosen == i]) * weights[chosen == i][:, None]
        return y


class Skip(nn.Module):
    """A lone layer around an MLP."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp, self.lone = mlp, nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.mlp(x) + self.lone(x)


class Tanh(nn.Linear):
    def forward(self, x):
        return super().forward(x).tanh()


class Apart(nn.Module):
    """Reads the weight of its layer, in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = nn.Linear(WIDTH, WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        return self.out(F.linear(x, self.fused.weight).relu() if self.training else self.fused(x).relu())


@pytest.fixture
def llama(tiny_lm):
    """Makes a Llama with other MLPs."""

    def make(mlp=None):
        lm = tiny_lm("llama")
        for block in lm.model.layers if mlp else ():
            block.mlp = mlp()
        return lm.eval()

    return make


def roles(plan, block: int = 0) -> dict[str, str]:
    return {info.name.split(f"layers.{block}.")[1]: info.role for info in plan.infos if info.block == block}


def test_roles_follow_from_what_layers_do_whatever_their_names_and_order(llama):
    lm = llama(Mlp)
    attention = lm.model.layers[0].self_attn
    attention._modules = dict(reversed(attention._modules.items()))
    lm.model.layers[1].self_attn, lm.model.layers[1].mlp = None, None  # names say nothing either
    for old in ("self_attn", "mlp"):
        setattr(lm.model.layers[1], old, getattr(lm.model.layers[0], old))
    found = roles(planned(lm))
    assert found == {
        "self_attn.o_proj": "attn_out",
        **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "qkv"),
        "mlp.down": "mlp_out",
        **dict.fromkeys(("mlp.up", "mlp.gate", "mlp.router"), "mlp_in"),
    }


def test_layers_that_stand_in_several_blocks_are_one_layer_everywhere(llama, tokens):
    lm = llama()
    lm.model.layers[1].mlp.down_proj = lm.model.layers[0].mlp.down_proj
    plain = lm(tokens).logits
    model = SwitchableModel(lm)
    assert torch.equal(model.lm(tokens).logits, plain) and len(model.infos) == 13
    assert lm.model.layers[1].mlp.down_proj is lm.model.layers[0].mlp.down_proj is model.layers[6]


def test_experts_in_a_list_are_layers_also_those_that_no_token_chose(llama, tokens):
    lm = llama(Experts)
    plain = lm(tokens).logits
    model = SwitchableModel(lm)
    assert torch.equal(model.lm(tokens).logits, plain)
    found = roles(model)
    assert {found[f"mlp.experts.{i}.0"] for i in range(8)} == {"mlp_in"} == {found["mlp.choice"]}
    assert {found[f"mlp.experts.{i}.2"] for i in range(8)} == {"mlp_out"}


def test_what_is_not_a_plain_linear_layer_stays_and_is_counted_if_it_is_little(llama, tokens):
    lm = llama(lambda: Mlp(Tanh))
    plain = lm(tokens).logits
    model = SwitchableModel(lm)
    assert torch.equal(model.lm(tokens).logits, plain) and type(lm.model.layers[0].mlp.router) is Tanh
    assert [info.fixed for info in model.infos if info.fixed] == [2 * WIDTH, 2 * WIDTH]
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)
    assert sum(info.weights + info.fixed for info in model.infos) == matrices
    four, average = Configuration.uniform(4, model.infos), 4 + 28 * 4 * WIDTH / matrices
    assert four.average_bits(model.infos) == pytest.approx((average, average)) and average > 4.1
    assert weight_bits(model.infos, [Precision(4, 4)]).sum() == pytest.approx(average)
    assert training_bitops(Configuration.uniform(FULL, model.infos), model.infos) == 1
    assert training_bitops(four, model.infos, 4) == pytest.approx(1 / 64 + (average - 4) / 28 * (1 / 3 + 2 / 24 - 1 / 64))
    assert cost_table(model, {"32": 32})["bytes"][0] == 4 * sum(p.numel() for p in lm.parameters())


SIZES = {"vocab_size": 97, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": INSIDE}


def hooked(lm):
    for block in lm.model.layers:
        block.mlp.up_proj.register_forward_hook(lambda _, args, output: 2 * output)
    return lm


def adapted(lm):
    lm.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    return lm


def bitnet(lm):
    for name, module in list(lm.model.layers.named_modules()):
        if isinstance(module, nn.Linear):
            bits = AutoBitLinear(module.in_features, module.out_features, bias=False, online_quant=True)
            lm.model.layers.set_submodule(name, bits)
    return lm


REFUSED = {
    "experts in one parameter": (
        lambda llama: MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4)),
        r"MixtralForCausalLM: 85.8% of the weights .* such as model.layers.0.mlp.experts.gate_up_proj, of MixtralExperts; .* 5%",
    ),
    "a forward of their own": (lambda llama: bitnet(llama()), r"100.0% of the weights .* of AutoBitLinear"),
    "hooks": (lambda llama: hooked(llama()), r"20.0% of the weights .*up_proj.weight, of Linear with hooks"),
    "a weight read apart": (
        lambda llama: llama(Apart),
        r"20.0% of the weights .*mlp.fused.weight, which Apart reads without calling the layer",
    ),
    "state spaces": (
        lambda llama: MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=WIDTH, num_hidden_layers=2, state_size=8)),
        r"MambaForCausalLM: 5\d.\d% of the weights .* which MambaMixer reads",
    ),
    "an encoder": (lambda llama: BertModel(BertConfig(**SIZES)), r"BertModel is no causal decoder: .* a token depends on later"),
    "an encoder and a decoder": (
        lambda llama: T5ForConditionalGeneration(T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)),
        "T5ForConditionalGeneration is no decoder alone",
    ),
    "PEFT around": (lambda llama: get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"])), "holds adapters of PEFT"),
    "an adapter inside": (lambda llama: adapted(llama()), "holds adapters of PEFT"),
    "no weights": (lambda llama: llama().to("meta"), "has weights on the meta device: load them first"),
    "no blocks": (lambda llama: nn.Linear(3, 3), "no list of decoder blocks"),
    "no matrices": (lambda llama: llama(nn.Identity) and norms_only(llama()), "hold no linear layer"),
}


def norms_only(lm):
    for block in lm.model.layers:
        block.forward = lambda hidden_states, **_: hidden_states
        del block.self_attn, block.mlp
    return lm


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_be_quantized_in_part_or_wrongly_is_refused_and_stays(what, llama):
    make, sentence = REFUSED[what]
    lm = make(llama)
    before = [(name, id(module), module.training) for name, module in lm.named_modules()]
    with pytest.raises(ModelError, match=sentence) as error:
        SwitchableModel(lm)
    assert "\n" not in str(error.value)
    assert before == [(name, id(module), module.training) for name, module in lm.named_modules()]


def test_a_refused_quantizer_changes_nothing_and_a_second_try_gets_all_layers(llama):
    lm = llama()
    with pytest.raises(ModelError, match=r"group_size is 32; it must divide the 48 inputs of .*down_proj"):
        SwitchableModel(lm, QuantizerArguments(weights="per_group", group_size=32))
    assert not any(isinstance(module, SwitchableLinear) for module in lm.modules())
    assert len(SwitchableModel(lm, QuantizerArguments(weights="per_group", group_size=16)).infos) == 14
    with pytest.raises(ModelError, match=r"holds switchable layers already, such as model.layers.0.self_attn.q_proj"):
        SwitchableModel(lm)


def test_injection_leaves_modes_and_random_numbers_alone(llama):
    lm = llama()
    lm.model.layers[1].train()
    modes, state = {n: m.training for n, m in lm.named_modules()}, torch.get_rng_state()
    planned(lm)
    assert modes == {n: m.training for n, m in lm.named_modules()} and torch.equal(state, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.modules())


def test_a_layer_whose_place_cannot_be_told_is_other_with_one_warning(llama):
    lm = llama(lambda: Skip(Mlp()))
    with pytest.warns(UserWarning, match=r"LlamaForCausalLM: the role of model.layers.\*.mlp.lone is 'other'") as found:
        plan = inject(lm, QuantizerArguments())
    assert len(found) == 1 and [info.name.split(".")[-1] for info in plan.infos if info.role == OTHER] == ["lone", "lone"]


def test_no_warning_where_every_place_can_be_told(llama):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inject(llama(), QuantizerArguments())


def test_other_layers_switch_by_role_by_name_and_by_block(llama):
    with pytest.warns(UserWarning, match="'other'"):
        model = SwitchableModel(llama(lambda: Skip(Mlp())))
    lone = [info.name for info in model.infos if info.role == OTHER]
    model.set_precision({OTHER: 3})
    assert [name for name, p in model.configuration.items() if p.w_bits == 3] == lone
    for spec, bits in (("C2", 4), ("C7", 8), ([{"attn_bits": 4, "mlp_bits": "w6a8"}] * 2, 6), (5, 5)):
        model.set_precision(spec)
        assert {model.configuration[name].w_bits for name in lone} == {bits}


def test_a_head_has_the_width_of_the_hidden_states(tokens, tmp_path, byte_level_tokenizer):
    """OPT-350m projects them to another width than its blocks have."""
    sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48}
    model = SwitchableModel(OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=16)).eval())
    assert model.qa_outputs.in_features == 16 and model(tokens).start.shape == tokens.shape
    deployed = deploy(model, 8)
    deployed.save(tmp_path, byte_level_tokenizer)
    assert torch.equal(type(deployed).load(tmp_path)[0](tokens).start, deployed(tokens).start)


def test_models_whose_config_has_no_width_of_its_own_have_a_head(tokens):
    lm = build("gemma3")
    assert not hasattr(lm.config, "hidden_size")
    assert SwitchableModel(lm)(tokens).start.shape == tokens.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_base_of_half_precision_works_with_adapters_and_a_head_in_fp32(
    kind, dtype, tokens, tiny_lm, tmp_path, byte_level_tokenizer
):
    tiny_lm(kind).save_pretrained(tmp_path / "plain")
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=dtype).eval()
    plain = lm(tokens).logits
    model = SwitchableModel(lm)
    assert torch.equal(model.lm(tokens).logits, plain) and plain.dtype == dtype
    model.add_adapters({8: LoraSpec(2, 4), 12: LoraSpec(2, 4)})
    for w_bits in (8, 12):
        with model.at(w_bits):
            model(tokens).start.square().mean().backward()
    assert all(p.grad is not None and p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    for layer in model.layers:
        torch.nn.init.normal_(layer.adapters["8"].lora_B, std=0.1)
    model.eval().save(tmp_path / "ours", byte_level_tokenizer)
    again = SwitchableModel.load(tmp_path / "ours")[0]
    assert again.lm.dtype == dtype
    with torch.no_grad():
        for bits in (8, FULL):
            with model.at(bits), again.at(bits):
                assert torch.equal(again(tokens).start, model(tokens).start)
        deploy(model, 8).save(tmp_path / "deployed", byte_level_tokenizer)
        assert torch.equal(DeployedModel.load(tmp_path / "deployed")[0](tokens).start, deploy(model, 8)(tokens).start)
        for spec in (8, "w8a32", "w12a8"):
            with model.at(spec):
                start, logits = model(tokens).start, model.lm(tokens).logits
            deployed = deploy(model, spec)
            assert start.dtype == torch.float32 and logits.dtype == dtype
            # one rounding of the type is 4e-3 of 1 at most, the spans are about 0.3
            assert torch.allclose(deployed(tokens).start, start, atol=0 if spec == 8 else 2e-2)
