"""Evaluation of a model at a configuration: per-question scores, per-paragraph perplexity, calibration of static scales.

Under `accelerate launch` or `notebook_launcher` the processes share the batches, and every process returns all figures. They
equal those of a single process, because the batches are the same. All processes must make the same calls in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from qatlib.checks import filled, finite, one_of, whole
from qatlib.grids import GRIDS
from qatlib.model import SwitchableModel
from qatlib.precision import BIT_WIDTHS, FULL
from qatlib.qa.loss import Batch, collate, span_nll
from qatlib.qa.spans import Feature, best_spans, check_windows
from qatlib.qa.squad import Question, exact_match, f1
from qatlib.quantizer import ClipObserver, EMAObserver

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
    description: str | None = None,
) -> pd.DataFrame:
    """Next-token loss of plain paragraphs at the model's current configuration.

    Each paragraph is a separate sequence, after the tokenizer's beginning-of-text token if there is one, cut at `max_length`
    tokens. The first token of the sequence is not predicted. A paragraph without a token to predict, such as an empty one, has 0
    tokens and a loss of 0.

    Returns:
        One row per paragraph: `paragraph` (same key as a question's), `nll` (nats, summed), `tokens` (number of predicted
        tokens), `correct` (number of tokens that the model found most probable). Perplexity is exp(Σ nll / Σ tokens), token
        accuracy Σ correct / Σ tokens.

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
    figures = np.zeros((len(features), 2))
    measure = partial(_next_token_figures, model)
    told = [i for i, f in enumerate(features) if len(f.input_ids) > 1]
    within = [features[i] for i in told]
    for indices, sums in over_batches(within, batch_size, pad_id, device_of(model), measure, description):
        figures[[told[i] for i in indices]] = sums.numpy()
    tokens = [max(0, len(f.input_ids) - 1) for f in features]
    return pd.DataFrame({"paragraph": keys, "nll": figures[:, 0], "tokens": tokens, "correct": figures[:, 1].astype(int)})


def _next_token_figures(model: SwitchableModel, batch: Batch) -> torch.Tensor:
    """(batch, 2) in fp64: sum of next-token NLL in nats, number of tokens predicted right; one pass through model and head."""
    logits = model.next_token_logits(model(batch.input_ids).hidden[:, :-1]).float()
    target, real = batch.input_ids[:, 1:], batch.real[:, 1:]
    nll = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape) * real
    correct = (logits.argmax(-1) == target) & real
    return torch.stack([nll.double().sum(1), correct.double().sum(1)], 1).cpu()


@torch.no_grad()
def calibrate(model: SwitchableModel, features: Sequence[Feature], *, momentum: float = 0.9) -> None:
    """A calibration pass for static activation scales, at the model's current configuration.

    Every layer's EMA observer is reset and sees the windows one by one, in the given order, so it never sees padding. During
    the pass, weights are at their width but activations are not quantized, because their scales are not known yet.

    Raises:
        ValueError: there are no windows, or the momentum is not from 0 to below 1.
    """
    filled(features=features)
    _check_momentum(momentum)
    model.eval()
    set_static_range(model, None, momentum)
    for layer in model.layers:
        layer.observing = True
    before = model.configuration
    model.set_precision({name: {"w_bits": p.w_bits, "a_bits": 32} for name, p in before.items()})
    for feature in features:
        model(torch.tensor([feature.input_ids], device=device_of(model)))
    model.set_precision(before)
    for layer in model.layers:
        layer.observing = False


@torch.no_grad()
def calibrate_clips(model: SwitchableModel, features: Sequence[Feature], a_bits: Sequence[int]) -> None:
    """Find, for every layer and activation bit-width, the clipping ratio with the lowest squared error.

    The ratio is a share of each token's largest magnitude. Every layer sees the windows one by one at full precision. One ratio
    per layer serves all its tokens, so at run time a clipped scale costs the same as a min-max scale
    (`QuantizerArguments.clipping`).

    Raises:
        ValueError: there are no windows or no bit-widths, or a bit-width is not from 2 to 16.
    """
    filled(features=features, a_bits=a_bits)
    for bits in a_bits:
        one_of(BIT_WIDTHS[:-1], a_bits=bits)
    model.eval()
    kept = [layer.observer for layer in model.layers]
    grid = GRIDS[model.quantizer.grid].activations
    for layer in model.layers:
        layer.observer, layer.observing = ClipObserver(a_bits, grid), True
    with model.at(FULL):
        for feature in features:
            model(torch.tensor([feature.input_ids], device=device_of(model)))
    for layer, observer in zip(model.layers, kept, strict=True):
        found = layer.observer
        assert isinstance(found, ClipObserver)
        for bits in a_bits:
            clip = torch.tensor(found.best(bits), device=layer.weight.device).log()
            layer.clips[str(bits)] = torch.nn.Parameter(clip, requires_grad=False)
        layer.observer, layer.observing = observer, False


def set_static_range(model: SwitchableModel, absmax: float | None, momentum: float = 0.9) -> None:
    """Give every layer a new observer: empty (`absmax` None), or starting at one magnitude.

    Raises:
        ValueError: the magnitude is not positive, or the momentum is not from 0 to below 1.
    """
    _check_momentum(momentum)
    if absmax is not None:
        finite(0, above=True, absmax=absmax)
    for layer in model.layers:
        layer.observer = EMAObserver(momentum)
        if absmax is not None:
            layer.observer.absmax = torch.tensor(absmax, device=layer.weight.device)


def _check_momentum(momentum: float) -> None:
    finite(0, momentum=momentum)
    if momentum >= 1:
        raise ValueError(f"momentum is {momentum}; allowed is a number from 0 to below 1")
