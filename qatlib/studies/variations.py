"""Variations of the attack on one model. The checks of notebook 5 compare the params' own attack with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pandas as pd
import torch

from qatlib.arguments import AttackArguments
from qatlib.attacks.defence import every, set_name, static
from qatlib.attacks.embedding import mean_embedding_norm, nonzero_gradients
from qatlib.attacks.judge import Craft, answers_at
from qatlib.model import SwitchableModel
from qatlib.precision import Precision, widest_first
from qatlib.qa.evaluate import device_of
from qatlib.qa.loss import Batch, collate
from qatlib.studies.attackers import NO_ATTACK, SEARCHED, Attack, Attackers, Varied
from qatlib.studies.robustness import Robustness


class Variations:
    """Attacks on one model that differ from the params' own."""

    def __init__(self, robustness: Robustness, model: SwitchableModel) -> None:
        self.robustness, self.model, self.section = robustness, model, robustness.section
        self.attackers = Attackers(robustness.study, model)

    @property
    def ends(self) -> list[Precision]:
        """The widest and the narrowest precision of the first set. Straight-through gradients are worse at 4 bits than at 8."""
        return [self.robustness.fixed, widest_first(self.robustness.sets[0])[-1]]

    def static_variants(self, at: Precision) -> pd.DataFrame:
        """Attacks at one static precision: other radii, steps, restarts, losses, the other norm, FGSM, one without gradients.

        Returns:
            `judged`'s rows with the columns of each `Attack`, and `passes`, the passes it took.
        """
        own, draws = self.section.attack, static(at, self.model)
        other: Literal["l2", "linf"] = "l2" if own.norm == "linf" else "linf"
        tried: list[tuple[str, AttackArguments, Varied]] = [("PGD", own, "nothing")]
        tried += [("FGSM", AttackArguments.fgsm(own.epsilon, own.norm), "one step")]
        tried += [(f"PGD, ε {e:g}", replace(own, epsilon=e), "epsilon") for e in self.section.epsilons]
        tried += [
            ("PGD, twice the steps", replace(own, steps=2 * own.steps), "steps"),
            ("PGD, twice the restarts", replace(own, restarts=2 * own.restarts), "restarts"),
            ("PGD, margin loss", replace(own, loss="margin"), "objective"),
            (f"PGD, {other}", replace(own, norm=other), "norm"),
        ]
        crafts: dict[Attack, tuple[Craft, int]] = {
            Attack.of(name, "gradient", at.name, attack, varied): (self.attackers.pgd(draws, attack), attack.passes)
            for name, attack, varied in tried
        }
        crafts[NO_ATTACK] = self.attackers.no_attack(), 0
        if self.robustness.study.mixed_precision != "no":
            in_fp32 = Attack.of("PGD, in fp32", "gradient", at.name, own, "arithmetic")
            crafts[in_fp32] = self.attackers.in_fp32(self.attackers.pgd(draws)), own.passes
        search = Attack.of("random search", "search", at.name, own, "method")
        crafts[search] = self.attackers.searched(draws), SEARCHED * own.passes
        passes = {attack.name: taken for attack, (_, taken) in crafts.items()}
        alone = {attack: craft for attack, (craft, _) in crafts.items()}
        ways, questions = answers_at(self.model, [at]), self.robustness.fewer
        found = self.robustness.attacked(f"variation_{at.name}", self.model, alone, ways, questions)
        return found.assign(passes=found["attack"].map(passes))

    def adaptive_variants(self) -> pd.DataFrame:
        """Variations of EOT over the first set, and an attack without gradients, answered at the set's precisions.

        Returns:
            `judged`'s rows with the columns of each `Attack`: `EOT {4, 8}, margin loss`, `EOT {4, 8}, twice the steps`,
            `random search over {4, 8}`.
        """
        first, own = self.robustness.sets[0], self.section.attack
        draws, name = every(first, self.model), set_name(first)
        margin, longer = replace(own, loss="margin"), replace(own, steps=2 * own.steps)
        by_margin = Attack.of(f"EOT {name}, margin loss", "gradient", name, margin, "objective")
        by_steps = Attack.of(f"EOT {name}, twice the steps", "gradient", name, longer, "steps")
        search = Attack.of(f"random search over {name}", "search", name, own, "method")
        crafts = {by_margin: self.attackers.pgd(draws, margin), by_steps: self.attackers.pgd(draws, longer)}
        crafts[search] = self.attackers.searched(draws)
        return self.robustness.attacked("harder", self.model, crafts, answers_at(self.model, first), self.robustness.fewer)

    def iterations(self) -> pd.DataFrame:
        """Mean loss that the attacker reaches by number of steps, at one static precision: `steps`, `loss` (nats)."""
        rows, own, fixed = [], self.section.attack, self.robustness.fixed
        for steps in sorted({1, 2, 4, 8, own.steps, 2 * own.steps}):
            craft = self.attackers.pgd(static(fixed, self.model), replace(own, steps=steps, restarts=1))
            ways = answers_at(self.model, [fixed])
            found = self.robustness.judged(f"iterations_{steps}", self.model, craft, ways, self.robustness.fewer)
            rows.append({"steps": steps, "loss": found["loss"].mean()})
        return pd.DataFrame(rows)

    def gradients(self) -> pd.DataFrame:
        """`precision`, and `nonzero`: percent of the attackable coordinates with a nonzero gradient, on one batch of windows."""
        batch, widths = self._batch(), self.robustness.widths
        shares = {p.name: 100 * nonzero_gradients(self.model, batch, static(p, self.model)) for p in widths}
        return pd.DataFrame({"precision": list(shares), "nonzero": list(shares.values())})

    def reach(self) -> pd.DataFrame:
        """How far PGD at one static precision moves the tokens of a batch of windows, in units of ε.

        Returns:
            One row: `moved`, the largest distance of a free token, and `others`, that of question, answer and padding tokens.
        """
        batch = self._batch()
        with torch.no_grad():
            clean = self.model.embed(batch.input_ids)
        moved = self.attackers.pgd(static(self.robustness.fixed, self.model))(batch) - clean
        length = moved.norm(dim=-1) / (self.section.attack.epsilon * mean_embedding_norm(self.model))
        parts = {"moved": batch.attackable, "others": ~batch.attackable}
        return pd.DataFrame([{name: float(length[where].max()) for name, where in parts.items()}])

    def _batch(self) -> Batch:
        study, size = self.robustness.study, self.robustness.params.evaluation.batch_size
        windows = [f for f in study.featurize(self.robustness.fewer) if f.start >= 0][:size]
        return collate(windows, study.pad_id, device_of(self.model))
