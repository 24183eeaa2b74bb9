"""From a run's params to models, data and scores: what the notebooks share."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qatlib.arguments import QuantizerArguments, TrainingArguments
from qatlib.arithmetic import resolved
from qatlib.cores import usable
from qatlib.lora import LoraSpec
from qatlib.model import SwitchableModel
from qatlib.params.schema import Params
from qatlib.precision import FULL, FULL_PRECISION, Configuration, Precision
from qatlib.pretrained import ModelError, load_pretrained, version_of
from qatlib.qa import toyqa
from qatlib.qa.calibration import calibrate_clips, compensate
from qatlib.qa.evaluate import evaluate_perplexity, evaluate_spans, mean_span_loss
from qatlib.qa.parts import aside, load_parts, spread
from qatlib.qa.spans import Feature, featurize, sizes
from qatlib.qa.squad import Question, digest
from qatlib.schedule import Schedule
from qatlib.seeds import stream
from qatlib.studies.pieces import Keeper, at_each
from qatlib.training import fit

PROBE_WINDOWS = 32
"""Number of validation windows on which the loss at every bit-width is measured during training."""

CALIBRATION_WINDOWS = 16
"""Number of training windows on which codes, clips and the start of adapters are calibrated."""


class Study:
    """One run's data, models and evaluations. Finished results are read from the stage's directory.

    Args:
        stage: the notebook's stage, which keeps the results.

    Attributes:
        train, validation: questions.
        skipped: for each part, the number of unanswerable questions that were left out.
        device: the GPU where there is one.
    """

    def __init__(self, stage: Keeper) -> None:
        self.stage, self.params = stage, stage.params
        gpu = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"  # one GPU for each process that accelerate launches
        self.device = torch.device(gpu if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(min(self.params.compute.threads or torch.get_num_threads(), usable()))
        torch.use_deterministic_algorithms(self.device.type == "cpu")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # no code reads uninitialized memory
        self.train, self.validation, self.skipped = load_parts(self.params.data, self.params.seed)

    def aside(self, questions: int, params: Params) -> Study:
        """This study with other params, which answers training questions instead: it is trained on the other paragraphs only.

        Raises:
            DataError: as `qatlib.qa.parts.aside`.
        """
        study = copy.copy(self)
        study.params = params
        study.validation, study.train = aside(self.train, questions)
        for name in ("train_features", "validation_features", "paragraphs"):
            vars(study).pop(name, None)
        return study

    @property
    def sizes(self) -> pd.DataFrame:
        """Questions, paragraphs and windows of both parts, and the number of unanswerable questions if these are skipped."""
        parts = {"train": (self.train, self.train_features), "validation": (self.validation, self.validation_features)}
        frame = pd.DataFrame([{"part": name} | sizes(*part) for name, part in parts.items()])
        return frame.assign(unanswerable=[*self.skipped.values()]) if self.params.data.unanswerable == "skip" else frame

    @property
    def origin(self) -> dict[str, Any]:
        """What the params do not state, for the provenance: `mixed_precision`, `questions_sha256` (of each part's questions), and
        `model_version` if the source has one."""
        hashes = {"train": digest(self.train), "validation": digest(self.validation)}
        version = version_of(self.params.model.source)
        found = {"mixed_precision": self.mixed_precision, "questions_sha256": hashes}
        return found | ({"model_version": version} if version else {})

    # -- models ---------------------------------------------------------------------------------------------------

    @cached_property
    def _source(self) -> tuple[PreTrainedModel | None, PreTrainedTokenizerBase]:
        if self.params.model.source == "embedded":
            return None, toyqa.build_tokenizer()
        return load_pretrained(self.params.model.source)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self._source[1]

    @property
    def pad_id(self) -> int:
        """The padding token. Under a causal mask any token works; transformers warns about its own, so another is used."""
        return int(self.tokenizer.pad_token_id == 0)

    def pretrained_model(self) -> SwitchableModel:
        """A fresh copy of the model before fine-tuning: the weights of `model.source`, or the embedded one, pre-trained here."""
        model, source = self.params.model, self._source[0]
        if source is not None:
            return self._switchable(copy.deepcopy(source))
        assert model.n_layer and model.n_head and model.n_embd and model.pretraining
        fresh = self._switchable(toyqa.build_model(model.n_layer, model.n_head, model.n_embd, self.params.seed))
        fresh.unfreeze_base()
        self.fit(fresh, model.pretraining, "pretraining")
        fresh.freeze_base()
        return fresh

    def teacher(self, kind: str) -> tuple[SwitchableModel, pd.DataFrame]:
        """The model fine-tuned at full precision, `full` (all weights) or `lora` (adapters), and its training metrics."""
        model, settings = self.pretrained_model(), self.params.teacher
        if kind == "full":
            model.unfreeze_base()
        else:
            torch.manual_seed(stream(self.params.seed, "adapters of the teacher"))
            model.add_adapters({FULL: LoraSpec(settings.rank, settings.alpha, settings.dropout)})
        metrics = self.fit(model, getattr(settings, kind), f"teacher_{kind}")
        model.freeze_base()
        return model, metrics

    def _switchable(self, lm: PreTrainedModel) -> SwitchableModel:
        torch.manual_seed(stream(self.params.seed, "span head"))
        return self._placed(SwitchableModel(lm, self.params.quantizer))

    def quantize(self, model: SwitchableModel, quantizer: QuantizerArguments, precisions: Sequence[Precision]) -> None:
        """Set a model's quantizer, and find what it takes at some precisions from training windows: codes and clips."""
        model.set_quantizer(quantizer)
        w_bits, a_bits = (sorted({p[i] for p in precisions} - {FULL}) for i in (0, 1))
        if quantizer.rounding == "compensated" and w_bits:
            compensate(model, self.calibration_features, w_bits, "compensating rounding errors")
        if quantizer.clipping == "mse" and a_bits:
            calibrate_clips(model, self.calibration_features, a_bits)

    def saved_model(self, path: Path) -> SwitchableModel:
        """A model from a directory that `SwitchableModel.save` wrote, at full precision."""
        model = self._placed(SwitchableModel.load(path)[0])
        model.set_precision(FULL)
        return model

    def _placed(self, model: SwitchableModel) -> SwitchableModel:
        positions = getattr(model.lm.config, "max_position_embeddings", None)
        if positions and self.params.data.max_length > positions:
            raise ModelError(f"data.max_length is {self.params.data.max_length}; this model has {positions} positions")
        for key, quantizer in self.params.quantizers.items():  # before hours of training, not after them
            model.check_quantizer(quantizer, key)
        return model.to(self.device).eval()

    # -- training -------------------------------------------------------------------------------------------------

    @cached_property
    def mixed_precision(self) -> str:
        """`no` or `bf16`, of trainings and attackers. The stage keeps what `auto` became, so no comparison mixes two."""
        return self.stage.settled("mixed_precision", lambda: resolved(self.params.compute.mixed_precision, self.device))

    @cached_property
    def train_features(self) -> list[Feature]:
        """Training windows."""
        return self.featurize(self.train)

    @cached_property
    def validation_features(self) -> list[Feature]:
        """Validation windows."""
        return self.featurize(self.validation)

    @property
    def calibration_features(self) -> list[Feature]:
        """The training windows that quantizers and adapters are calibrated on."""
        return spread(self.train_features, CALIBRATION_WINDOWS)

    def featurize(self, questions: Sequence[Question]) -> list[Feature]:
        """Windows of any questions, cut as the params specify."""
        return featurize(questions, self.tokenizer, self.params.data.max_length, self.params.data.stride)

    def full_precision(self, model: SwitchableModel) -> Schedule:
        """The schedule of unquantized training."""
        configuration = Configuration.uniform(FULL, model.infos)
        return lambda step: [configuration]

    def fit(
        self,
        model: SwitchableModel,
        args: TrainingArguments,
        name: str,
        schedule: Schedule | None = None,
        precisions: Sequence[Precision] = (FULL_PRECISION,),
        seed: int | None = None,
        **options: Any,
    ) -> pd.DataFrame:
        """Train under `name`, from its checkpoint if there is one. Every checkpoint measures the loss at `precisions`.

        Args:
            schedule: by default unquantized training.
            seed: seed of the data order and of dropout; by default the params' own.
            options: further arguments of `qatlib.training.fit`.

        Returns:
            The metrics of `qatlib.training.fit`, also written to the results. Probed losses are in columns `loss@<precision>`.
        """
        with self.stage.timed(f"fit_{name}"):
            metrics = fit(
                model,
                self.train_features,
                args,
                schedule or self.full_precision(model),
                pad_id=self.pad_id,
                seed=self.params.seed if seed is None else seed,
                checkpoint=self.stage.checkpoints(name) / "checkpoint.safetensors",
                mixed_precision=self.mixed_precision,
                trackers=self.params.compute.trackers,
                log_dir=self.stage.checkpoints("logs"),
                probe=lambda: self.probe(model, precisions),
                description=name,
                **options,
            )
        return self.stage.table(f"training_{name}", lambda: metrics)

    def probe(self, model: SwitchableModel, precisions: Sequence[Precision]) -> dict[str, float]:
        """Mean span loss of a few validation windows at each precision, in `loss@<precision>`."""
        windows = spread([f for f in self.validation_features if f.start >= 0], PROBE_WINDOWS)
        losses = {}
        for p in precisions:
            with model.at(p):
                loss = mean_span_loss(model, windows, pad_id=self.pad_id, batch_size=self.params.evaluation.batch_size)
            losses[f"loss@{p.name}"] = loss
        return losses

    # -- evaluation -----------------------------------------------------------------------------------------------

    @cached_property
    def paragraphs(self) -> list[str]:
        """The validation paragraphs that perplexity is measured on."""
        unique = list(dict.fromkeys(q.context for q in self.validation))
        return spread(unique, self.params.data.perplexity_paragraphs)

    @property
    def answering(self) -> dict[str, Any]:
        """Options of this run for `evaluate_spans` and everything built on it."""
        settings = self.params.evaluation
        sizes = {"batch_size": settings.batch_size, "max_answer_tokens": settings.max_answer_tokens}
        return {"pad_id": self.pad_id, **sizes}

    def scores(
        self,
        model: SwitchableModel,
        label: str,
        at: Sequence[Precision] | Mapping[str, Any],
        questions: int | Sequence[Question] | None = None,
        published: bool = True,
        predictions: bool = False,
    ) -> pd.DataFrame:
        """Per-question scores at each precision: `model`, `precision`, `seed`, `id`, `paragraph`, `em`, `f1`, `loss`.

        `w_bits` and `a_bits` are added to `precision`, unless configurations are given by name: these have no single width.

        Args:
            label: the model's name in the result files.
            at: precisions, or a mapping from the name for `precision` to anything that `Configuration.resolve` reads.
            questions: a number of validation questions, or the questions themselves; by default all validation questions.
            published: as in `Stage.table`.
            predictions: whether to keep the answers, in the column `prediction`.
        """
        chosen = questions if isinstance(questions, Sequence) else spread(self.validation, questions)
        features = self.featurize(chosen) if questions else self.validation_features

        def measure(name: str) -> pd.DataFrame:
            frame = evaluate_spans(model, chosen, features, **self.answering, description=f"{label} at {name}")
            return frame if predictions else frame.drop(columns="prediction")

        return at_each(self.stage, model, "scores", label, self.params.seed, at, measure, published)

    def perplexity(self, model: SwitchableModel, texts: Sequence[str], **options: Any) -> pd.DataFrame:
        """`evaluate_perplexity` of some texts with this run's options, and further ones."""
        return evaluate_perplexity(
            model,
            self.tokenizer,
            texts,
            pad_id=self.pad_id,
            max_length=self.params.data.max_length,
            batch_size=self.params.evaluation.batch_size,
            **options,
        )

    def perplexities(
        self,
        model: SwitchableModel,
        label: str,
        at: Sequence[Precision] | Mapping[str, Any],
        paragraphs: int | None = None,
        published: bool = True,
        against: Any | None = None,
    ) -> pd.DataFrame:
        """Per-paragraph figures at each precision: `model`, `precision`, `seed`, `paragraph`, `nll`, `tokens`, `correct`.

        `w_bits`, `a_bits` and `published` as in `scores`; with `against` also `divergence`, as in `evaluate_perplexity`.
        """

        def measure(name: str) -> pd.DataFrame:
            texts, said = spread(self.paragraphs, paragraphs), f"perplexity of {label} at {name}"
            return self.perplexity(model, texts, description=said, against=against)

        return at_each(self.stage, model, "perplexity", label, self.params.seed, at, measure, published)
