"""What sections rule out in one another, and what follows from them together."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatlib.named import NAMED
from qatlib.params.errors import Schema
from qatlib.params.load import load_params
from qatlib.params.schema import Params
from qatlib.params.yaml import ParamsError

# override of `quick`, what its refusal says
WRONG = {
    "width twice": (
        "precisions=[8, w8a4]",
        'precisions is [8, "w8a4"]; allowed is a list with each weight bit-width once',
    ),
    "not measured untrained": (
        "post_training.precisions=[8, 6]",
        'post_training.precisions is ["8", "6"]; allowed is a list that holds every one of precisions but 32, such as 4',
    ),
    "short list": ("lora.ranks=[8]", "lora.ranks is [8]; allowed is a list of 6 values, one for each of precisions"),
    "method without passes for its objective": (
        "comparisons.methods=[{name: x, objective: {name: cascaded}}]",
        "comparisons.methods[0].objective.name is \"cascaded\"; allowed is 'average', 'joint' or 'distillation', "
        "because random_per_layer trains one configuration a step here",
    ),
    "budget below a step": (
        "comparisons.passes=2",
        "comparisons.passes is 2; allowed is an integer of at least 4, what a step of sandwich costs",
    ),
    "lowered to an untrained width": (
        "sensitivity.bits=[7]",
        "sensitivity.bits is [7]; allowed is a list of weight bit-widths of precisions, which 7 is not, or null",
    ),
    "lowered to where it is": (
        "sensitivity.bits=[8]",
        "sensitivity.bits is [8]; allowed is a list of weight bit-widths of precisions, some of them below 8, one "
        "of bases; or null",
    ),
    "lowered to above every base": (
        "sensitivity={bases: [6], bits: [8, 4], lowered: [both], questions: 10}",
        "sensitivity.bits is [8, 4]; allowed is a list of weight bit-widths of precisions below 6, the widest of bases, or null",
    ),
    "base with nothing below": (
        "sensitivity.bases=[8, 2]",
        'sensitivity.bases is ["8", "2"]; allowed is a list without 2, which none of precisions is below; or null',
    ),
    "base of no trained width": (
        "sensitivity.bases=[5]",
        'sensitivity.bases is ["5"]; allowed is a list of some of precisions, or 32; or null',
    ),
    "window beyond the model": (
        "deployment.lengths=[64, 2048]",
        "deployment.lengths is [64, 2048]; allowed is a list of integers of at most data.max_length (128)",
    ),
    "answer longer than a window": (
        "generative={questions: 10, max_answer_tokens: 128}",
        "generative.max_answer_tokens is 128; allowed is an integer below data.max_length (128)",
    ),
    "deployment of floats": (
        "deployment.precisions=[32]",
        'deployment.precisions is ["32"]; allowed is a list of some of precisions, of 8 bits at most, or null for all such',
    ),
    "more passes than precisions": (
        "switchable.schedule={name: random_uniform, passes: 7}",
        "switchable.schedule.passes is 7; allowed is an integer from 1 to 6, since random_uniform draws each of precisions once",
    ),
    "pattern of others": (
        "switchable.schedule={name: scheduled, pattern: [8, w4a8]}",
        'switchable.schedule.pattern is ["8", "w4a8"]; allowed is a list of precisions, which w4a8 is not of',
    ),
    "ends of others": (
        "switchable.schedule={name: cpt, cosine: {cycles: 2, between: [5, 8]}}",
        'switchable.schedule.cosine.between is ["5", "8"]; allowed is two of precisions',
    ),
    "second phase elsewhere": (
        "switchable.schedule={name: cyclic, then: {precision: 5}}",
        'switchable.schedule.then.precision is "5"; allowed is one of precisions',
    ),
    "too few steps to progress": (
        "switchable={schedule: {name: progressive}, objective: {name: average}, training: {steps: 5, batch_size: 1, "
        "learning_rate: 1}}",
        "switchable.training.steps is 5; allowed is at least 6, a step for each of precisions",
    ),
    "nobody to learn from": (
        "switchable.objective={name: cascaded}",
        "switchable.objective.name is \"cascaded\"; allowed is 'average', 'joint' or 'distillation', because random_per_layer "
        "trains one configuration a step",
    ),
    "few factors": (
        "switchable.learning_rate_factors=[1, 0.5]",
        "switchable.learning_rate_factors is [1.0, 0.5]; allowed is a list of 6 values, one for each of precisions, or null",
    ),
    "cpt at a width twice": (
        "cpt.precisions=[8, w8a4, 4]",
        'cpt.precisions is ["8", "w8a4", "4"]; allowed is a list with each weight bit-width once, or null',
    ),
    "cycles from the top": ("cpt.lowest=8", 'cpt.lowest is "8"; allowed is one of 8, 6, 4, 3, 2 that is not the widest, or null'),
    "second phase of cpt": (
        "cpt.second_phase=5",
        'cpt.second_phase is "5"; allowed is one of 8, 6, 4, 3, 2, or null',
    ),
    "other words": (
        "data.train=hub:squad",
        "data.train is \"hub:squad\"; allowed is 'embedded', because model.source is",
    ),
}


@pytest.mark.parametrize(("override", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_override(refusal, override, sentence):
    assert sentence in refusal(override)


def test_a_vocabulary_is_of_the_embedded_data() -> None:
    with pytest.raises(ParamsError, match=r"adversarial.words.candidates is \"vocabulary\"; allowed is 'synonyms' or a masked"):
        load_params("reference", ["adversarial.words.candidates=vocabulary"])


def test_configurations_of_widths_that_are_not_trained_are_refused_or_left_out() -> None:
    with pytest.raises(ParamsError) as error:
        load_params("smoke", ["configurations.names=[C1, C24]"])
    assert str(error.value) == (
        'SET: configurations.names is "C24"; allowed is names whose bit-widths are all in precisions, unlike 6, '
        "or null for all such"
    )
    fitting = load_params("smoke", ["configurations.names=null"]).named
    assert "C22" in fitting and "C24" not in fitting
    shared = ["configurations.names=null", "switchable.adapters=shared"]
    assert set(load_params("smoke", shared).named) == set(NAMED)


@pytest.mark.parametrize("name", ["cascaded", "consistency"])
def test_learning_from_wider_ones_takes_several_configurations_a_step(name: str) -> None:
    chosen = f"switchable.objective.name={name}"
    for schedule in ("{name: all}", "{name: sandwich}", "{name: random_uniform, passes: 2}"):
        assert load_params("quick", [chosen, f"switchable.schedule={schedule}"]).switchable.objective.name == name


@pytest.mark.parametrize(("bits", "of_8", "of_32"), [("[6, 4]", (6, 4), (8, 6, 4)), ("[8, 4]", (4,), (8, 4))])
def test_a_later_base_may_go_to_the_first(bits: str, of_8: tuple[int, ...], of_32: tuple[int, ...]) -> None:
    params = load_params("quick", [f"sensitivity.bits={bits}"])
    assert [params.lowered_to(base) for base in params.bases] == [of_8, of_32]


def test_budgets_are_within_the_candidates() -> None:
    assert load_params("quick", ["sensitivity.bits=[6, 4]"]).budgets == (8, 6, 5, 4)
    with pytest.raises(ParamsError) as error:
        load_params("quick", ["sensitivity.bits=[6, 4]", "search.budgets=[5, 3]"])
    assert str(error.value) == (
        "SET: search.budgets is [5.0, 3.0]; allowed is a list of numbers of at least 4, the narrowest candidate, or null"
    )


@settings(max_examples=30)
@given(st.lists(st.sampled_from([*range(2, 17), 32]), min_size=2, unique=True))
def test_there_is_always_something_to_lower(widths: list[int]) -> None:
    each = {"ranks": [1] * len(widths), "alphas": [1.0] * len(widths), "dropouts": [0.0] * len(widths)}
    wanted = [w for w in widths if w != 32]
    changes = [f"precisions={widths}", f"post_training.precisions={wanted}", f"lora={json.dumps(each)}"]
    params = load_params("quick", changes)
    first = params.bases[0].w_bits
    assert first in widths
    for base in params.bases:
        lowered = params.lowered_to(base)
        assert lowered == tuple(sorted({w for w in widths if w < base.w_bits}, reverse=True)) and lowered
        assert (first in lowered) == (first < base.w_bits)
    assert 8 not in widths or min(widths) == 8 or params.bases[0].w_bits == 8
    cycled = [p.w_bits for p in params.cycled]
    assert len(cycled) > 1 and cycled == sorted(cycled, reverse=True) and (32 not in cycled or sum(w < 32 for w in widths) == 1)


# -- lists and numbers, wherever they stand ------------------------------------------------------------------------------

SCHEMA = Schema(Params)
SEQUENCES = {"ranks", "alphas", "dropouts", "learning_rate_factors", "pattern", "between"}
"""Lists in which a value may stand twice: they stand beside another list, or are an order."""
ELSEWHERE = "base_training"
"""A section that is null in `quick`; `test_switchable.py` gives its list a value twice."""


def places(node: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict]]:
    """Every setting of a params file by its keys, without those inside lists."""
    for key, inner in SCHEMA._resolve(node).get("properties", {}).items():
        yield (*path, key), SCHEMA._resolve(inner)
        yield from places(inner, (*path, key))


ALL = dict(places(SCHEMA.root))
LISTS = [
    path for path, node in ALL.items() if node.get("type") == "array" and path[-1] not in SEQUENCES and ELSEWHERE not in path
]
DOUBLED: dict[str, list[Any]] = {
    "cpt.precisions": [8, 4],
    "cpt.untrained": [7],
    "deployment.precisions": [8],
    "configurations.names": ["uniform8"],
    "compute.trackers": ["tensorboard"],
    "sensitivity.bases": [8],
    "sensitivity.bits": [4],
    "search.budgets": [4],
}
"""Lists of `quick` that are null or empty there."""


@pytest.mark.parametrize("path", LISTS, ids=".".join)
def test_a_value_given_twice_is_refused_in_every_list(path: tuple[str, ...], refusal: Callable[[str], str]) -> None:
    value: Any = load_params("quick").model_dump(mode="json")
    for key in path:
        value = value[key]
    key, value = ".".join(path), value or DOUBLED[".".join(path)]
    text = refusal(f"{key}={json.dumps([*value, value[0]])}")
    assert re.search(r"each (value|set|precision|weight bit-width|\w+) once|every name is another", text), text


@pytest.mark.parametrize(
    "override",
    [
        "adversarial.sets=[[4, 8], [8, 4]]",  # a set has no order
        "adversarial.epsilons=[0.25, 0.250000001, 4]",  # six digits name what is kept
        "search.budgets=[8, 8.0]",
        "deployment.precisions=[8, w8a8]",
    ],
)
def test_the_same_value_otherwise_written_is_refused(override: str, refusal: Callable[[str], str]) -> None:
    assert "once" in refusal(override)


def test_every_number_has_both_bounds() -> None:
    numbers = {
        path: node for path, node in ALL.items() if node.get("type") in ("integer", "number") and "description" not in node
    }
    numbers |= {(*path, "[]"): SCHEMA._resolve(node["items"]) for path, node in ALL.items() if "items" in node}
    numbers = {
        path: node for path, node in numbers.items() if node.get("type") in ("integer", "number") and "description" not in node
    }
    lower, upper = {"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}
    assert len(numbers) > 60
    assert [path for path, node in numbers.items() if not (lower & node.keys() and upper & node.keys())] == []


@pytest.mark.parametrize(
    "override",
    [f"seed={2**32}", f"cpt.seeds=[0, {2**64}]", f"teacher.rank={10**20}", "teacher.alpha=1e300", "evaluation.resamples=10000000"]
    + ["switchable.objective={name: distillation, temperature: 1e-300}", "compute.threads=100000", f"data.max_length={10**9}"],
)
def test_numbers_that_no_library_takes_are_refused(override: str, refusal: Callable[[str], str]) -> None:
    assert re.search(r"allowed is an? (integer|number) of at least \S+ and at most", refusal(override))
