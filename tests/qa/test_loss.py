"""Batches and losses against direct computation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qatlib.model import SwitchableModel
from qatlib.qa.loss import collate, next_token_nll, span_logits, span_nll, task_loss
from qatlib.qa.spans import Feature
from qatlib.switching import Output

FEATURES = [
    Feature(0, (5, 6, 7, 8, 9), 2, ((0, 1), (2, 3), (4, 5)), 3, 4),
    Feature(1, (5, 6, 7), 1, ((0, 1), (2, 3)), 2, 2),
    Feature(2, (4, 3, 2, 1), 2, ((0, 1), (2, 3)), -1, -1),
]


def test_collate_pads_on_the_right_and_marks_the_context():
    batch = collate(FEATURES, pad_id=1)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [5, 6, 7, 1, 1], [4, 3, 2, 1, 1]]
    assert batch.context.int().tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]
    assert batch.real.sum(1).tolist() == [5, 3, 4]


def test_span_loss_is_over_context_tokens_only():
    batch = collate(FEATURES, pad_id=1)
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    loss = span_nll(Output(torch.empty(0), logits[0], logits[1]), batch)
    for row, f in enumerate(FEATURES[:2]):
        inside = slice(f.context_start, len(f.input_ids))
        parts = [
            -torch.log_softmax(logits[i, row, inside], 0)[target - f.context_start] for i, target in enumerate((f.start, f.end))
        ]
        assert float(loss[row]) == pytest.approx(float(sum(parts)) / 2, rel=1e-5)  # fp32 rounds by 1e-7
    assert bool(loss[2].isnan())


def test_padding_changes_no_loss(tiny_lm):
    model = SwitchableModel(tiny_lm()).eval()
    batch = collate(FEATURES[:2], pad_id=1)
    together = next_token_nll(model, model(batch.input_ids), batch)
    for row, f in enumerate(FEATURES[:2]):
        alone = collate([f], pad_id=1)
        nll = next_token_nll(model, model(alone.input_ids), alone)
        assert torch.allclose(together[row, : len(f.input_ids) - 1], nll[0], atol=1e-5)  # fp32's rounding of 5, twenty times
        assert float(together[row, len(f.input_ids) - 1 :].abs().sum()) == 0


def test_task_loss_adds_the_weighted_parts(tiny_lm):
    model = SwitchableModel(tiny_lm()).eval()
    batch = collate(FEATURES[:2], pad_id=1)
    output = model(batch.input_ids)
    loss, parts = task_loss(model, output, batch, 0.3)
    assert float(loss.detach()) == pytest.approx(float(parts["span_loss"] + 0.3 * parts["lm_loss"]), rel=1e-5)
    alone, parts = task_loss(model, output, batch, 0)
    assert float(alone.detach()) == pytest.approx(float(parts["span_loss"])) and "lm_loss" not in parts


def test_losses_of_the_shares_of_a_batch_add_up_to_those_of_the_whole(tiny_lm):
    model = SwitchableModel(tiny_lm()).eval()
    features = [*FEATURES[:2], replace(FEATURES[0], input_ids=(9, 3, 7, 2, 5, 5, 1), offsets=((0, 1),) * 5)]
    whole = collate(features, pad_id=1)
    _, expected = task_loss(model, model(whole.input_ids), whole, 0.3)
    shares = [collate(features[i::2], pad_id=1, whole=features) for i in range(2)]
    parts = [task_loss(model, model(share.input_ids), share, 0.3)[1] for share in shares]
    for key in ("span_loss", "lm_loss"):
        assert float(parts[0][key] + parts[1][key]) == pytest.approx(float(expected[key]), rel=1e-5)


def test_span_logits_are_start_then_end(tiny_lm):
    output = Output(torch.empty(0), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bfloat16))
    assert torch.equal(span_logits(output), torch.stack([torch.zeros(2, 3), torch.ones(2, 3)]))
