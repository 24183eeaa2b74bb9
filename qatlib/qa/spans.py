"""Questions -> windows of tokens, and logits over the windows -> answer spans in characters."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from qatlib.checks import filled, whole
from qatlib.qa.squad import DataError, Question

# The question comes first because in a causal model a context token attends only to earlier tokens. There is a line end after
# "Context:", so for a byte-level tokenizer the context's first word is at the start of a line.
PREFIX = "Question: {question}\nContext:\n"


@dataclass(frozen=True)
class Feature:
    """One window: a question and as much of its context as fits.

    Attributes:
        question: index into the list of questions.
        input_ids: bos (if the tokenizer has one), the question, then consecutive context tokens up to the end.
        context_start: position in `input_ids` of the first context token.
        offsets: for every context token in order, its (first, one past the last) character in the context, without
            whitespace at both ends. Both are equal for a token of whitespace only.
        start, end: positions in `input_ids` of the first answer's first and last token, or both -1 if this window
            does not contain the whole answer.
        gold: for every given answer, first and last position of its tokens, as far as they are in this window.
    """

    question: int
    input_ids: tuple[int, ...]
    context_start: int
    offsets: tuple[tuple[int, int], ...]
    start: int
    end: int
    gold: tuple[tuple[int, int], ...] = ()


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without whitespace at both ends. A span of whitespace only becomes empty, at its end."""
    kept_start = end - len(text[start:end].lstrip())
    return kept_start, max(kept_start, start + len(text[start:end].rstrip()))


def token_at(offsets: Sequence[tuple[int, int]], character: int) -> int:
    """The first token that ends after a character."""
    return bisect_right(offsets, character, key=lambda span: span[1])


def last_before(offsets: Sequence[tuple[int, int]], character: int) -> int:
    """The last token that starts before a character."""
    return bisect_left(offsets, character, key=lambda span: span[0]) - 1


def featurize(questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int) -> list[Feature]:
    """Cut every question into windows of at most `max_length` tokens that overlap by `stride` context tokens.

    At least half of a window, and more than `stride` tokens, is context. A question that is too long for the rest is cut at the
    end. The tokenizer must be fast, because offsets are needed. If a character consists of several byte-level tokens, each of
    them has the whole character as its offsets. An answer goes from the first token of its first character to the last token
    of its last character.

    Raises:
        DataError: `max_length` leaves no room for a token of the question and `stride + 1` of the context.

    Example:
        >>> questions = read_squad("dev-v1.1.json")
        >>> features = featurize(questions, tokenizer, max_length=384, stride=128)
        >>> max(len(feature.input_ids) for feature in features) <= 384
        True
    """
    before, after = PREFIX.split("{question}")

    def encode(texts: list[str], **options: bool) -> Any:
        return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False, **options)

    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    marker = encode([after])["input_ids"][0]
    question_room = max_length - max(max_length // 2, stride + 1) - len(bos) - len(marker)
    if stride < 0 or question_room < 1:
        raise DataError(
            f"max_length {max_length} with stride {stride}: there is no room for a question and for stride + 1 tokens "
            "of its context; allowed is a larger max_length or a smaller stride of at least 0."
        )
    if not questions:
        return []
    # Questions share contexts, so each distinct one is tokenized once.
    contexts = list(dict.fromkeys(question.context for question in questions))
    encoded = encode(contexts, return_offsets_mapping=True)
    tokens = {
        context: (ids, [_strip(context, *span) for span in spans])
        for context, ids, spans in zip(contexts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    }
    heads = encode([before + question.question for question in questions])["input_ids"]

    features = []
    for index, (question, head) in enumerate(zip(questions, heads, strict=True)):
        prefix = [*bos, *head[:question_room], *marker]
        ids, offsets = tokens[question.context]
        spans = [_strip(question.context, answer.start, answer.start + len(answer.text)) for answer in question.answers]
        runs = [(token_at(offsets, first_char), last_before(offsets, past_char)) for first_char, past_char in spans]
        first, last = runs[0]

        room = max_length - len(prefix)
        for begin in range(0, max(1, len(ids) - stride), room - stride):
            shift = len(prefix) - begin
            whole, past = begin <= first <= last < begin + room, min(begin + room, len(ids))
            inside = [(max(a, begin) + shift, min(b, past - 1) + shift) for a, b in runs if a < past and b >= begin]
            features.append(
                Feature(
                    question=index,
                    input_ids=(*prefix, *ids[begin : begin + room]),
                    context_start=len(prefix),
                    offsets=tuple(offsets[begin : begin + room]),
                    start=first + shift if whole else -1,
                    end=last + shift if whole else -1,
                    gold=tuple(dict.fromkeys(inside)),
                )
            )
    return features


def best_spans(
    features: Sequence[Feature],
    start_logits: Sequence[Any],
    end_logits: Sequence[Any],
    n_questions: int,
    max_answer_tokens: int,
) -> list[tuple[int, int]]:
    """Each question's best span in characters of its context, over all its windows.

    The span maximises start logit + end logit among spans of 1 to `max_answer_tokens` context tokens. Ties go to the first
    window, then to the first start, then to the first end. A token of whitespace is neither start nor end.

    Args:
        features: the windows; a question may have any number of them.
        start_logits, end_logits: for each window a 1-D tensor or array of `len(input_ids)` floats.
        n_questions: the length of the result. A question without a window gets the empty span (0, 0).

    Raises:
        ValueError: logits have the wrong length or contain NaN, or are not given for every window; a window is of no question;
            the longest answer is not positive.
    """
    whole(0, n_questions=n_questions)
    whole(1, max_answer_tokens=max_answer_tokens)
    if not len(features) == len(start_logits) == len(end_logits):
        raise ValueError(
            f"{len(start_logits)} start and {len(end_logits)} end logits; allowed are those of {len(features)} windows"
        )
    check_windows(features, n_questions)
    best = [(-torch.inf, (0, 0))] * n_questions
    for feature, starts, ends in zip(features, start_logits, end_logits, strict=True):
        start, end = (torch.as_tensor(logits).detach().float().cpu() for logits in (starts, ends))
        if start.shape != (len(feature.input_ids),) or end.shape != start.shape:
            raise ValueError(
                f"question {feature.question}: logits of shape {tuple(start.shape)} and {tuple(end.shape)} for "
                f"{len(feature.input_ids)} tokens; there must be one for each."
            )
        blank = torch.tensor([first == past for first, past in feature.offsets], dtype=torch.bool)
        start = start[feature.context_start :].masked_fill(blank, -torch.inf)
        end = end[feature.context_start :].masked_fill(blank, -torch.inf)
        # scores[i, k] is the score of the span from token i to token i + k. Only this band of the outer sum is computed.
        past_the_end = end.new_full((max_answer_tokens - 1,), -torch.inf)
        scores = start[:, None] + torch.cat([end, past_the_end]).unfold(0, max_answer_tokens, 1)
        flat = int(scores.argmax())
        score = float(scores.flatten()[flat])
        if score != score:
            raise ValueError(f"question {feature.question}: a logit is not a number.")
        if score > best[feature.question][0]:
            i, k = divmod(flat, max_answer_tokens)
            best[feature.question] = (score, (feature.offsets[i][0], feature.offsets[i + k][1]))
    return [span for _, span in best]


def check_windows(features: Sequence[Feature], n_questions: int) -> None:
    """
    Raises:
        ValueError: a window is of none of so many questions.
    """
    if other := [f.question for f in features if not 0 <= f.question < n_questions]:
        raise ValueError(f"a window is of question {other[0]}; allowed are windows of the {n_questions} questions given")


def sizes(questions: Sequence[Question], features: Sequence[Feature]) -> dict[str, float]:
    """The numbers of `questions`, `paragraphs` and `windows`, and the windows' `mean tokens` and `longest`.

    Raises:
        ValueError: there are no windows.
    """
    filled(features=features)
    tokens = [len(f.input_ids) for f in features]
    found = {"questions": len(questions), "paragraphs": len({q.paragraph for q in questions}), "windows": len(features)}
    return found | {"mean tokens": sum(tokens) / len(tokens), "longest": max(tokens)}
