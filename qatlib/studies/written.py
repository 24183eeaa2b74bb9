"""Answers that the language model writes after a prompt, instead of marking them in the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from qatlib.model import SwitchableModel
from qatlib.precision import Precision
from qatlib.qa.generate import evaluate_answers
from qatlib.qa.parts import spread
from qatlib.studies.pieces import at_each
from qatlib.studies.study import Study


def written_answers(
    study: Study, model: SwitchableModel, label: str, at: Sequence[Precision] | Mapping[str, Any]
) -> pd.DataFrame:
    """Scores of greedy answers to prompts, in the columns of `Study.scores`. The params must have a `generative` section."""
    params = study.params
    assert params.generative is not None
    asked, questions = params.generative, spread(study.validation, params.generative.questions)

    def measure(name: str) -> pd.DataFrame:
        frame = evaluate_answers(
            model,
            study.tokenizer,
            questions,
            pad_id=study.pad_id,
            max_length=params.data.max_length,
            batch_size=params.evaluation.batch_size,
            max_answer_tokens=asked.max_answer_tokens,
            description=f"answers of {label} at {name}",
        )
        return frame.drop(columns="prediction")

    return at_each(study.stage, model, "answers", label, params.seed, at, measure)
