"""Candidates are words of the same kind in the same form, and never for a stop word or a name."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, BertTokenizerFast

from qatlib.attacks import candidates
from qatlib.attacks.text import free_words
from qatlib.pretrained import ModelError, load_pretrained
from qatlib.qa.squad import Answer, Question

VOCABULARY = candidates.vocabulary([["red", "blue", "green"], ["fox", "hare"]], 3, 0)


def question(context: str, answer: str = "Paris") -> Question:
    return Question("q", "t", context, "where?", (Answer(answer, context.index(answer)),))


def spans(q: Question) -> dict[str, tuple[int, int]]:
    return {q.context[start:end]: (start, end) for start, end in free_words(q)}


TEXT = question("They built larger houses in Paris. Quick trains ran to Smith and the river.")


def test_synonyms_keep_the_part_of_speech_and_the_form():
    words = spans(TEXT)
    assert "bigger" in candidates.synonyms(TEXT, words["larger"])
    assert "homes" in candidates.synonyms(TEXT, words["houses"]) and "home" not in candidates.synonyms(TEXT, words["houses"])
    assert "Fast" in candidates.synonyms(TEXT, words["Quick"])
    own = {"built", "houses", "house", "build"}
    assert not own & {w.lower() for word in ("built", "houses") for w in candidates.synonyms(TEXT, words[word])}


@pytest.mark.parametrize("word", ["the", "They", "Smith"])
def test_stop_words_and_names_stay(word):
    assert candidates.synonyms(TEXT, spans(TEXT)[word]) == []


def test_a_masked_language_model_is_asked_for_its_likeliest_words_of_the_same_kind(tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "bigger", "smaller", "houses", "of", "larger", "##er", "they"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    lm = BertForMaskedLM(BertConfig(vocab_size=len(vocabulary), **sizes)).eval()
    lm.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm, tokenizer = load_pretrained(f"dir:{tmp_path}", AutoModelForMaskedLM)  # as notebook 5 gets it
    found = candidates.masked_lm(lm, tokenizer, 10**9)(TEXT, spans(TEXT)["larger"])  # more than there are
    assert set(found) == {"bigger", "smaller"}
    assert candidates.masked_lm(lm, tokenizer, len(vocabulary))(TEXT, spans(TEXT)["Smith"]) == []


def test_the_params_name_a_source(tmp_path):
    assert candidates.named("synonyms", 2, 0) is candidates.synonyms
    q = question("Anna bought a red key in Paris")
    assert len(candidates.named("vocabulary", 2, 0)(q, spans(q)["red"])) == 2
    with pytest.raises(ModelError, match="adversarial.words.candidates .*no config.json in it"):
        candidates.named(f"dir:{tmp_path}", 2, 0)


def test_a_vocabulary_gives_other_words_of_the_same_kind_and_the_same_ones_again():
    q = question("red fox in Paris")
    found = VOCABULARY(q, spans(q)["red"])
    assert found == VOCABULARY(q, spans(q)["red"]) and sorted(found) == ["blue", "green"]
    assert VOCABULARY(q, spans(q)["fox"]) == ["hare"] and VOCABULARY(q, spans(q)["in"]) == []
