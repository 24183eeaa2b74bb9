import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.text import squad as torchmetrics_squad

from qatlib import squad, toyqa
from qatlib.squad import Answer, DataError, Question

REAL = Path(__file__).parents[2] / "shared/assets/squad/dev-v1.1.json.gz"


@pytest.fixture(scope="module")
def embedded() -> list[Question]:
    return toyqa.generate(300, seed=3)


@pytest.fixture(scope="module")
def real() -> list[Question]:
    if not REAL.exists():
        pytest.skip(f"the real data is not at {REAL}")
    return squad.read_squad(REAL)


@pytest.fixture(scope="module")
def word_tokenizer():
    return toyqa.build_tokenizer()


def make(context: str, answer: str, question: str = "Who?", id: str = "q1") -> Question:
    return Question(id, "title", context, question, (Answer(answer, context.index(answer)),))


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
@settings(max_examples=50, deadline=None)
def test_any_text_survives_writing_and_reading(tmp_path_factory, questions):
    path = tmp_path_factory.mktemp("any") / "data.json"
    squad.write_squad(questions, path)
    assert squad.read_squad(path) == questions


def test_several_files_are_read_in_order(embedded, tmp_path):
    squad.write_squad(embedded[:100], tmp_path / "one.json")
    squad.write_squad(embedded[100:], tmp_path / "two.json.gz")
    assert squad.read_squad([tmp_path / "one.json", tmp_path / "two.json.gz"]) == embedded
    assert squad.load_questions([str(tmp_path / "one.json")], split="train") == embedded[:100]


def test_the_paragraph_names_the_context():
    one, other = make("Anna sang.", "Anna"), make("Boris sang.", "Boris")
    assert one.paragraph == make("Anna sang.", "sang", id="q2").paragraph != other.paragraph
    assert len(one.paragraph) == 12 and int(one.paragraph, 16) >= 0


MALFORMED = {
    "not JSON": (b"{", "not JSON"),
    "not UTF-8": (b"\xff\xfe\xff", "not JSON"),
    "a list": ([], "'data' is missing"),
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
@settings(max_examples=40, deadline=None)
def test_a_gzip_file_cut_anywhere_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut") / "data.json.gz"
    squad.write_squad([make("Anna sang.", "Anna")], path)
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


def test_an_id_used_twice_is_refused_and_both_files_are_named(tmp_path):
    for name in ("one.json", "two.json"):
        squad.write_squad([make("Anna sang.", "Anna")], tmp_path / name)
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


def test_rows_are_checked_like_files(hub_dir):
    wrong = rows([make("Anna sang.", "Anna")])
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


# --------------------------------------------------------------------------------------------------- tokens and spans


def decode_the_truth(questions, features) -> Iterator[tuple[Question, str]]:
    """Each question with what `best_spans` reads from logits that are 1 at the true start and end, 0 elsewhere."""
    starts = [torch.zeros(len(f.input_ids)) for f in features]
    ends = [torch.zeros(len(f.input_ids)) for f in features]
    longest = max(feature.end - feature.start + 1 for feature in features)
    for feature, start, end in zip(features, starts, ends, strict=True):
        if feature.start >= 0:
            start[feature.start] = end[feature.end] = 1
    for question, (first, past) in zip(questions, squad.best_spans(features, starts, ends, len(questions), longest), strict=True):
        yield question, question.context[first:past]


def check_features(questions, features, tokenizer, max_length: int, stride: int) -> None:
    by_question: dict[int, list[squad.Feature]] = {}
    for feature in features:
        by_question.setdefault(feature.question, []).append(feature)
        assert len(feature.input_ids) <= max_length
        assert feature.context_start + len(feature.offsets) == len(feature.input_ids)
        assert feature.context_start <= feature.start <= feature.end or feature.start == feature.end == -1
    assert list(by_question) == list(range(len(questions)))
    for index, windows in by_question.items():
        # Joined without their overlaps, the windows are the context's tokens.
        ids: list[int] = []
        for number, window in enumerate(windows):
            ids += window.input_ids[window.context_start + (stride if number else 0) :]
            assert number == 0 or len(window.offsets) > stride
        assert ids == tokenizer(questions[index].context, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("max_length, stride", [(128, 32), (60, 20), (40, 0)])
@pytest.mark.parametrize("name", ["word_tokenizer", "byte_level_tokenizer"])
def test_embedded_answers_survive_tokens_and_decoding(request, embedded, name, max_length, stride):
    tokenizer = request.getfixturevalue(name)
    features = squad.featurize(embedded, tokenizer, max_length, stride)
    check_features(embedded, features, tokenizer, max_length, stride)
    held = {feature.question for feature in features if feature.start >= 0}
    decoded = list(decode_the_truth(embedded, features))
    assert len(held) > 0.5 * len(embedded)  # a narrow window may cut an answer in two
    assert all(decoded[index][1] == embedded[index].answers[0].text for index in held)


def test_real_answers_survive_tokens_and_decoding(real, byte_level_tokenizer):
    questions = squad.sample(real, 400, seed=0)
    features = squad.featurize(questions, byte_level_tokenizer, max_length=384, stride=150)
    check_features(questions, features, byte_level_tokenizer, 384, 150)
    held = {feature.question for feature in features if feature.start >= 0}
    decoded = list(decode_the_truth(questions, features))
    same = [squad.exact_match(decoded[index][1], questions[index].answers[:1]) for index in held]
    # The few others are annotations that begin or end inside a token.
    assert len(held) >= 390 and sum(same) >= 385
    assert all(questions[index].answers[0].text.strip() in decoded[index][1] for index in held)


context_words = st.lists(st.text(st.sampled_from("abé 漢字😀\u00a0\n-.'\"ñ0"), min_size=1, max_size=6), min_size=2, max_size=30)


@given(words=context_words, picks=st.tuples(st.integers(0, 99), st.integers(0, 99)), stride=st.integers(0, 12))
@settings(max_examples=150, deadline=None)
def test_any_answer_of_whole_words_is_decoded_exactly(byte_level_tokenizer, words, picks, stride):
    context = " ".join(words)
    spans = [(i, i + len(word)) for i, word in _words(context)]
    if not spans:
        return
    (first, _), (_, past) = sorted(spans[pick % len(spans)] for pick in picks)
    question = Question("q", "t", context, "é?", (Answer(context[first:past], first),))
    features = squad.featurize([question], byte_level_tokenizer, max_length=2000, stride=stride)
    ((_, text),) = decode_the_truth([question], features)
    assert text == context[first:past]
    check_features([question], features, byte_level_tokenizer, 2000, stride)
    narrow = squad.featurize([question], byte_level_tokenizer, max_length=70, stride=stride)
    check_features([question], narrow, byte_level_tokenizer, 70, stride)


def _words(text: str) -> Iterator[tuple[int, str]]:
    position = 0
    for word in text.split():
        position = text.index(word, position)
        yield position, word
        position += len(word)


def test_a_character_of_several_tokens_is_one_place(byte_level_tokenizer):
    question = make("The 漢字 sign", "漢字")
    (feature,) = squad.featurize([question], byte_level_tokenizer, 128, 0)
    tokens = [feature.offsets[i - feature.context_start] for i in range(feature.start, feature.end + 1)]
    assert len(tokens) >= 4 and set(tokens) == {(4, 5), (5, 6)}
    assert feature.input_ids[0] == byte_level_tokenizer.bos_token_id


def test_an_answer_cut_inside_a_token_gets_the_whole_token(word_tokenizer):
    question = make("Anna has sold 15 silver coins.", "silver coin")
    ((_, text),) = decode_the_truth([question], squad.featurize([question], word_tokenizer, 64, 0))
    assert text == "silver coins"


def test_a_long_question_keeps_its_first_part_and_half_the_window_is_context(word_tokenizer):
    question = make("Anna was born in Dover. " * 20, "Dover", question="Where was Anna born? " * 30)
    features = squad.featurize([question], word_tokenizer, max_length=40, stride=5)
    assert all(feature.context_start == 20 for feature in features)
    opening = word_tokenizer.convert_ids_to_tokens(features[0].input_ids[:20])
    assert opening[:7] == ["<bos>", "Question", ":", "Where", "was", "Anna", "born"]
    assert opening[-2:] == ["Context", ":"]
    check_features([question], features, word_tokenizer, 40, 5)


@pytest.mark.parametrize("max_length, stride", [(6, 0), (40, 39), (128, -1)])
def test_a_window_too_short_is_refused(embedded, word_tokenizer, max_length, stride):
    with pytest.raises(DataError, match=f"max_length {max_length} with stride {stride}: there is no room"):
        squad.featurize(embedded, word_tokenizer, max_length, stride)


def window(n: int, question: int = 0, blank: int | None = None) -> squad.Feature:
    """A window of a two-token question and n one-character context tokens; token `blank` is whitespace."""
    offsets = tuple((i, i + (i != blank)) for i in range(n))
    return squad.Feature(question, tuple(range(n + 2)), 2, offsets, -1, -1)


@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), longest=st.integers(1, 15))
@settings(max_examples=60, deadline=None)
def test_the_best_span_is_the_best_of_all_spans(seed, n, longest):
    rng = np.random.default_rng(seed)
    # Few different values, so that ties are common.
    logits = rng.integers(0, 4, (3, 2, n + 2)).astype(np.float32)
    spans = squad.best_spans([window(n)] * 3, logits[:, 0], logits[:, 1], 1, longest)
    candidates = [
        (logits[w, 0, 2 + i] + logits[w, 1, 2 + j], (i, j + 1))
        for w in range(3)
        for i in range(n)
        for j in range(i, min(n, i + longest))
    ]
    assert spans == [max(candidates, key=lambda candidate: candidate[0])[1]]  # max keeps the first of equals


def test_whitespace_is_neither_start_nor_end_and_no_window_is_no_text():
    logits = torch.tensor([9.0, 9, 0, 5, 0])
    assert squad.best_spans([window(3, blank=1)], [logits], [logits], 2, 3) == [(0, 1), (0, 0)]


def test_logits_that_cannot_be_right_are_refused():
    with pytest.raises(ValueError, match="question 0: logits of shape"):
        squad.best_spans([window(3)], [torch.zeros(4)], [torch.zeros(5)], 1, 3)
    with pytest.raises(ValueError, match="question 0: a logit is not a number"):
        squad.best_spans([window(3)], [torch.full((5,), torch.nan)], [torch.zeros(5)], 1, 3)


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
            [{"answers": row, "id": q.id} for (q, _), row in zip(part, rows([q for q, _ in part])["answers"], strict=True)],
        )
        theirs.append([float(reference[name]) for name in ("exact_match", "f1")])
        ours.append([np.mean([100 * score(text, q.answers) for q, text in part]) for score in (squad.exact_match, squad.f1)])
    em, f1 = np.mean(theirs, axis=0)
    assert 20 < em < f1 < 95
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


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
