"""The common part of a simulated and a deployed model: layers whose precision is an attribute, and the heads on top."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, Self, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from qatlib.layers import forwards_replaced
from qatlib.precision import Configuration, LayerInfo, Precision
from qatlib.pretrained import ModelError


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

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token embeddings (batch, tokens, width) as the family's embedding module scales them, before positions are added."""
        embedded: Tensor = self.lm.get_input_embeddings()(input_ids)
        return embedded

    def forward(self, input_ids: Tensor | None = None, *, inputs_embeds: Tensor | None = None) -> Output:
        """Answer windows, padded on the right. With a causal mask, padding does not change the tokens before it.

        Args:
            input_ids: (batch, tokens).
            inputs_embeds: (batch, tokens, width), a perturbation of `embed(input_ids)`, which it replaces. Without `input_ids`
                it is what the family's own `inputs_embeds` is. A few families scale that otherwise, or need the ids as well.
        """
        given = None if inputs_embeds is None else inputs_embeds.clone()  # CTRL scales what it is given, in place
        if input_ids is None or given is None:
            result = body(self.lm)(input_ids=input_ids, inputs_embeds=given, use_cache=False)
        else:
            with forwards_replaced({self.lm.get_input_embeddings(): partial(self._instead, given)}):
                result = body(self.lm)(input_ids=input_ids, use_cache=False)
        hidden = result.last_hidden_state
        start, end = self.qa_outputs(hidden.to(self.qa_outputs.weight.dtype)).unbind(-1)
        return Output(hidden, start, end)

    def _instead(self, given: Tensor, input_ids: Tensor) -> Tensor:
        if input_ids.shape != given.shape[:-1]:
            raise ModelError(f"{type(self.lm).__name__} embeds other tokens than it is given, so its embeddings can't be changed")
        return given

    def next_token_logits(self, hidden: Tensor) -> Tensor:
        """The language model's logits (batch, tokens, vocabulary) from `Output.hidden`, or from some of its tokens.

        The head is the family's own forward, with its scales, soft caps and transforms. The blocks do not run again: everything
        below the head gives `hidden` at once.

        Raises:
            ModelError: the family's head reads more than the hidden states.
        """
        below = body(self.lm)
        given = _Below(hidden)
        with forwards_replaced(dict.fromkeys((below, below.get_decoder()), lambda *_, **__: given)):  # OPT calls the decoder
            logits: Tensor = self.lm(inputs_embeds=hidden, use_cache=False).logits
        return logits


class _Below(BaseModelOutput):
    """The outputs of everything below a head: `last_hidden_state`, and None for what else a family passes on."""

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, key: Any) -> Any:
        if key == 1:  # ProphetNet
            raise ModelError("this family's head reads more than the hidden states, so next tokens have no logits here")
        return super().__getitem__(key)


def body(lm: PreTrainedModel) -> PreTrainedModel:
    """Everything of a language model below its head; of a model without a head, itself."""
    if (base := lm.base_model) is not lm:
        return base
    return next((module for module in lm.children() if isinstance(module, PreTrainedModel)), lm)  # Llama 4's prefix names nothing
