"""What the sections of notebooks 2 and 3 refuse by themselves."""

import pytest

# override of `quick`, what its refusal says
WRONG = {
    "name twice": (
        "comparisons.quantizers=[{name: cascaded}]",
        'comparisons.quantizers is [{"name": "cascaded"}]; allowed is a list in which every name is another, here and in '
        'methods, unlike "cascaded"',
    ),
    "name with a slash": (
        "comparisons.methods=[{name: a/b}]",
        "comparisons.methods[0].name is \"a/b\"; allowed is a name of up to 40 lower-case letters, digits, blanks and '-', "
        "but not switchable or specialist",
    ),
    "static scales of a method": (
        "comparisons.methods=[{name: x, quantizer: {activations: per_tensor_static}}]",
        "comparisons.methods[0].quantizer.activations is \"per_tensor_static\"; allowed is 'per_token': static scales are "
        "compared in 01_build, and nothing calibrates them elsewhere",
    ),
    "lowered, but not both": (
        "sensitivity.lowered=[weights]",
        "sensitivity.lowered is [\"weights\"]; allowed is a list that holds 'both', which the search is made of",
    ),
    "specialists of nothing": (
        "comparisons={passes: 9, seeds: [0], questions: 10, methods: [], specialists: 1}",
        "comparisons.specialists is 1; allowed is 0, because no methods are listed to compare with",
    ),
    "lowered twice to the same bits": (
        "sensitivity.bits=[4, 4]",
        "sensitivity.bits is [4, 4]; allowed is a list with each value once, which 4 is not",
    ),
    "seed twice": (
        "comparisons.seeds=[1, 1]",
        "comparisons.seeds is [1, 1]; allowed is a list with each value once, which 1 is not",
    ),
    "configuration unknown": ("configurations.names=[C99]", 'which "C99" is not one of'),
}


@pytest.mark.parametrize(("override", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_override(refusal, override, sentence):
    assert sentence in refusal(override)
