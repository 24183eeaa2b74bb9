"""What every family of models keeps of its own: how it embeds tokens, and how it turns hidden states into logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from qatlib.model import SwitchableModel
from qatlib.pretrained import ModelError
from qatlib.qa.evaluate import evaluate_perplexity
from qatlib.qa.toyqa import build_tokenizer, generate
from qatlib.switching import Switching, body

TOKENIZER = build_tokenizer()
VOCABULARY = 600
COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
LLAMA = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
LLAMA |= {"head_dim": 8}
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "is_decoder": True}
PLAIN = {
    "gpt2": {"n_layer": 2, "n_head": 4, "n_embd": 32},
    "gemma": LLAMA,
    "gemma2": LLAMA | {"final_logit_softcapping": 0.5},
    "gemma3_text": LLAMA | {"final_logit_softcapping": 0.5},
    "granite": LLAMA | {"embedding_multiplier": 7.0, "logits_scaling": 3.0},
    "cohere": LLAMA | {"logit_scale": 0.3},
}
"""Families whose blocks hold nothing but plain linear layers."""
ODD = {
    "opt": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 16},
    "bert": BERT,
    "ctrl": {"n_layer": 2, "n_head": 4, "n_embd": 32, "dff": 48},
    "llama4_text": LLAMA | {"intermediate_size_mlp": 48, "num_local_experts": 2},
    "mvp": {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "scale_embedding": True},
    "gemma4_text": LLAMA | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY},
}
"""A projection around the blocks; a head with a transform; embeddings scaled in place; no prefix of a base model; embeddings
scaled outside their module; and embeddings of the tokens in every block."""


def family(kind: str, **changes):
    """A model of the family with weights large enough for a head to say something."""
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(COMMON | (PLAIN | ODD)[kind] | changes))).eval()
    for weight in lm.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.1)
    return lm


@pytest.fixture
def ids():
    return torch.randint(5, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))


def switching(lm, ids):
    """The model without switching layers: any family, whatever its blocks are made of."""
    width = body(lm)(input_ids=ids, use_cache=False).last_hidden_state.shape[-1]
    return Switching(lm, nn.Linear(width, 2), [])


@pytest.mark.parametrize("kind", [*PLAIN, *ODD])
@torch.no_grad()
def test_logits_are_the_familys_own_bit_for_bit(kind, ids):
    lm = family(kind)
    model = switching(lm, ids)
    theirs, hidden = lm(ids, use_cache=False).logits, model(ids).hidden
    assert torch.equal(model.next_token_logits(hidden), theirs)
    assert torch.equal(model.next_token_logits(hidden[:, 2:5]), theirs[:, 2:5])


@pytest.mark.parametrize("kind", PLAIN)
@torch.no_grad()
def test_perplexity_is_transformers_own_loss(kind):
    model = SwitchableModel(family(kind)).eval()
    texts = [q.context for q in generate(3, 0)]
    found = evaluate_perplexity(model, TOKENIZER, texts, pad_id=1, max_length=512, batch_size=3)
    for text, nll, tokens in zip(texts, found["nll"], found["tokens"], strict=True):
        row = torch.tensor([[TOKENIZER.bos_token_id, *TOKENIZER(text, add_special_tokens=False)["input_ids"]]])
        assert nll / tokens == pytest.approx(float(model.lm(row, labels=row).loss), rel=1e-5)


def test_a_next_token_loss_has_the_familys_gradient(ids):
    lm = family("gemma2")
    model = switching(lm, ids)
    gradients = []
    for logits in (lm(ids, use_cache=False).logits, model.next_token_logits(model(ids).hidden)):
        gradients.append(torch.autograd.grad(logits.logsumexp(-1).sum(), lm.model.norm.weight)[0])
    assert torch.equal(*gradients) and gradients[0].any()


@torch.no_grad()
def test_logits_run_no_block_again(ids):
    lm = family("gemma2")
    model = switching(lm, ids)
    hidden, passes = model(ids).hidden, []
    for block in lm.model.layers:
        block.register_forward_hook(lambda *_: passes.append(1))
    model.next_token_logits(hidden)
    assert not passes
    lm(ids)
    assert len(passes) == 2


@torch.no_grad()
def test_a_head_that_reads_more_than_hidden_states_is_refused(ids):
    sizes = {"num_encoder_layers": 1, "num_decoder_layers": 2, "num_decoder_attention_heads": 4, "decoder_ffn_dim": 48}
    config = AutoConfig.for_model("prophetnet", **COMMON, **sizes, hidden_size=32, is_decoder=True, add_cross_attention=False)
    model = switching(AutoModelForCausalLM.from_config(config).eval(), ids)
    with pytest.raises(ModelError, match="head reads more than the hidden states"):
        model.next_token_logits(model(ids).hidden)


@pytest.mark.parametrize("kind", [*PLAIN, *ODD])
@torch.no_grad()
def test_embeddings_of_the_tokens_themselves_change_nothing_and_others_do(kind, ids):
    model = switching(family(kind), ids)
    embeds = model.embed(ids)
    kept, plain = embeds.clone(), model(ids)
    assert torch.equal(model(ids, inputs_embeds=embeds).hidden, plain.hidden)
    assert torch.equal(embeds, kept)
    assert not torch.allclose(model(ids, inputs_embeds=1.5 * embeds).hidden, plain.hidden, atol=1e-2)


@pytest.mark.parametrize("kind", [k for k in (PLAIN | ODD) if k not in ("mvp", "gemma4_text")])
@torch.no_grad()
def test_embeddings_without_tokens_are_the_familys_inputs_embeds(kind, ids):
    model = switching(family(kind), ids)
    embeds = model.embed(ids)
    kept = embeds.clone()
    assert torch.equal(model(inputs_embeds=embeds).hidden, model(ids).hidden) and torch.equal(embeds, kept)


@torch.no_grad()
def test_a_family_that_embeds_more_than_its_tokens_is_refused(ids):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 48}
    config = AutoConfig.for_model("cpmant", vocab_size=VOCABULARY, **sizes)
    model = switching(AutoModelForCausalLM.from_config(config).eval(), ids)
    with pytest.raises(ModelError, match="CpmAntForCausalLM embeds other tokens"):
        model(ids, inputs_embeds=model.embed(ids))
