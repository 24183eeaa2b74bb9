"""What a training of the switchable model may say about the base that is trained before it."""

import pytest

from qatlib.params.load import load_params
from qatlib.params.yaml import ParamsError

REST = "schedule: {name: cyclic}, objective: {name: average}, training: {steps: 6, batch_size: 8, learning_rate: 1e-3}"


def base(precisions: str, rest: str = REST) -> str:
    return f"switchable.base_training={{precisions: {precisions}, {rest}}}"


# override of `quick`, what its refusal says
WRONG = {
    "of others": (
        base("[3, w2a8]"),
        'switchable.base_training.precisions is ["3", "w2a8"]; allowed is a list of some of precisions, which w2a8 is not',
    ),
    "none": (base("[]"), "switchable.base_training.precisions is []; allowed is a list of at least one, each"),
    "twice": (base("[3, 3]"), "switchable.base_training.precisions is [3, 3]; allowed is a list with each value once, which"),
    "pattern of others": (
        base("[3, 2]", REST.replace("name: cyclic", "name: scheduled, pattern: [2, 4]")),
        'switchable.base_training.schedule.pattern is ["2", "4"]; allowed is a list of base_training.precisions, '
        "which 4 is not of",
    ),
    "more passes than precisions": (
        base("[3, 2]", REST.replace("name: cyclic", "name: random_uniform, passes: 3")),
        "switchable.base_training.schedule.passes is 3; allowed is an integer from 1 to 2, since random_uniform draws each of "
        "base_training.precisions once a step",
    ),
    "nobody to learn from": (
        base("[3, 2]", REST.replace("name: average", "name: cascaded")),
        "switchable.base_training.objective.name is \"cascaded\"; allowed is 'average', 'joint' or 'distillation', because "
        "cyclic trains one configuration a step here",
    ),
}


@pytest.mark.parametrize(("override", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_override(refusal, override, sentence):
    assert sentence in refusal(override)


def test_a_base_that_adapters_none_trains_anyway_is_refused():
    with pytest.raises(ParamsError, match="allowed is null, because adapters is 'none', which trains all weights anyway"):
        load_params("smoke", ["switchable.adapters=none"])


def test_a_budget_pays_for_a_step_of_each():
    with pytest.raises(
        ParamsError, match="comparisons.passes is 4; allowed is an integer of at least 5, what a step of cascaded"
    ):
        load_params("smoke", ["comparisons.passes=4"])


def test_a_share_is_of_all_passes():
    params = load_params("quick", [base("[3, 2]", REST.replace("cyclic", "all")), "switchable.training.steps=36"])
    assert params.switchable.base_training.passes == 12 and params.switchable.base_share(6) == 0.25
    assert load_params("quick").switchable.base_share(6) == 0


def test_a_method_may_leave_it_out():
    params = load_params("smoke", ["comparisons.methods=[{name: a}, {name: b, base_training: false}, {name: c, adapters: none}]"])
    assert [m.applied(params.switchable).base_training is None for m in params.comparisons.methods] == [False, True, True]
