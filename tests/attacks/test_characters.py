"""Character noise changes a letter of some words, and nothing that must stay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qatlib.attacks.characters import HOMOGLYPHS, KINDS, NEIGHBOURS, character_noise
from qatlib.attacks.text import free_words
from qatlib.qa import toyqa
from tests.attacks.test_text import unchanged_where_it_must_be

QUESTIONS = toyqa.generate(40, 1)


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
