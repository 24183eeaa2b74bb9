"""What the section of notebook 5 refuses by itself."""

import pytest

# override of `quick`, what its refusal says
WRONG = {
    "no masked language model": (
        "adversarial.words.candidates=dir:no",
        "adversarial.words.candidates is \"dir:no\"; allowed is a directory that exists after 'dir:'",
    ),
    "other candidates": (
        "adversarial.words.candidates=bert",
        "allowed is 'synonyms', 'vocabulary', or a masked language model as 'hub:ID' or 'dir:PATH'",
    ),
}


@pytest.mark.parametrize(("override", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_override(refusal, override, sentence):
    assert sentence in refusal(override)
