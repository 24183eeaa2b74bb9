"""The models that are compared: real shapes, random weights, since no time depends on what the weights are."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig, PreTrainedModel

from qatlib.arguments import QuantizerArguments
from qatlib.lora import LoraSpec
from qatlib.model import SwitchableModel

LORA = LoraSpec(rank=16, alpha=32)
WIDTHS = (8, 6, 4, 3, 2)


@dataclass(frozen=True)
class Settings:
    """How large and how long."""

    seconds: float = 25
    """Rounds of one comparison."""
    training_blocks: int = 4
    """Of the 12 of GPT-2 and the 30 of SmolLM2: a step's ratios are a block's, the span head adds nothing to them."""
    inference_blocks: int = 12
    width: float = 1
    """Of the hidden size."""
    training_batch: tuple[int, int] = (8, 165)
    """Windows and tokens; 165 is the mean of SQuAD's questions with their paragraphs."""
    inference_batches: tuple[tuple[int, int], ...] = ((1, 1), (1, 32), (1, 165), (1, 384), (4, 165), (16, 165))


QUICK = Settings(0.1, 1, 2, 1 / 12, (2, 16), ((1, 1), (2, 16)))
"""To see that everything runs."""

# 1,000 of the tokens: no measured part reads the others. The fused form of GPT-2's own activation, for all alike.
_COMMON: dict[str, Any] = {"vocab_size": 1000, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def gpt2(blocks: int, width: float) -> PretrainedConfig:
    """GPT-2 small's shape."""
    size = int(768 * width)
    fused = {"activation_function": "gelu_pytorch_tanh"}
    return GPT2Config(n_layer=blocks, n_embd=size, n_head=max(1, size // 64), **_COMMON, **_NO_DROPOUT, **fused)


def llama(blocks: int, width: float) -> PretrainedConfig:
    """SmolLM2-135M's shape."""
    size = int(48 * width) * 12
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3} if width == 1 else {"num_attention_heads": 3}
    return LlamaConfig(hidden_size=size, intermediate_size=size * 8 // 3, num_hidden_layers=blocks, **heads, **_COMMON)


def plain(config: PretrainedConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model without adapters."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).to(device, dtype).eval()


def switchable(
    config: PretrainedConfig,
    device: torch.device,
    widths: tuple[int, ...] = WIDTHS,
    quantizer: QuantizerArguments | None = None,
) -> SwitchableModel:
    """Our model with one adapter per width."""
    model = SwitchableModel(plain(config, device), quantizer).to(device)
    model.add_adapters(dict.fromkeys(widths, LORA))
    return model


def peft_lora(
    config: PretrainedConfig, device: torch.device, adapters: tuple[str, ...] = ("default",)
) -> tuple[Any, PreTrainedModel]:
    """PEFT's model with LoRA in the layers that ours replaces, and the language model in it."""
    lm = plain(config, device)
    gpt2_layers, llama_layers = (
        ["c_attn", "c_proj", "c_fc"],
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )
    is_gpt2 = config.model_type == "gpt2"
    lora = LoraConfig(
        r=LORA.rank,
        lora_alpha=int(LORA.alpha),
        lora_dropout=0.0,
        target_modules=gpt2_layers if is_gpt2 else llama_layers,
        fan_in_fan_out=is_gpt2,
    )
    model = get_peft_model(lm, lora, adapters[0])
    for name in adapters[1:]:
        model.add_adapter(name, lora)
    return model, lm


def torchao_qat(config: PretrainedConfig, device: torch.device, a_bits: int) -> PreTrainedModel:
    """PEFT's model on torchao's fake-quantized linear layers: 4-bit weights by channel, 8-bit or full activations by token.

    Raises:
        ModuleNotFoundError: torchao is not installed.
    """
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    _, lm = peft_lora(config, device)
    activations = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False) if a_bits == 8 else None
    weights = IntxFakeQuantizeConfig(torch.int4, "per_channel")  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        qat = QATConfig(activation_config=activations, weight_config=weights, step="prepare")
        quantize_(lm, qat, filter_fn=lambda module, name: name.endswith("base_layer"))
    return lm
