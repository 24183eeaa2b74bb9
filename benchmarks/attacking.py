"""An attack that averages over precisions against the same attack at each of them alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.measure import Row, compare_times
from benchmarks.models import Settings, gpt2, switchable
from qatlib.arguments import AttackArguments
from qatlib.attacks.defence import every, static
from qatlib.attacks.embedding import attack_embeddings
from qatlib.latency import in_turn
from qatlib.precision import Precision
from qatlib.qa.loss import Batch

PRECISIONS = tuple(Precision(b, b) for b in (8, 6, 4))
STEPS = 3


def attack(settings: Settings, device: torch.device) -> Iterator[Row]:
    """Seconds of PGD in expectation over K precisions against K attacks at one precision each."""
    model = switchable(gpt2(settings.training_blocks, settings.width), device, tuple(p.w_bits for p in PRECISIONS))
    rows, tokens = settings.training_batch
    input_ids = torch.randint(1000, (rows, tokens), generator=torch.Generator().manual_seed(0)).to(device)
    context = torch.ones_like(input_ids, dtype=torch.bool)
    free = context & (torch.arange(tokens, device=device) > 0)  # the first token is the answer
    answers = torch.zeros(rows, dtype=torch.long, device=device)
    batch = Batch(input_ids, context, context, free, answers, answers, rows, rows * (tokens - 1))
    how = AttackArguments(0.5, steps=STEPS)

    def expectation() -> None:
        attack_embeddings(model, batch, how, every(PRECISIONS, model), 0)

    def alone() -> None:
        for precision in PRECISIONS:
            attack_embeddings(model, batch, how, static(precision, model), 0)

    ours, peer = f"EOT over {len(PRECISIONS)} precisions", "PGD at each of them"
    times = in_turn({ours: expectation, peer: alone}, settings.seconds, device)
    case = f"GPT-2, {settings.training_blocks} blocks, {rows} × {tokens}, {STEPS} steps"
    yield compare_times("attack", case, times, ours, peer, "≤ 1.05")
