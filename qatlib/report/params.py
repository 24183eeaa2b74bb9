"""The schema of a params file: what a run is told, checked before anything starts. Free of torch, quick to import."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError, WithJsonSchema
from pydantic import ValidationInfo as Info
from pydantic import field_validator as check
from pydantic_core import PydanticCustomError

from qatlib.arguments import ObjectiveArguments, PrecisionField, QuantizerArguments, ScheduleArguments, TrainingArguments
from qatlib.precision import FULL_PRECISION, Precision
from qatlib.report.complaints import complaint
from qatlib.report.strict_yaml import ParamsError, given, read_yaml

ROOT = Path(__file__).resolve().parents[2]
"""The repository: relative paths in params files and overrides start here, whatever the working directory."""

STAGES = ("01_build", "02_switchable_train", "03_sensitivity_heatmaps", "04_cpt", "05_adversarial")

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "01_build": ("seed", "model", "data", "quantizer", "teacher", "post_training", "evaluation", "compute"),
    "02_switchable_train": ("precisions", "lora", "switchable"),
    "03_sensitivity_heatmaps": (),
    "04_cpt": (),
    "05_adversarial": (),
}
"""The parts of the params that a stage's results depend on, beside those of its upstream stages."""

UPSTREAM: Mapping[str, str | None] = {
    "01_build": None,
    "02_switchable_train": "01_build",
    "03_sensitivity_heatmaps": "02_switchable_train",
    "04_cpt": "02_switchable_train",
    "05_adversarial": "02_switchable_train",
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _source(value: Any, info: Info) -> Any:
    """Check a data or model source and make its paths absolute; raises ValueError saying what is allowed."""
    root: Path = (info.context or {}).get("root", ROOT)
    files = info.field_name != "source"
    kinds = _SOURCES if files else _SOURCE
    if isinstance(value, str):
        kind, _, rest = value.partition(":")
        if kind == "dir" and rest:
            if not (root / rest).is_dir():
                raise ValueError("a directory that exists after 'dir:'")
            return f"dir:{(root / rest).resolve()}"
        if kind == "hub" and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", rest):
            raise ValueError("'hub:NAME' or 'hub:OWNER/NAME'")
        if kind == "hub" or value == "embedded" or (value == "pip:smollm2-135m" and not files):
            return value
    if not files or not isinstance(value, list) or not value:
        raise ValueError(kinds)
    paths = []
    for item in value:
        if not isinstance(item, str) or not item.endswith((".json", ".json.gz")):
            raise ValueError(f"a list of files named .json or .json.gz, which {given(item)} is not")
        if not (root / item).is_file():
            raise ValueError(f"a list of files that exist, which {given(item)} does not")
        paths.append(str((root / item).resolve()))
    if len(set(paths)) < len(paths):
        raise ValueError("a list that names no file twice")
    return tuple(paths)


_SOURCE = "'embedded', 'hub:ID', 'dir:PATH' or 'pip:smollm2-135m'"
_SOURCES = "'embedded', 'hub:ID', 'dir:PATH' or a list of SQuAD JSON files (.json, .json.gz)"
_Count = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(ge=0, lt=1)]
_Source = Annotated[str, PlainValidator(_source), WithJsonSchema({"description": _SOURCE})]
_Sources = Annotated[
    str | tuple[str, ...],
    PlainValidator(_source),
    PlainSerializer(lambda source: source if isinstance(source, str) else list(source)),
    WithJsonSchema({"description": _SOURCES}),
]


class Model(_Section):
    """Where the weights come from; a shape and a pre-training for the embedded model, which starts from nothing."""

    source: _Source
    """`embedded`, `hub:ID`, `dir:PATH` or `pip:smollm2-135m`."""
    n_layer: Annotated[_Count | None, Field(validate_default=True)] = None
    n_head: Annotated[_Count | None, Field(validate_default=True)] = None
    n_embd: Annotated[_Count | None, Field(validate_default=True)] = None
    pretraining: Annotated[TrainingArguments | None, Field(validate_default=True)] = None

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


class Data(_Section):
    """Questions to train on and to be judged by, and how they are cut into windows."""

    train: _Sources
    """`embedded`, `hub:ID`, `dir:PATH` (the hub's layout), or absolute paths of SQuAD JSON files."""
    validation: _Sources
    train_questions: Annotated[_Count | None, Field(validate_default=True)] = None
    """At most this many, drawn with the seed; null for all. For `embedded`: how many are generated."""
    validation_questions: Annotated[Annotated[int, Field(ge=10)] | None, Field(validate_default=True)] = None
    max_length: Annotated[int, Field(ge=16)]
    """Tokens a window."""
    stride: Annotated[int, Field(ge=0)]
    """Tokens that neighbouring windows of a long paragraph share."""
    perplexity_paragraphs: Annotated[int, Field(ge=2)]
    """Validation paragraphs that perplexity is measured on, spread evenly over them."""

    @check("validation")
    @classmethod
    def _apart(cls, value: Any, info: Info) -> Any:
        if isinstance(value, tuple) and (shared := set(value) & set(info.data.get("train") or ())):
            raise ValueError(f"files that are not in data.train, which {given(Path(min(shared)).name)} is")
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


class Lora(_Section):
    """One adapter a precision: its rank, alpha and dropout, in the order of `precisions`."""

    ranks: tuple[_Count, ...]
    alphas: tuple[Annotated[float, Field(gt=0)], ...]
    dropouts: tuple[_Share, ...]


class Teacher(_Section):
    """The same model fine-tuned at full precision, all weights and LoRA; `base` is the one later stages build on."""

    base: Literal["full", "lora"]
    full: TrainingArguments
    lora: TrainingArguments
    rank: _Count
    alpha: Annotated[float, Field(gt=0)]
    dropout: _Share


class Comparison(_Section):
    """Size of the comparisons of quantizers, which take many evaluations."""

    bits: Annotated[tuple[Annotated[int, Field(ge=2, le=16)], ...], Field(min_length=1)]
    questions: Annotated[int, Field(ge=10)]
    """So many of the validation questions, spread evenly over them."""
    paragraphs: Annotated[int, Field(ge=2)]
    """So many of the perplexity paragraphs, likewise."""

    @check("bits")
    @classmethod
    def _once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if twice := sorted({b for b in value if value.count(b) > 1}):
            raise ValueError(f"a list with each bit-width once, which {twice[0]} is not")
        return value


class PostTraining(_Section):
    """Precisions the teacher is evaluated at without further training."""

    precisions: Annotated[tuple[PrecisionField, ...], Field(min_length=1)]
    comparison: Comparison

    @check("precisions")
    @classmethod
    def _once(cls, value: tuple[Precision, ...]) -> tuple[Precision, ...]:
        if twice := [p.name for p in value if value.count(p) > 1 or p == FULL_PRECISION]:
            raise ValueError(f"a list with each precision once and without 32, the teacher's own, unlike {given(twice[0])}")
        return value


class Switchable(_Section):
    """Training of the switchable model: which configurations a step sees, what it minimises, and how fast it learns."""

    schedule: ScheduleArguments
    objective: ObjectiveArguments
    learning_rate_factors: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Factors on the learning rate, one for each of `precisions`; null for none."""
    training: TrainingArguments


class Evaluation(_Section):
    """How answers are decoded and how sure the scores are."""

    batch_size: _Count
    max_answer_tokens: _Count
    resamples: Annotated[int, Field(ge=100)]
    """Bootstrap resamples, drawn by paragraph."""
    confidence: Annotated[float, Field(gt=0, lt=1)]


class Compute(_Section):
    """Arithmetic, CPU threads (null leaves their number to torch), and who follows a training."""

    mixed_precision: Literal["no", "bf16"]
    threads: _Count | None = None
    trackers: tuple[Literal["tensorboard"], ...] = ()
    """Where training metrics go beside their files."""


class Params(_Section):
    """Everything a run is told: one params file with its overrides, resolved."""

    seed: Annotated[int, Field(ge=0)]
    model: Model
    data: Data
    quantizer: QuantizerArguments
    precisions: Annotated[tuple[PrecisionField, ...], Field(min_length=1)]
    """Precisions of the switchable model, one adapter each."""
    lora: Lora
    teacher: Teacher
    post_training: PostTraining
    switchable: Switchable
    evaluation: Evaluation
    compute: Compute

    @check("data")
    @classmethod
    def _words_known(cls, data: Data, info: Info) -> Data:
        model = info.data.get("model")
        for key in ("train", "validation"):
            source = getattr(data, key)
            if model and model.source == "embedded" and source != "embedded":
                allowed = "'embedded', because model.source is 'embedded' and knows the generated words only"
                raise PydanticCustomError("inner", "{key}", {"key": key, "given": source, "allowed": allowed})
        return data

    @check("precisions")
    @classmethod
    def _unique_widths(cls, value: tuple[Precision, ...]) -> tuple[Precision, ...]:
        widths = [p.w_bits for p in value]
        if twice := sorted({w for w in widths if widths.count(w) > 1}):
            raise ValueError(f"a list with each weight bit-width once, which {twice[0]} is not")
        return value

    @check("lora")
    @classmethod
    def _one_a_precision(cls, lora: Lora, info: Info) -> Lora:
        count = len(info.data.get("precisions", ()))
        for key, values in lora:
            if count and len(values) != count:
                allowed = f"a list of {count} values, one for each of precisions"
                raise PydanticCustomError("inner", "{key}", {"key": key, "given": list(values), "allowed": allowed})
        return lora

    @check("quantizer")
    @classmethod
    def _dynamic(cls, quantizer: QuantizerArguments) -> QuantizerArguments:
        if quantizer.activations != "per_token":
            allowed = "'per_token': static scales are compared in 01_build, and nothing calibrates them elsewhere"
            raise PydanticCustomError(
                "inner", "{key}", {"key": "activations", "given": quantizer.activations, "allowed": allowed}
            )
        return quantizer

    @check("post_training")
    @classmethod
    def _covers(cls, post_training: PostTraining, info: Info) -> PostTraining:
        wanted = [p for p in info.data.get("precisions", ()) if p != FULL_PRECISION]
        if missing := [p.name for p in wanted if p not in post_training.precisions]:
            allowed = f"a list that holds every one of precisions but 32, such as {missing[0]}"
            named = [p.name for p in post_training.precisions]
            raise PydanticCustomError("inner", "{key}", {"key": "precisions", "given": named, "allowed": allowed})
        return post_training

    @check("switchable")
    @classmethod
    def _fits_precisions(cls, switchable: Switchable, info: Info) -> Switchable:
        if wrong := _misfit(switchable, info.data.get("precisions", ())):
            key, value, allowed = wrong
            raise PydanticCustomError("inner", "{key}", {"key": key, "given": value, "allowed": allowed})
        return switchable


def _misfit(switchable: Switchable, precisions: Sequence[Precision]) -> tuple[str, Any, str] | None:
    """The key, the value and what is allowed of the first setting that `precisions` rule out."""
    schedule, objective, count = switchable.schedule, switchable.objective, len(precisions)
    if not count:  # wrong themselves
        return None
    if schedule.name == "random_uniform" and (schedule.passes or 1) > count:
        allowed = f"an integer from 1 to {count}, since random_uniform draws each of precisions once a step"
        return "schedule.passes", schedule.passes, allowed
    if unknown := [p.name for p in schedule.pattern or () if p not in precisions]:
        return "schedule.pattern", [p.name for p in schedule.pattern or ()], f"a list of precisions, which {unknown[0]} is not of"
    if schedule.name == "progressive" and switchable.training.steps < count:
        return "training.steps", switchable.training.steps, f"at least {count}, a step for each of precisions"
    if objective.name in ("cascaded", "consistency") and schedule.passes_a_step(count) < 2:
        allowed = f"'average', 'joint' or 'distillation', because {schedule.name} trains one configuration a step here"
        return "objective.name", objective.name, allowed
    factors = switchable.learning_rate_factors
    if factors is not None and len(factors) != count:
        return "learning_rate_factors", list(factors), f"a list of {count} values, one for each of precisions, or null"
    return None


def profile_path(profile: str, root: Path = ROOT) -> Path:
    """The params file of a profile: `quick` for `params/quick.yaml`, or a path; its stem names the run."""
    names = sorted(path.stem for path in (root / "params").glob("*.yaml"))
    allowed = f"allowed is one of {', '.join(names)}, or the path of a .yaml file"
    if not profile.endswith((".yaml", ".yml")):
        if profile not in names:
            raise ParamsError(f"PROFILE: {given(profile)} is not a profile; {allowed}")
        return root / "params" / f"{profile}.yaml"
    path = root / profile
    if not path.is_file():
        raise ParamsError(f"PROFILE: {given(profile)} is not a file; {allowed}")
    if not re.fullmatch(r"[\w.-]+", path.stem) or re.search(r"\s", profile):
        raise ParamsError(f"PROFILE: {given(profile)} can't name a run; allowed are letters, digits, '.', '_' and '-'")
    if path.stem in names and path.resolve() != (root / "params" / f"{path.stem}.yaml").resolve():
        raise ParamsError(f"PROFILE: {given(profile)} has the name of params/{path.stem}.yaml; allowed is any other name")
    return path


def load_params(profile: str, overrides: Sequence[str] = (), root: Path = ROOT) -> Params:
    """Read a profile's params file, apply overrides such as `data.stride=64`, check everything.

    Raises:
        ParamsError: in one sentence, the file or `SET`, the dotted key, what was given and what is allowed.
    """
    path = profile_path(profile, root)
    shown = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ParamsError(f"{shown}: is not UTF-8 text; allowed is YAML in UTF-8") from None
    values = read_yaml(text, shown)
    if not isinstance(values, dict):
        raise ParamsError(f"{shown}: holds {given(values)}; allowed is a mapping with {', '.join(Params.model_fields)}")
    values = json.loads(json.dumps(values))  # an alias becomes a copy, so that overriding one leaves the other
    changed = [_override(values, text) for text in overrides]
    try:
        return Params.model_validate_json(json.dumps(values), strict=True, context={"root": root})
    except ValidationError as error:
        key, sentence = complaint(error, Params)
        touched = [c for c in changed if f"{key}.".startswith((f"{c}.", f"{c}[")) or c.startswith(f"{key}.")]
        raise ParamsError(f"{'SET' if touched else shown}: {sentence}") from None


def _override(values: dict[str, Any], text: str) -> str:
    """Set one `dotted.key=YAML value` in place; returns the key."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise ParamsError(f"SET: {given(text)} is no override; allowed is dotted.key=value")
    *parents, last = key.split(".")
    section = values
    for depth, name in enumerate(parents):
        if section.get(name) is None:
            section[name] = {}
        section = section[name]
        if not isinstance(section, dict):
            inner = ".".join(parents[: depth + 1])
            raise ParamsError(f"SET: {key} is {given(value)}; allowed is {inner} itself, which has no keys inside")
    section[last] = read_yaml(value, f"SET: {key}")
    return key
