"""The sections of a params file and what each of their values may be. Free of torch, quick to import."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, WithJsonSchema
from pydantic import ValidationInfo as Info
from pydantic import field_validator as check
from pydantic_core import PydanticCustomError

from qatlib.arguments import (
    Count,
    Positive,
    QuantizerArguments,
    Size,
    TrainingArguments,
)
from qatlib.files import is_a
from qatlib.params.yaml import given
from qatlib.qa.formats import SUFFIXES, content_hash

ROOT = Path(__file__).resolve().parents[2]
"""The repository: relative paths in params files and overrides start here, whatever the working directory."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


T = TypeVar("T")


def once(value: tuple[T, ...]) -> tuple[T, ...]:
    """The value itself, if nothing is in it twice. Numbers must differ in the six digits that results are named by."""
    names = [f"{x:g}" if isinstance(x, float) else x for x in value]
    counts = Counter(names)
    if twice := [x for x, name in zip(value, names, strict=True) if counts[name] > 1]:
        raise ValueError(f"a list with each value once, which {given(getattr(twice[0], 'name', twice[0]))} is not")
    return value


Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""What every library takes as a seed."""
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(once)]


def placed(value: str, info: Info) -> str | None:
    """`dir:PATH`, made absolute, or `hub:ID`; None for what is neither. Raises ValueError saying what is allowed."""
    kind, _, rest = value.partition(":")
    if kind == "dir" and rest:
        path: Path = (info.context or {}).get("root", ROOT) / rest
        if not is_a(path, Path.is_dir):
            raise ValueError("a directory that exists after 'dir:'")
        return f"dir:{path.resolve()}"
    if kind == "hub" and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", rest):
        raise ValueError("'hub:NAME' or 'hub:OWNER/NAME'")
    return value if kind == "hub" else None


def _source(value: Any, info: Info) -> Any:
    """Check a data or model source and make its paths absolute; raises ValueError saying what is allowed."""
    root: Path = (info.context or {}).get("root", ROOT)
    files = info.field_name != "source"
    kinds = _SOURCES if files else _SOURCE
    if isinstance(value, str) and (found := placed(value, info)):
        return found
    if value == "embedded" or (value == "pip:smollm2-135m" and not files):
        return value
    if not files or not isinstance(value, list) or not value:
        raise ValueError(kinds)
    paths = []
    for item in value:
        if not isinstance(item, str) or not item.endswith(SUFFIXES):
            raise ValueError(f"a list of files named {_ENDINGS}, which {given(item)} is not")
        if not is_a(root / item, Path.is_file):
            raise ValueError(f"a list of files that exist, which {given(item)} does not")
        paths.append(str((root / item).resolve()))
    if len(set(paths)) < len(paths):
        raise ValueError("a list that names no file twice")
    return tuple(paths)


_SOURCE = "'embedded', 'hub:ID', 'dir:PATH' or 'pip:smollm2-135m'"
_ENDINGS = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
_SOURCES = f"'embedded', 'hub:ID', 'dir:PATH' or a list of files of questions ({', '.join(SUFFIXES)})"
Questions = Annotated[int, Field(ge=10, le=1_000_000_000)]
Share = Annotated[float, Field(ge=0, lt=1)]
_Source = Annotated[str, PlainValidator(_source), WithJsonSchema({"description": _SOURCE})]
Sources = Annotated[
    str | tuple[str, ...],
    PlainValidator(_source),
    PlainSerializer(lambda source: source if isinstance(source, str) else list(source)),
    WithJsonSchema({"description": _SOURCES}),
]


class Model(Section):
    """Where the weights come from. The embedded model has a shape and a pre-training as well."""

    source: _Source
    """`embedded` (a small GPT-2, trained from scratch), `hub:ID`, `dir:PATH` (the hub's layout, safetensors) or
    `pip:smollm2-135m`."""
    n_layer: Annotated[Size | None, Field(validate_default=True)] = None
    """Blocks of the embedded model; null for every other source."""
    n_head: Annotated[Size | None, Field(validate_default=True)] = None
    """Attention heads in each block of the embedded model; null for every other source."""
    n_embd: Annotated[Size | None, Field(validate_default=True)] = None
    """Width of the embedded model, a multiple of `n_head`; null for every other source."""
    pretraining: Annotated[TrainingArguments | None, Field(validate_default=True)] = None
    """Training of the embedded model from scratch, at full precision; null for every other source."""

    @check("n_layer", "n_head", "n_embd", "pretraining")
    @classmethod
    def _embedded_only(cls, value: Any, info: Info) -> Any:
        source = info.data.get("source")
        if source == "embedded" and value is None:
            what = "a section of training arguments" if info.field_name == "pretraining" else "an integer of at least 1"
            raise ValueError(f"{what}, because model.source is 'embedded'")
        if source not in (None, "embedded") and value is not None:
            raise ValueError(f"null, because model.source is {source!r} and brings its own")
        if info.field_name == "n_embd" and value and (heads := info.data.get("n_head")) and value % heads:
            raise ValueError(f"a multiple of model.n_head ({heads})")
        return value


class Data(Section):
    """Questions for training and for evaluation, and how they are cut into windows."""

    train: Sources
    """`embedded` (generated questions), `hub:ID`, `dir:PATH` (the hub's layout), or a list of files: SQuAD's JSON, or rows as
    JSON, JSON Lines or parquet; plain or `.gz`."""
    validation: Sources
    """As `train`. No question may be in both, whatever the files are called."""
    train_questions: Annotated[Count | None, Field(validate_default=True)] = None
    """Largest number of questions, drawn with the seed; null for all. For `embedded` the number that is generated."""
    validation_questions: Annotated[Questions | None, Field(validate_default=True)] = None
    """As `train_questions`, of `validation`."""
    unanswerable: Literal["refuse", "skip"] = "refuse"
    """Questions without an answer (SQuAD 2.0): `refuse` such data, or `skip` these questions, whose number is shown."""
    max_length: Annotated[int, Field(ge=16, le=1_000_000)]
    """Tokens in a window."""
    stride: Annotated[int, Field(ge=0, le=1_000_000)]
    """Tokens that two neighbouring windows of a long paragraph share; less than half of `max_length`."""
    perplexity_paragraphs: Annotated[int, Field(ge=2, le=1_000_000_000)]
    """Validation paragraphs that perplexity is measured on, spread evenly over all of them."""

    @check("validation")
    @classmethod
    def _apart(cls, value: Any, info: Info) -> Any:
        if isinstance(value, tuple) and (shared := set(value) & set(info.data.get("train") or ())):
            raise ValueError(f"files that are not in data.train, which {given(Path(min(shared)).name)} is")
        trained = info.data.get("train")
        if isinstance(value, tuple) and isinstance(trained, tuple):
            contents = {content_hash(path) for path in trained}
            if again := [Path(path).name for path in value if content_hash(path) in contents]:
                raise ValueError(f"files with other contents than those of data.train, unlike {given(again[0])}")
        return value

    @check("train_questions", "validation_questions")
    @classmethod
    def _generated(cls, value: Any, info: Info) -> Any:
        of = str(info.field_name).removesuffix("_questions")
        if value is None and info.data.get(of) == "embedded":
            raise ValueError(f"an integer of at least 1, because data.{of} is 'embedded'")
        return value

    @check("stride")
    @classmethod
    def _short(cls, value: int, info: Info) -> int:
        if (length := info.data.get("max_length")) and value >= length / 2:
            raise ValueError(f"an integer from 0 to less than half of data.max_length ({length})")
        return value


AdapterStart = Literal["zero", "output_error"]


class LoraSettings(Section):
    """The adapter of each precision: rank, alpha and dropout, in the order of `precisions`."""

    ranks: tuple[Size, ...]
    """Rank of each adapter."""
    alphas: tuple[Positive, ...]
    """Each adapter's output is scaled by alpha / rank."""
    dropouts: tuple[Share, ...]
    """Dropout of each adapter's input during training."""
    start: AdapterStart = "zero"
    """Adapters start at zero, or at the best correction of what quantizing took from their layer's output on calibration windows
    (QERA, Zhang et al. 2024). Adapters at 32 bits and shared ones always start at zero."""


class Teacher(Section):
    """The same model fine-tuned at full precision, once with all weights and once with LoRA."""

    base: Literal["full", "lora"]
    """Which of the two trainings the later stages build on."""
    full: TrainingArguments
    """Training of all weights."""
    lora: TrainingArguments
    """Training of one LoRA adapter."""
    rank: Size
    """Rank of that adapter."""
    alpha: Positive
    """Its output is scaled by alpha / rank."""
    dropout: Share
    """Dropout of its input during training."""


def _dynamic(quantizer: QuantizerArguments | None) -> QuantizerArguments | None:
    if quantizer is not None and quantizer.activations != "per_token":
        allowed = "'per_token': static scales are compared in 01_build, and nothing calibrates them elsewhere"
        raise PydanticCustomError("inner", "{key}", {"key": "activations", "given": quantizer.activations, "allowed": allowed})
    return quantizer


DynamicQuantizer = Annotated[QuantizerArguments, AfterValidator(_dynamic)]


class Evaluation(Section):
    """How answers are decoded, and how intervals are made."""

    batch_size: Size
    """Windows in a batch."""
    max_answer_tokens: Size
    """Tokens in the longest answer that may be given."""
    resamples: Annotated[int, Field(ge=100, le=100_000)]
    """Bootstrap resamples, drawn by paragraph."""
    confidence: Annotated[float, Field(gt=0, lt=1)]
    """Level of the intervals."""


class Compute(Section):
    """Arithmetic, CPU threads, and trackers of a training."""

    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    """Arithmetic of training and of an attacker's own passes. `auto` is `bf16` where that is fast (CUDA, AMX, AVX512-BF16), and
    `no`, which is fp32, elsewhere. A stage keeps what `auto` became when it or its upstream stage began. Evaluation is always in
    fp32."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads, at most the cores that the process may use; null leaves their number to torch."""
    trackers: Annotated[tuple[Literal["tensorboard"], ...], AfterValidator(once)] = ()
    """`tensorboard`: training metrics go to `runs/<profile>/<stage>/checkpoints/logs` as well as to their files."""
