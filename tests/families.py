"""Every causal family of transformers as a tiny model of random weights, and what works on it: `docs/families.md`.

python -m tests.families > docs/families.md
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

from qatlib.arguments import TrainingArguments
from qatlib.deployed import DeployedModel, deploy
from qatlib.export import adapter_folder
from qatlib.lora import LoraSpec
from qatlib.model import SwitchableModel
from qatlib.precision import FULL, OTHER, Precision
from qatlib.pretrained import ModelError
from qatlib.qa.evaluate import evaluate_perplexity
from qatlib.qa.spans import featurize
from qatlib.qa.toyqa import build_tokenizer, generate
from qatlib.schedule import make_schedule
from qatlib.scheduling import ScheduleArguments
from qatlib.training import fit

TOKENIZER = build_tokenizer()
VOCABULARY = 600
MOST = 4_000_000
"""The largest model, in weights: a family whose sizes have other names is built with its own, which can be huge."""

_SIZES: dict[int, str] = {
    VOCABULARY: "vocab_size vocab_size_per_layer_input",
    0: "pad_token_id bos_token_id eos_token_id num_kv_shared_layers",
    1: "n_group topk_group n_shared_experts first_k_dense_replace",
    2: "n_layer n_layers num_layers num_hidden_layers decoder_layers num_decoder_layers num_key_value_heads num_kv_heads "
    "num_experts_per_tok moe_topk num_experts_per_token linear_num_key_heads num_attention_groups mamba_expand type_vocab_size "
    "moe_k swa_num_key_value_heads",
    4: "n_head n_heads num_heads num_attention_heads decoder_attention_heads num_local_experts num_experts n_routed_experts "
    "moe_num_experts rotary_dim linear_num_value_heads mamba_n_heads index_n_heads swa_num_attention_heads",
    8: "head_dim qk_rope_head_dim d_kv state_size mamba_d_state qk_nope_head_dim v_head_dim linear_key_head_dim "
    "linear_value_head_dim hidden_size_per_layer_input index_head_dim swa_head_dim",
    16: "q_lora_rank kv_lora_rank moe_intermediate_size shared_expert_intermediate_size mamba_d_head dim_head",
    32: "hidden_size n_embd d_model dim decoder_hidden_size embedding_size word_embed_proj_dim lru_width",
    48: "intermediate_size intermediate_size_mlp ffn_dim n_inner dff dim_ff d_inner decoder_ffn_dim decoder_intermediate_size",
    512: "max_position_embeddings n_positions n_ctx max_seq_len",
}
SMALL = {name: size for size, names in _SIZES.items() for name in names.split()}
"""Sizes by the names that configs have for them."""

_DECODERS = "bert bert-generation camembert electra ernie megatron-bert rembert roberta roberta-prelayernorm roformer"
_LATENT = "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa minicpm3 youtu"
CHANGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys((*_DECODERS.split(), "xlm-roberta", "xlm-roberta-xl"), {"is_decoder": True}),
    **dict.fromkeys(_LATENT.split(), {"num_key_value_heads": 4}),
    **dict.fromkeys(("qwen3_5_text", "qwen3_next"), {"layer_types": ["linear_attention", "full_attention"]}),
    "big_bird": {"is_decoder": True, "attention_type": "original_full"},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
}
"""What a family needs beside."""

EXCEPT = {
    "beam": ("peft", "PEFT leaves out the adapters of its gate and its MLP"),
    "emu3": ("files", "transformers' AutoModelForCausalLM does not read the config that it writes"),
    "git": ("perplexity", "transformers' loss expects the tokens of an image"),
    "mllama": ("files", "transformers' AutoModelForCausalLM does not read the config that it writes"),
}
"""Checks that a family can't pass, and why."""

WRITES = re.compile(
    r"(o_proj|out_proj|down_proj|per_layer_projection|linear_right|dense_4h_to_h|fc2|fc_out|c_proj|w2|wo|ffn\.2|output|out_lin"
    r"|proj_down|feed_forward\.value|(attention|attn|output)\.dense|o_proj\.linear)$",
    re.IGNORECASE,
)
ATTENTION = re.compile(r"attn|attention|conv\.(in|out)_proj|mlstm", re.IGNORECASE)
"""Roles as a reader of the names would tell them: a second opinion, with nothing in common with how injection finds them."""


def build(kind: str, **changes: Any) -> PreTrainedModel | None:
    """A tiny model of a family with random weights; None if transformers does not build it from these sizes."""
    torch.manual_seed(0)
    try:
        sizes = _small(AutoConfig.for_model(kind).to_dict())
        config = AutoConfig.for_model(kind, **(sizes | CHANGES.get(kind, {}) | changes))
        with torch.device("meta"):  # some are huge whatever their sizes
            weights = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        lm = AutoModelForCausalLM.from_config(config).eval() if weights < MOST else None
    except Exception:  # what a config checks, and how, is the family's own
        return None
    for name, weight in [] if lm is None else lm.named_parameters():
        if (weight.dim() > 1 and "embed" not in name) or not weight.any():
            torch.nn.init.normal_(weight, std=0.1)  # large enough for every layer to say something
    return lm


def _small(config: dict[str, Any]) -> dict[str, Any]:
    found = {name: SMALL[name] for name, value in config.items() if name in SMALL and isinstance(value, int | None)}
    for name, inner in config.items():
        if isinstance(inner, dict) and name.endswith("_config") and "model_type" in inner:
            found[name] = _small(inner) | {"model_type": inner["model_type"]}
    return found


def row(kind: str) -> str:
    """A family's line of the table.

    Raises:
        AssertionError: it was injected, and then something is wrong.
    """
    lm = build(kind)
    if lm is None:
        return f"| {kind} | not tried | not built in this size |"
    ids = torch.randint(5, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    with _quiet():
        try:
            plain = _logits(lm, ids)
        except Exception as error:  # the family's own
            return f"| {kind} | not tried | transformers' own forward fails: {type(error).__name__} |"
        try:
            model = SwitchableModel(lm).eval()
        except ModelError as error:
            return f"| {kind} | refused | {error} |"
        assert torch.equal(_logits(model.lm, ids), plain), "other logits at 32 bits"
        skipped, reason = EXCEPT.get(kind, ("", ""))
        _check_roles(model)
        if skipped != "perplexity":
            _check_perplexity(model)
        _check_training(model)
        if skipped != "files":
            with tempfile.TemporaryDirectory() as folder:
                _check_files(model, ids, Path(folder), peft=skipped != "peft")
    roles: dict[str, list[str]] = {}
    for info in model.infos:
        names = roles.setdefault(info.role, [])
        names += [name for name in [info.name.rpartition(".")[2]] if name not in names]
    found = "; ".join(f"{role}: {', '.join(names)}" for role, names in roles.items())
    return f"| {kind} | {f'works, but {reason}' if reason else 'works'} | {found} |"


@torch.no_grad()
def _logits(lm: PreTrainedModel, ids: Tensor) -> Tensor:
    return lm(ids, use_cache=False).logits


def _check_roles(model: SwitchableModel) -> None:
    for info in model.infos:
        inside = info.name.split(".", info.name.split(".").index(str(info.block)) + 1)[-1]
        if info.role != OTHER:
            assert (info.role in ("attn_out", "mlp_out")) == bool(WRITES.search(info.name)), f"{info.name} is {info.role}"
            assert (info.role in ("qkv", "attn_out")) == bool(ATTENTION.search(inside)), f"{info.name} is {info.role}"


def _check_perplexity(model: SwitchableModel) -> None:
    texts = [question.context for question in generate(2, 0)]
    found = evaluate_perplexity(model, TOKENIZER, texts, pad_id=1, max_length=64, batch_size=1)
    for text, nll, tokens in zip(texts, found["nll"], found["tokens"], strict=True):
        ids = [TOKENIZER.bos_token_id, *TOKENIZER(text, add_special_tokens=False)["input_ids"]][:64]
        with torch.no_grad():
            loss = float(model.lm(torch.tensor([ids]), labels=torch.tensor([ids]), use_cache=False).loss)
        assert abs(nll / tokens - loss) < 1e-5 * loss, f"a loss of {nll / tokens}, of transformers {loss}"


def _check_training(model: SwitchableModel) -> None:
    model.add_adapters({8: LoraSpec(2, 4), FULL: LoraSpec(2, 4)})
    schedule = make_schedule(ScheduleArguments("all"), [Precision(FULL, FULL), Precision(8, 8)], model.infos, seed=0, steps=2)
    args = TrainingArguments(steps=2, batch_size=2, learning_rate=1e-2, lm_weight=0.5)
    with tempfile.TemporaryDirectory() as folder:
        fit(
            model, featurize(generate(2, 0), TOKENIZER, 96, 32), args, schedule, pad_id=1, seed=0, checkpoint=Path(folder) / "fit"
        )
    model.eval()
    model.set_precision(FULL)
    for bits in (8, FULL):
        for info, layer in zip(model.infos, model.layers, strict=True):
            learned = layer.adapters[str(bits)].lora_B.any()
            assert learned or info.role not in ("attn_out", "mlp_out"), (
                f"the adapter of {info.name} at {bits} bits has not learned"
            )


@torch.no_grad()
def _check_files(model: SwitchableModel, ids: Tensor, folder: Path, peft: bool) -> None:
    model.save(folder / "model", TOKENIZER)
    again, _ = SwitchableModel.load(folder / "model")
    for bits in (FULL, 8):
        with model.at(bits), again.at(bits):
            assert torch.equal(model(ids).start, again(ids).start), f"other spans after loading, at {bits} bits"
            assert torch.equal(_logits(model.lm, ids), _logits(again.lm, ids)), f"other logits after loading, at {bits} bits"
    deployed = deploy(model, 8)
    with model.at(8):
        assert torch.allclose(deployed(ids).start, model(ids).start, atol=1e-5), "deployed, it gives other spans"
    deployed.save(folder / "deployed", TOKENIZER)
    assert torch.equal(DeployedModel.load(folder / "deployed")[0](ids).start, deployed(ids).start), "other spans after deployment"
    if not peft:
        return
    base = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    theirs = PeftModel.from_pretrained(base, adapter_folder(folder / "model", FULL)).eval()
    assert torch.allclose(_logits(theirs, ids), _logits(model.lm, ids), atol=1e-4), "other logits by PEFT"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings(), Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        yield
    transformers.logging.set_verbosity(level)


def page() -> str:
    """`docs/families.md`."""
    rows = [row(kind) for kind in NAMES]
    works, refused, untried = (sum(f"| {state}" in line for line in rows) for state in ("works", "refused", "not tried"))
    head = f"""# Families

`python -m tests.families > docs/families.md` writes this page, and `make test-all` checks every row. Each causal family of the
installed transformers ({transformers.__version__}) is made as a tiny model with random weights.
{works} work, {refused} are refused in one sentence before anything is changed, and {untried} were not tried.

*Works* means all of these: the logits at 32 bits are the original's, bit for bit. The roles are those that the names suggest. The
next-token loss is the one of transformers. Two training steps reach the adapters at 8 and at 32 bits. The saved model loads again
and gives the same outputs. The deployed model gives the same spans, also after it was saved and loaded. PEFT gives the outputs of
the exported adapter. The last column lists the layers by their roles, or says why a family is refused.

| family | state | layers by role, or the reason |
| --- | --- | --- |"""
    return "\n".join([head, *rows])


if __name__ == "__main__":
    print(page())
