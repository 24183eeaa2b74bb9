"""Plain values, every key once."""

import json

import pytest
from hypothesis import given as holds_for
from hypothesis import strategies as st

from qatlib.params.yaml import given, read_yaml

# override of `quick`, what its refusal says
WRONG = {
    "no YAML": (
        "seed=[1",
        "seed: is not YAML (expected ',' or ']', but got '<stream end>'); allowed is one YAML value",
    ),
    "key twice": (
        "lora={ranks: [1], ranks: [2]}",
        "lora: ranks is given twice, again in line 1; allowed is one value a key",
    ),
    "number as key": ("seed={1: 2}", "seed: 1 in line 1 is used as a key; allowed are words"),
    "alias of itself": (
        "seed=&a [*a]",
        "seed: the value in line 1 contains itself; allowed is an alias of something else",
    ),
    "tag": (
        "seed=!!python/name:os.system",
        "has the tag tag:yaml.org,2002:python/name:os.system; allowed are plain values",
    ),
}


@pytest.mark.parametrize(("override", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_override(refusal, override, sentence):
    assert sentence in refusal(override)


_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["C", "Zl", "Zp"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.sampled_from("abcxyz_"), min_size=1), inner),
    max_leaves=9,
)


@holds_for(_plain)
def test_json_is_read_as_what_it_says(value):
    assert read_yaml(json.dumps(value, ensure_ascii=False), "here") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("no", "no"),
        ("on", "on"),
        ("010", "010"),
        ("2020-01-01", "2020-01-01"),
        ("1_0", "1_0"),
        ("~", None),
        ("", None),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = read_yaml(text, "here")
    assert found == value and type(found) is type(value)


def test_what_is_given_is_shown_in_120_letters_at_most():
    assert given([1, "ü"]) == '[1, "ü"]'
    assert len(given("x" * 999)) <= 120
