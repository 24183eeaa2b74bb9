"""Words of a context that an attacker may change, and the question that comes of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from qatlib.qa.squad import Question

Span = tuple[int, int]
"""First and one past the last character in the context."""

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


def free_words(question: Question) -> list[Span]:
    """The words of the context, letters only, that share no character with any given answer, in order."""
    answers = [(a.start, a.start + len(a.text)) for a in question.answers]
    words = [match.span() for match in _WORD.finditer(question.context)]
    return [(start, end) for start, end in words if not any(start < past and first < end for first, past in answers)]


def with_changes(question: Question, changes: Mapping[Span, str]) -> Question:
    """The question with words of its context changed; its own text stays, and its answers stand where their text now is.

    Args:
        changes: new text of some of `free_words`.

    Raises:
        ValueError: a span that is not one of them.
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
