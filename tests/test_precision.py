"""Precisions and configurations: what a user may write, what it means, what it costs."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qatlib.precision import BIT_WIDTHS, ROLES, Configuration, LayerInfo, Precision

BITS = st.sampled_from(BIT_WIDTHS)
NAMES = {"qkv": "attn.c_attn", "attn_out": "attn.c_proj", "mlp_in": "mlp.c_fc", "mlp_out": "mlp.c_proj"}
LAYERS = [LayerInfo(f"h.{b}.{NAMES[r]}", b, r, 100 * (i + 1), 10) for b in range(3) for i, r in enumerate(ROLES)]


@given(BITS, BITS)
def test_a_name_reads_back(w, a):
    p = Precision(w, a)
    assert p == Precision.parse(p.name) == Precision.parse((w, a)) == Precision.parse({"w_bits": w, "a_bits": a})
    assert w != a or p == Precision.parse(w)


@pytest.mark.parametrize("value", [1, 17, 0, -8, 33, True, 8.0, "8bit", "w4", "w1a8", (8,), (8, 8, 8), None, {"w_bits": 8}])
def test_what_is_no_precision_is_refused(value):
    with pytest.raises(ValueError, match="no precision|bit-width"):
        Precision.parse(value)


@pytest.mark.parametrize(
    ("spec", "where", "expected"),
    [
        (8, lambda x: True, "8"),
        ("w4a8", lambda x: True, "w4a8"),
        ("16", lambda x: True, "16"),
        ("int4", lambda x: True, "4"),
        ("C14", lambda x: x.role == "mlp_in", "6"),
        ({"mlp_in": 4}, lambda x: x.role == "mlp_in", "4"),
        ({"attn": 6}, lambda x: x.role in ("qkv", "attn_out"), "6"),
        ({"attn.*": 8}, lambda x: ".attn." in x.name, "8"),
        ({"h.1.*": 3}, lambda x: x.block == 1, "3"),
        ({"*": 8, "mlp": 4}, lambda x: x.role.startswith("mlp"), "4"),
        ([{"attn_bits": 8, "mlp_bits": 4}] * 3, lambda x: x.role.startswith("mlp"), "4"),
    ],
)
def test_specifications(spec, where, expected):
    configuration = Configuration.resolve(spec, LAYERS)
    assert {configuration[x.name].name for x in LAYERS if where(x)} == {expected}
    rest = {configuration[x.name].name for x in LAYERS if not where(x)}
    assert rest <= {"32", "8"}


def test_what_a_mapping_does_not_name_stays():
    before = Configuration.uniform(6, LAYERS)
    after = Configuration.resolve({"mlp_out": 8}, LAYERS, before)
    assert {after[x.name].w_bits for x in LAYERS if x.role == "mlp_out"} == {8}
    assert {after[x.name].w_bits for x in LAYERS if x.role != "mlp_out"} == {6}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"mlp_inn": 4}, "'mlp_inn' names no layer"),
        ("C99", "'C99' names no configuration: allowed are fp32, .*C24, a precision"),
        ("w1a8", "bit-width of 1"),
        ({"mlp_in": 1}, "bit-width of 1"),
        ([{"attn_bits": 8, "mlp_bits": 4}], "1 entries, the model has 3 blocks"),
        ([{"attn_bits": 8}] * 3, "block 0"),
        (Configuration({"other": Precision(8, 8)}), "another model"),
    ],
)
def test_wrong_specifications_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        Configuration.resolve(spec, LAYERS)


@given(st.lists(st.tuples(BITS, BITS), min_size=len(LAYERS), max_size=len(LAYERS)))
def test_a_saved_configuration_reads_back(tmp_path_factory, bits):
    c = Configuration({x.name: Precision(*b) for x, b in zip(LAYERS, bits, strict=True)})
    path = tmp_path_factory.mktemp("c") / "c.yaml"
    c.save(path)
    assert Configuration.resolve(path, LAYERS) == c
    as_json = path.with_suffix(".json")
    as_json.write_text(json.dumps(yaml.safe_load(path.read_text())))
    assert Configuration.resolve(str(as_json), LAYERS) == c


@given(st.lists(st.tuples(BITS, BITS), min_size=len(LAYERS), max_size=len(LAYERS)))
def test_average_bits_lie_between_the_extremes_and_weigh_by_size(bits):
    c = Configuration({x.name: Precision(*b) for x, b in zip(LAYERS, bits, strict=True)})
    w, a = c.average_bits(LAYERS)
    assert min(b[0] for b in bits) <= w <= max(b[0] for b in bits)
    assert min(b[1] for b in bits) <= a <= max(b[1] for b in bits)
    total = sum(x.weights for x in LAYERS)
    assert w == pytest.approx(sum(x.weights * c[x.name].w_bits for x in LAYERS) / total)


def test_bytes_by_formula():
    weights = sum(x.weights for x in LAYERS)
    assert Configuration.uniform(32, LAYERS).storage_bytes(LAYERS) == 4 * weights
    assert Configuration.uniform(4, LAYERS).storage_bytes(LAYERS) == weights / 2 + 4 * 10 * len(LAYERS)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.yaml"):
        Configuration.resolve(tmp_path / "nothing.yaml", LAYERS)


LAUGHS = "a0: &a0 [l]\n" + "\n".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(9)) + "\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mine.yaml", f"{LAUGHS}mlp_in: *a9", "names no layer"),
        ("mine.yaml", f"mlp_in: &a [8]\nqkv: [*a, [*a, *a]]\n{LAUGHS}", "is no precision|has a bit-width"),
        ("mine.yaml", "[" * 5_000, "is nested too deeply"),
        ("mine.json", "[" * 50_000, "is nested too deeply"),
        ("mine.yaml", "a: [", "is not YAML"),
        ("mine.json", "{", "is not JSON"),
    ],
)
def test_a_file_that_would_hang_or_is_none_is_one_sentence(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        Configuration.resolve(tmp_path / name, LAYERS)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_weights_that_no_layer_switches_count_at_32_bits():
    layers = [LayerInfo("h.0.a", 0, "qkv", 60, 6, 20), LayerInfo("h.0.b", 0, "other", 20, 2)]
    assert Configuration.resolve({"qkv": "w4a8", "other": 8}, layers).average_bits(layers) == pytest.approx(
        ((60 * 4 + 20 * 8 + 20 * 32) / 100, (80 * 8 + 20 * 32) / 100)
    )
    assert Configuration.uniform(32, layers).average_bits(layers) == (32, 32)


def test_a_layer_of_no_known_role_gets_the_widest_precision_of_its_block():
    layers = [*LAYERS, LayerInfo("h.2.odd", 2, "other", 5, 1)]
    blocks = [{"attn_bits": 4, "mlp_bits": 8}] * 2 + [{"attn_bits": "w6a8", "mlp_bits": 5}]
    for spec, name in (("C7", "8"), ("C2", "4"), (blocks, "w6a8")):
        assert Configuration.resolve(spec, layers)["h.2.odd"].name == name
    assert Configuration.resolve({"attn": 2, "mlp": 2}, layers)["h.2.odd"].name == "32"
