"""Answers to attacked input: one attack, answered in several ways."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from qatlib.checks import filled, one_of
from qatlib.model import SwitchableModel
from qatlib.precision import Precision
from qatlib.qa.evaluate import SpanFigures, answers, check_answering, device_of, over_batches, span_figures
from qatlib.qa.loss import Batch
from qatlib.qa.spans import Feature
from qatlib.qa.squad import Question

Craft = Callable[[Batch], Tensor]
"""A batch → the attacked embeddings (batch, tokens, width) that replace the batch's own."""

Answering = Callable[[Batch, Tensor], SpanFigures]
"""A batch and attacked embeddings → the figures from which answers are computed."""


def answers_at(model: SwitchableModel, precisions: Iterable[Precision]) -> dict[str, Answering]:
    """For each precision, by name: answers with all layers at this precision."""

    def figures(precision: Precision, batch: Batch, embeds: Tensor) -> SpanFigures:
        with model.at(precision):
            return span_figures(model, batch, embeds)

    return {p.name: partial(figures, p) for p in precisions}


def judged(
    model: SwitchableModel,
    questions: Sequence[Question],
    features: Sequence[Feature],
    craft: Craft,
    answering: Mapping[str, Answering],
    *,
    pad_id: int,
    batch_size: int,
    max_answer_tokens: int,
    description: str | None = None,
) -> pd.DataFrame:
    """Attack every window once, and answer each attacked window in every way.

    Returns:
        The rows of `evaluate_spans` for each way of answering, named in `answered`: `answered`, `id`, `paragraph`, `em`, `f1`,
        `loss`, `prediction`.

    Raises:
        ValueError: as `evaluate_spans`, or there is no way of answering.
    """
    check_answering(questions, features, max_answer_tokens)
    filled(answering=answering)
    model.eval()

    def measure(batch: Batch) -> dict[str, SpanFigures]:
        embeds = craft(batch)
        with torch.no_grad():
            found = {name: answer(batch, embeds) for name, answer in answering.items()}
        _return_freed_memory()
        return found

    found = over_batches(features, batch_size, pad_id, device_of(model), measure, description)
    decode = partial(answers, questions, features, max_answer_tokens=max_answer_tokens)
    frames = [decode([(rows, figures[name]) for rows, figures in found]).assign(answered=name) for name in answering]
    return pd.concat(frames, ignore_index=True)


def _return_freed_memory() -> None:
    """Return memory freed by glibc to the system. Without glibc it does nothing.

    Batches get shorter and shorter, so memory freed by one batch is not reused by the next. With SmolLM2-135M, a graph of 16
    windows takes 4 to 8 GB, and 4 GB are always in use. Memory still grew to 24 GB within some hundred batches. This call costs
    6 % of an attack's time there.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def averaged(frame: pd.DataFrame, answered: Sequence[str], name: str) -> pd.DataFrame:
    """Each question's mean over some ways of answering, as one new way of answering with the given name.

    Raises:
        ValueError: the table has no such way of answering, or none is named.
    """
    filled(answered=answered)
    for way in answered:
        one_of(frame["answered"].unique(), answered=way)
    chosen = frame[frame["answered"].isin(answered)]
    keys = [c for c in frame if c not in ("answered", "em", "f1", "loss")]
    return chosen.groupby(keys, sort=False, as_index=False)[["em", "f1", "loss"]].mean().assign(answered=name)
