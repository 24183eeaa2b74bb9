"""Batches and losses against direct computation."""

from __future__ import annotations

import pytest
import torch

from qatlib.model import Output, SwitchableModel
from qatlib.objectives import collate, next_token_nll, span_nll, task_loss
from qatlib.spans import Feature

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
    logits = torch.randn(2, 3, 5)
    loss = span_nll(Output(torch.empty(0), logits[0], logits[1]), batch)
    for row, f in enumerate(FEATURES[:2]):
        inside = slice(f.context_start, len(f.input_ids))
        parts = [
            -torch.log_softmax(logits[i, row, inside], 0)[target - f.context_start] for i, target in enumerate((f.start, f.end))
        ]
        assert float(loss[row]) == pytest.approx(float(sum(parts)) / 2, rel=1e-5)
    assert bool(loss[2].isnan())


def test_padding_changes_no_loss(tiny_lm):
    model = SwitchableModel(tiny_lm()).eval()
    batch = collate(FEATURES[:2], pad_id=1)
    together = next_token_nll(model, model(batch.input_ids), batch)
    for row, f in enumerate(FEATURES[:2]):
        alone = collate([f], pad_id=1)
        nll = next_token_nll(model, model(alone.input_ids), alone)
        assert torch.allclose(together[row, : len(f.input_ids) - 1], nll[0], atol=1e-5)
        assert float(together[row, len(f.input_ids) - 1 :].abs().sum()) == 0


def test_task_loss_adds_the_weighted_parts(tiny_lm):
    model = SwitchableModel(tiny_lm()).eval()
    batch = collate(FEATURES[:2], pad_id=1)
    loss, parts = task_loss(model, batch, 0.3)
    assert float(loss.detach()) == pytest.approx(parts["span_loss"] + 0.3 * parts["lm_loss"], rel=1e-5)
    alone, parts = task_loss(model, batch, 0)
    assert float(alone.detach()) == pytest.approx(parts["span_loss"]) and "lm_loss" not in parts
