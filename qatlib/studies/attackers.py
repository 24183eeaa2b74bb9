"""The attackers of notebook 5 and the description of each attack. They are built from a run's params and a source of draws."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Literal

import torch

from qatlib.arguments import AttackArguments
from qatlib.attacks.defence import Draws, Set, per_token, static
from qatlib.attacks.embedding import attack_embeddings, own_seed, random_noise, random_search, vocabulary
from qatlib.attacks.judge import Craft
from qatlib.attacks.rounding import noisy_rounding
from qatlib.attacks.tokens import hotflip
from qatlib.model import SwitchableModel
from qatlib.precision import Precision
from qatlib.qa.loss import Batch
from qatlib.studies.study import Study

Randomness = Callable[[torch.Generator], AbstractContextManager[None]]
"""A generator → a context in which forward passes draw from it."""

SEARCHED = 10
"""A random search gets this many times the attack's passes. It should still not win."""

Family = Literal["none", "noise", "gradient", "search", "text", "worst"]
"""What an attack does: nothing; a random change; follow a gradient over embeddings; search without a gradient; change
tokens, words or letters. `worst` is not a separate attack: for each question it is the worst of several."""

Varied = Literal["nothing", "method", "one step", "epsilon", "steps", "restarts", "objective", "norm", "arithmetic"]


@dataclass(frozen=True)
class Attack:
    """Description of an attack. Every row of scores under attack has it in columns, so no reader has to parse a name."""

    name: str
    """Name for display only; the column `attack`."""
    family: Family
    target: str = "none"
    """What it was made against: a precision, a set such as `{4, 8}`, or a way of drawing precisions."""
    epsilon: float = 0.0
    """Radius in units of the mean norm of the token embeddings; 0 for an attack without a radius."""
    objective: str = "none"
    """The loss that it raises."""
    steps: int = 0
    """Number of gradient steps, or the maximum number of tokens or words changed."""
    varied: Varied = "nothing"
    """How it differs from the params' own attack: `one step` is FGSM, `method` is another kind of attack."""

    @classmethod
    def of(cls, name: str, family: Family, target: str, arguments: AttackArguments, varied: Varied = "nothing") -> Attack:
        """An attack on embeddings with these arguments."""
        return cls(name, family, target, arguments.epsilon, arguments.loss, arguments.steps, varied)

    @property
    def columns(self) -> dict[str, str | float]:
        """Values by column name: `attack`, and the columns of `ABOUT`."""
        values = asdict(self)
        return {"attack": values.pop("name"), **values}


ABOUT = tuple(field.name for field in fields(Attack) if field.name != "name")
"""The columns that describe an attack, without its name."""

NO_ATTACK = Attack("none", "none")


class Attackers:
    """All attackers of one model.

    Attributes:
        attack: the params' own attack.
        seed: seed of all draws.
    """

    def __init__(self, study: Study, model: SwitchableModel) -> None:
        self.study, self.model = study, model
        self.attack, self.seed = study.params.adversarial.attack, study.params.seed

    def pgd(self, draws: Draws, attack: AttackArguments | None = None) -> Craft:
        """PGD on the mean loss over the drawn configurations."""
        return lambda batch: attack_embeddings(self.model, batch, attack or self.attack, draws, self.seed)[0]

    def pgd_drawn(self, drawn: Callable[[int], Draws]) -> Craft:
        """PGD on random draws: new for every batch and step, the same in every run.

        Args:
            drawn: a seed → draws.
        """
        return lambda batch: self.pgd(drawn(own_seed(batch, self.seed, "layers that the attacker draws")))(batch)

    def pgd_noisy(self, precision: Precision, draws: int) -> Craft:
        """PGD on the mean loss over `draws` draws of noisy rounding at one precision."""
        return self._pgd_within(partial(noisy_rounding, self.model), precision, draws, "rounding that the attacker draws")

    def pgd_by_token(self, precisions: Set, draws: int) -> Craft:
        """PGD on the mean loss over `draws` draws per step of a precision for every token; this overrides the layers' own."""
        return self._pgd_within(
            partial(per_token, precisions, self.model), precisions[0], draws, "tokens that the attacker draws"
        )

    def _pgd_within(self, randomly: Randomness, precision: Precision, draws: int, name: str) -> Craft:
        repeated = [*static(precision, self.model)(0)] * draws

        def craft(batch: Batch) -> torch.Tensor:
            with randomly(generator(batch, self.seed, name)):
                return self.pgd(lambda query: repeated)(batch)

        return craft

    def in_fp32(self, craft: Craft) -> Craft:
        """The same attack in fp32, without the params' mixed precision."""

        def crafted(batch: Batch) -> torch.Tensor:
            with torch.autocast(batch.input_ids.device.type, enabled=False):
                return craft(batch)

        return crafted

    def searched(self, draws: Draws) -> Craft:
        """Random search with `SEARCHED` times as many passes as PGD."""
        long = replace(self.attack, restarts=SEARCHED * self.attack.restarts)
        return lambda batch: random_search(self.model, batch, long, draws, self.seed)[0]

    def noise(self) -> Craft:
        """A random point on the border of the attack's ball."""
        return lambda batch: random_noise(self.model, batch, self.attack, self.seed)

    def flipped(self, draws: Draws) -> Craft:
        """HotFlip over all tokens except special ones."""
        allowed = torch.ones_like(vocabulary(self.model), dtype=torch.bool)
        allowed[self.study.tokenizer.all_special_ids] = False

        def craft(batch: Batch) -> torch.Tensor:
            with torch.no_grad():
                return self.model.embed(hotflip(self.model, batch, self.study.params.adversarial.flips, draws, allowed)[0])

        return craft

    def no_attack(self) -> Craft:
        """The clean input."""
        return lambda batch: self.model.embed(batch.input_ids).detach()


def generator(batch: Batch, seed: int, name: str, *of: int | str) -> torch.Generator:
    """The generator of one named use of chance for a batch; `of` distinguishes its draws."""
    return torch.Generator().manual_seed(own_seed(batch, seed, name, *of))
