from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qatlib.qa import spans, squad, toyqa
from qatlib.qa.squad import Answer, DataError, Question


@pytest.fixture(scope="module")
def word_tokenizer():
    return toyqa.build_tokenizer()


def decode_the_truth(questions, features) -> Iterator[tuple[Question, str]]:
    """Each question with what `best_spans` reads from logits that are 1 at the true start and end, 0 elsewhere."""
    starts = [torch.zeros(len(f.input_ids)) for f in features]
    ends = [torch.zeros(len(f.input_ids)) for f in features]
    longest = max(feature.end - feature.start + 1 for feature in features)
    for feature, start, end in zip(features, starts, ends, strict=True):
        if feature.start >= 0:
            start[feature.start] = end[feature.end] = 1
    for question, (first, past) in zip(questions, spans.best_spans(features, starts, ends, len(questions), longest), strict=True):
        yield question, question.context[first:past]


def check_features(questions, features, tokenizer, max_length: int, stride: int) -> None:
    by_question: dict[int, list[spans.Feature]] = {}
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
    features = spans.featurize(embedded, tokenizer, max_length, stride)
    check_features(embedded, features, tokenizer, max_length, stride)
    held = {feature.question for feature in features if feature.start >= 0}
    decoded = list(decode_the_truth(embedded, features))
    assert len(held) > 0.5 * len(embedded)  # a narrow window may cut an answer in two; 0.56 of 40 bytes' tokens, a count
    assert all(decoded[index][1] == embedded[index].answers[0].text for index in held)


def test_real_answers_survive_tokens_and_decoding(real, byte_level_tokenizer):
    questions = squad.sample(real, 400, seed=0)
    features = spans.featurize(questions, byte_level_tokenizer, max_length=384, stride=150)
    check_features(questions, features, byte_level_tokenizer, 384, 150)
    held = {feature.question for feature in features if feature.start >= 0}
    decoded = list(decode_the_truth(questions, features))
    same = [squad.exact_match(decoded[index][1], questions[index].answers[:1]) for index in held]
    # The few others are annotations that begin or end inside a token.
    assert len(held) >= 390 and sum(same) >= 385
    assert all(questions[index].answers[0].text.strip() in decoded[index][1] for index in held)


context_words = st.lists(st.text(st.sampled_from("abé 漢字😀\u00a0\n-.'\"ñ0"), min_size=1, max_size=6), min_size=2, max_size=30)


@given(words=context_words, picks=st.tuples(st.integers(0, 99), st.integers(0, 99)), stride=st.integers(0, 12))
@settings(max_examples=150)
def test_any_answer_of_whole_words_is_decoded_exactly(byte_level_tokenizer, words, picks, stride):
    context = " ".join(words)
    places = [(i, i + len(word)) for i, word in _words(context)]
    if not places:
        return
    (first, _), (_, past) = sorted(places[pick % len(places)] for pick in picks)
    question = Question("q", "t", context, "é?", (Answer(context[first:past], first),))
    features = spans.featurize([question], byte_level_tokenizer, max_length=2000, stride=stride)
    ((_, text),) = decode_the_truth([question], features)
    assert text == context[first:past]
    check_features([question], features, byte_level_tokenizer, 2000, stride)
    narrow = spans.featurize([question], byte_level_tokenizer, max_length=70, stride=stride)
    check_features([question], narrow, byte_level_tokenizer, 70, stride)


def _words(text: str) -> Iterator[tuple[int, str]]:
    position = 0
    for word in text.split():
        position = text.index(word, position)
        yield position, word
        position += len(word)


def test_a_character_of_several_tokens_is_one_place(byte_level_tokenizer, make_question):
    question = make_question("The 漢字 sign", "漢字")
    (feature,) = spans.featurize([question], byte_level_tokenizer, 128, 0)
    tokens = [feature.offsets[i - feature.context_start] for i in range(feature.start, feature.end + 1)]
    assert len(tokens) >= 4 and set(tokens) == {(4, 5), (5, 6)}
    assert feature.input_ids[0] == byte_level_tokenizer.bos_token_id


def test_an_answer_cut_inside_a_token_gets_the_whole_token(word_tokenizer, make_question):
    question = make_question("Anna has sold 15 silver coins.", "silver coin")
    ((_, text),) = decode_the_truth([question], spans.featurize([question], word_tokenizer, 64, 0))
    assert text == "silver coins"


def test_a_long_question_keeps_its_first_part_and_half_the_window_is_context(word_tokenizer, make_question):
    question = make_question("Anna was born in Dover. " * 20, "Dover", question="Where was Anna born? " * 30)
    features = spans.featurize([question], word_tokenizer, max_length=40, stride=5)
    assert all(feature.context_start == 20 for feature in features)
    opening = word_tokenizer.convert_ids_to_tokens(features[0].input_ids[:20])
    assert opening[:7] == ["<bos>", "Question", ":", "Where", "was", "Anna", "born"]
    assert opening[-2:] == ["Context", ":"]
    check_features([question], features, word_tokenizer, 40, 5)


@pytest.mark.parametrize("max_length, stride", [(6, 0), (40, 39), (128, -1)])
def test_a_window_too_short_is_refused(embedded, word_tokenizer, max_length, stride):
    with pytest.raises(DataError, match=f"max_length {max_length} with stride {stride}: there is no room"):
        spans.featurize(embedded, word_tokenizer, max_length, stride)


def window(n: int, question: int = 0, blank: int | None = None) -> spans.Feature:
    """A window of a two-token question and n one-character context tokens; token `blank` is whitespace."""
    offsets = tuple((i, i + (i != blank)) for i in range(n))
    return spans.Feature(question, tuple(range(n + 2)), 2, offsets, -1, -1)


@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), longest=st.integers(1, 15))
@settings(max_examples=60)
def test_the_best_span_is_the_best_of_all_spans(seed, n, longest):
    rng = np.random.default_rng(seed)
    # Few different values, so that ties are common.
    logits = rng.integers(0, 4, (3, 2, n + 2)).astype(np.float32)
    found = spans.best_spans([window(n)] * 3, logits[:, 0], logits[:, 1], 1, longest)
    candidates = [
        (logits[w, 0, 2 + i] + logits[w, 1, 2 + j], (i, j + 1))
        for w in range(3)
        for i in range(n)
        for j in range(i, min(n, i + longest))
    ]
    assert found == [max(candidates, key=lambda candidate: candidate[0])[1]]  # max keeps the first of equals


def test_whitespace_is_neither_start_nor_end_and_no_window_is_no_text():
    logits = torch.tensor([9.0, 9, 0, 5, 0])
    assert spans.best_spans([window(3, blank=1)], [logits], [logits], 2, 3) == [(0, 1), (0, 0)]


def test_logits_that_cannot_be_right_are_refused():
    with pytest.raises(ValueError, match="question 0: logits of shape"):
        spans.best_spans([window(3)], [torch.zeros(4)], [torch.zeros(5)], 1, 3)
    with pytest.raises(ValueError, match="question 0: a logit is not a number"):
        spans.best_spans([window(3)], [torch.full((5,), torch.nan)], [torch.zeros(5)], 1, 3)
