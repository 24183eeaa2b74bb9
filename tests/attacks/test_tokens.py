"""HotFlip exchanges free tokens for allowed ones, and finds the best exchange where the model is linear."""

from __future__ import annotations

import pytest
import torch

from qatlib.attacks.defence import every, static
from qatlib.attacks.embedding import window_loss
from qatlib.attacks.tokens import hotflip
from qatlib.model import SwitchableModel
from qatlib.precision import Precision
from qatlib.qa.loss import collate
from qatlib.qa.spans import featurize
from qatlib.qa.toyqa import build_model, build_tokenizer, generate
from tests.attacks.test_embedding import Linear, U, V, linear_batch

TOKENIZER = build_tokenizer()
BATCH = collate(featurize(generate(6, 0), TOKENIZER, 128, 32), 1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SwitchableModel(build_model(2, 2, 32, 0)).eval()


@pytest.mark.parametrize("flips", [0, 1, 4])
def test_so_many_free_tokens_at_most_are_exchanged_for_allowed_ones(model, flips):
    allowed = torch.zeros(len(TOKENIZER), dtype=torch.bool)
    allowed[50:90] = True
    draws = every([Precision(8, 8), Precision(2, 2)], model)
    found, loss = hotflip(model, BATCH, flips, draws, allowed)
    changed = found != BATCH.input_ids
    assert not changed[~BATCH.free].any() and changed.sum(1).max() <= flips
    assert allowed[found[changed]].all() and (flips == 0 or changed.any())
    clean = hotflip(model, BATCH, 0, draws, allowed)[1]
    assert (loss >= clean).all() and (flips == 0 or (loss > clean).any())


def test_the_loss_is_that_of_the_tokens_returned(model):
    found, loss = hotflip(model, BATCH, 2, static(Precision(4, 4), model), torch.ones(len(TOKENIZER), dtype=torch.bool))
    with torch.no_grad(), model.at(4):
        torch.testing.assert_close(window_loss(model(found), BATCH, "cross_entropy"), loss)


@pytest.mark.parametrize("scale", [1.0, 12.0])
def test_on_a_linear_model_the_first_order_estimate_is_exact_for_a_margin(scale):
    model, batch = Linear(scale), linear_batch()
    found, loss = hotflip(model, batch, 1, lambda query: [1.0], torch.ones(9, dtype=torch.bool), "margin")
    table = model.embed(torch.arange(9)).detach()
    x = table[batch.input_ids[0]]
    best = {}
    for w in (U, V):  # of each end the strongest wrong token, whose logit every exchange there raises one for one
        place = int((x @ w).masked_fill(~batch.free[0], -torch.inf).argmax())
        for token in range(9):
            best[place, token] = best.get((place, token), 0.0) + float((table[token] - x[place]) @ w) / 2
    place, token = max(best, key=best.__getitem__)
    expected = batch.input_ids.clone()
    expected[0, place] = token
    assert torch.equal(found, expected)
