"""Trials: refused in one sentence where they do not fit the precisions."""

import pytest

from qatlib.params.load import load_params

# a trial, what its refusal says
WRONG = {
    "ranks": ("ranks: [4]", "tuning.trials[0].ranks is [4]; allowed is a list of 6 values, one for each of precisions, or null"),
    "factors": (
        "learning_rate_factors: [1.5, 2.5]",
        "tuning.trials[0].learning_rate_factors is [1.5, 2.5]; allowed is a list of 6 values",
    ),
    "schedule": (
        "schedule: {name: scheduled, pattern: [7]}",
        'tuning.trials[0].schedule.pattern is ["7"]; allowed is a list of precisions, which 7 is not of',
    ),
    "passes": ("schedule: {name: all}", "tuning.passes is 4; allowed is an integer of at least 6, what a step of x costs"),
}


@pytest.mark.parametrize(("trial", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_trial(refusal, trial, sentence):
    assert sentence in refusal(f"tuning={{questions: 100, passes: 4, trials: [{{name: x, {trial}}}]}}")


def test_a_name_is_given_once_and_not_that_of_the_run(refusal):
    for names in (("x", "x"), ("own",)):
        trials = ", ".join(f"{{name: {name}}}" for name in names)
        said = refusal(f"tuning={{questions: 100, passes: 32, trials: [{trials}]}}")
        assert "allowed is a list in which every name is another and none is own" in said


def test_a_trial_changes_what_it_names_and_scales_alphas_with_ranks():
    params = load_params("smoke", ["tuning={questions: 40, passes: 4, trials: [{name: x, ranks: [4, 4, 8, 16]}]}"])
    trial = params.tuning.trials[0]
    changed = trial.adapters(params.lora)
    assert changed.ranks == (4, 4, 8, 16) and changed.alphas == (8, 8, 16, 32) and changed.start == params.lora.start
    assert trial.settings(params.switchable) == params.switchable
