"""The common part of a simulated and a deployed model: layers whose precision is an attribute, and the heads on top."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from qatlib.precision import Configuration, LayerInfo, Precision


class Switched(Protocol):
    """A layer whose precision is an attribute."""

    precision: Precision


L = TypeVar("L", bound=Switched)


@dataclass
class Output:
    """`hidden` (batch, tokens, width) and `start`, `end` logits (batch, tokens)."""

    hidden: Tensor
    start: Tensor
    end: Tensor


class Switching(nn.Module, Generic[L]):
    """A causal language model with some layers that switch precision, and with a head for answer spans.

    Attributes:
        lm: the language model.
        qa_outputs: linear head, (start, end) logits per token.
        infos: the layers that switch, in the model's order.
    """

    def __init__(self, lm: PreTrainedModel, qa_outputs: nn.Linear, infos: Sequence[LayerInfo]) -> None:
        super().__init__()
        self.lm, self.qa_outputs, self.infos = lm, qa_outputs, tuple(infos)
        self._layers: list[L] = [lm.get_submodule(info.name) for info in infos]

    @property
    def layers(self) -> Sequence[L]:
        """The layers that switch, in the order of `infos`."""
        return self._layers

    @property
    def configuration(self) -> Configuration:
        """The present precision of every layer."""
        return Configuration({info.name: layer.precision for info, layer in zip(self.infos, self._layers, strict=True)})

    def set_precision(self, spec: Any) -> None:
        """Switch layers, by any form that `Configuration.resolve` reads. Layers that a mapping does not name do not change.

        This writes one attribute per layer. Nothing is copied, rebuilt or recompiled.

        Raises:
            ValueError: as `Configuration.resolve`; or the layers do not have a precision. Nothing is switched then.
        """
        current = self.configuration if isinstance(spec, dict) else None
        configuration = Configuration.resolve(spec, self.infos, current)
        self._check(configuration)
        for layer, precision in zip(self._layers, configuration.values(), strict=True):
            # nn.Module.__setattr__ looks for parameters and modules first, ten times the cost of the write itself
            layer.__dict__["precision"] = precision

    def _check(self, configuration: Configuration) -> None:
        """Raise a `ValueError` if the layers do not have these precisions."""

    @contextmanager
    def at(self, spec: Any) -> Iterator[Self]:
        """Switch inside a `with` block."""
        before = self.configuration
        self.set_precision(spec)
        try:
            yield self
        finally:
            self.set_precision(before)

    def forward(self, input_ids: Tensor | None = None, *, inputs_embeds: Tensor | None = None) -> Output:
        """Answer windows, padded on the right. With a causal mask, padding does not change the tokens before it.

        Args:
            input_ids: (batch, tokens).
            inputs_embeds: (batch, tokens, width), instead of `input_ids`: token embeddings, or a perturbation of them.
        """
        hidden = self.lm.base_model(input_ids=input_ids, inputs_embeds=inputs_embeds, use_cache=False).last_hidden_state
        start, end = self.qa_outputs(hidden).unbind(-1)
        return Output(hidden, start, end)

    def next_token_logits(self, hidden: Tensor) -> Tensor:
        """The language model's logits (…, vocabulary) from `Output.hidden`."""
        logits: Tensor = self.lm.get_output_embeddings()(hidden)
        return logits
