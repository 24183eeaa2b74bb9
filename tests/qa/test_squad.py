import gzip
import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.text import squad as torchmetrics_squad

from qatlib.qa import squad
from qatlib.qa.squad import Answer, DataError, Question


def layout(**changes) -> dict:
    """A one-question file in SQuAD's layout, with some keys of the question replaced (None: left out)."""
    qa = {"id": "q1", "question": "Who?", "answers": [{"text": "Anna", "answer_start": 0}]} | changes
    qas = [{key: value for key, value in qa.items() if value is not None}]
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": "Anna sang.", "qas": qas}]}]}


# ---------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("name", ["data.json", "data.json.gz"])
def test_write_then_read_gives_the_same_questions_and_the_same_bytes(embedded, tmp_path, name):
    squad.write_squad(embedded, tmp_path / name)
    first = (tmp_path / name).read_bytes()
    squad.write_squad(embedded, tmp_path / name)
    assert (tmp_path / name).read_bytes() == first
    assert (first[:2] == b"\x1f\x8b") == name.endswith(".gz")
    assert squad.read_squad(tmp_path / name) == embedded
    assert [path.name for path in tmp_path.iterdir()] == [name]


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@st.composite
def question_lists(draw) -> list[Question]:
    questions = []
    for i in range(draw(st.integers(1, 4))):
        context = "x" + draw(texts)
        start = draw(st.integers(0, len(context) - 1))
        answers = {Answer(context[:1], 0), Answer("x", 0)}
        if context[start:].strip():
            answers.add(Answer(context[start:], start))
        title = draw(st.sampled_from(["a", "b"]))
        questions.append(Question(str(i), title, context, draw(texts), tuple(sorted(answers, key=repr))))
    return questions


@given(question_lists())
@settings(max_examples=50)
def test_any_text_survives_writing_and_reading(tmp_path_factory, questions):
    path = tmp_path_factory.mktemp("any") / "data.json"
    squad.write_squad(questions, path)
    assert squad.read_squad(path) == questions


def test_several_files_are_read_in_order(embedded, tmp_path):
    squad.write_squad(embedded[:100], tmp_path / "one.json")
    squad.write_squad(embedded[100:], tmp_path / "two.json.gz")
    assert squad.read_squad([tmp_path / "one.json", tmp_path / "two.json.gz"]) == embedded
    assert squad.load_questions([str(tmp_path / "one.json")], split="train") == embedded[:100]


def test_the_paragraph_names_the_context(make_question):
    one, other = make_question("Anna sang.", "Anna"), make_question("Boris sang.", "Boris")
    assert one.paragraph == make_question("Anna sang.", "sang", id="q2").paragraph != other.paragraph
    assert len(one.paragraph) == 12 and int(one.paragraph, 16) >= 0


MALFORMED = {
    "not JSON": (b"{", "not JSON"),
    "not UTF-8": (b"\xff\xfe\xff", "not JSON"),
    "a list of nothing": ([], "there are no questions"),
    "a list of lists": ([[]], "row 0: the key 'title' is missing"),
    "no data": ({"version": "1.1"}, "'data' is missing"),
    "data of the wrong type": ({"data": {}}, "'data' is a dict, but must be a list"),
    "no title": ({"data": [{"paragraphs": []}]}, "data[0]: the key 'title' is missing"),
    "no paragraphs": ({"data": [{"title": "t"}]}, "data[0]: the key 'paragraphs' is missing"),
    "no context": ({"data": [{"title": "t", "paragraphs": [{}]}]}, "data[0].paragraphs[0]: the key 'context' is"),
    "no qas": ({"data": [{"title": "t", "paragraphs": [{"context": ""}]}]}, "the key 'qas' is missing"),
    "no id": (layout(id=None), "data[0].paragraphs[0].qas[0]: the key 'id' is missing"),
    "no question": (layout(question=None), "question 'q1': the key 'question' is missing"),
    "no key answers": (layout(answers=None), "question 'q1': the key 'answers' is missing"),
    "no answers": (layout(answers=[]), "question 'q1': there is no answer"),
    "no text": (layout(answers=[{"answer_start": 0}]), "question 'q1': the key 'text' is missing"),
    "no offset": (layout(answers=[{"text": "Anna"}]), "question 'q1': the key 'answer_start' is missing"),
    "offset of the wrong type": (layout(answers=[{"text": "Anna", "answer_start": True}]), "must be a int"),
    "wrong offset": (layout(answers=[{"text": "Anna", "answer_start": 1}]), "'Anna' is not at its offset 1"),
    "negative offset": (layout(answers=[{"text": "g", "answer_start": -2}]), "'g' is not at its offset -2"),
    "empty answer": (layout(answers=[{"text": " ", "answer_start": 4}]), "question 'q1': an answer is empty"),
    "half a surrogate": (layout(question="\ud800"), "question 'q1': half a surrogate"),
    "empty": ({"data": []}, "there are no questions"),
}


@pytest.mark.parametrize("content, message", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("suffix", ["json", "json.gz"])
def test_a_malformed_file_is_one_sentence_naming_it(tmp_path, content, message, suffix):
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    path = tmp_path / f"data.{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix == "json.gz" else raw)
    with pytest.raises(DataError) as raised:
        squad.read_squad(path)
    assert str(path) in str(raised.value) and message in str(raised.value)
    assert str(raised.value).endswith(".") and "\n" not in str(raised.value)


@given(st.data())
@settings(max_examples=40)
def test_a_gzip_file_cut_anywhere_is_refused(tmp_path_factory, make_question, data):
    path = tmp_path_factory.mktemp("cut") / "data.json.gz"
    squad.write_squad([make_question("Anna sang.", "Anna")], path)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(DataError, match=r"data\.json\.gz: .*(damaged or cut short|not JSON)"):
        squad.read_squad(path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="missing.json: the file does not exist"):
        squad.read_squad(tmp_path / "missing.json")
    with pytest.raises(DataError, match="the file cannot be read"):
        squad.read_squad(tmp_path)
    with pytest.raises(DataError, match="the list of files: there are no questions"):
        squad.read_squad([])
    (tmp_path / "plain.json.gz").write_text(json.dumps(layout()))
    with pytest.raises(DataError, match="damaged or cut short"):
        squad.read_squad(tmp_path / "plain.json.gz")


def test_an_id_used_twice_is_refused_and_both_files_are_named(tmp_path, make_question):
    for name in ("one.json", "two.json"):
        squad.write_squad([make_question("Anna sang.", "Anna")], tmp_path / name)
    with pytest.raises(DataError, match=r"two\.json, question 'q1': the id was already used in .*one\.json"):
        squad.read_squad([tmp_path / "one.json", tmp_path / "two.json"])


# ------------------------------------------------------------------------------------------ the hub's layout, sampling


def rows(questions: list[Question]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": q.id,
            "title": q.title,
            "context": q.context,
            "question": q.question,
            "answers": {"text": [a.text for a in q.answers], "answer_start": [a.start for a in q.answers]},
        }
        for q in questions
    )


@pytest.fixture
def hub_dir(tmp_path, monkeypatch, embedded) -> Path:
    """A local copy of a data set in the layout of the hub's `rajpurkar/squad`; nothing may ask the network."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    directory = tmp_path / "squad"
    (directory / "plain_text").mkdir(parents=True)
    for split, part in (("train", embedded[:200]), ("validation", embedded[200:])):
        rows(part).to_parquet(directory / f"plain_text/{split}-00000-of-00001.parquet")
    return directory


def test_a_directory_in_the_hubs_layout_gives_the_same_questions(hub_dir, embedded):
    assert squad.load_questions(f"dir:{hub_dir}", "train") == embedded[:200]
    assert squad.load_questions(f"dir:{hub_dir}", "validation[:7]") == embedded[200:207]


def test_rows_are_checked_like_files(hub_dir, make_question):
    wrong = rows([make_question("Anna sang.", "Anna")])
    wrong["context"] = "Boris sang."
    for name, frame, message in [
        ("train", wrong, "question 'q1': the answer 'Anna' is not at its offset 0"),
        ("validation", wrong.drop(columns="answers"), "question 'q1': the key 'answers' is missing"),
    ]:
        frame.to_parquet(hub_dir / f"plain_text/{name}-00000-of-00001.parquet")
        (hub_dir / "plain_text" / f"{'validation' if name == 'train' else 'train'}-00000-of-00001.parquet").unlink()
        with pytest.raises(DataError) as raised:
            squad.load_questions(f"dir:{hub_dir}", name)
        assert message in str(raised.value) and str(hub_dir) in str(raised.value)


def test_a_source_that_cannot_be_loaded_is_refused(hub_dir, tmp_path):
    with pytest.raises(DataError, match="split 'test': the data set cannot be loaded"):
        squad.load_questions(f"dir:{hub_dir}", "test")
    with pytest.raises(DataError, match="hub:rajpurkar/squad, split 'train': the data set cannot be loaded"):
        squad.load_questions("hub:rajpurkar/squad", "train")
    with pytest.raises(DataError, match="the directory does not exist"):
        squad.load_questions(f"dir:{tmp_path}/nowhere", "train")
    for source in ("embedded", "hub:", "train.json"):
        with pytest.raises(DataError, match=f"data source '{source}': not known; allowed are"):
            squad.load_questions(source, "train")


def test_a_sample_keeps_the_order_and_follows_its_seed(embedded):
    some = squad.sample(embedded, 50, seed=0)
    assert len(some) == 50 and some == sorted(some, key=embedded.index)
    assert some == squad.sample(embedded, 50, seed=0) != squad.sample(embedded, 50, seed=1)
    assert squad.sample(embedded, None, 0) == squad.sample(embedded, 10**6, 0) == embedded


# ------------------------------------------------------------------------------------------------------------- scores


def perturbed(questions: list[Question]) -> list[str]:
    """A prediction each: the answer as it is, or with a word dropped, an article, punctuation, or another's answer."""
    rng = random.Random(0)
    predictions = []
    for question in questions:
        text = rng.choice(question.answers).text
        words = text.split()
        dropped = words[:]
        del dropped[rng.randrange(len(words))]
        other = rng.choice(questions).answers[0].text
        predictions.append(rng.choice([text, " ".join(dropped), f"The {text}", f"{text.upper()}, an!", f"{text} {text}", other]))
    return predictions


def check_against_torchmetrics(questions: list[Question]) -> None:
    """Means of 100 questions each: torchmetrics adds up in float32, which is off by 1e-3 over all of the dev set."""
    pairs = list(zip(questions, perturbed(questions), strict=True))
    ours, theirs = [], []
    for first in range(0, len(pairs), 100):
        part = pairs[first : first + 100]
        reference = torchmetrics_squad(
            [{"prediction_text": text, "id": q.id} for q, text in part],
            # Every distinct answer once: a repeated one changes no maximum, but is half of torchmetrics' time.
            [{"answers": {"text": list(dict.fromkeys(a.text for a in q.answers))}, "id": q.id} for q, _ in part],
        )
        theirs.append([float(reference[name]) for name in ("exact_match", "f1")])
        ours.append([np.mean([100 * score(text, q.answers) for q, text in part]) for score in (squad.exact_match, squad.f1)])
    em, f1 = np.mean(theirs, axis=0)
    assert 20 < em < f1 < 95  # neither all right nor all wrong: a half of them are, and F1 is 71
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)  # 100 float32 sums up to 100: 100 * 100 * 2^-24 at worst


def test_scores_are_torchmetrics_on_the_embedded_data(embedded):
    check_against_torchmetrics(embedded)


def test_scores_are_torchmetrics_on_the_whole_real_dev_set(real):
    assert len(real) == 10_570
    check_against_torchmetrics(real)


@pytest.mark.parametrize(
    "prediction, answer, em, f1",
    [
        ("The  U.S.A.!", "usa", 1, 1),
        ("theory of the atom", "Theory of Atom", 1, 1),
        ("New York", "York", 0, 2 / 3),
        ("York York", "New York", 0, 1 / 2),
        ("", "Anna", 0, 0),
        ("the", "a", 1, 0),  # nothing is left of either: the official script, too, finds no shared token
    ],
)
def test_scores_by_hand(prediction, answer, em, f1):
    answers = [Answer("nothing like it", 0), Answer(answer, 0)]
    assert squad.exact_match(prediction, answers) == em
    assert squad.f1(prediction, answers) == pytest.approx(f1)
