"""A wrong type, range, choice or key is told with what is allowed, read off the schema."""

import pytest

BIT_WIDTH = "a bit-width from 2 to 16 or 32, or weights and activations as 'w4a8'"

# override of `quick`, what its refusal says
WRONG = {
    "negative": ("seed=-1", "seed is -1; allowed is an integer of at least 0"),
    "bool for int": ("seed=true", "seed is true; allowed is an integer of at least 0"),
    "text for int": ('seed="8"', 'seed is "8"; allowed is an integer of at least 0'),
    "float for int": ("seed=1.0", "seed is 1.0; allowed is an integer of at least 0"),
    "octal": ("seed=010", 'seed is "010"; allowed is an integer of at least 0'),
    "nothing": ("seed=", "seed is null; allowed is an integer of at least 0"),
    "unknown section": (
        "tutor={}",
        "tutor is an unknown key, given {}; allowed are adversarial, comparisons, compute, configurations, cpt, data, ",
    ),
    "unknown key": (
        "model.n_layers=3",
        "model.n_layers is an unknown key, given 3; allowed are n_embd, n_head, n_layer",
    ),
    "near key": ("teacher.full.step=3", "warmup_steps, weight_decay (did you mean steps?)"),
    "missing key": ("evaluation={}", "evaluation.batch_size is missing; allowed is an integer of at least 1 and at most 65,536"),
    "value for section": ("lora=3", "lora is 3; allowed is a section with ranks, alphas, dropouts"),
    "nan": ("teacher.alpha=.nan", "teacher.alpha is NaN; allowed is a number of at least 1e-09 and at most 1e+09"),
    "infinity": ("teacher.alpha=.inf", "teacher.alpha is Infinity; allowed is a number of at least 1e-09 and at most 1e+09"),
    "bool for float": ("teacher.alpha=true", "teacher.alpha is true; allowed is a number of at least 1e-09 and at most 1e+09"),
    "dropout of 1": ("teacher.dropout=1", "teacher.dropout is 1; allowed is a number of at least 0 and less than 1"),
    "bit-width of 1": ("precisions=[1]", f"precisions[0] is 1; allowed is {BIT_WIDTH}"),
    "bit-width of 17": (
        "post_training.precisions=[w17a8]",
        f'post_training.precisions[0] is "w17a8"; allowed is {BIT_WIDTH}',
    ),
    "no precisions": ("precisions=[]", f"precisions is []; allowed is a list of at least 2, each {BIT_WIDTH}"),
    "no list": ("precisions=8", f"precisions is 8; allowed is a list of at least 2, each {BIT_WIDTH}"),
    "few questions": (
        "data.validation_questions=5",
        "data.validation_questions is 5; allowed is an integer of at least 10",
    ),
    "rank of 0": ("lora.ranks=[8,8,0,8,8]", "lora.ranks[2] is 0; allowed is an integer of at least 1"),
    "choice": ("teacher.base=best", "teacher.base is \"best\"; allowed is 'full' or 'lora'"),
    "unknown key of a method": (
        "comparisons.methods=[{nme: x}]",
        'comparisons.methods[0].nme is an unknown key, given "x"; allowed are adapters, base_training, name, '
        "objective, quantizer, schedule, start (did you mean name?)",
    ),
    "a single width": (
        "precisions=[8]",
        "precisions is [8]; allowed is a list of at least 2, each a bit-width from 2 to 16 or 32, or weights and activations",
    ),
    "no window": ("deployment.lengths=[]", "deployment.lengths is []; allowed is "),
    "int for bool": ("quantizer.nested=1", "quantizer.nested is 1; allowed is true or false"),
    "few resamples": ("evaluation.resamples=99", "evaluation.resamples is 99; allowed is an integer of at least 100"),
    "sure": (
        "evaluation.confidence=1",
        "evaluation.confidence is 1; allowed is a number of more than 0 and less than 1",
    ),
    "threads": ("compute.threads=0", "compute.threads is 0; allowed is an integer of at least 1 and at most 1,024 or null"),
    "unknown schedule": (
        "switchable.schedule={name: random}",
        "switchable.schedule.name is \"random\"; allowed is 'random_per_layer' or 'random_uniform' or 'all' or 'sandwich' or ",
    ),
    "bare schedule": (
        "switchable.schedule=cyclic",
        'switchable.schedule is "cyclic"; allowed is a section with name, passes, pattern, interval',
    ),
    "no pass": (
        "switchable.schedule={name: random_per_layer, passes: 0}",
        "switchable.schedule.passes is 0; allowed is an integer of at least 1 and at most 1,000,000,000 or null",
    ),
    "pattern of 1 bit": (
        "switchable.schedule={name: scheduled, pattern: [8, 1]}",
        f"switchable.schedule.pattern[1] is 1; allowed is {BIT_WIDTH}",
    ),
    "unknown objective": (
        "switchable.objective.name=mean",
        "switchable.objective.name is \"mean\"; allowed is 'average' or 'joint' or 'cascaded' or 'distillation' or 'consis",
    ),
    "factor of 0": (
        "switchable.learning_rate_factors=[1, 1, 1, 1, 1, 0]",
        "switchable.learning_rate_factors[5] is 0; allowed is a number of at least 1e-09 and at most 1e+09",
    ),
    "cpt at one precision": ("cpt.precisions=[8]", "cpt.precisions is [8]; allowed is a list of at least 2, each a bit-width"),
    "no static": ("cpt.static=0", "cpt.static is 0; allowed is an integer of at least 1 and at most 1,000,000,000 or null"),
    "unknown method of cpt": (
        "cpt.methods=[static, best]",
        "cpt.methods[1] is \"best\"; allowed is 'static' or 'random separate'",
    ),
    "rate beyond 1": (
        "adversarial.noise_rate=2",
        "adversarial.noise_rate is 2; allowed is a number of more than 0 and at most 1",
    ),
    "no two precisions": (
        "switchable.schedule={name: cpt, cosine: {cycles: 2, between: 8}}",
        f"switchable.schedule.cosine.between is 8; allowed is a list of 2, each {BIT_WIDTH}, or null",
    ),
    "gradients of 1 bit": (
        "cpt.gradient_bits=float",
        'cpt.gradient_bits is "float"; allowed is a bit-width from 2 to 16 or 32',
    ),
    "other tracker": (
        "compute.trackers=[wandb]",
        "compute.trackers[0] is \"wandb\"; allowed is 'tensorboard'",
    ),
}


@pytest.mark.parametrize(("override", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_override(refusal, override, sentence):
    assert sentence in refusal(override)
