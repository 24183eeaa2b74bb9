"""Question answering by generation: a prompt, the model's greedy answer at any precision, and its SQuAD scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from qatlib.checks import filled, whole
from qatlib.model import SwitchableModel
from qatlib.qa.evaluate import device_of, over_batches
from qatlib.qa.loss import Batch, next_token_nll
from qatlib.qa.spans import Feature
from qatlib.qa.squad import DataError, Question, exact_match, f1

CONTEXT, QUESTION, ANSWER = "Context:\n", "\nQuestion: ", "\nAnswer:"
"""The text before each of the three parts of a prompt. The embedded tokenizer drops line ends and does not know 'Answer', so
its prompts end with <unk> and a colon."""


def prompts(questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[tuple[int, ...]]:
    """Token ids of every question's prompt, in order: bos (where the tokenizer has one), context, question, 'Answer:'.

    A prompt has at most `max_length` tokens. If that is too few, the question is cut to half of the tokens left by the template
    (or more, if the context needs fewer), and the context is cut to the rest. An answer near its end may then be lost.

    Raises:
        DataError: `max_length` leaves no room for a token of the question and one of its context.
    """

    def encode(texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    before, between, after = encode([CONTEXT, QUESTION, ANSWER])
    room = max_length - len(bos) - len(before) - len(between) - len(after)
    if room < 2:
        raise DataError(
            f"a prompt of {max_length} tokens has no room for a question and its context; allowed is {max_length + 2 - room}"
        )
    contexts = list(dict.fromkeys(question.context for question in questions))  # questions share them
    known = dict(zip(contexts, encode(contexts), strict=True)) if contexts else {}
    made = []
    for question in questions:
        (asked,) = encode([QUESTION + question.question])  # with the text before it: a word's token depends on that
        asked = asked[: len(between) + max(room // 2, room - len(known[question.context]))]
        context = known[question.context][: room + len(between) - len(asked)]
        made.append((*bos, *before, *context, *asked, *after))
    return made


class _EndOfLine(StoppingCriteria):
    """An answer ends at the token that contains a line end."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        last = self.tokenizer.batch_decode(input_ids[:, -1:])
        return torch.tensor(["\n" in text for text in last], device=input_ids.device)


@torch.no_grad()
def greedy_answers(
    model: SwitchableModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: Sequence[Sequence[int]],
    *,
    pad_id: int,
    max_answer_tokens: int,
) -> list[str]:
    """Greedy decoding with a KV cache, up to a line end, an end-of-text token or a maximum length.

    Padding is on the left and masked. With one activation scale per token, a token's codes depend only on that token. So
    neither the cache nor the rest of the batch changes an answer.

    Args:
        batch: token ids of the prompts.

    Returns:
        The answers, without the line end and the whitespace around them.

    Raises:
        ValueError: there are no prompts, or one is empty; or the longest answer is not positive.
    """
    filled(batch=batch, **{f"prompt {i}": ids for i, ids in enumerate(batch)})
    whole(1, max_answer_tokens=max_answer_tokens)
    model.eval()
    longest = max(len(ids) for ids in batch)
    device = device_of(model)
    generated = model.lm.generate(
        torch.tensor([[pad_id] * (longest - len(ids)) + list(ids) for ids in batch], device=device),
        attention_mask=torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in batch], device=device),
        max_new_tokens=max_answer_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=pad_id,
        stopping_criteria=StoppingCriteriaList([_EndOfLine(tokenizer)]),
    )
    # A row that ends before the others continues with padding or past its line end. Both are cut off here.
    eos = model.lm.generation_config.eos_token_id
    ends = {eos} if isinstance(eos, int) else set(eos or ())
    rows = [ids[: next((i for i, token in enumerate(ids) if token in ends), None)] for ids in generated[:, longest:].tolist()]
    return [text.split("\n")[0].strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


@torch.no_grad()
def evaluate_answers(
    model: SwitchableModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    pad_id: int,
    max_length: int,
    batch_size: int,
    max_answer_tokens: int,
    description: str | None = None,
) -> pd.DataFrame:
    """Answer every question by generation at the model's current configuration.

    Args:
        max_length: maximum number of tokens of prompt and answer together.

    Returns:
        One row per question, in order, with the columns of `evaluate_spans`: `id`, `paragraph`, `em` and `f1` in percent,
        `loss` (next-token NLL of the first annotated answer after the prompt, nats, mean over its tokens), `prediction`.

    Raises:
        DataError: `max_length` leaves no room for a question, its context and an answer.
        ValueError: there are no questions, or a number is not positive.
    """
    filled(questions=questions)
    whole(1, batch_size=batch_size, max_answer_tokens=max_answer_tokens, max_length=max_length)
    model.eval()
    asked = prompts(questions, tokenizer, max_length - max_answer_tokens)
    predictions, loss = [""] * len(questions), np.zeros(len(questions))
    order = sorted(range(len(asked)), key=lambda i: -len(asked[i]))
    for start in tqdm(range(0, len(order), batch_size), desc=description, mininterval=5, disable=description is None):
        rows = order[start : start + batch_size]
        answers = greedy_answers(model, tokenizer, [asked[i] for i in rows], pad_id=pad_id, max_answer_tokens=max_answer_tokens)
        for i, answer in zip(rows, answers, strict=True):
            predictions[i] = answer
    wanted = tokenizer([f" {q.answers[0].text}" for q in questions], add_special_tokens=False)["input_ids"]
    told = [(*p, *w[:max_answer_tokens]) for p, w in zip(asked, wanted, strict=True)]
    features = [Feature(i, ids, 0, (), -1, -1) for i, ids in enumerate(told)]

    def told_nll(batch: Batch) -> Tensor:
        return next_token_nll(model, model(batch.input_ids), batch).double().cpu()

    for indices, nll in over_batches(features, batch_size, pad_id, device_of(model), told_nll):
        for row, i in enumerate(indices):
            loss[i] = nll[row, len(asked[i]) - 1 : len(told[i]) - 1].mean()
    return pd.DataFrame(
        {
            "id": [q.id for q in questions],
            "paragraph": [q.paragraph for q in questions],
            "em": [100 * exact_match(p, q.answers) for p, q in zip(predictions, questions, strict=True)],
            "f1": [100 * f1(p, q.answers) for p, q in zip(predictions, questions, strict=True)],
            "loss": loss,
            "prediction": predictions,
        }
    )
