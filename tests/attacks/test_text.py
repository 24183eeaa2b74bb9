"""Every adversarial text differs from the original only where that is allowed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatlib.attacks.text import free_words, with_changes
from qatlib.qa.squad import Answer, Question

WORDS = st.text("abcde ', .é", max_size=8)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """Any context with any answers in it, overlapping ones too."""
    context = draw(st.text("ab c,.'-é9", min_size=1, max_size=60))
    spans = draw(st.lists(st.tuples(st.integers(0, len(context) - 1), st.integers(1, 12)), min_size=1, max_size=3))
    answers = tuple(Answer(context[start : start + length], start) for start, length in spans)
    return Question("q", "t", context, "who a b?", answers)


def unchanged_where_it_must_be(before: Question, after: Question) -> None:
    assert (after.id, after.title, after.question) == (before.id, before.title, before.question)
    for a, b in zip(before.answers, after.answers, strict=True):
        assert a.text == b.text == after.context[b.start : b.start + len(b.text)]


@given(questions(), st.data())
def test_changes_stay_out_of_the_question_and_of_every_answer(question, data):
    words = free_words(question)
    for start, end in words:
        assert not any(c.isspace() or c.isdigit() for c in question.context[start:end])
    chosen = data.draw(st.lists(st.sampled_from(words), unique=True)) if words else []
    changes = {span: data.draw(WORDS) for span in chosen}
    after = with_changes(question, changes)
    unchanged_where_it_must_be(question, after)
    rest, position = [], 0
    for start, end in sorted(changes):  # what stands between the changes is as it was
        rest.append(question.context[position:start])
        position = end
    rest.append(question.context[position:])
    found = 0
    for i, part in enumerate(rest):
        assert after.context[found : found + len(part)] == part
        found += len(part) + (len(changes[sorted(changes)[i]]) if i < len(changes) else 0)
    assert found == len(after.context)


@given(questions())
def test_no_change_is_no_change(question):
    assert with_changes(question, {}) == question


def test_a_word_of_an_answer_is_refused():
    question = Question("q", "t", "the old king", "who?", (Answer("old", 4),))
    with pytest.raises(ValueError, match="question q: 'old' at 4 is no word that may be changed"):
        with_changes(question, {(4, 7): "new"})
