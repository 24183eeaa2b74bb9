"""What the section of notebook 4 refuses by itself."""

import pytest

# override of `quick`, what its refusal says
WRONG = {
    "methods twice": ("cpt.methods=[static, static]", 'allowed is a list with each value once, which "static" is not'),
    "dear method that is not trained": (
        "cpt.equal_bitops=[cpt reversed]",
        'cpt.equal_bitops is ["cpt reversed"]; allowed is a list of some of methods, which "cpt reversed" is not',
    ),
    "fewer passes than cycles": ("cpt.passes=3", "cpt.passes is 3; allowed is an integer of at least 4, the number of cycles"),
    "wide window": (
        "cpt.range_test={steps: 4, window: 3, threshold: 1}",
        "cpt.range_test.window is 3; allowed is an integer from 1 to half of steps (4)",
    ),
}


@pytest.mark.parametrize(("override", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_override(refusal, override, sentence):
    assert sentence in refusal(override)
