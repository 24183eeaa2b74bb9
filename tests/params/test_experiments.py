"""What the sections of notebooks 2 to 5 refuse by themselves."""

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
    "methods twice": ("cpt.methods=[static, static]", 'allowed is a list with each value once, which "static" is not'),
    "dear method that is not trained": (
        "cpt.equal_bitops=[cpt reversed]",
        'cpt.equal_bitops is ["cpt reversed"]; allowed is a list of some of methods, which "cpt reversed" is not',
    ),
    "fewer passes than cycles": ("cpt.passes=3", "cpt.passes is 3; allowed is an integer of at least 4, the number of cycles"),
    "no masked language model": (
        "adversarial.words.candidates=dir:no",
        "adversarial.words.candidates is \"dir:no\"; allowed is a directory that exists after 'dir:'",
    ),
    "other candidates": (
        "adversarial.words.candidates=bert",
        "allowed is 'synonyms', 'vocabulary', or a masked language model as 'hub:ID' or 'dir:PATH'",
    ),
    "wide window": (
        "cpt.range_test={steps: 4, window: 3, threshold: 1}",
        "cpt.range_test.window is 3; allowed is an integer from 1 to half of steps (4)",
    ),
}


@pytest.mark.parametrize(("override", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_override(refusal, override, sentence):
    assert sentence in refusal(override)
