"""The schema of a params file: its sections together, and what they rule out in one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field
from pydantic import ValidationInfo as Info
from pydantic import field_validator as check
from pydantic_core import PydanticCustomError

from qatlib.arguments import PrecisionField, QuantizerArguments
from qatlib.named import NAMED
from qatlib.params.attacks import Adversarial
from qatlib.params.cyclic import Cpt
from qatlib.params.experiments import Comparisons, Deployment, Generative, Named, PostTraining, Search, Sensitivity
from qatlib.params.sections import (
    Compute,
    Data,
    DynamicQuantizer,
    Evaluation,
    LoraSettings,
    Model,
    Section,
    Seed,
    Teacher,
)
from qatlib.params.switchable import Switchable, misfit
from qatlib.params.tuning import Tuning, unfit
from qatlib.precision import FULL, FULL_PRECISION, Precision, widest_first


class Params(Section):
    """Everything a run is told: one params file with its overrides, resolved."""

    seed: Seed
    """Draws the questions, the weights, the order of the data and the configurations."""
    model: Model
    data: Data
    quantizer: DynamicQuantizer
    """Quantizer of the teacher, and of the switchable model where `switchable.quantizer` is null."""
    precisions: Annotated[tuple[PrecisionField, ...], Field(min_length=2)]
    """Precisions of the switchable model, one adapter for each; each weight bit-width once. 32 is a control: it is trained beside
    the others and never quantized. `post_training.precisions` must hold the others."""
    lora: LoraSettings
    teacher: Teacher
    post_training: PostTraining
    switchable: Switchable
    comparisons: Comparisons
    tuning: Tuning | None = None
    """Trials of the switchable training on training paragraphs held aside; null for none."""
    configurations: Named
    deployment: Deployment
    generative: Generative | None = None
    """Answers written after a prompt instead of marked in the context; null for none, since the embedded model has never seen a
    prompt."""
    sensitivity: Sensitivity
    search: Search
    cpt: Cpt
    adversarial: Adversarial
    evaluation: Evaluation
    compute: Compute

    @property
    def named(self) -> list[str]:
        """The named configurations that the switchable model is judged at."""
        names = self.configurations.names
        return [*names] if names else [name for name in NAMED if not _untrained(name, self.precisions, self.switchable)]

    @property
    def quantizers(self) -> dict[str, QuantizerArguments]:
        """Every quantizer that something is trained with, by its dotted key."""
        own = {"quantizer": self.quantizer, "switchable.quantizer": self.switchable.quantizer}
        if ablation := self.post_training.ablation:
            own["post_training.ablation.quantizer"] = ablation.quantizer
        methods = {"methods": self.comparisons.methods, "quantizers": self.comparisons.quantizers}
        tried = {f"comparisons.{key}[{i}].quantizer": m.quantizer for key, ms in methods.items() for i, m in enumerate(ms)}
        return {key: found for key, found in (own | tried).items() if found is not None}

    @property
    def deployed(self) -> dict[str, Precision | str]:
        """What the switchable model is deployed at, by name: precisions, and S2's `mixed` where 8 and 4 bits are among them."""
        chosen = self.deployment.precisions
        found = chosen if chosen is not None else [p for p in self.precisions if max(p) <= 8]
        mixed = {"mixed": "mixed"} if {Precision(8, 8), Precision(4, 4)} <= {*found} else {}
        return {p.name: p for p in found} | mixed

    @property
    def specialized(self) -> Sequence[Precision]:
        """The precisions that a model of their own may be trained for: those of 8 bits at most, and 32, which is plain LoRA; all
        where there are none."""
        return [p for p in self.precisions if max(p) <= 8 or p == FULL_PRECISION] or self.precisions

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
    def _one_a_precision(cls, lora: LoraSettings, info: Info) -> LoraSettings:
        count = len(info.data.get("precisions", ()))
        for key, values in lora:
            if count and isinstance(values, tuple) and len(values) != count:
                allowed = f"a list of {count} values, one for each of precisions"
                raise PydanticCustomError("inner", "{key}", {"key": key, "given": list(values), "allowed": allowed})
        return lora

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
        _refuse(misfit(switchable, info.data.get("precisions", ())))
        return switchable

    @check("comparisons")
    @classmethod
    def _can_be_trained(cls, comparisons: Comparisons, info: Info) -> Comparisons:
        precisions, switchable = info.data.get("precisions", ()), info.data.get("switchable")
        if not precisions or switchable is None:  # wrong themselves
            return comparisons
        for kind in ("methods", "quantizers"):
            for i, method in enumerate(getattr(comparisons, kind)):
                settings = method.applied(switchable)
                if wrong := misfit(settings, precisions):
                    _refuse((f"{kind}[{i}].{wrong[0]}", *wrong[1:]))
                if (cost := settings.least_passes(len(precisions))) > comparisons.passes:
                    _refuse(("passes", comparisons.passes, f"an integer of at least {cost}, what a step of {method.name} costs"))
        return comparisons

    @check("tuning")
    @classmethod
    def _trials_fit(cls, tuning: Tuning | None, info: Info) -> Tuning | None:
        precisions, switchable = info.data.get("precisions", ()), info.data.get("switchable")
        if tuning and precisions and switchable:
            _refuse(unfit(tuning, switchable, precisions))
        return tuning

    @check("configurations", "deployment")
    @classmethod
    def _trained_widths(cls, section: Any, info: Info) -> Any:
        precisions, switchable = info.data.get("precisions", ()), info.data.get("switchable")
        if not precisions or switchable is None:
            return section
        if isinstance(section, Deployment):
            if wrong := [p.name for p in section.precisions or () if p not in precisions or max(p) > 8]:
                _refuse(("precisions", wrong, "a list of some of precisions, of 8 bits at most, or null for all such"))
        else:
            for name in section.names or ():
                if lacking := _untrained(name, precisions, switchable):
                    allowed = f"names whose bit-widths are all in precisions, unlike {min(lacking)}, or null for all such"
                    _refuse(("names", name, allowed))
        return section

    @check("deployment", "generative")
    @classmethod
    def _fits_a_window(cls, section: Any, info: Info) -> Any:
        longest = info.data["data"].max_length if "data" in info.data else None
        if longest and isinstance(section, Deployment) and max(section.lengths) > longest:
            _refuse(("lengths", section.lengths, f"a list of integers of at most data.max_length ({longest})"))
        if longest and section and not isinstance(section, Deployment) and section.max_answer_tokens >= longest:
            _refuse(("max_answer_tokens", section.max_answer_tokens, f"an integer below data.max_length ({longest})"))
        return section

    @check("sensitivity")
    @classmethod
    def _lowered_to_trained_widths(cls, section: Sensitivity, info: Info) -> Sensitivity:
        precisions, switchable = info.data.get("precisions", ()), info.data.get("switchable")
        if not precisions or switchable is None:
            return section
        if wrong := [p.name for p in section.bases or () if p not in precisions and p != FULL_PRECISION]:
            _refuse(("bases", wrong, "a list of some of precisions, or 32; or null"))
        widths, bases = {p.w_bits for p in precisions}, _bases(section, precisions)
        if switchable.adapters == "separate" and (unknown := [b for b in section.bits or () if b not in widths]):
            _refuse(("bits", section.bits, f"a list of weight bit-widths of precisions, which {unknown[0]} is not, or null"))
        if any(b >= max(bases).w_bits for b in section.bits or ()):
            allowed = f"a list of weight bit-widths of precisions below {max(bases).w_bits}, the widest of bases, or null"
            _refuse(("bits", section.bits, allowed))
        if lowest := [base.name for base in bases if not _bits(section, precisions, base)]:
            if section.bits:
                allowed = f"a list of weight bit-widths of precisions, some of them below {lowest[0]}, one of bases; or null"
                _refuse(("bits", section.bits, allowed))
            allowed = f"a list without {lowest[0]}, which none of precisions is below; or null"
            _refuse(("bases", [base.name for base in bases], allowed))
        return section

    @check("search")
    @classmethod
    def _affordable(cls, section: Search, info: Info) -> Search:
        sensitivity, precisions = info.data.get("sensitivity"), info.data.get("precisions", ())
        if sensitivity and precisions:
            least = min(_bits(sensitivity, precisions, _bases(sensitivity, precisions)[0]))
            if any(budget < least for budget in section.budgets or ()):
                _refuse(("budgets", section.budgets, f"a list of numbers of at least {least}, the narrowest candidate, or null"))
        return section

    @check("cpt")
    @classmethod
    def _within_precisions(cls, section: Cpt, info: Info) -> Cpt:
        if not info.data.get("precisions"):  # wrong themselves
            return section
        precisions = _cycled(section, info.data["precisions"])
        names = [p.name for p in precisions]
        if len({p.w_bits for p in precisions}) < len(precisions):
            _refuse(("precisions", names, "a list with each weight bit-width once, or null"))
        if section.lowest and section.lowest not in widest_first(precisions)[1:]:
            _refuse(("lowest", section.lowest.name, f"one of {', '.join(names)} that is not the widest, or null"))
        if section.second_phase and section.second_phase not in precisions:
            _refuse(("second_phase", section.second_phase.name, f"one of {', '.join(names)}, or null"))
        return section

    @check("adversarial")
    @classmethod
    def _words_of_the_data(cls, section: Adversarial, info: Info) -> Adversarial:
        data = info.data.get("data")
        if section.words and section.words.candidates == "vocabulary" and data and data.validation != "embedded":
            allowed = "'synonyms' or a masked language model: a vocabulary is that of the embedded data"
            _refuse(("words.candidates", "vocabulary", allowed))
        return section

    @property
    def cycled(self) -> tuple[Precision, ...]:
        """The precisions that cyclic precision training and what it is compared with are about, widest first."""
        return tuple(widest_first(_cycled(self.cpt, self.precisions)))

    @property
    def bases(self) -> tuple[Precision, ...]:
        """What all layers but the lowered one are at."""
        return _bases(self.sensitivity, self.precisions)

    def lowered_to(self, base: Precision) -> tuple[int, ...]:
        """The bits that a layer is lowered to from one of `bases`, most first."""
        return _bits(self.sensitivity, self.precisions, base)

    def at_bits(self, bits: int) -> Precision:
        """What a layer is at that is lowered to a weight bit-width: that of `precisions`, a uniform one before others."""
        uniform, trained = Precision(bits, bits), [p for p in self.precisions if p.w_bits == bits]
        return trained[0] if trained and uniform not in trained else uniform

    @property
    def budgets(self) -> tuple[float, ...]:
        """Average weight bits that are searched under; halfway between the candidates where no usual budget lies within them."""
        most, least = self.bases[0].w_bits, min(self.lowered_to(self.bases[0]))
        within = (b for b in (8.0, 6.0, 5.0, 4.0, 3.0) if least <= b <= most)
        return self.search.budgets or tuple(within) or ((most + least) / 2,)


def _cycled(section: Cpt, precisions: Sequence[Precision]) -> Sequence[Precision]:
    if section.precisions:
        return section.precisions
    narrow, quantized = ([p for p in precisions if max(p) <= most] for most in (8, 16))
    return next(found for found in (narrow, quantized, precisions) if len(found) > 1)


def _bases(section: Sensitivity, precisions: Sequence[Precision]) -> tuple[Precision, ...]:
    least = min(p.w_bits for p in precisions)
    widest = max([p for p in precisions if least < p.w_bits <= 8] or precisions)
    return section.bases or tuple(dict.fromkeys((widest, *(p for p in precisions if p == FULL_PRECISION))))


def _bits(section: Sensitivity, precisions: Sequence[Precision], base: Precision) -> tuple[int, ...]:
    candidates = {*(section.bits or (p.w_bits for p in precisions)), _bases(section, precisions)[0].w_bits}
    return tuple(sorted((b for b in candidates if b < base.w_bits), reverse=True))


def _untrained(name: str, precisions: Sequence[Precision], switchable: Switchable) -> set[int]:
    """Bit-widths of a named configuration that the switchable model has no adapter for."""
    if switchable.adapters != "separate":
        return set()
    return (
        {b for bits in NAMED[name].bits.values() for b in bits} - {p.w_bits for p in precisions if p.w_bits == p.a_bits} - {FULL}
    )


def _refuse(wrong: tuple[str, Any, str] | None) -> None:
    """Raise for a key inside a section, with what was given and what is allowed."""
    if wrong:
        raise PydanticCustomError("inner", "{key}", dict(zip(("key", "given", "allowed"), wrong, strict=True)))
