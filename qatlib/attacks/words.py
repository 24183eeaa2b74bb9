"""QA-Attack: words that are important for an answer are replaced by similar words (S1).

Words are ranked by the attention they receive, by the loss caused by their removal, or by both. Then, in this order, each is
replaced by the candidate that raises the attacker's loss most, if any raises it. All questions go through each step together,
in batches. Only words that the model sees together with the answer count: a text may be long, but a window is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Literal, get_args

import numpy as np
import torch
from tqdm import tqdm

from qatlib.attacks.candidates import Candidates
from qatlib.attacks.embedding import window_loss
from qatlib.attacks.text import Span, free_words, with_changes
from qatlib.checks import filled, one_of, whole
from qatlib.model import SwitchableModel
from qatlib.precision import Configuration
from qatlib.qa.evaluate import device_of, over_batches
from qatlib.qa.loss import Batch
from qatlib.qa.spans import Feature, last_before, token_at
from qatlib.qa.squad import Question
from qatlib.switching import body

_AT_ONCE = 2_000_000
"""So many characters are cut into windows together. Their windows take some hundred megabytes."""

Ranking = Literal["attention", "removal", "both"]

Featurize = Callable[[Sequence[Question]], list[Feature]]


class WordAttack:
    """An attack on words. The attacker sees the mean loss over given configurations.

    Args:
        configurations: one to attack a static model; several for the expectation over random precisions.
        featurize: cuts questions into windows, as for normal use of the model.

    Attributes:
        passed: number of windows passed through the model so far, counted once per configuration. A loss needs only the windows
            that contain the answer.

    Raises:
        ValueError: there are no configurations, or the batch size is not positive.
    """

    def __init__(
        self,
        model: SwitchableModel,
        featurize: Featurize,
        configurations: Sequence[Configuration],
        candidates: Candidates,
        *,
        pad_id: int,
        batch_size: int,
    ) -> None:
        filled(configurations=configurations)
        whole(1, batch_size=batch_size)
        self.model, self.featurize, self.configurations, self.candidates = model, featurize, configurations, cache(candidates)
        self.pad_id, self.batch_size, self.passed = pad_id, batch_size, 0

    def losses(self, questions: Sequence[Question], description: str | None = None) -> np.ndarray:
        """`window_loss` of every question in nats, mean over the windows that contain its answer and over the configurations.

        It is −∞ if no window contains the answer: such a question can't be attacked.
        """
        return self._changed([(question, {}) for question in questions], description)

    def _changed(self, changed: Sequence[tuple[Question, Mapping[Span, str]]], description: str | None) -> np.ndarray:
        """The losses of changed questions. Only a portion of their texts and windows is in memory at a time."""
        found, portions = [], _portions([len(question.context) for question, _ in changed])
        for i, portion in enumerate(portions):
            told = description and (description if len(portions) == 1 else f"{description}, {i + 1} of {len(portions)}")
            found.append(self._losses([with_changes(*changed[k]) for k in portion], told))
        return np.concatenate([np.zeros(0), *found])

    @torch.no_grad()
    def _losses(self, questions: Sequence[Question], description: str | None) -> np.ndarray:
        self.model.eval()
        features = [feature for feature in self.featurize(questions) if feature.start >= 0]
        self.passed += len(features) * len(self.configurations)

        def measure(batch: Batch) -> torch.Tensor:
            total = torch.zeros(len(batch.input_ids))
            for configuration in self.configurations:
                with self.model.at(configuration):
                    total += window_loss(self.model(batch.input_ids), batch, "cross_entropy").cpu()
            return total / len(self.configurations)

        sums, counts = np.zeros(len(questions)), np.zeros(len(questions))
        for rows, found in over_batches(features, self.batch_size, self.pad_id, device_of(self.model), measure, description):
            for row, loss in zip(rows, found.tolist(), strict=True):
                sums[features[row].question] += loss
                counts[features[row].question] += 1
        return np.divide(sums, counts, out=np.full(len(questions), -np.inf), where=counts > 0)

    def ranked(self, questions: Sequence[Question], by: Ranking) -> list[list[Span]]:
        """For every question, the free words in its answer's windows that have candidates, most important first.

        Raises:
            ValueError: there are no questions, or no such ranking.
        """
        filled(questions=questions)
        one_of(get_args(Ranking), by=by)
        beside = zip(questions, self._beside_answers(questions), strict=True)
        progress = tqdm(beside, desc="candidates", total=len(questions), mininterval=5)
        words = [[span for span in spans if self.candidates(q, span)] for q, spans in progress]
        scores = [np.zeros(len(spans)) for spans in words]
        if by != "attention":
            scores = [s + _ranks(x) for s, x in zip(scores, self._removal(questions, words), strict=True)]
        if by != "removal":
            scores = [s + _ranks(x) for s, x in zip(scores, self._attention(questions, words), strict=True)]
        return [[spans[i] for i in np.argsort(-score, kind="stable")] for spans, score in zip(words, scores, strict=True)]

    def _beside_answers(self, questions: Sequence[Question]) -> list[list[Span]]:
        """The free words of every question that are in a window together with its answer."""
        seen: list[list[Span]] = [[] for _ in questions]
        for portion in _portions([len(question.context) for question in questions]):
            for feature in self.featurize([questions[i] for i in portion]):
                if feature.start >= 0:
                    seen[portion[feature.question]].append((feature.offsets[0][0], feature.offsets[-1][1]))
        return [
            [(start, end) for start, end in free_words(q) if any(start < past and first < end for first, past in windows)]
            for q, windows in zip(questions, seen, strict=True)
        ]

    def _removal(self, questions: Sequence[Question], words: Sequence[Sequence[Span]]) -> list[np.ndarray]:
        """The rise in loss when each word is removed."""
        without = [(q, {span: ""}) for q, spans in zip(questions, words, strict=True) for span in spans]
        losses = self._changed(without, "removal")
        return np.split(losses, np.cumsum([len(spans) for spans in words])[:-1])

    @torch.no_grad()
    def _attention(self, questions: Sequence[Question], words: Sequence[Sequence[Span]]) -> list[np.ndarray]:
        """Attention that a word receives from later tokens: mean over these, heads and layers, summed over the word's tokens."""
        lm, features = self.model.lm, self.featurize(questions)
        self.passed += len(features)

        def measure(batch: Batch) -> torch.Tensor:
            with self.model.at(self.configurations[0]):
                layers = body(lm)(input_ids=batch.input_ids, use_cache=False, output_attentions=True).attentions
            received = torch.stack([a.mean(1) for a in layers]).mean(0) * batch.real[:, :, None]  # (batch, from, to)
            later = torch.tril(batch.real[:, :, None].expand_as(received), -1)
            return ((received * later).sum(1) / later.sum(1).clamp_min(1)).float().cpu()

        with self.model.attending("eager"):  # other implementations do not return attention
            found = over_batches(features, self.batch_size, self.pad_id, device_of(self.model), measure)
        scores = [np.zeros(len(spans)) for spans in words]
        for rows, received in found:
            for row, weights in zip(rows, received.tolist(), strict=True):
                feature = features[row]
                for i, (start, end) in enumerate(words[feature.question]):
                    inside = range(token_at(feature.offsets, start), last_before(feature.offsets, end) + 1)
                    scores[feature.question][i] += sum(weights[feature.context_start + k] for k in inside)
        return scores

    def attack(self, questions: Sequence[Question], by: Ranking, most: int) -> list[Question]:
        """Every question with at most `most` words replaced. Ids stay, so answers can be paired with those to the originals.

        Raises:
            ValueError: there are no questions, no such ranking, or `most` is negative.
        """
        whole(0, most=most)
        ranked = self.ranked(questions, by)
        changes: list[dict[Span, str]] = [{} for _ in questions]
        worst = self.losses(questions)
        for turn in range(most):
            tried = [
                (i, spans[turn], candidate)
                for i, (q, spans) in enumerate(zip(questions, ranked, strict=True))
                if turn < len(spans) and np.isfinite(worst[i])
                for candidate in self.candidates(q, spans[turn])
            ]
            if not tried:
                break
            variants = [(questions[i], changes[i] | {span: word}) for i, span, word in tried]
            for (i, span, word), loss in zip(tried, self._changed(variants, f"words, turn {turn + 1}"), strict=True):
                if loss > worst[i]:
                    worst[i], changes[i] = loss, changes[i] | {span: word}
        return [with_changes(q, change) for q, change in zip(questions, changes, strict=True)]


def _portions(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of texts, in order, in portions of at most `_AT_ONCE` characters; a longer text is a portion of its own."""
    portions: list[list[int]] = []
    room = 0
    for i, length in enumerate(lengths):
        if length > room:
            portions.append([])
            room = _AT_ONCE
        portions[-1].append(i)
        room -= length
    return portions


def _ranks(values: np.ndarray) -> np.ndarray:
    """0 for the smallest up to 1 for the largest."""
    return np.argsort(np.argsort(values, kind="stable"), kind="stable") / max(1, len(values) - 1)
