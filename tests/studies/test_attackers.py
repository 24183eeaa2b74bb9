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
def test_attackers_draws_are_new_for_every_batch_and_step_and_the_same_again(work, model, drawn, monkeypatch):
    seen = []
    monkeypatch.setattr(attackers, "attack_embeddings", lambda m, b, a, draws, s: [seen.append([draws(q) for q in range(8)])])
    craft = Attackers(work.study, model).pgd_drawn(partial(drawn, work.sets[0], model))
    batches = [collate([window], 1) for window in work.study.featurize(work.fewer)[:4]]
    for batch in (*batches, *batches):
        craft(batch)
    assert seen[:4] == seen[4:] and all(a != b for i, a in enumerate(seen[:4]) for b in seen[:i])
    assert all(any(step != steps[0] for step in steps) for steps in seen)


def test_an_attacker_in_fp32_sees_no_autocast(work, model):
    seen = []
    craft = Attackers(work.study, model).in_fp32(lambda batch: seen.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16):
        craft(collate(work.study.featurize(work.fewer)[:1], 1))
    assert seen == [False]


def test_all_but_nobody_move_what_they_may_and_nothing_else(work, model):
    batch = collate([w for w in work.study.featurize(work.fewer) if w.start >= 0][:4], 1)
    against, draws = Attackers(work.study, model), static(work.fixed, model)
    clean = against.nobody()(batch)
    assert torch.equal(clean, model.embed(batch.input_ids))
    for craft in (against.pgd(draws), against.noise(), against.searched(draws), against.flipped(draws)):
        moved = (craft(batch) != clean).any(dim=-1)
        assert moved.any() and not (moved & ~batch.attackable).any()
