"""Everything that any stage will read, read once before the first stage runs: what cannot be used costs no computed result."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec

from qatlib.params.schema import Params
from qatlib.params.yaml import ParamsError
from qatlib.qa.formats import DataError
from qatlib.qa.parts import check_apart, halves, load_parts, load_shifted, spread
from qatlib.qa.squad import Question


def check_inputs(params: Params) -> None:
    """Read the questions and load the sources of words that the params name. Prints how many questions are left out.

    Raises:
        DataError: a source of questions or of words cannot be used; a question is trained on and scored; or the questions of
            some interval are about fewer than two paragraphs.
        ParamsError: the masked language model cannot be used, or a tracker is not installed.
    """
    parts = load_parts(params.data, params.seed)
    groups, skipped = dict(_groups(params, parts.validation)), {f"data.{part}": n for part, n in parts.skipped.items()}
    if source := params.adversarial.shifted:
        shifted = load_shifted(source, params.adversarial.questions, params.seed, params.data.unanswerable)
        check_apart(parts.train, shifted.questions, "adversarial.shifted")
        groups["adversarial.shifted"], skipped["adversarial.shifted"] = shifted
    for key, questions in groups.items():
        if (paragraphs := len({q.context for q in questions})) < 2:
            raise DataError(
                f"{key}: its {len(questions)} questions are about {paragraphs} paragraph{'s' * (paragraphs != 1)}; an interval "
                f"needs at least two, so allowed are more questions or data with more paragraphs."
            )
    for key, n in skipped.items():
        if n:
            print(f"{key}: {n:,} questions without an answer are left out", file=sys.stderr, flush=True)
    if (words := params.adversarial.words) and words.candidates != "vocabulary":
        # imported here, because they import torch
        from qatlib.attacks.candidates import named
        from qatlib.pretrained import ModelError

        try:
            named(words.candidates, words.count, params.seed)
        except ModelError as error:
            raise ParamsError(str(error)) from error
    if missing := [name for name in params.compute.trackers if find_spec(name) is None]:
        raise ParamsError(f"compute.trackers names {missing[0]}, which is not installed; pip install 'qatlib[{missing[0]}]'")


def _groups(params: Params, validation: list[Question]) -> Iterator[tuple[str, list[Question]]]:
    """The questions of every interval, by the key that sets their number."""
    attacks, (searched, held_out) = params.adversarial, halves(validation)
    yield "data.validation", validation
    yield "sensitivity.questions", spread(searched, params.sensitivity.questions)
    yield "search.questions", spread(held_out, params.search.questions)
    yield "adversarial.fewer_questions", spread(spread(validation, attacks.questions), attacks.fewer_questions)
    sections = {
        "post_training.comparison": params.post_training.comparison,
        "comparisons": params.comparisons,
        "configurations": params.configurations,
        "deployment": params.deployment,
        "generative": params.generative,
        "cpt": params.cpt,
        "cpt.sharpness": params.cpt.sharpness,
        "adversarial": attacks,
        "adversarial.words": attacks.words,
    }
    yield from ((f"{key}.questions", spread(validation, section.questions)) for key, section in sections.items() if section)
