"""The questions of a run: both parts loaded, checked against one another and sampled, and the groups that studies ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from qatlib.qa import toyqa
from qatlib.qa.formats import DataError
from qatlib.qa.squad import Loaded, Question, Unanswerable, load, sample

T = TypeVar("T")

Source = str | tuple[str, ...]
"""`embedded`, or what `load` takes."""


class Asked(Protocol):
    """What a run's params say of its questions; `qatlib.params.sections` has the meanings."""

    train: Source
    validation: Source
    train_questions: int | None
    validation_questions: int | None
    unanswerable: Unanswerable


class Parts(NamedTuple):
    """The questions of both parts, and for each part the number of unanswerable ones that were left out."""

    train: list[Question]
    validation: list[Question]
    skipped: dict[str, int]


def load_parts(data: Asked, seed: int) -> Parts:
    """The questions for training and for validation, of each part as many as the params ask for, drawn with `seed`.

    Raises:
        DataError: a source cannot be used, or a validation question is a training question too.
    """
    train, validation = (
        _loaded(source, part, n, seed, data.unanswerable)
        for source, part, n in (
            (data.train, "train", data.train_questions),
            (data.validation, "validation", data.validation_questions),
        )
    )
    check_apart(train.questions, validation.questions, "data.validation")
    parts = sample(train.questions, data.train_questions, seed), sample(validation.questions, data.validation_questions, seed)
    return Parts(*parts, {"train": train.skipped, "validation": validation.skipped})


def load_shifted(source: Source, n: int, seed: int, unanswerable: Unanswerable) -> Loaded:
    """Questions from another source, at most `n`, spread evenly over all of them. Raises DataError."""
    found = _loaded(source, "shifted", n, seed, unanswerable)  # embedded: not the questions of training and validation
    return Loaded(spread(found.questions, n), found.skipped)


def _loaded(source: Source, part: str, n: int | None, seed: int, unanswerable: Unanswerable) -> Loaded:
    if source == "embedded":
        assert n is not None  # the params' check
        return Loaded(toyqa.generate(n, seed, part), 0)
    return load(source, "train" if part == "train" else "validation", unanswerable)


def check_apart(train: Sequence[Question], other: Sequence[Question], key: str) -> None:
    """Raise a DataError if a question of `other`, which `key` names, is a training question by context and text."""
    trained = {(q.context, q.question) for q in train}
    if shared := [q.id for q in other if (q.context, q.question) in trained]:
        raise DataError(
            f"{key}: {len(shared):,} of {len(other):,} questions are training questions too, such as '{shared[0]}'; "
            f"allowed are questions that are not in data.train."
        )


def spread(items: Sequence[T], n: int | None) -> list[T]:
    """`n` items at equal distances (all if there are no more). Neighbours in SQuAD's files come from the same article."""
    if n is None or n >= len(items):
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, n).astype(int)]


def aside(questions: Sequence[Question], n: int) -> tuple[list[Question], list[Question]]:
    """Two parts without a common paragraph: about `n` questions, of paragraphs spread evenly over all, and the others.

    Raises:
        DataError: there are not twice as many questions, or all are of one paragraph.
    """
    paragraphs = list(dict.fromkeys(q.paragraph for q in questions))
    if 2 * n > len(questions) or len(paragraphs) < 2:
        allowed = f"allowed are at most {len(questions) // 2:,}, half of them, of two paragraphs at least"
        raise DataError(f"{n:,} of {len(questions):,} training questions can't be held aside; {allowed}")
    share = max(1, round(len(paragraphs) * n / len(questions)))
    held = set(spread(paragraphs, share))
    return [q for q in questions if q.paragraph in held], [q for q in questions if q.paragraph not in held]


def halves(questions: Sequence[Question]) -> tuple[list[Question], list[Question]]:
    """The questions of every other paragraph, and those of the paragraphs between. A search sees only the first half."""
    first = set(list(dict.fromkeys(q.paragraph for q in questions))[::2])
    return [q for q in questions if q.paragraph in first], [q for q in questions if q.paragraph not in first]
