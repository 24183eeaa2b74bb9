"""What two passes over four tokens show of a decoder whose layers are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from qatlib.tracing import Trace

WIDTH = 8


class Block(nn.Module):
    """x + out(mix(value(x)) · σ(gate(x))), written in one of several ways."""

    def __init__(self, mix: str, way: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.out, self.value, self.gate = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.mix, self.way = mix, way

    def forward(self, x):
        v = self.value(self.norm(x))
        if self.mix == "loop":  # tokens are written one by one, as a recurrence does
            mixed, state = torch.empty_like(v), torch.zeros_like(v[:, 0])
            for t in range(v.shape[1]):
                state = 0.5 * state + v[:, t]
                mixed[:, t] = state
            v = mixed
        elif self.mix == "attention":
            v = nn.functional.scaled_dot_product_attention(v, v, v, is_causal=True)
        elif self.mix == "both ways":
            v = v.mean(1, keepdim=True) + v
        gate = self.gate(self.norm(x)).sigmoid()
        if self.way == "gate after":
            return x + gate * self.out(v)
        y = self.out(v * gate)
        if self.way == "in place":
            y += x
            return y
        if self.way == "post-norm":
            return self.norm(x + y)
        return torch.add(x, self.norm(y), alpha=0.5) if self.way == "scaled" else x + y


class Tiny(PreTrainedModel):
    config_class = PreTrainedConfig

    def __init__(self, **how: str) -> None:
        super().__init__(PreTrainedConfig())
        self.embedding = nn.Embedding(9, WIDTH)
        self.blocks = nn.ModuleList(Block(**how) for _ in range(2))

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, use_cache):
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x)
        return BaseModelOutput(last_hidden_state=x)


def traced(**how: str) -> Trace:
    torch.manual_seed(0)
    lm = Tiny(**how)
    layers = {name: module for name, module in lm.named_modules() if isinstance(module, nn.Linear)}
    return Trace(lm, ["blocks.0", "blocks.1"], layers)


OUTS, OTHERS = {"blocks.0.out", "blocks.1.out"}, {"blocks.0.value", "blocks.0.gate"}


@pytest.mark.parametrize("way", ["plain", "gate after", "in place", "post-norm", "scaled"])
@pytest.mark.parametrize("mix", ["none", "loop", "attention"])
def test_the_writer_is_found_with_what_it_reads_and_whether_tokens_mix(mix, way):
    found = traced(mix=mix, way=way)
    assert found.writers == OUTS and found.width == WIDTH and not found.ahead and not found.unlike
    assert found.between("blocks.0.out") == OTHERS
    assert found.mixing == (set() if mix == "none" else OUTS)
    assert {"blocks.1", "blocks.1.gate"} < found.called


def test_a_gate_is_between_but_not_in_the_input():
    found = traced(mix="none", way="gate after")
    assert found.between("blocks.0.out", gates=False) == {"blocks.0.value"}


def test_what_depends_on_later_tokens_is_ahead():
    assert traced(mix="both ways", way="plain").ahead == OUTS
