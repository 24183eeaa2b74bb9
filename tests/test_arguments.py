"""Settings that contradict themselves are refused with a reason; those that don't survive a trip through plain data."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from qatlib.arguments import AttackArguments, ObjectiveArguments, QuantizerArguments, TrainingArguments
from qatlib.precision import BIT_WIDTHS, Precision
from qatlib.scheduling import CosineArguments, PhaseArguments, ScheduleArguments

# the section as plain data, the key that is refused, what is said of it
WRONG = {
    "open sandwich": (
        ScheduleArguments,
        {"name": "sandwich", "passes": 1},
        "passes",
        "an integer of at least 2, because sandwich trains the widest and the narrowest precision",
    ),
    "passes of all": (
        ScheduleArguments,
        {"name": "all", "passes": 6},
        "passes",
        "null, because all trains every precision a step",
    ),
    "passes of cyclic": (
        ScheduleArguments,
        {"name": "cyclic", "passes": 2},
        "passes",
        "null, because cyclic trains one precision a step",
    ),
    "interval of all": (
        ScheduleArguments,
        {"name": "all", "interval": 2},
        "interval",
        "1, because all trains every precision at every step",
    ),
    "interval of progressive": (
        ScheduleArguments,
        {"name": "progressive", "interval": 2},
        "interval",
        "1, because progressive gives every precision an equal share of the steps",
    ),
    "interval of cpt": (
        ScheduleArguments,
        {"name": "cpt", "interval": 2, "cosine": {"cycles": 2}},
        "interval",
        "1, because cpt has cycles, or a period",
    ),
    "no pattern": (
        ScheduleArguments,
        {"name": "scheduled"},
        "pattern",
        "a list of at least one of precisions, which scheduled goes through",
    ),
    "pattern of cyclic": (
        ScheduleArguments,
        {"name": "cyclic", "pattern": [8, 4]},
        "pattern",
        "null, because cyclic goes through no pattern",
    ),
    "no cosine": (ScheduleArguments, {"name": "cpt"}, "cosine", "a section with cycles or a period, which cpt follows"),
    "cosine of cyclic": (
        ScheduleArguments,
        {"name": "cyclic", "cosine": {"cycles": 2}},
        "cosine",
        "null, because cyclic follows no cosine",
    ),
    "second phase of random": (
        ScheduleArguments,
        {"name": "random_uniform", "then": {"precision": 4}},
        "then",
        "null, because a second phase follows cyclic, scheduled or cpt, not random_uniform",
    ),
    "cycles and a period": (
        CosineArguments,
        {"cycles": 2, "period": 5},
        "period",
        "an integer of at least 1 if cycles is null, or null if it is not",
    ),
    "neither": (CosineArguments, {}, "period", "an integer of at least 1 if cycles is null, or null if it is not"),
    "falling ends": (
        CosineArguments,
        {"cycles": 2, "between": [8, 4]},
        "between",
        "two precisions, the one with fewer weight bits first",
    ),
    "gradients of 20 bits": (
        TrainingArguments,
        {"steps": 1, "batch_size": 1, "learning_rate": 1.0, "gradient_bits": 20},
        "gradient_bits",
        "a bit-width from 2 to 16 or 32",
    ),
    "long warm-up": (
        TrainingArguments,
        {"steps": 5, "batch_size": 1, "learning_rate": 1.0, "warmup_steps": 6},
        "warmup_steps",
        "an integer from 0 to steps (5)",
    ),
    "weight of nothing": (
        ObjectiveArguments,
        {"name": "average", "weight": 0.5},
        "weight",
        "1.0 or nothing, because average adds no term to the task's loss",
    ),
    "divergence of nothing": (
        ObjectiveArguments,
        {"name": "joint", "divergence": "js"},
        "divergence",
        "'kl' or nothing, because joint adds no term to the task's loss",
    ),
    "temperature of no teacher": (
        ObjectiveArguments,
        {"name": "cascaded", "temperature": 2.0},
        "temperature",
        "1 or nothing, because cascaded softens no distribution",
    ),
    "temperature of mse": (
        ObjectiveArguments,
        {"name": "distillation", "divergence": "mse", "temperature": 2.0},
        "temperature",
        "1 or nothing, because it cancels out in the mse of logits",
    ),
}


@pytest.mark.parametrize(("kind", "values", "key", "reason"), WRONG.values(), ids=WRONG)
def test_settings_that_contradict_themselves_are_refused_with_a_reason(kind, values, key, reason):
    with pytest.raises(ValidationError) as error:
        TypeAdapter(kind).validate_json(json.dumps(values))
    [found] = error.value.errors()
    assert found["loc"][-1] == key
    assert str(found["ctx"]["error"]) == reason


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: QuantizerArguments(weights="channel"),
            "QuantizerArguments: weights is 'channel'; allowed is 'per_channel', 'per_",
        ),
        (
            lambda: QuantizerArguments(group_size=4),
            "QuantizerArguments: group_size is 4; allowed is greater than or equal to 8",
        ),
        (lambda: QuantizerArguments(nested="yes"), "QuantizerArguments: nested is 'yes'; allowed is a valid boolean"),
        (lambda: QuantizerArguments(bits=4), "QuantizerArguments: bits is 4; unexpected keyword argument"),
        (lambda: TrainingArguments(5, 4), "TrainingArguments: learning_rate is missing"),
        (lambda: TrainingArguments(5, 4, float("nan")), "TrainingArguments: learning_rate is nan; allowed is a finite number"),
        (lambda: AttackArguments(-1), "AttackArguments: epsilon is -1; allowed is greater than or equal to 0"),
        (lambda: ScheduleArguments("fast"), "ScheduleArguments: name is 'fast'; allowed is"),
        (lambda: ObjectiveArguments("average", weight=2.0), "ObjectiveArguments: weight is 2.0; allowed is 1.0 or nothing"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert len(str(caught.value).splitlines()) == 1


_precision = st.builds(Precision, st.sampled_from(BIT_WIDTHS), st.sampled_from(BIT_WIDTHS))
_count = st.integers(1, 99)
SETTINGS = st.one_of(
    st.builds(QuantizerArguments, group_size=st.integers(8, 99), nested=st.booleans()),
    st.builds(TrainingArguments, _count, _count, st.floats(1e-9, 9), gradient_bits=st.sampled_from(BIT_WIDTHS)),
    st.builds(AttackArguments, st.floats(0, 9), st.sampled_from(["linf", "l2"]), steps=_count, restarts=_count),
    st.builds(ObjectiveArguments, st.just("distillation"), st.floats(0.1, 9), st.just("js"), st.floats(0.1, 9)),
    st.builds(ScheduleArguments, st.just("scheduled"), pattern=st.lists(_precision, min_size=1).map(tuple), interval=_count),
    st.builds(
        ScheduleArguments,
        st.just("cpt"),
        cosine=st.builds(CosineArguments, cycles=_count, form=st.sampled_from(["restart", "continuous"])),
        then=st.none() | st.builds(PhaseArguments, _precision, st.floats(0.01, 0.99)),
    ),
)


@given(SETTINGS)
def test_settings_survive_a_trip_through_json(settings):
    adapter = TypeAdapter(type(settings))
    assert adapter.validate_json(adapter.dump_json(settings)) == settings


@given(st.floats(0, 9), st.sampled_from(["linf", "l2"]))
def test_fgsm_is_one_step_to_the_border_from_the_clean_input(epsilon, norm):
    attack = AttackArguments.fgsm(epsilon, norm)
    assert (attack.epsilon, attack.norm, attack.steps, attack.step_size, attack.random_start) == (epsilon, norm, 1, 1, False)
    assert attack.passes == 2


def test_a_group_counts_where_scales_are_by_group_alone():
    assert QuantizerArguments(group_size=32).scale_group is None
    assert QuantizerArguments(weights="per_group", group_size=32).scale_group == 32
    assert QuantizerArguments(weights="per_tensor").scale_group == 0
