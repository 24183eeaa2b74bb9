"""Plain values, every key once."""

import json

import pytest
from hypothesis import given as holds_for
from hypothesis import strategies as st

from qatlib.params.yaml import ParamsError, given, read_yaml

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


LAUGHS = "\n".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(9))
MERGED = "\n".join(f"a{i + 1}: &a{i + 1} {{<<: [*a{i}, *a{i}]}}" for i in range(40))

# a text, what is said of it
BOMBS = {
    "billion laughs": (
        f"a0: &a0 [l]\n{LAUGHS}",
        "stands for too much, each alias being a copy; allowed are at most 10,000 values",
    ),
    "merged laughs": (f"a0: &a0 {{x: l}}\n{MERGED}", "stands for too much, each alias being a copy"),
    "nested aliases": ("a0: &a0 [l]\n" + "\n".join(f"a{i + 1}: &a{i + 1} [*a{i}]" for i in range(900)), "stands for too much"),
    "brackets": ("[" * 1_000 + "]" * 1_000, "is not YAML (nested more than 20 levels deep)"),
    "braces": ("{a: " * 5_000, "is not YAML (nested more than 20 levels deep)"),
    "dashes": ("- " * 5_000 + "x", "is not YAML (nested more than 20 levels deep)"),
    "nested keys": ("? " * 5_000, "is not YAML (nested more than 20 levels deep)"),
    "a long text": ("x" * 10**7, "has 10,000,000 characters; allowed are at most 100,000"),
    "a long number": ("9" * 5_000, "is not YAML (Exceeds the limit"),
    "half a surrogate pair": ('"\\ud800"', "holds half a surrogate pair; allowed is valid Unicode"),
    "half of one in a key": ('{"\\udcff": 1}', "holds half a surrogate pair; allowed is valid Unicode"),
    "half of one as it stands": ("\udcff", "is not YAML (unacceptable character #xdcff"),
}


@pytest.mark.parametrize(("text", "sentence"), BOMBS.values(), ids=BOMBS)
def test_what_would_hang_or_cannot_be_written_is_one_sentence(text, sentence):
    with pytest.raises(ParamsError) as error:
        read_yaml(text, "here")
    assert str(error.value).startswith("here: ") and sentence in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    str(error.value).encode()


def test_both_halves_of_a_pair_are_a_letter():
    assert read_yaml('"\\U0001f600 \\u00e9"', "here") == "\U0001f600 é"


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
