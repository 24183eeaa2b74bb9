"""The one sentence that bad params are refused with."""

from collections.abc import Callable

import pytest

from qatlib.params.load import load_params
from qatlib.params.yaml import ParamsError


def _refusal(override: str) -> str:
    with pytest.raises(ParamsError) as error:
        load_params("quick", [override])
    text = str(error.value)
    assert text.startswith("SET: ") and "allowed" in text and "\n" not in text
    return text


@pytest.fixture(scope="session")
def refusal() -> Callable[[str], str]:
    """The one sentence that an override of `quick` is refused with."""
    return _refusal
