"""What the first half of notebook 3 is made of: the sweep over layers, and effects of role and depth."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property, partial

import pandas as pd

from qatlib.model import SwitchableModel
from qatlib.precision import Precision, names_by_group
from qatlib.qa.evaluate import evaluate_spans
from qatlib.qa.parts import halves, spread
from qatlib.qa.spans import Feature
from qatlib.qa.squad import Question
from qatlib.sensitivity import Reached, evaluate_changes, output_noise, sweep_block
from qatlib.studies.pieces import Piece, run
from qatlib.studies.study import Study

NOISE_WINDOWS = 16
"""Training windows that output noise is measured on."""

TIMED_BLOCKS, TIMED_QUESTIONS = 6, 16
"""Maximum number of blocks, and number of questions, for timing the sweep against whole passes for every cell."""


class Layerwise:
    """The sweep over one run's switchable model, and the starting point of searches.

    Attributes:
        seen, held_out: questions for the search, and questions for judging its result. No paragraph is in both.
    """

    def __init__(self, study: Study, model: SwitchableModel) -> None:
        self.study, self.model, self.params = study, model, study.params
        self.groups = names_by_group(model.infos)
        searched, held_out = halves(study.validation)
        self.seen = spread(searched, self.params.sensitivity.questions)
        self.held_out = spread(held_out, self.params.search.questions)

    @cached_property
    def features(self) -> list[Feature]:
        """Windows of `seen`."""
        return self.study.featurize(self.seen)

    @property
    def base(self) -> Precision:
        """The precision that the search starts from."""
        return self.params.bases[0]

    def lowered(self, base: Precision) -> pd.DataFrame:
        """Which part of a layer is lowered, and to which precision: `lowered`, `bits`, `precision`, `w_bits`, `a_bits`.

        `both` lowers weights and activations to a trained precision. Activations alone are not lowered where that precision
        leaves them unchanged.
        """
        rows = []
        for bits in self.params.lowered_to(base):
            both = self.params.at_bits(bits)
            at = {"both": both, "weights": Precision(bits, base.a_bits), "activations": Precision(base.w_bits, both.a_bits)}
            rows += [(part, bits, at[part].name, *at[part]) for part in self.params.sensitivity.lowered if at[part] != base]
        return pd.DataFrame(rows, columns=["lowered", "bits", "precision", "w_bits", "a_bits"])

    def _lowered_to(self, base: Precision) -> list[Precision]:
        """The distinct precisions of `lowered`, in its order."""
        return [Precision(*widths) for widths in self.lowered(base)[["w_bits", "a_bits"]].drop_duplicates().to_numpy().tolist()]

    def candidates(self, base: Precision) -> tuple[Precision, ...]:
        """The choices of a search from a base: the base, and every precision that lowers both weights and activations."""
        return (base, *map(self.params.at_bits, self.params.lowered_to(base)))

    # -- the sweep ------------------------------------------------------------------------------------------------

    def base_scores(self, base: Precision) -> pd.DataFrame:
        """Scores of the searched questions with every layer at the base."""
        return self.study.scores(self.model, f"all_at_{base.name}", [base], self.seen)

    def sweep(self, base: Precision) -> pd.DataFrame:
        """Every block × role alone at every precision, as changes from the base. Each block is one piece of work.

        Returns:
            One row per block, role, precision and question: `base`, `block`, `role`, `precision`, `w_bits`, `a_bits`, `lowered`
            (`both`, `weights` or `activations`), `bits`, `id`, `paragraph`, `loss_change` (nats), `f1_change`, `em_change`
            (points).
        """
        kinds, precisions = self.lowered(base), self._lowered_to(base)
        reached = Reached()

        def compute(block: int) -> pd.DataFrame:
            how = self.study.answering | {"description": f"block {block} from {base.name}", "reached": reached}
            with self.model.at(base):
                return sweep_block(self.model, self.seen, self.features, block, precisions, **how)

        blocks = range(len(self.model.blocks))
        pieces = [Piece(f"sweep_{base.name}_block_{i}", partial(compute, i), published=False) for i in blocks]
        found = pd.concat(run(pieces, self.study.stage), ignore_index=True)
        changes = against(found, self.base_scores(base)).assign(precision=found["precision"].astype(str), base=base.name)
        return changes.merge(kinds, on="precision")

    def noise(self, base: Precision) -> pd.DataFrame:
        """`output_noise` of everything the sweep lowers, with `base` and the columns of `lowered`."""
        kinds, windows = self.lowered(base), spread(self.study.train_features, NOISE_WINDOWS)
        with self.model.at(base):
            found = output_noise(self.model, windows, self._lowered_to(base))
        return found.assign(base=base.name).merge(kinds, on="precision")

    def reuse(self) -> pd.DataFrame:
        """Seconds for the same cells by the sweep and by whole passes, and whether the results are equal to the last bit.

        Returns:
            One row per block, for a few blocks from the first to the last: `block`, `cells`, `questions`, `sweep_seconds`,
            `whole_seconds`, `equal`.
        """
        questions = spread(self.seen, TIMED_QUESTIONS)
        features = self.study.featurize(questions)
        precisions = self._lowered_to(self.base)
        rows, reached = [], Reached()
        with self.model.at(self.base):
            for p in (*precisions, self.base):  # codes are computed before anything is timed
                with self.model.at(p):
                    evaluate_spans(self.model, questions[:1], self.study.featurize(questions[:1]), **self.study.answering)
            for i, block in enumerate(spread(range(len(self.model.blocks)), TIMED_BLOCKS)):
                roles = [role for at, role in self.groups if at == block]
                how = {**self.study.answering, "reached": reached}
                if block:  # the sweep's cache as it is when the sweep reaches this block
                    evaluate_changes(self.model, questions, features, block - 1, {"none": {}}, **how)
                ways = {
                    "sweep": partial(sweep_block, self.model, questions, features, block, precisions, **how),
                    "whole": partial(self._from_the_start, block, roles, precisions, questions, features),
                }
                row: dict[str, float] = {"block": block, "cells": len(roles) * len(precisions), "questions": len(questions)}
                found = {}
                for name in [*ways][:: -1 if i % 2 else 1]:  # alternate the order: the machine gets warmer
                    start = time.perf_counter()
                    found[name] = ways[name]()[["id", "em", "f1", "loss"]]
                    row[f"{name}_seconds"] = time.perf_counter() - start
                rows.append(row | {"equal": found["sweep"].equals(found["whole"])})
        return pd.DataFrame(rows)

    def _from_the_start(
        self,
        block: int,
        roles: Sequence[str],
        precisions: Sequence[Precision],
        questions: Sequence[Question],
        features: Sequence[Feature],
    ) -> pd.DataFrame:
        found = []
        for role in roles:
            for p in precisions:
                with self.model.at(dict.fromkeys(self.groups[block, role], p)):
                    found.append(evaluate_spans(self.model, questions, features, **self.study.answering))
        return pd.concat(found, ignore_index=True)


def against(found: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """Replace `loss`, `f1` and `em` by their changes from the base, question by question."""
    at_base = base.set_index("id")[["loss", "f1", "em"]].reindex(found["id"]).reset_index(drop=True)
    changes = {f"{name}_change": found[name].reset_index(drop=True) - at_base[name] for name in at_base}
    return found.reset_index(drop=True).drop(columns=["loss", "f1", "em"]).assign(**changes)
