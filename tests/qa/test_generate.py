"""Prompts that fit, answers that neither cache nor batch changes, scores in the spans' columns."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qatlib.model import SwitchableModel
from qatlib.qa import toyqa
from qatlib.qa.evaluate import evaluate_spans
from qatlib.qa.generate import evaluate_answers, greedy_answers, prompts
from qatlib.qa.spans import featurize
from qatlib.qa.squad import Answer, DataError, Question

QUESTIONS = toyqa.generate(12, seed=5)
TOKENIZER = toyqa.build_tokenizer()
HOW = {"pad_id": 1, "max_length": 128, "batch_size": 5, "max_answer_tokens": 6}


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = SwitchableModel(toyqa.build_model(2, 2, 32, 0)).eval()
    made.set_precision(4)
    return made


def test_a_prompt_is_the_template_filled(byte_level_tokenizer, make_question):
    question = make_question("The king was born in New York.", "New York", "Where was the king born?")
    (ids,) = prompts([question], byte_level_tokenizer, 400)
    text = f"<|endoftext|>Context:\n{question.context}\nQuestion: {question.question}\nAnswer:"
    assert byte_level_tokenizer.decode(ids) == text


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 200))
def test_prompts_fit_and_keep_some_of_both(context, asked, max_length):
    question = Question("q", "t", "king " * context, "Where " * asked, (Answer("king", 0),))
    fixed = 1 + 2 + 2 + 2  # bos and the template in the embedded tokenizer
    if max_length < fixed + 2:
        with pytest.raises(DataError, match=f"allowed is {fixed + 2}"):
            prompts([question], TOKENIZER, max_length)
        return
    (ids,) = prompts([question], TOKENIZER, max_length)
    known, where = TOKENIZER.convert_tokens_to_ids(["king", "Where"])
    assert len(ids) == min(max_length, context + asked + fixed)
    assert where in ids and (known in ids) and ids[-1] == TOKENIZER.convert_tokens_to_ids(":")


def by_hand(model, ids, n):
    """Greedy decoding without a cache, a padding or a batch."""
    ids = list(ids)
    for _ in range(n):
        ids.append(int(model.lm(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[-n:]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("spec", [4, "w3a4", "C14"])
def test_cached_batched_decoding_is_uncached_decoding(kind, spec, tiny_lm, byte_level_tokenizer, monkeypatch):
    """In fp64, where no code is so near a rounding edge that another order of sums could move it."""
    lm = tiny_lm(kind, vocab_size=len(byte_level_tokenizer)).double()
    lm.generation_config.eos_token_id = None
    for p in lm.parameters():
        p.data.add_(torch.randn_like(p), alpha=0.3)  # freshly initialised models repeat their last token
    model = SwitchableModel(lm).double().eval()
    model.set_precision(spec)
    generator = torch.Generator().manual_seed(3)
    batch = [torch.randint(10, 300, (n,), generator=generator).tolist() for n in (19, 4, 11)]
    monkeypatch.setattr(
        "qatlib.qa.generate._EndOfLine.__call__", lambda self, ids, scores: torch.zeros(len(ids), dtype=torch.bool)
    )
    monkeypatch.setattr(byte_level_tokenizer, "batch_decode", lambda rows, **options: [str(row) for row in rows])
    with torch.no_grad():
        expected = [by_hand(model, ids, 12) for ids in batch]
    assert len({token for row in expected for token in row}) > 6  # no model that says one thing whatever it is given
    found = greedy_answers(model, byte_level_tokenizer, batch, pad_id=1, max_answer_tokens=12)
    assert found == [str(row) for row in expected]


def says(model, texts, tokenizer):
    """The model continues the prompts of a batch with these texts, one after the other."""
    queue = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]

    def generate(ids, **options):
        rows = [queue.pop(0) for _ in ids]
        longest = max(map(len, rows))
        return torch.cat([ids, torch.tensor([row + [5] * (longest - len(row)) for row in rows])], 1)

    model.lm.generate = generate


def test_answers_end_with_their_line_or_their_text(byte_level_tokenizer, tiny_lm):
    model = SwitchableModel(tiny_lm(vocab_size=len(byte_level_tokenizer)))
    model.lm.generation_config.eos_token_id = byte_level_tokenizer.eos_token_id
    says(model, [" New York\nWhere was", " in 1923<|endoftext|>the city", "\nNew York", " the king"], byte_level_tokenizer)
    found = greedy_answers(model, byte_level_tokenizer, [[5, 6]] * 4, pad_id=1, max_answer_tokens=9)
    assert found[:3] == ["New York", "in 1923", ""] and found[3].startswith("the king")


def test_generation_stops_when_every_line_has_ended(byte_level_tokenizer, tiny_lm):
    lm = tiny_lm(vocab_size=len(byte_level_tokenizer))
    (newline,) = byte_level_tokenizer("\n", add_special_tokens=False)["input_ids"]
    model, steps = SwitchableModel(lm), []
    torch.nn.init.zeros_(lm.transformer.ln_f.weight)
    lm.transformer.ln_f.bias.data.fill_(1)
    lm.lm_head.weight.data[newline] = 10
    lm.register_forward_hook(lambda *_: steps.append(1))
    assert greedy_answers(model, byte_level_tokenizer, [[5, 6], [7]], pad_id=1, max_answer_tokens=9) == ["", ""]
    assert len(steps) == 1


def test_an_oracle_scores_full_marks_in_question_order_in_the_spans_columns(model):
    asked = prompts(QUESTIONS, TOKENIZER, 128 - 6)
    order = sorted(range(len(asked)), key=lambda i: -len(asked[i]))
    says(model, [f"{QUESTIONS[i].answers[0].text} <eos>" for i in order], TOKENIZER)
    found = evaluate_answers(model, TOKENIZER, QUESTIONS, **HOW)
    assert found["prediction"].tolist() == [q.answers[0].text for q in QUESTIONS]
    assert set(found["em"]) == set(found["f1"]) == {100.0}
    spans = evaluate_spans(
        model, QUESTIONS, featurize(QUESTIONS, TOKENIZER, 128, 32), pad_id=1, batch_size=5, max_answer_tokens=6
    )
    assert list(found) == list(spans) and found["id"].equals(spans["id"]) and found["paragraph"].equals(spans["paragraph"])


def test_loss_is_the_language_models_own_on_the_answer(model):
    found = evaluate_answers(model, TOKENIZER, QUESTIONS[:3], **HOW)
    for i, question in enumerate(QUESTIONS[:3]):
        prompt = prompts([question], TOKENIZER, 122)[0]
        answer = TOKENIZER(question.answers[0].text, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*prompt, *answer]])
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            assert found["loss"][i] == pytest.approx(float(model.lm(ids, labels=labels).loss), rel=1e-4)
