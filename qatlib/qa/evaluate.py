"""Evaluation of a model at a configuration: per-question scores, per-paragraph perplexity.

Under `accelerate launch` or `notebook_launcher` the processes share the batches, and every process returns all figures. They
equal those of a single process, because the batches are the same. All processes must make the same calls in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from qatlib.checks import filled, whole
from qatlib.model import SwitchableModel
from qatlib.qa.loss import Batch, collate, span_nll
from qatlib.qa.spans import Feature, best_spans, check_windows
from qatlib.qa.squad import Question, exact_match, f1

T = TypeVar("T")


def over_batches(
    features: Sequence[Feature],
    batch_size: int,
    pad_id: int,
    device: torch.device,
    measure: Callable[[Batch], T],
    description: str | None = None,
) -> list[tuple[list[int], T]]:
    """Indices of the features of every batch, and the result of `measure` for the batch, on the CPU.

    Longest windows come first: there is little padding, and too little memory fails at once.

    Raises:
        ValueError: the batch size is no positive integer.
    """
    whole(1, batch_size=batch_size)
    order = sorted(range(len(features)), key=lambda i: -len(features[i].input_ids))
    starts = range(0, len(order), batch_size)
    rank, processes = _processes(device)
    found = []
    for start in tqdm(starts[rank::processes], desc=description, mininterval=5, disable=description is None or rank > 0):
        indices = order[start : start + batch_size]
        found.append((start, indices, measure(collate([features[i] for i in indices], pad_id, device))))
    if processes > 1:
        found = sorted(gather_object(found), key=lambda item: item[0])
    return [(indices, figures) for _, indices, figures in found]


def _processes(device: torch.device) -> tuple[int, int]:
    """The index of this process among those that a launcher started, and their number."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1  # do not create accelerate's state: notebook_launcher's processes would inherit it
    state = PartialState(cpu=device.type == "cpu")
    return state.process_index, state.num_processes


def device_of(model: SwitchableModel) -> torch.device:
    """The device for a model's inputs."""
    return model.qa_outputs.weight.device


@torch.no_grad()
def evaluate_spans(
    model: SwitchableModel,
    questions: Sequence[Question],
    features: Sequence[Feature],
    *,
    pad_id: int,
    batch_size: int,
    max_answer_tokens: int,
    description: str | None = None,
) -> pd.DataFrame:
    """Answer every question at the model's current configuration.

    Returns:
        One row per question, in order: `id`, `paragraph` (the bootstrap's cluster), `em` and `f1` in percent,
        `loss` (span NLL in nats, mean over the windows that contain the answer; NaN if none does), `prediction`.

    Raises:
        ValueError: there are no questions or no windows, a window is of another question, or a number is not positive.

    Example:
        >>> with model.at(4):
        ...     scores = evaluate_spans(model, questions, features, pad_id=0, batch_size=16, max_answer_tokens=30)
        >>> f1 = scores["f1"].mean()
    """
    check_answering(questions, features, max_answer_tokens)
    model.eval()
    found = over_batches(features, batch_size, pad_id, device_of(model), partial(span_figures, model), description)
    return answers(questions, features, found, max_answer_tokens)


def check_answering(questions: Sequence[Question], features: Sequence[Feature], max_answer_tokens: int) -> None:
    """Check what every way of answering gets, before any pass through a model.

    Raises:
        ValueError: there are no questions or no windows, a window is of another question, or the longest answer is not positive.
    """
    filled(questions=questions, features=features)
    whole(1, max_answer_tokens=max_answer_tokens)
    check_windows(features, len(questions))


SpanFigures = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Figures of a batch of windows: span NLL (batch,), start and end logits (batch, tokens), fp32 on the CPU."""


def span_figures(model: SwitchableModel, batch: Batch, inputs_embeds: torch.Tensor | None = None) -> SpanFigures:
    """The figures for answers at the model's current configuration. `inputs_embeds` replaces the tokens' embeddings."""
    output = model(batch.input_ids) if inputs_embeds is None else model(batch.input_ids, inputs_embeds=inputs_embeds)
    return span_nll(output, batch).cpu(), output.start.float().cpu(), output.end.float().cpu()


def answers(
    questions: Sequence[Question],
    features: Sequence[Feature],
    found: Sequence[tuple[list[int], SpanFigures]],
    max_answer_tokens: int,
) -> pd.DataFrame:
    """The table of `evaluate_spans`, from the figures of all batches and the indices of their windows."""
    start: list[torch.Tensor] = [torch.empty(0)] * len(features)
    end, loss = list(start), np.full(len(features), np.nan)
    for indices, (losses, starts, ends) in found:
        loss[indices] = losses.numpy()
        for row, index in enumerate(indices):
            tokens = len(features[index].input_ids)
            start[index], end[index] = starts[row, :tokens], ends[row, :tokens]
    spans = best_spans(features, start, end, len(questions), max_answer_tokens)
    by_question = pd.Series(loss).groupby([f.question for f in features]).mean().reindex(range(len(questions)))
    rows = []
    for i, (question, (a, b)) in enumerate(zip(questions, spans, strict=True)):
        prediction = question.context[a:b]
        place = {"id": question.id, "paragraph": question.paragraph}
        scores = {"em": 100 * exact_match(prediction, question.answers), "f1": 100 * f1(prediction, question.answers)}
        rows.append(place | scores | {"loss": by_question[i], "prediction": prediction})
    return pd.DataFrame(rows)


@torch.no_grad()
def mean_span_loss(model: SwitchableModel, features: Sequence[Feature], *, pad_id: int, batch_size: int) -> float:
    """Mean span NLL in nats over the windows that contain their answer. A quick check during training.

    Raises:
        ValueError: no window contains an answer, or the batch size is not positive.
    """
    if all(f.start < 0 for f in features):
        raise ValueError("no window contains an answer; allowed are windows of which at least one does")
    was_training = model.training
    model.eval()
    found = over_batches(features, batch_size, pad_id, device_of(model), lambda b: span_nll(model(b.input_ids), b).cpu())
    model.train(was_training)
    return float(torch.cat([losses for _, losses in found]).nanmean())


@torch.no_grad()
def evaluate_perplexity(
    model: SwitchableModel,
    tokenizer: PreTrainedTokenizerBase,
    paragraphs: Sequence[str],
    *,
    pad_id: int,
    max_length: int,
    batch_size: int,
    against: Any | None = None,
    description: str | None = None,
) -> pd.DataFrame:
    """Next-token loss of plain paragraphs at the model's current configuration.

    Each paragraph is a separate sequence, after the tokenizer's beginning-of-text token if there is one, cut at `max_length`
    tokens. The first token of the sequence is not predicted. A paragraph without a token to predict, such as an empty one, has 0
    tokens and a loss of 0.

    Args:
        against: another configuration of this model, as `Configuration.resolve` reads it.

    Returns:
        One row per paragraph: `paragraph` (same key as a question's), `nll` (nats, summed), `tokens` (number of predicted
        tokens), `correct` (number of tokens that the model found most probable). Perplexity is exp(Σ nll / Σ tokens), token
        accuracy Σ correct / Σ tokens. With `against` also `divergence`: KL(p ‖ q) of the next token, in nats, summed, with p at
        `against` and q at the current configuration.

    Raises:
        ValueError: there are no paragraphs, `max_length` is below 2, or the batch size is not positive.
    """
    filled(paragraphs=paragraphs)
    whole(2, max_length=max_length)
    model.eval()
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    features, keys = [], []
    for text in paragraphs:
        ids = bos + tokenizer(text, add_special_tokens=False)["input_ids"]
        features.append(Feature(0, tuple(ids[:max_length]), 0, (), -1, -1))
        keys.append(Question("", "", text, "", ()).paragraph)
    figures = np.zeros((len(features), 3))
    measure = partial(_next_token_figures, model, against)
    told = [i for i, f in enumerate(features) if len(f.input_ids) > 1]
    within = [features[i] for i in told]
    for indices, sums in over_batches(within, batch_size, pad_id, device_of(model), measure, description):
        figures[[told[i] for i in indices]] = sums.numpy()
    tokens = [max(0, len(f.input_ids) - 1) for f in features]
    found = pd.DataFrame({"paragraph": keys, "nll": figures[:, 0], "tokens": tokens, "correct": figures[:, 1].astype(int)})
    return found if against is None else found.assign(divergence=figures[:, 2])


def _next_token_figures(model: SwitchableModel, against: Any | None, batch: Batch) -> torch.Tensor:
    """(batch, 3) in fp64: sum of next-token NLL in nats, number of tokens predicted right, sum of KL(`against` ‖ now) in nats.

    Logits take far more memory than hidden states, so the head sees one sequence at a time.
    """
    hidden = model(batch.input_ids).hidden
    reference = hidden
    if against is not None:
        with model.at(against):
            reference = model(batch.input_ids).hidden
    figures = []
    for ids, real, own, other in zip(batch.input_ids, batch.real, hidden, reference, strict=True):
        target, counted = ids[1:], real[1:].double()
        logits = model.next_token_logits(own[None, :-1])[0].float()
        nll = F.cross_entropy(logits, target, reduction="none")
        apart = torch.zeros_like(nll)
        if against is not None:
            wanted = model.next_token_logits(other[None, :-1])[0].float().log_softmax(-1)
            apart = F.kl_div(logits.log_softmax(-1), wanted, reduction="none", log_target=True).sum(-1)
        figures.append(torch.stack([nll * counted, (logits.argmax(-1) == target) * counted, apart * counted]).sum(1))
    return torch.stack(figures).cpu()
