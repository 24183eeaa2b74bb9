"""Scores a question, perplexity a paragraph."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qatlib.model import SwitchableModel
from qatlib.qa.evaluate import evaluate_perplexity, evaluate_spans, mean_span_loss
from qatlib.qa.spans import featurize
from qatlib.qa.toyqa import build_model, build_tokenizer, generate
from qatlib.switching import Output

TOKENIZER = build_tokenizer()
QUESTIONS = generate(30, 0)
FEATURES = featurize(QUESTIONS, TOKENIZER, 128, 32)
HOW = {"pad_id": 1, "batch_size": 7}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SwitchableModel(build_model(2, 2, 32, 0)).eval()


class Oracle(SwitchableModel):
    """Knows every answer of `FEATURES`."""

    def forward(self, input_ids):
        start, end = torch.zeros(2, *input_ids.shape)
        for row, ids in enumerate(input_ids.tolist()):
            known = next(f for f in FEATURES if list(f.input_ids) == ids[: len(f.input_ids)])
            start[row, known.start] = end[row, known.end] = 30
        return Output(torch.empty(0), start, end)


def test_an_oracle_scores_full_marks_in_question_order():
    scores = evaluate_spans(Oracle(build_model(1, 2, 16, 0)), QUESTIONS, FEATURES, **HOW, max_answer_tokens=10)
    assert scores["id"].tolist() == [q.id for q in QUESTIONS]
    assert scores["prediction"].tolist() == [q.answers[0].text for q in QUESTIONS]
    assert set(scores["em"]) == set(scores["f1"]) == {100.0} and scores["loss"].max() < 1e-3  # 128 e^-30


def test_scores_do_not_depend_on_the_batch_size(model):
    one = evaluate_spans(model, QUESTIONS, FEATURES, pad_id=1, batch_size=1, max_answer_tokens=10)
    many = evaluate_spans(model, QUESTIONS, FEATURES, pad_id=1, batch_size=30, max_answer_tokens=10)
    assert one["prediction"].tolist() == many["prediction"].tolist()
    assert np.allclose(one["loss"], many["loss"], atol=1e-4)  # fp32 rounds logits by 1e-6
    assert mean_span_loss(model, FEATURES, **HOW) == pytest.approx(one["loss"].mean(), abs=1e-4)


def test_perplexity_of_a_uniform_model_is_the_vocabulary(model):
    torch.nn.init.zeros_(model.lm.get_output_embeddings().weight)
    found = evaluate_perplexity(model, TOKENIZER, [q.context for q in QUESTIONS[:6]], **HOW, max_length=128)
    assert np.exp(found["nll"].sum() / found["tokens"].sum()) == pytest.approx(len(TOKENIZER), rel=1e-4)
    assert found["paragraph"].tolist() == [q.paragraph for q in QUESTIONS[:6]]


def test_perplexity_agrees_with_the_language_models_own_loss(model):
    text = QUESTIONS[0].context
    found = evaluate_perplexity(model, TOKENIZER, [text], **HOW, max_length=128)
    ids = torch.tensor([[TOKENIZER.bos_token_id, *TOKENIZER(text, add_special_tokens=False)["input_ids"]]])
    loss = model.lm(ids, labels=ids).loss
    assert found["nll"][0] / found["tokens"][0] == pytest.approx(float(loss.detach()), rel=1e-5)


def test_correct_tokens_are_those_greedy_decoding_would_have_written(model):
    texts = [q.context for q in QUESTIONS[:9]]
    found = evaluate_perplexity(model, TOKENIZER, texts, **HOW, max_length=20)
    for text, tokens, correct in zip(texts, found["tokens"], found["correct"], strict=True):
        ids = [TOKENIZER.bos_token_id, *TOKENIZER(text, add_special_tokens=False)["input_ids"]][:20]
        guesses = model.lm(torch.tensor([ids])).logits[0, :-1].argmax(-1).tolist()
        assert tokens == len(ids) - 1 and correct == sum(a == b for a, b in zip(guesses, ids[1:], strict=True))
    always = ids[1]  # a head that always says one token
    torch.nn.init.zeros_(model.lm.get_output_embeddings().weight)
    model.lm.transformer.ln_f.bias.data.fill_(1)
    model.lm.get_output_embeddings().weight.data[always] = 1
    found = evaluate_perplexity(model, TOKENIZER, texts, **HOW, max_length=20)
    said = [TOKENIZER(t, add_special_tokens=False)["input_ids"][:19].count(always) for t in texts]
    assert found["correct"].tolist() == said and sum(said) > 0


def test_divergence_is_none_from_itself_and_agrees_with_the_definition(model):
    texts = [q.context for q in QUESTIONS[:5]]
    same = evaluate_perplexity(model, TOKENIZER, texts, **HOW, max_length=30, against=32)
    assert same["divergence"].eq(0).all()
    with model.at(3):
        found = evaluate_perplexity(model, TOKENIZER, texts, **HOW, max_length=30, against=32)
        alone = evaluate_perplexity(model, TOKENIZER, texts, **HOW, max_length=30)
        assert model.configuration == model.configuration.resolve(3, model.infos)  # as it was
    assert found.drop(columns="divergence").equals(alone) and (found["divergence"] > 0).all()
    ids = torch.tensor([[TOKENIZER.bos_token_id, *TOKENIZER(texts[0], add_special_tokens=False)["input_ids"]][:30]])
    with torch.no_grad():
        p = model.lm(ids).logits[0, :-1].double().softmax(-1)
        with model.at(3):
            q = model.lm(ids).logits[0, :-1].double().softmax(-1)
    assert found["divergence"][0] == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-3)


def test_evaluation_leaves_random_states_alone(model):
    state = torch.get_rng_state()
    evaluate_spans(model, QUESTIONS, FEATURES, **HOW, max_answer_tokens=10)
    assert torch.equal(state, torch.get_rng_state())
