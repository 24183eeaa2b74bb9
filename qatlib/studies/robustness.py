"""Notebook 5: attacks at every precision, answered at every precision and by random draws.

Scores are kept per question: one row per attack, way of answering and question. So random precision inference (RPI) with one
precision for all layers needs no sampling. Its expectation is exactly the mean over the rows of its precisions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd
import torch

from qatlib.arguments import ObjectiveArguments
from qatlib.arithmetic import reduced_precision
from qatlib.attacks.defence import Set, every, per_layer, per_token, set_name, static
from qatlib.attacks.embedding import own_seed
from qatlib.attacks.judge import Answering, Craft, answers_at, averaged, judged
from qatlib.attacks.rounding import noisy_rounding
from qatlib.model import SwitchableModel
from qatlib.precision import FULL, FULL_PRECISION, Precision, widest_first
from qatlib.qa.evaluate import SpanFigures, span_figures
from qatlib.qa.loss import Batch
from qatlib.qa.parts import spread
from qatlib.qa.squad import Question
from qatlib.scheduling import CosineArguments, ScheduleArguments
from qatlib.studies.attackers import NO_ATTACK, Attack, Attackers, generator
from qatlib.studies.pieces import Piece, run
from qatlib.studies.study import Study
from qatlib.studies.trainings import Recipe, Trainings

S0_RPI = "S0's RPI"
"""The name of the first study's own defence."""


class Robustness:
    """Attacks on the models of one run.

    Attributes:
        questions, fewer: questions that judge the first method, and fewer questions for everything else.
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

        `plain` is trained only at full precision, the others at random precisions of all sets. `cpt` cycles through them.
        `random pair` and `consistency` draw two per step; in `consistency` the narrower one learns from the wider.
        `adversarial` is trained on perturbed input.
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
        ((_, model, _),) = self.trainings.each([self.recipe(method, seed)])
        return model

    # -- answers --------------------------------------------------------------------------------------------------

    def finer(self, model: SwitchableModel, precisions: Set) -> dict[str, Answering]:
        """Answers of finer draws: each layer or each token draws a precision, anew for every batch; `draws` of each kind."""

        def by_layer(draw: int, batch: Batch, embeds: torch.Tensor) -> SpanFigures:
            seed = own_seed(batch, self.params.seed, "layers that the defender draws")
            with model.at(per_layer(precisions, model, seed)(draw)[0]):
                return span_figures(model, batch, embeds)

        def by_token(draw: int, batch: Batch, embeds: torch.Tensor) -> SpanFigures:
            with per_token(precisions, model, generator(batch, self.params.seed, "tokens that the defender draws", draw)):
                return span_figures(model, batch, embeds)

        kinds = {"layer": by_layer, "token": by_token}
        return {f"{kind} {i}": partial(way, i) for i in range(self.section.draws) for kind, way in kinds.items()}

    def noisily(self, model: SwitchableModel, precision: Precision, draws: int) -> dict[str, Answering]:
        """Answers at one precision with noisy rounding. The noise is new for every batch; there are `draws` draws of it."""

        def figures(draw: int, batch: Batch, embeds: torch.Tensor) -> SpanFigures:
            with (
                model.at(precision),
                noisy_rounding(model, generator(batch, self.params.seed, "rounding that the defender draws", draw)),
            ):
                return span_figures(model, batch, embeds)

        return {f"draw {i}": partial(figures, i) for i in range(draws)}

    def judged(
        self, name: str, model: SwitchableModel, craft: Craft, ways: Mapping[str, Answering], questions: Sequence[Question]
    ) -> pd.DataFrame:
        """`qatlib.attacks.judge.judged`, kept under a name."""
        (found,) = self._run([self._piece(name, model, craft, ways, questions)])
        return found

    def _run(self, pieces: Sequence[Piece]) -> list[pd.DataFrame]:
        return [frame.assign(answered=frame["answered"].astype(str)) for frame in run(pieces, self.study.stage)]

    def _piece(
        self, name: str, model: SwitchableModel, craft: Craft, ways: Mapping[str, Answering], questions: Sequence[Question]
    ) -> Piece:
        """One attack on some questions. The attacker computes in the trainings' mixed precision. Answers are computed in fp32."""

        def crafted(batch: Batch) -> torch.Tensor:
            with reduced_precision(model, self.study.mixed_precision):
                return craft(batch)

        def compute() -> pd.DataFrame:
            features = self.study.featurize(questions)
            frame = judged(model, questions, features, crafted, ways, **self.study.answering, description=name)
            return frame.drop(columns="prediction")

        return Piece(name, compute, published=False)

    def attacked(
        self,
        name: str,
        model: SwitchableModel,
        crafts: Mapping[Attack, Craft],
        ways: Mapping[str, Answering],
        questions: Sequence[Question],
    ) -> pd.DataFrame:
        """The rows of `judged` for several attacks, with the columns of each attack. They are kept as `<name>_0` and so on."""
        pieces = [self._piece(f"{name}_{i}", model, craft, ways, questions) for i, craft in enumerate(crafts.values())]
        parts = zip(crafts, self._run(pieces), strict=True)
        return pd.concat([part.assign(**attack.columns) for attack, part in parts], ignore_index=True)

    def matrix(self, model: SwitchableModel, label: str, questions: Sequence[Question]) -> pd.DataFrame:
        """Clean, noisy and attacked input (at each precision, and adaptively over each set), answered at every precision.

        Returns:
            `judged`'s rows with the columns of each `Attack`: `none`, `noise`, `PGD at 8` for each precision, `EOT {4, 8}` for
            each set.
        """
        attackers, own = Attackers(self.study, model), self.section.attack
        crafts: dict[Attack, tuple[str, Craft]] = {
            NO_ATTACK: ("clean", attackers.no_attack()),
            Attack("noise", "noise", epsilon=own.epsilon): ("noise", attackers.noise()),
        }
        for p in self.widths:
            crafts[self.pgd_at(p)] = f"pgd_{p.name}", attackers.pgd(static(p, model))
        for s in self.sets:
            crafts[self.eot_over(s)] = f"eot_{'_'.join(p.name for p in s)}", attackers.pgd(every(s, model))
        ways = answers_at(model, self.widths)
        parts = [
            self.judged(f"{label}_{file}".lower().replace(" ", "_"), model, craft, ways, questions).assign(**attack.columns)
            for attack, (file, craft) in crafts.items()
        ]
        return pd.concat(parts, ignore_index=True)

    def pgd_at(self, precision: Precision) -> Attack:
        """The params' own attack at one precision."""
        return Attack.of(f"PGD at {precision.name}", "gradient", precision.name, self.section.attack)

    def eot_over(self, precisions: Set) -> Attack:
        """The params' own attack in expectation over a set."""
        name = set_name(precisions)
        return Attack.of(f"EOT {name}", "gradient", name, self.section.attack)

    @property
    def fixed(self) -> Precision:
        """The static precision at which variations of the attack are tested: the widest of the first set."""
        return widest_first(self.sets[0])[0]

    def from_outside(self, model: SwitchableModel, twin: SwitchableModel) -> pd.DataFrame:
        """Answers at every precision to `PGD at … of a twin`: an attack at `fixed` on a separately trained model."""
        craft = Attackers(self.study, twin).pgd(static(self.fixed, twin))
        found = self.judged("twin", model, craft, answers_at(model, self.widths), self.fewer)
        target = f"{self.fixed.name} of a twin"
        return found.assign(**Attack.of(f"PGD at {target}", "gradient", target, self.section.attack).columns)

    def radii(self, model: SwitchableModel, main: pd.DataFrame) -> pd.DataFrame:
        """PGD at each precision of the first set and EOT over it, at all `epsilons` but the last; answered at these precisions.

        Args:
            main: the result of `matrix`; its rows are used for the attack's own radius.

        Returns:
            `judged`'s rows with the columns of each `Attack`, and `radius`, its ε. Clean answers are repeated at every radius.
        """
        attackers, own = Attackers(self.study, model), self.section.attack
        first, ways = self.sets[0], answers_at(model, self.sets[0])
        aims = {self.pgd_at(p): static(p, model) for p in first} | {self.eot_over(first): every(first, model)}
        known = main[main["answered"].isin(ways) & main["attack"].isin([NO_ATTACK.name, *(attack.name for attack in aims)])]
        parts = []
        for e in self.section.epsilons[:-1]:
            if e == own.epsilon:
                parts.append(known.assign(radius=e))
                continue
            other = replace(own, epsilon=e)
            crafts = {replace(a, epsilon=e, varied="epsilon"): attackers.pgd(draws, other) for a, draws in aims.items()}
            found = self.attacked(f"radius_{e:g}".replace(".", "_"), model, crafts, ways, self.questions)
            parts += [known[known["family"] == "none"].assign(radius=e), found.assign(radius=e)]
        return pd.concat(parts, ignore_index=True)

    def rounded_noisily(self, model: SwitchableModel) -> pd.DataFrame:
        """Plain noise instead of random precision: noisy rounding at each precision of the first set that rounds activations.

        Attackers are EOT over the set, and EOT over the noise itself, with as many draws per step as the set has precisions.

        Returns:
            Rows with the columns of each `Attack`, `none`, `EOT {4, 8}` or `EOT over noise`, whose target is `noise at 8`, and
            `answered`, `noise at 8`, the mean over as many draws.
        """
        attackers = Attackers(self.study, model)
        first, parts = self.sets[0], []
        rounding = [p for p in first if p.a_bits != FULL] or list(first)
        names = {p: f"noise at {p.name}" for p in rounding}
        crafts = [(NO_ATTACK, attackers.no_attack(), rounding)]
        crafts.append((self.eot_over(first), attackers.pgd(every(first, model)), rounding))
        for p, name in names.items():
            attack = Attack.of("EOT over noise", "gradient", name, self.section.attack)
            crafts.append((attack, attackers.pgd_noisy(p, len(first)), [p]))
        for i, (attack, craft, at) in enumerate(crafts):
            ways = {names[p]: self.noisily(model, p, len(first)) for p in at}
            each = {f"{name}, {draw}": way for name, drawn in ways.items() for draw, way in drawn.items()}
            found = self.judged(f"rounding_{i}", model, craft, each, self.fewer).assign(**attack.columns)
            parts += [averaged(found, [f"{name}, {draw}" for draw in drawn], name) for name, drawn in ways.items()]
        return pd.concat(parts, ignore_index=True)

    def drawn_finer(self, model: SwitchableModel) -> pd.DataFrame:
        """Draws per layer and per token from the first set, compared with one draw for all layers. Attacks are adaptive.

        Attackers average exactly over the uniform precisions, over `draws` mixed configurations per step, or over `draws`
        per-token draws.

        Returns:
            `judged`'s rows with the columns of each `Attack`. `drawn` is `per batch`, `per layer` or `per token`, the target of
            the attacker who averages over such draws; `answered` is the same for the mean over all draws (`half` is `all`), and
            `per layer, even` and so on for the mean over every other draw (`half` is `even` or `odd`).
        """
        attackers, own = Attackers(self.study, model), self.section.attack
        first = self.sets[0]
        mixed = partial(per_layer, first, model, draws=self.section.draws)
        crafts = {
            NO_ATTACK: attackers.no_attack(),
            Attack.of("EOT, uniform", "gradient", "per batch", own): attackers.pgd(every(first, model)),
            Attack.of("EOT, mixed", "gradient", "per layer", own): attackers.pgd_drawn(mixed),
            Attack.of("EOT, by token", "gradient", "per token", own): attackers.pgd_by_token(first, self.section.draws),
        }
        ways = answers_at(model, first) | self.finer(model, first)
        found = self.attacked("finer", model, crafts, ways, self.fewer)
        parts = [averaged(found, [p.name for p in first], "per batch").assign(drawn="per batch", half="all")]
        for kind in ("layer", "token"):
            drawn, name = [f"{kind} {i}" for i in range(self.section.draws)], f"per {kind}"
            for half, chosen in {"all": drawn, "even": drawn[::2], "odd": drawn[1::2] or drawn}.items():
                answered = name if half == "all" else f"{name}, {half}"
                parts.append(averaged(found, chosen, answered).assign(drawn=name, half=half))
        return pd.concat(parts, ignore_index=True)

    def hotflipped(self, model: SwitchableModel) -> pd.DataFrame:
        """HotFlip at 32 bits, at each precision of the first set, and in expectation over the set; answered everywhere."""
        attackers = Attackers(self.study, model)
        first = self.sets[0]
        aimed = list(dict.fromkeys((FULL_PRECISION, *first)))
        aims = {(f"HotFlip at {p.name}", p.name): static(p, model) for p in aimed}
        aims[f"HotFlip EOT {set_name(first)}", set_name(first)] = every(first, model)
        crafts = {NO_ATTACK: attackers.no_attack()}
        for (name, target), draws in aims.items():
            attack = Attack(name, "text", target, objective="cross_entropy", steps=self.section.flips, varied="method")
            crafts[attack] = attackers.flipped(draws)
        return self.attacked("hotflip", model, crafts, answers_at(model, aimed), self.fewer)

    @property
    def drawn_by_s0(self) -> Set:
        """The set that S0's layers draw from: the part of {4, 8, 32} that is in `widths`, or the first set if too little is."""
        own = tuple(p for p in reversed(self.widths) if p.name in ("4", "8", "32"))
        return own if len(own) > 1 else self.sets[0]

    def one_draw(self, model: SwitchableModel) -> pd.DataFrame:
        """S0's own protocol, on all questions: each layer draws. Each step's gradient uses one draw, the answer another.

        Returns:
            `judged`'s rows with the columns of each `Attack`, `none` or `PGD, one draw a step`; `answered` is `S0's RPI`, and so
            is the target.
        """
        attackers, drawn = Attackers(self.study, model), partial(per_layer, self.drawn_by_s0, model)
        ways = {S0_RPI: self.finer(model, self.drawn_by_s0)["layer 0"]}
        attack = Attack.of("PGD, one draw a step", "gradient", S0_RPI, self.section.attack)
        crafts = {NO_ATTACK: attackers.no_attack(), attack: attackers.pgd_drawn(drawn)}
        return self.attacked("one_draw", model, crafts, ways, self.questions)
