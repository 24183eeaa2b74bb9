"""Both parts of a run's questions: apart, sampled, and the groups that studies ask."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qatlib.qa.formats import DataError
from qatlib.qa.parts import aside, check_apart, halves, load_parts, load_shifted, spread
from qatlib.qa.squad import write_squad
from qatlib.qa.toyqa import generate


def asked(train: Any, validation: Any, n: int | None = None) -> SimpleNamespace:
    counts = {"train_questions": n, "validation_questions": n}
    return SimpleNamespace(train=train, validation=validation, unanswerable="refuse", **counts)


def test_spread_takes_first_last_and_even_steps_between():
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread("abc", None) == spread("abc", 5) == list("abc")


def test_embedded_parts_are_generated(embedded):
    parts = load_parts(asked("embedded", "embedded", 40), seed=3)
    assert parts.train == embedded[:40] and parts.validation == generate(40, 3, "validation")
    assert parts.skipped == {"train": 0, "validation": 0}
    assert load_shifted("embedded", 20, 3, "refuse").questions == generate(20, 3, "shifted")


def test_training_questions_are_found_again_under_any_name_id_and_order(embedded, tmp_path: Path, make_question):
    write_squad(embedded[:20], tmp_path / "train.json")
    again = [make_question(q.context, q.answers[0].text, q.question, id=f"other {i}") for i, q in enumerate(embedded[19:30])]
    write_squad(again[::-1], tmp_path / "dev.json.gz")
    with pytest.raises(DataError, match=r"data.validation: 1 of 11 questions are training questions too, such as 'other 0'"):
        load_parts(asked((str(tmp_path / "train.json"),), (str(tmp_path / "dev.json.gz"),), 10), seed=0)
    check_apart(embedded[:20], embedded[20:], "data.validation")


def test_a_file_gives_as_many_questions_as_asked_for(embedded, tmp_path: Path):
    write_squad(embedded[:100], tmp_path / "train.json")
    write_squad(embedded[100:], tmp_path / "dev.json")
    parts = load_parts(asked((str(tmp_path / "train.json"),), (str(tmp_path / "dev.json"),), 30), seed=0)
    assert len(parts.train) == len(parts.validation) == 30
    assert load_shifted((str(tmp_path / "dev.json"),), 5, 0, "refuse").questions == spread(embedded[100:], 5)


def test_halves_have_no_paragraph_in_common(embedded):
    first, second = halves(embedded)
    assert sorted([*first, *second], key=embedded.index) == embedded
    assert not {q.paragraph for q in first} & {q.paragraph for q in second}
    assert first[0] == embedded[0]


def test_what_is_held_aside_shares_no_paragraph_and_is_about_as_much_as_asked(embedded):
    held, rest = aside(embedded, 60)
    assert sorted([*held, *rest], key=embedded.index) == embedded
    assert not {q.paragraph for q in held} & {q.paragraph for q in rest}
    assert len(held) == pytest.approx(60, abs=12)
    assert held[0] in embedded[:12] and held[-1] in embedded[-12:]  # from all over


def test_no_more_than_half_is_held_aside(embedded):
    with pytest.raises(DataError, match=r"7 of 12 training questions can't be held aside; allowed are at most 6, half of them"):
        aside(embedded[:12], 7)
