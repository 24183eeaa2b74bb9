"""Words of a context that an attacker may change, and the resulting question."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from qatlib.qa.squad import Question

Span = tuple[int, int]
"""Position in the context of the first character, and of the one after the last."""

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


def free_words(question: Question) -> list[Span]:
    """The words (letters only) of the context that do not overlap any given answer, in order."""
    answers = [(a.start, a.start + len(a.text)) for a in question.answers]
    words = [match.span() for match in _WORD.finditer(question.context)]
    return [(start, end) for start, end in words if not any(start < past and first < end for first, past in answers)]


def with_changes(question: Question, changes: Mapping[Span, str]) -> Question:
    """The question with some words of its context changed. The question's text stays, and answer offsets are corrected.

    Args:
        changes: new text for some of `free_words`.

    Raises:
        ValueError: a span is not in `free_words`.
    """
    if wrong := set(changes) - set(free_words(question)):
        start, end = min(wrong)
        raise ValueError(f"question {question.id}: {question.context[start:end]!r} at {start} is no word that may be changed")
    context, moved = [], []
    position = 0
    for (start, end), text in sorted(changes.items()):
        context += [question.context[position:start], text]
        moved.append((end, len(text) - (end - start)))
        position = end
    context.append(question.context[position:])
    answers = tuple(replace(a, start=a.start + sum(shift for end, shift in moved if end <= a.start)) for a in question.answers)
    return replace(question, context="".join(context), answers=answers)
