"""Ranks find the word that matters, and an attack never makes the loss it sees smaller."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qatlib.attacks import words as module
from qatlib.attacks.text import free_words
from qatlib.attacks.words import WordAttack
from qatlib.layers import SHARED, LoraSpec
from qatlib.model import SwitchableModel
from qatlib.precision import Configuration
from qatlib.qa.spans import featurize
from qatlib.qa.squad import Answer, Question, read_squad, write_squad
from qatlib.qa.toyqa import build_model, build_tokenizer, generate

TOKENIZER = build_tokenizer()
QUESTIONS = generate(8, 0)


def some_words(question, span):
    """Three words for the place of any other."""
    return [w for w in ("red", "north", "garden", "winter") if w != question.context[slice(*span)]][:3]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = SwitchableModel(build_model(2, 2, 32, 0))
    made.add_adapters({SHARED: LoraSpec(2, 4)})
    torch.nn.init.normal_(made.qa_outputs.weight, std=0.5)
    return made.eval()


@pytest.fixture
def attacker(model):
    def make(*precisions, source=some_words):
        configurations = [Configuration.resolve(p, model.infos) for p in precisions or (8,)]
        cut = lambda questions: featurize(questions, TOKENIZER, 128, 32)  # noqa: E731
        return WordAttack(model, cut, configurations, source, pad_id=1, batch_size=16)

    return make


def test_losses_are_means_over_the_configurations(attacker):
    each = [attacker(p).losses(QUESTIONS) for p in (8, 2)]
    assert attacker(8, 2).losses(QUESTIONS) == pytest.approx(np.mean(each, axis=0), rel=1e-5)


@pytest.mark.parametrize("by", ["attention", "removal", "both"])
def test_ranks_are_orders_of_the_words_that_have_candidates(attacker, by):
    only_long = lambda q, span: ["garden"] if span[1] - span[0] > 4 else []  # noqa: E731
    for q, ranked in zip(QUESTIONS, attacker(source=only_long).ranked(QUESTIONS, by), strict=True):
        assert sorted(ranked) == [span for span in free_words(q) if span[1] - span[0] > 4]


def test_by_removal_the_word_whose_loss_hurts_most_comes_first(attacker):
    mine = attacker()
    words = [free_words(q) for q in QUESTIONS]
    removal = mine._removal(QUESTIONS, words)
    for ranked, spans_, scores in zip(mine.ranked(QUESTIONS, "removal"), words, removal, strict=True):
        assert ranked[0] == spans_[int(np.argmax(scores))]


def test_attention_is_a_share_and_leaves_the_model_as_it_was(attacker, model):
    mine, before = attacker(), model.lm.config._attn_implementation
    words = [free_words(q) for q in QUESTIONS]
    for scores in mine._attention(QUESTIONS, words):
        assert (scores >= 0).all() and (scores > 0).any() and scores.max() <= 1
    assert model.lm.config._attn_implementation == before


def test_an_attack_raises_the_loss_it_sees_and_touches_few_words(attacker, tmp_path):
    mine = attacker(8, 2)
    attacked = mine.attack(QUESTIONS, "removal", 2)
    before, after = mine.losses(QUESTIONS), mine.losses(attacked)
    assert (after >= before).all() and (after > before).any()
    for q, a in zip(QUESTIONS, attacked, strict=True):
        assert (a.id, a.question) == (q.id, q.question)
        assert sum(x != y for x, y in zip(q.context.split(), a.context.split(), strict=True)) <= 2
    write_squad(attacked, tmp_path / "attacked.json")
    assert read_squad(tmp_path / "attacked.json") == attacked


def test_without_candidates_nothing_is_attacked(attacker):
    assert attacker(source=lambda q, span: []).attack(QUESTIONS, "both", 3) == QUESTIONS


def long(words: int) -> Question:
    """An answer in the middle of a paragraph of so many words."""
    half = " ".join(q.context for q in generate(words, 1)).split()[: words // 2]
    before = " ".join(half) + " "
    return Question("long", "", f"{before}Dover {' '.join(half)}", "Where?", (Answer("Dover", len(before)),))


def test_ranking_the_words_of_a_long_paragraph_passes_few_windows(attacker):
    mine, question = attacker(), long(1500)
    (ranked,) = mine.ranked([question], "removal")
    assert max(abs(start - question.answers[0].start) for start, _ in ranked) < 1000  # characters of two windows
    assert 20 < len(ranked) <= mine.passed <= 2 * len(ranked) < len(free_words(question)) / 2
    assert sorted(mine.ranked([question], "attention")[0]) == sorted(ranked)


def test_no_more_than_a_portion_of_all_texts_is_cut_into_windows_at_once(attacker, monkeypatch):
    whole = attacker().attack(QUESTIONS, "both", 1)
    mine, sizes = attacker(), []
    cut = mine.featurize
    mine.featurize = lambda questions: sizes.append(sum(len(q.context) for q in questions)) or cut(questions)
    monkeypatch.setattr(module, "_AT_ONCE", 3000)
    mine._attention = lambda questions, words: attacker()._attention(questions, words)
    assert mine.attack(QUESTIONS, "both", 1) == whole
    assert max(sizes) <= 3000 < sum(sizes)


def test_no_pass_keeps_a_graph(attacker, model):
    graphs = []
    hook = model.register_forward_hook(lambda module, args, output: graphs.append(output.start.requires_grad))
    attacker().attack(QUESTIONS[:2], "both", 1)
    hook.remove()
    assert graphs and not any(graphs)


def test_a_text_longer_than_a_portion_is_one_of_its_own(monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 10)
    assert module._portions([4, 6, 1, 25, 3, 3]) == [[0, 1], [2], [3], [4, 5]]
    assert module._portions([]) == []


def test_windows_without_the_answer_are_not_passed_through_the_model(attacker):
    mine, question = attacker(8, 4), long(600)
    loss = mine.losses([question])
    with_answer = [f for f in mine.featurize([question]) if f.start >= 0]
    assert mine.passed == 2 * len(with_answer) < len(mine.featurize([question])) and np.isfinite(loss).all()
