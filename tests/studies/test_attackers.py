"""Attackers of one run's model: what they see, and that their draws are new for every batch and step."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from qatlib.attacks.defence import per_layer, static
from qatlib.qa.loss import collate
from qatlib.studies import attackers
from qatlib.studies.attackers import Attackers


@pytest.mark.parametrize("drawn", [per_layer, partial(per_layer, draws=2)], ids=["one", "two"])
def test_attackers_draws_are_new_for_every_batch_and_step_and_the_same_again(robustness, model, drawn, monkeypatch):
    seen = []
    monkeypatch.setattr(attackers, "attack_embeddings", lambda m, b, a, draws, s: [seen.append([draws(q) for q in range(8)])])
    craft = Attackers(robustness.study, model).pgd_drawn(partial(drawn, robustness.sets[0], model))
    batches = [collate([window], 1) for window in robustness.study.featurize(robustness.fewer)[:4]]
    for batch in (*batches, *batches):
        craft(batch)
    assert seen[:4] == seen[4:] and all(a != b for i, a in enumerate(seen[:4]) for b in seen[:i])
    assert all(any(step != steps[0] for step in steps) for steps in seen)


def test_an_attacker_in_fp32_sees_no_autocast(robustness, model):
    seen = []
    craft = Attackers(robustness.study, model).in_fp32(lambda batch: seen.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16):
        craft(collate(robustness.study.featurize(robustness.fewer)[:1], 1))
    assert seen == [False]


def test_every_attack_moves_what_it_may_and_nothing_else(robustness, model):
    batch = collate([w for w in robustness.study.featurize(robustness.fewer) if w.start >= 0][:4], 1)
    against, draws = Attackers(robustness.study, model), static(robustness.fixed, model)
    clean = against.no_attack()(batch)
    assert torch.equal(clean, model.embed(batch.input_ids))
    for craft in (against.pgd(draws), against.noise(), against.searched(draws), against.flipped(draws)):
        moved = (craft(batch) != clean).any(dim=-1)
        assert moved.any() and not (moved & ~batch.attackable).any()
