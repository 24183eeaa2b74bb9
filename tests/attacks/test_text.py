"""Every adversarial text differs from the original only where that is allowed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatlib import toyqa
from qatlib.attacks.characters import HOMOGLYPHS, KINDS, NEIGHBOURS, character_noise
from qatlib.attacks.text import free_words, with_changes
from qatlib.squad import Answer, Question

QUESTIONS = toyqa.generate(40, 1)
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


@given(st.sampled_from(QUESTIONS), st.floats(0, 1), st.integers(0, 99), st.lists(st.sampled_from(KINDS), min_size=1, unique=True))
def test_character_noise_changes_one_letter_of_a_free_word_or_swaps_two(question, rate, seed, kinds):
    after = character_noise(question, rate, seed, tuple(kinds))
    unchanged_where_it_must_be(question, after)
    assert len(after.context) == len(question.context)
    differing = [i for i, (a, b) in enumerate(zip(question.context, after.context, strict=True)) if a != b]
    by_word = {(s, e): [i for i in differing if s <= i < e] for s, e in free_words(question)}
    assert sum(map(len, by_word.values())) == len(differing)
    for (start, _), places in by_word.items():
        assert start not in places and len(places) <= 2
        if len(places) == 2:
            assert "swap" in kinds and places[1] == places[0] + 1
    assert character_noise(question, rate, seed, tuple(kinds)) == after


def test_all_words_long_enough_are_changed_at_a_rate_of_1_and_none_at_0():
    question = QUESTIONS[0]
    after = character_noise(question, 1.0, 0)
    changed = [question.context[s:e] for s, e in free_words(question) if question.context[s:e] != after.context[s:e]]
    assert changed == [question.context[s:e] for s, e in free_words(question) if e - s >= 4]
    assert character_noise(question, 0.0, 0) == question


def test_keys_are_neighbours_both_ways_and_look_alikes_are_other_letters():
    assert set(NEIGHBOURS["s"]) == set("awedxz") and set(NEIGHBOURS["q"]) == set("wa")
    assert all(a in NEIGHBOURS[b] for a, others in NEIGHBOURS.items() for b in others)
    assert all(ord(other) > 127 for other in HOMOGLYPHS.values())
