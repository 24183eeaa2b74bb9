"""What notebook 5 is made of: attacks at every precision, answered at every precision and by random draws.

Everything is kept a question: one row an attack, a way of answering and a question. What random precision inference (RPI) does
over one precision for all layers needs no sampling then: its expectation is the mean over the rows of its precisions, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import pandas as pd
import torch

from qatlib.arguments import AttackArguments, CosineArguments, ObjectiveArguments, ScheduleArguments
from qatlib.attacks.defence import Set, every, per_layer, per_token, set_name, static
from qatlib.attacks.embedding import mean_embedding_norm, nonzero_gradients, own_seed
from qatlib.attacks.judge import Answering, Craft, answers_at, averaged, judged
from qatlib.attacks.rounding import noisy_rounding
from qatlib.model import SwitchableModel
from qatlib.precision import FULL, FULL_PRECISION, Precision, widest_first
from qatlib.qa.evaluate import SpanFigures, device_of, span_figures
from qatlib.qa.loss import Batch, collate
from qatlib.qa.squad import Question
from qatlib.studies.attackers import SEARCHED, Attackers, generator
from qatlib.studies.study import Study, spread
from qatlib.studies.trainings import Recipe, Trainings
from qatlib.training import reduced_precision


class Robustness:
    """Attacks on the models of one run.

    Attributes:
        questions, fewer: what the first method, and everything else, is judged on.
        widths: every precision that a defence may draw, widest first.
    """

    def __init__(self, study: Study, trainings: Trainings) -> None:
        self.study, self.trainings, self.params, self.section = study, trainings, study.params, study.params.adversarial
        self.questions = spread(study.validation, self.section.questions)
        self.fewer = spread(self.questions, self.section.fewer_questions)
        self.sets: list[Set] = [*self.section.sets, self.section.control]
        self.widths = widest_first(list(dict.fromkeys(p for s in self.sets for p in s)))

    # -- models ---------------------------------------------------------------------------------------------------

    def recipe(self, method: str, seed: int) -> Recipe:
        """The training of a method: one shared adapter, the passes of `adversarial`.

        `plain` is trained at full precision alone, the others at random precisions of all sets; `cpt` cycles through
        them, `random pair` draws two a step, and `consistency` as well, the narrower of which learns from the wider,
        `adversarial` sees perturbed input.
        """
        passes, adversary = self.section.passes, self.section.adversary if method == "adversarial" else None
        schedule, objective = ScheduleArguments("random_uniform"), ObjectiveArguments("average")
        precisions = (FULL_PRECISION,) if method == "plain" else tuple(self.widths)
        if method == "cpt":
            schedule = ScheduleArguments("cpt", cosine=CosineArguments(cycles=min(self.params.cpt.cycles, passes)))
        elif method in ("random pair", "consistency"):
            schedule = ScheduleArguments("random_uniform", passes=2)
            objective = ObjectiveArguments("consistency" if method == "consistency" else "average")
        changes = {"objective": objective, "adapters": "shared", "adversary": adversary}
        settings = self.trainings.plain(schedule, len(precisions), passes, **changes)
        return Recipe(f"robust {method}", precisions, settings, seed, judged=tuple(self.widths))

    def trained(self, method: str, seed: int) -> SwitchableModel:
        """A method's model, from its checkpoint if it has been trained."""
        recipe = self.recipe(method, seed)
        model = self.trainings.prepared(recipe)
        self.trainings.fit(model, recipe, probed=False)
        return model

    # -- answers --------------------------------------------------------------------------------------------------

    def finer(self, model: SwitchableModel, precisions: Set) -> dict[str, Answering]:
        """Answers of the finer draws: each layer, or each token, draws a precision, anew for every batch; `draws` of each."""

        def by_layer(draw: int, batch: Batch, embeds: torch.Tensor) -> SpanFigures:
            with model.at(per_layer(precisions, model, own_seed(batch, self.params.seed + 1))(draw)[0]):
                return span_figures(model, batch, embeds)

        def by_token(draw: int, batch: Batch, embeds: torch.Tensor) -> SpanFigures:
            with per_token(precisions, model, generator(batch, self.params.seed, draw)):
                return span_figures(model, batch, embeds)

        kinds = {"layer": by_layer, "token": by_token}
        return {f"{kind} {i}": partial(way, i) for i in range(self.section.draws) for kind, way in kinds.items()}

    def noisily(self, model: SwitchableModel, precision: Precision, draws: int) -> dict[str, Answering]:
        """Answers at one precision whose rounding is noisy, anew for every batch; so many draws of the noise."""

        def figures(draw: int, batch: Batch, embeds: torch.Tensor) -> SpanFigures:
            with model.at(precision), noisy_rounding(model, generator(batch, self.params.seed, draw)):
                return span_figures(model, batch, embeds)

        return {f"draw {i}": partial(figures, i) for i in range(draws)}

    def judged(
        self, name: str, model: SwitchableModel, craft: Craft, ways: Mapping[str, Answering], questions: Sequence[Question]
    ) -> pd.DataFrame:
        """`qatlib.attacks.judge.judged`, kept under a name; attackers compute in the params' mixed precision, answers in fp32."""

        def crafted(batch: Batch) -> torch.Tensor:
            with reduced_precision(model, self.params.compute.mixed_precision):
                return craft(batch)

        def compute() -> pd.DataFrame:
            features = self.study.featurize(questions)
            frame = judged(model, questions, features, crafted, ways, **self.study.answering, description=name)
            return frame.drop(columns="prediction")

        return self.study.stage.table(name, compute, published=False).assign(answered=lambda x: x["answered"].astype(str))

    def _answered(
        self,
        name: str,
        model: SwitchableModel,
        crafts: Mapping[str, Craft],
        ways: Mapping[str, Answering],
        questions: Sequence[Question],
    ) -> pd.DataFrame:
        """`judged`'s rows of several attacks, kept as `<name>_0` and so on, with `attack`."""
        parts = [
            self.judged(f"{name}_{i}", model, craft, ways, questions).assign(attack=attack)
            for i, (attack, craft) in enumerate(crafts.items())
        ]
        return pd.concat(parts, ignore_index=True)

    def matrix(self, model: SwitchableModel, label: str, questions: Sequence[Question]) -> pd.DataFrame:
        """Clean, noisy, attacked at each precision and adaptively over each set: each answered at every precision.

        Returns:
            `judged`'s rows with `attack`: `none`, `noise`, `PGD at 8` for each precision, `EOT {4, 8}` for each set.
        """
        attackers = Attackers(self.study, model)
        crafts: dict[str, tuple[str, Craft]] = {
            "none": ("clean", attackers.nobody()),
            "noise": ("noise", attackers.noise()),
        }
        for p in self.widths:
            crafts[f"PGD at {p.name}"] = f"pgd_{p.name}", attackers.pgd(static(p, model))
        for s in self.sets:
            crafts[f"EOT {set_name(s)}"] = f"eot_{'_'.join(p.name for p in s)}", attackers.pgd(every(s, model))
        ways = answers_at(model, self.widths)
        parts = [
            self.judged(f"{label}_{file}".lower().replace(" ", "_"), model, craft, ways, questions).assign(attack=attack)
            for attack, (file, craft) in crafts.items()
        ]
        return pd.concat(parts, ignore_index=True)

    @property
    def fixed(self) -> Precision:
        """The static precision that variations of the attack are tried at: the widest of the first set."""
        return widest_first(self.sets[0])[0]

    @property
    def ends(self) -> list[Precision]:
        """The widest and the narrowest precision of the first set: straight through 4 bits gradients are worse than through 8."""
        return [self.fixed, widest_first(self.sets[0])[-1]]

    def variations(self, model: SwitchableModel, at: Precision) -> pd.DataFrame:
        """Other radii, steps, restarts, losses and the other norm, FGSM, and no gradients at all, at one static precision.

        Returns:
            `judged`'s rows with `attack`, and `passes`, what it took.
        """
        attackers = Attackers(self.study, model)
        own, draws = self.section.attack, static(at, model)
        other: Literal["l2", "linf"] = "l2" if own.norm == "linf" else "linf"
        tried = {"PGD": own, "FGSM": AttackArguments.fgsm(own.epsilon, own.norm)}
        tried |= {f"PGD, ε {e:g}": replace(own, epsilon=e) for e in self.section.epsilons}
        tried |= {
            "PGD, twice the steps": replace(own, steps=2 * own.steps),
            "PGD, twice the restarts": replace(own, restarts=2 * own.restarts),
            "PGD, margin loss": replace(own, loss="margin"),
            f"PGD, {other}": replace(own, norm=other),
        }
        crafts = {name: (attackers.pgd(draws, attack), attack.passes) for name, attack in tried.items()}
        crafts["none"] = attackers.nobody(), 0
        if self.params.compute.mixed_precision != "no":
            crafts["PGD, in fp32"] = attackers.in_fp32(attackers.pgd(draws)), own.passes
        crafts["random search"] = attackers.searched(draws), SEARCHED * own.passes
        passes = {name: taken for name, (_, taken) in crafts.items()}
        alone = {name: craft for name, (craft, _) in crafts.items()}
        found = self._answered(f"variation_{at.name}", model, alone, answers_at(model, [at]), self.fewer)
        return found.assign(passes=found["attack"].map(passes))

    def iterations(self, model: SwitchableModel) -> pd.DataFrame:
        """Mean loss that the attacker reaches after so many steps: `steps`, `loss` (nats), at one static precision."""
        attackers = Attackers(self.study, model)
        rows, own = [], self.section.attack
        for steps in sorted({1, 2, 4, 8, own.steps, 2 * own.steps}):
            craft = attackers.pgd(static(self.fixed, model), replace(own, steps=steps, restarts=1))
            ways = answers_at(model, [self.fixed])
            found = self.judged(f"iterations_{steps}", model, craft, ways, self.fewer)
            rows.append({"steps": steps, "loss": found["loss"].mean()})
        return pd.DataFrame(rows)

    def gradients(self, model: SwitchableModel) -> pd.DataFrame:
        """`precision`, `nonzero`, the percentage of the attackable coordinates with a gradient, on a batch of windows."""
        batch = self._batch(model)
        shares = {p.name: 100 * nonzero_gradients(model, batch, static(p, model)) for p in self.widths}
        return pd.DataFrame({"precision": list(shares), "nonzero": list(shares.values())})

    def reach(self, model: SwitchableModel) -> pd.DataFrame:
        """How far PGD at one static precision moves the tokens of a batch of windows, as lengths in units of ε.

        Returns:
            One row: `moved`, the longest way of a token that it may move, and `others`, of the question, the answers and padding.
        """
        batch = self._batch(model)
        with torch.no_grad():
            clean = model.embed(batch.input_ids)
        moved = Attackers(self.study, model).pgd(static(self.fixed, model))(batch) - clean
        length = moved.norm(dim=-1) / (self.section.attack.epsilon * mean_embedding_norm(model))
        parts = {"moved": batch.attackable, "others": ~batch.attackable}
        return pd.DataFrame([{name: float(length[where].max()) for name, where in parts.items()}])

    def _batch(self, model: SwitchableModel) -> Batch:
        windows = [f for f in self.study.featurize(self.fewer) if f.start >= 0][: self.params.evaluation.batch_size]
        return collate(windows, self.study.pad_id, device_of(model))

    def from_outside(self, model: SwitchableModel, twin: SwitchableModel) -> pd.DataFrame:
        """Answers at every precision to `PGD at … of a twin`, an attack on a model that was trained apart, at the fixed one."""
        craft = Attackers(self.study, twin).pgd(static(self.fixed, twin))
        found = self.judged("twin", model, craft, answers_at(model, self.widths), self.fewer)
        return found.assign(attack=f"PGD at {self.fixed.name} of a twin")

    def radii(self, model: SwitchableModel, main: pd.DataFrame) -> pd.DataFrame:
        """PGD at each precision of the first set, and EOT over it, at all `epsilons` but the last; answered at these precisions.

        Args:
            main: of `matrix`, whose rows are those of the attack's own radius.

        Returns:
            `judged`'s rows with `attack` and `epsilon`; those of `none` stand at every one.
        """
        attackers, own = Attackers(self.study, model), self.section.attack
        first, ways = self.sets[0], answers_at(model, self.sets[0])
        aims = {f"PGD at {p.name}": static(p, model) for p in first} | {f"EOT {set_name(first)}": every(first, model)}
        known = main[main["answered"].isin(ways) & main["attack"].isin(["none", *aims])]
        parts = []
        for e in self.section.epsilons[:-1]:
            if e == own.epsilon:
                parts.append(known.assign(epsilon=e))
                continue
            crafts = {name: attackers.pgd(draws, replace(own, epsilon=e)) for name, draws in aims.items()}
            found = self._answered(f"radius_{e:g}".replace(".", "_"), model, crafts, ways, self.questions)
            parts += [known[known["attack"] == "none"].assign(epsilon=e), found.assign(epsilon=e)]
        return pd.concat(parts, ignore_index=True)

    def harder(self, model: SwitchableModel) -> pd.DataFrame:
        """Variations of EOT over the first set, and no gradients at all, answered at its precisions.

        Returns:
            `judged`'s rows with `attack`: `EOT {4, 8}, margin loss`, `EOT {4, 8}, twice the steps`, `random search over {4, 8}`.
        """
        attackers = Attackers(self.study, model)
        first, own = self.sets[0], self.section.attack
        draws = every(first, model)
        crafts = {f"EOT {set_name(first)}, margin loss": attackers.pgd(draws, replace(own, loss="margin"))}
        crafts[f"EOT {set_name(first)}, twice the steps"] = attackers.pgd(draws, replace(own, steps=2 * own.steps))
        crafts[f"random search over {set_name(first)}"] = attackers.searched(draws)
        return self._answered("harder", model, crafts, answers_at(model, first), self.fewer)

    def rounded_noisily(self, model: SwitchableModel) -> pd.DataFrame:
        """Plain noise in place of random precision: noisy rounding at each precision of the first set that rounds at all.

        Attackers are EOT over the set, and EOT over the noise itself, with as many draws a step as the set has precisions.

        Returns:
            Rows with `attack`, `none`, `EOT {4, 8}` or `EOT over noise`, and `answered`, `noise at 8`, the mean over as many.
        """
        attackers = Attackers(self.study, model)
        first, parts = self.sets[0], []
        rounding = [p for p in first if p.a_bits != FULL] or list(first)
        crafts = [("none", attackers.nobody(), rounding)]
        crafts.append((f"EOT {set_name(first)}", attackers.pgd(every(first, model)), rounding))
        crafts += [("EOT over noise", attackers.pgd_noisy(p, len(first)), [p]) for p in rounding]
        for i, (attack, craft, at) in enumerate(crafts):
            ways = {f"noise at {p.name}": self.noisily(model, p, len(first)) for p in at}
            each = {f"{name}, {draw}": way for name, drawn in ways.items() for draw, way in drawn.items()}
            found = self.judged(f"rounding_{i}", model, craft, each, self.fewer).assign(attack=attack)
            parts += [averaged(found, [f"{name}, {draw}" for draw in drawn], name) for name, drawn in ways.items()]
        return pd.concat(parts, ignore_index=True)

    def drawn_finer(self, model: SwitchableModel) -> pd.DataFrame:
        """Draws a layer and a token against draws for all layers, from the first set, each attacked adaptively.

        Attackers average over the uniform precisions exactly, over `draws` mixed configurations a step, or over as many draws of
        every token.

        Returns:
            `judged`'s rows with `attack`; `answered` is `per batch`, `per layer`, `per token`, of the latter two the mean over
            all draws, and `per layer, even` and so on, over every other draw.
        """
        attackers = Attackers(self.study, model)
        first = self.sets[0]
        crafts = {
            "none": attackers.nobody(),
            "EOT, uniform": attackers.pgd(every(first, model)),
            "EOT, mixed": attackers.pgd_drawn(partial(per_layer, first, model, draws=self.section.draws)),
            "EOT, by token": attackers.pgd_by_token(first, self.section.draws),
        }
        ways = answers_at(model, first) | self.finer(model, first)
        found = self._answered("finer", model, crafts, ways, self.fewer)
        kinds = {"per batch": [p.name for p in first]}
        for kind in ("layer", "token"):
            drawn = [f"{kind} {i}" for i in range(self.section.draws)]
            kinds |= {f"per {kind}": drawn, f"per {kind}, even": drawn[::2], f"per {kind}, odd": drawn[1::2] or drawn}
        return pd.concat([averaged(found, names, name) for name, names in kinds.items()], ignore_index=True)

    def hotflipped(self, model: SwitchableModel) -> pd.DataFrame:
        """HotFlip at 32 bits, at each precision of the first set, and in expectation over the set; answered everywhere."""
        attackers = Attackers(self.study, model)
        first = self.sets[0]
        aimed = list(dict.fromkeys((FULL_PRECISION, *first)))
        crafts = {"none": attackers.nobody()}
        crafts |= {f"HotFlip at {p.name}": attackers.flipped(static(p, model)) for p in aimed}
        crafts[f"HotFlip EOT {set_name(first)}"] = attackers.flipped(every(first, model))
        return self._answered("hotflip", model, crafts, answers_at(model, aimed), self.fewer)

    @property
    def drawn_by_s0(self) -> Set:
        """What S0's layers draw from, {4, 8, 32}, as far as it is among the widths; the first set where too little of it is."""
        own = tuple(p for p in reversed(self.widths) if p.name in ("4", "8", "32"))
        return own if len(own) > 1 else self.sets[0]

    def one_draw(self, model: SwitchableModel) -> pd.DataFrame:
        """S0's own protocol: layers draw, each step's gradient comes from one draw and the answer from another, on all questions.

        Returns:
            `judged`'s rows with `attack`, `none` or `PGD, one draw a step`; `answered` is `S0's RPI`.
        """
        attackers, drawn = Attackers(self.study, model), partial(per_layer, self.drawn_by_s0, model)
        ways = {"S0's RPI": self.finer(model, self.drawn_by_s0)["layer 0"]}
        crafts = {"none": attackers.nobody(), "PGD, one draw a step": attackers.pgd_drawn(drawn)}
        return self._answered("one_draw", model, crafts, ways, self.questions)
