import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qatlib.named import NAMED
from qatlib.precision import Precision
from qatlib.report.params import SECTIONS, STAGES, UPSTREAM, load_params, profile_path
from qatlib.report.schema import Params
from qatlib.report.sections import ROOT
from qatlib.report.strict_yaml import ParamsError

PROFILES = sorted(path.stem for path in (ROOT / "params").glob("*.yaml"))
BIT_WIDTH = "a bit-width from 2 to 16 or 32, or weights and activations as 'w4a8'"
SOURCES = "'embedded', 'hub:ID', 'dir:PATH' or a list of SQuAD JSON files (.json, .json.gz)"

# override of `quick`, the sentence without its `SET: `
WRONG = {
    "negative": ("seed=-1", "seed is -1; allowed is an integer of at least 0"),
    "bool for int": ("seed=true", "seed is true; allowed is an integer of at least 0"),
    "text for int": ('seed="8"', 'seed is "8"; allowed is an integer of at least 0'),
    "float for int": ("seed=1.0", "seed is 1.0; allowed is an integer of at least 0"),
    "octal": ("seed=010", 'seed is "010"; allowed is an integer of at least 0'),
    "nothing": ("seed=", "seed is null; allowed is an integer of at least 0"),
    "key in a value": ("seed.x=1", 'seed.x is "1"; allowed is seed itself, which has no keys inside'),
    "no override": ("seed", '"seed" is no override; allowed is dotted.key=value'),
    "unknown section": (
        "tutor={}",
        "tutor is an unknown key, given {}; allowed are adversarial, comparisons, compute, configurations, cpt, data, ",
    ),
    "unknown key": (
        "model.n_layers=3",
        "model.n_layers is an unknown key, given 3; allowed are n_embd, n_head, n_layer",
    ),
    "near key": ("teacher.full.step=3", "warmup_steps, weight_decay (did you mean steps?)"),
    "missing key": ("compute={}", "compute.mixed_precision is missing; allowed is 'no' or 'bf16'"),
    "value for section": ("lora=3", "lora is 3; allowed is a section with ranks, alphas, dropouts"),
    "nan": ("teacher.alpha=.nan", "teacher.alpha is NaN; allowed is a number of more than 0"),
    "infinity": ("teacher.alpha=.inf", "teacher.alpha is Infinity; allowed is a number of more than 0"),
    "bool for float": ("teacher.alpha=true", "teacher.alpha is true; allowed is a number of more than 0"),
    "dropout of 1": ("teacher.dropout=1", "teacher.dropout is 1; allowed is a number of at least 0 and less than 1"),
    "long warm-up": (
        "teacher.lora.warmup_steps=999",
        "teacher.lora.warmup_steps is 999; allowed is an integer from 0 to steps",
    ),
    "bit-width of 1": ("precisions=[1]", f"precisions[0] is 1; allowed is {BIT_WIDTH}"),
    "bit-width of 17": (
        "post_training.precisions=[w17a8]",
        f'post_training.precisions[0] is "w17a8"; allowed is {BIT_WIDTH}',
    ),
    "no precisions": ("precisions=[]", f"precisions is []; allowed is a list of at least 2, each {BIT_WIDTH}"),
    "no list": ("precisions=8", f"precisions is 8; allowed is a list of at least 2, each {BIT_WIDTH}"),
    "width twice": (
        "precisions=[8, w8a4]",
        'precisions is [8, "w8a4"]; allowed is a list with each weight bit-width once',
    ),
    "bits twice": (
        "post_training.comparison.bits=[4, 4]",
        "post_training.comparison.bits is [4, 4]; allowed is a list with each bit-width once, which 4 is not",
    ),
    "post-training at 32": (
        "post_training.precisions=[8, 32]",
        "post_training.precisions is [8, 32]; allowed is a list with each precision once and without 32",
    ),
    "not measured untrained": (
        "post_training.precisions=[8, 6]",
        'post_training.precisions is ["8", "6"]; allowed is a list that holds every one of precisions but 32, such as 4',
    ),
    "static scales": (
        "quantizer.activations=per_tensor_static",
        "quantizer.activations is \"per_tensor_static\"; allowed is 'per_token': static scales are compared in 01_build",
    ),
    "few questions": (
        "data.validation_questions=5",
        "data.validation_questions is 5; allowed is an integer of at least 10",
    ),
    "short list": ("lora.ranks=[8]", "lora.ranks is [8]; allowed is a list of 6 values, one for each of precisions"),
    "rank of 0": ("lora.ranks=[8,8,0,8,8]", "lora.ranks[2] is 0; allowed is an integer of at least 1"),
    "choice": ("teacher.base=best", "teacher.base is \"best\"; allowed is 'full' or 'lora'"),
    "method without passes for its objective": (
        "comparisons.methods=[{name: x, objective: {name: cascaded}}]",
        "comparisons.methods[0].objective.name is \"cascaded\"; allowed is 'average', 'joint' or 'distillation', "
        "because random_per_layer trains one configuration a step here",
    ),
    "budget below a step": (
        "comparisons.passes=2",
        "comparisons.passes is 2; allowed is an integer of at least 4, what a step of sandwich costs",
    ),
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
    "unknown key of a method": (
        "comparisons.methods=[{nme: x}]",
        'comparisons.methods[0].nme is an unknown key, given "x"; allowed are adapters, name, objective, quantizer, schedule '
        "(did you mean name?)",
    ),
    "static scales of a method": (
        "comparisons.methods=[{name: x, quantizer: {activations: per_tensor_static}}]",
        "comparisons.methods[0].quantizer.activations is \"per_tensor_static\"; allowed is 'per_token': static scales are "
        "compared in 01_build, and nothing calibrates them elsewhere",
    ),
    "lowered to an untrained width": (
        "sensitivity.bits=[7]",
        "sensitivity.bits is [7]; allowed is a list of weight bit-widths of precisions, which 7 is not, or null",
    ),
    "lowered to where it is": (
        "sensitivity.bits=[8]",
        "sensitivity.bits is [8]; allowed is a list of weight bit-widths of precisions, some of them below 8, one "
        "of bases; or null",
    ),
    "lowered to above every base": (
        "sensitivity={bases: [6], bits: [8, 4], lowered: [both], questions: 10}",
        "sensitivity.bits is [8, 4]; allowed is a list of weight bit-widths of precisions below 6, the widest of bases, or null",
    ),
    "base with nothing below": (
        "sensitivity.bases=[8, 2]",
        'sensitivity.bases is ["8", "2"]; allowed is a list without 2, which none of precisions is below; or null',
    ),
    "base of no trained width": (
        "sensitivity.bases=[5]",
        'sensitivity.bases is ["5"]; allowed is a list of some of precisions, or 32; or null',
    ),
    "lowered, but not both": (
        "sensitivity.lowered=[weights]",
        "sensitivity.lowered is [\"weights\"]; allowed is a list that holds 'both', which the search is made of",
    ),
    "a single width": (
        "precisions=[8]",
        "precisions is [8]; allowed is a list of at least 2, each a bit-width from 2 to 16 or 32, or weights and activations",
    ),
    "specialists of nothing": (
        "comparisons={passes: 9, seeds: [0], questions: 10, methods: [], specialists: 1}",
        "comparisons.specialists is 1; allowed is 0, because no methods are listed to compare with",
    ),
    "window beyond the model": (
        "deployment.lengths=[64, 2048]",
        "deployment.lengths is [64, 2048]; allowed is a list of integers of at most data.max_length (128)",
    ),
    "no window": ("deployment.lengths=[]", "deployment.lengths is []; allowed is "),
    "answer longer than a window": (
        "generative={questions: 10, max_answer_tokens: 128}",
        "generative.max_answer_tokens is 128; allowed is an integer below data.max_length (128)",
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
    "deployment of floats": (
        "deployment.precisions=[32]",
        'deployment.precisions is ["32"]; allowed is a list of some of precisions, of 8 bits at most, or null for all such',
    ),
    "int for bool": ("quantizer.nested=1", "quantizer.nested is 1; allowed is true or false"),
    "few resamples": ("evaluation.resamples=99", "evaluation.resamples is 99; allowed is an integer of at least 100"),
    "sure": (
        "evaluation.confidence=1",
        "evaluation.confidence is 1; allowed is a number of more than 0 and less than 1",
    ),
    "threads": ("compute.threads=0", "compute.threads is 0; allowed is an integer of at least 1 or null"),
    "unknown schedule": (
        "switchable.schedule={name: random}",
        "switchable.schedule.name is \"random\"; allowed is 'random_per_layer' or 'random_uniform' or 'all' or 'sandwich' or ",
    ),
    "bare schedule": (
        "switchable.schedule=cyclic",
        'switchable.schedule is "cyclic"; allowed is a section with name, passes, pattern, interval',
    ),
    "more passes than precisions": (
        "switchable.schedule={name: random_uniform, passes: 7}",
        "switchable.schedule.passes is 7; allowed is an integer from 1 to 6, since random_uniform draws each of precisions once",
    ),
    "no pass": (
        "switchable.schedule={name: random_per_layer, passes: 0}",
        "switchable.schedule.passes is 0; allowed is an integer of at least 1 or null",
    ),
    "open sandwich": (
        "switchable.schedule={name: sandwich, passes: 1}",
        "switchable.schedule.passes is 1; allowed is an integer of at least 2, because sandwich trains the widest and the narr",
    ),
    "passes of all": (
        "switchable.schedule={name: all, passes: 6}",
        "switchable.schedule.passes is 6; allowed is null, because all trains every precision a step",
    ),
    "passes of cyclic": (
        "switchable.schedule={name: cyclic, passes: 2}",
        "switchable.schedule.passes is 2; allowed is null, because cyclic trains one precision a step",
    ),
    "interval of all": (
        "switchable.schedule={name: all, interval: 2}",
        "switchable.schedule.interval is 2; allowed is 1, because all trains every precision at every step",
    ),
    "interval of progressive": (
        "switchable.schedule={name: progressive, interval: 2}",
        "switchable.schedule.interval is 2; allowed is 1, because progressive gives every precision an equal share of the steps",
    ),
    "no pattern": (
        "switchable.schedule={name: scheduled}",
        "switchable.schedule.pattern is null; allowed is a list of at least one of precisions, which scheduled goes through",
    ),
    "pattern of cyclic": (
        "switchable.schedule={name: cyclic, pattern: [8, 4]}",
        "switchable.schedule.pattern is [8, 4]; allowed is null, because cyclic goes through no pattern",
    ),
    "pattern of others": (
        "switchable.schedule={name: scheduled, pattern: [8, w4a8]}",
        'switchable.schedule.pattern is ["8", "w4a8"]; allowed is a list of precisions, which w4a8 is not of',
    ),
    "pattern of 1 bit": (
        "switchable.schedule={name: scheduled, pattern: [8, 1]}",
        f"switchable.schedule.pattern[1] is 1; allowed is {BIT_WIDTH}",
    ),
    "no cosine": (
        "switchable.schedule={name: cpt}",
        "switchable.schedule.cosine is null; allowed is a section with cycles or a period, which cpt follows",
    ),
    "cosine of others": (
        "switchable.schedule={name: cyclic, cosine: {cycles: 2}}",
        "switchable.schedule.cosine is",
    ),
    "cycles and a period": (
        "switchable.schedule={name: cpt, cosine: {cycles: 2, period: 5}}",
        "switchable.schedule.cosine.period is 5; allowed is an integer of at least 1 if cycles is null, or null if it is not",
    ),
    "neither cycles nor a period": (
        "switchable.schedule={name: cpt, cosine: {form: restart}}",
        "switchable.schedule.cosine.period is null; allowed is an integer of at least 1 if cycles is null",
    ),
    "falling ends": (
        "switchable.schedule={name: cpt, cosine: {cycles: 2, between: [8, 4]}}",
        "allowed is two precisions, the one with fewer weight bits first",
    ),
    "ends of others": (
        "switchable.schedule={name: cpt, cosine: {cycles: 2, between: [5, 8]}}",
        'switchable.schedule.cosine.between is ["5"]; allowed is two of precisions',
    ),
    "second phase elsewhere": (
        "switchable.schedule={name: cyclic, then: {precision: 5}}",
        'switchable.schedule.then.precision is ["5"]; allowed is one of precisions',
    ),
    "second phase of random": (
        "switchable.schedule={name: random_uniform, then: {precision: 4}}",
        "because a second phase follows cyclic, scheduled or cpt, not random_uniform",
    ),
    "interval of cpt": (
        "switchable.schedule={name: cpt, cosine: {cycles: 2}, interval: 2}",
        "switchable.schedule.interval is 2; allowed is 1, because cpt has cycles, or a period",
    ),
    "gradients of 20 bits": (
        "switchable.training.gradient_bits=20",
        "switchable.training.gradient_bits is 20; allowed is a bit-width from 2 to 16 or 32",
    ),
    "too few steps to progress": (
        "switchable={schedule: {name: progressive}, objective: {name: average}, training: {steps: 5, batch_size: 1, "
        "learning_rate: 1}}",
        "switchable.training.steps is 5; allowed is at least 6, a step for each of precisions",
    ),
    "unknown objective": (
        "switchable.objective.name=mean",
        "switchable.objective.name is \"mean\"; allowed is 'average' or 'joint' or 'cascaded' or 'distillation' or 'consis",
    ),
    "nobody to learn from": (
        "switchable.objective={name: cascaded}",
        "switchable.objective.name is \"cascaded\"; allowed is 'average', 'joint' or 'distillation', because random_per_layer "
        "trains one configuration a step",
    ),
    "weight of nothing": (
        "switchable.objective.weight=0.5",
        "switchable.objective.weight is 0.5; allowed is 1.0 or nothing, because average adds no term to the task's loss",
    ),
    "divergence of nothing": (
        "switchable.objective={name: joint, divergence: js}",
        "switchable.objective.divergence is \"js\"; allowed is 'kl' or nothing, because joint adds no term to the task's loss",
    ),
    "temperature of no teacher": (
        "switchable={schedule: {name: all}, objective: {name: cascaded, temperature: 2}}",
        "switchable.objective.temperature is 2; allowed is 1 or nothing, because cascaded softens no distribution",
    ),
    "temperature of mse": (
        "switchable.objective={name: distillation, divergence: mse, temperature: 2}",
        "switchable.objective.temperature is 2; allowed is 1 or nothing, because it cancels out in the mse of logits",
    ),
    "few factors": (
        "switchable.learning_rate_factors=[1, 0.5]",
        "switchable.learning_rate_factors is [1.0, 0.5]; allowed is a list of 6 values, one for each of precisions, or null",
    ),
    "factor of 0": (
        "switchable.learning_rate_factors=[1, 1, 1, 1, 1, 0]",
        "switchable.learning_rate_factors[5] is 0; allowed is a number of more than 0",
    ),
    "cpt at one precision": ("cpt.precisions=[8]", "cpt.precisions is [8]; allowed is a list of at least 2, each a bit-width"),
    "cpt at a width twice": (
        "cpt.precisions=[8, w8a4, 4]",
        'cpt.precisions is ["8", "w8a4", "4"]; allowed is a list with each weight bit-width once, or null',
    ),
    "cycles from the top": ("cpt.lowest=8", 'cpt.lowest is "8"; allowed is one of 8, 6, 4, 3, 2 that is not the widest, or null'),
    "no static": ("cpt.static=0", "cpt.static is 0; allowed is an integer of at least 1 or null"),
    "second phase of cpt": (
        "cpt.second_phase=5",
        'cpt.second_phase is "5"; allowed is one of 8, 6, 4, 3, 2, or null',
    ),
    "unknown method of cpt": (
        "cpt.methods=[static, best]",
        "cpt.methods[1] is \"best\"; allowed is 'static' or 'random separate'",
    ),
    "methods twice": ("cpt.methods=[static, static]", 'allowed is a list with each value once, which "static" is not'),
    "dear method that is not trained": (
        "cpt.equal_bitops=[random shared]",
        'cpt.equal_bitops is ["random shared"]; allowed is a list of some of methods, which "random shared" is not',
    ),
    "fewer passes than cycles": ("cpt.passes=3", "cpt.passes is 3; allowed is an integer of at least 4, the number of cycles"),
    "wide window": (
        "cpt.range_test={steps: 4, window: 3, threshold: 1}",
        "cpt.range_test.window is 3; allowed is an integer from 1 to half of steps (4)",
    ),
    "other tracker": (
        "compute.trackers=[wandb]",
        "compute.trackers[0] is \"wandb\"; allowed is 'tensorboard'",
    ),
    "stride": (
        "data.stride=64",
        "data.stride is 64; allowed is an integer from 0 to less than half of data.max_length (128)",
    ),
    "no file": (
        "data.train=[a.json]",
        'data.train is ["a.json"]; allowed is a list of files that exist, which "a.json" does not',
    ),
    "other file": (
        "data.train=[Makefile]",
        'allowed is a list of files named .json or .json.gz, which "Makefile" is not',
    ),
    "no files": ("data.train=[]", f"data.train is []; allowed is {SOURCES}"),
    "bare file": ("data.train=a.json", f'data.train is "a.json"; allowed is {SOURCES}'),
    "no directory": ("data.train=dir:no", "data.train is \"dir:no\"; allowed is a directory that exists after 'dir:'"),
    "no hub id": ("data.train=hub:a/b/c", "data.train is \"hub:a/b/c\"; allowed is 'hub:NAME' or 'hub:OWNER/NAME'"),
    "how many": (
        "data.train_questions=null",
        "data.train_questions is null; allowed is an integer of at least 1, because",
    ),
    "other words": (
        "data.train=hub:squad",
        "data.train is \"hub:squad\"; allowed is 'embedded', because model.source is",
    ),
    "no weights": (
        "model.source=pip:gpt2",
        "model.source is \"pip:gpt2\"; allowed is 'embedded', 'hub:ID', 'dir:PATH' or ",
    ),
    "no shape": (
        "model.n_layer=null",
        "model.n_layer is null; allowed is an integer of at least 1, because model.source is",
    ),
    "heads": ("model.n_embd=130", "model.n_embd is 130; allowed is a multiple of model.n_head (4)"),
    "no pretraining": (
        "model.pretraining=null",
        "model.pretraining is null; allowed is a section of training arguments, ",
    ),
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
def test_wrong_override(override: str, sentence: str) -> None:
    with pytest.raises(ParamsError) as error:
        load_params("quick", [override])
    text = str(error.value)
    assert text.startswith("SET: ")
    assert sentence in text
    assert "allowed" in text
    assert "\n" not in text


def test_configurations_of_widths_that_are_not_trained_are_refused_or_left_out() -> None:
    with pytest.raises(ParamsError) as error:
        load_params("smoke", ["configurations.names=[C1, C24]"])
    assert str(error.value) == (
        'SET: configurations.names is "C24"; allowed is names whose bit-widths are all in precisions, unlike 6, '
        "or null for all such"
    )
    fitting = load_params("smoke", ["configurations.names=null"]).named
    assert "C22" in fitting and "C24" not in fitting
    shared = ["configurations.names=null", "switchable.adapters=shared"]
    assert set(load_params("smoke", shared).named) == set(NAMED)


# the file's text, the sentence without the file's name
WRONG_FILES = {
    "empty": ("", "holds null; allowed is a mapping with seed, model, data"),
    "list": ("[1]", "holds [1]; allowed is a mapping with seed, model, data"),
    "broken": ("seed: 1\nmodel: [\n", "is not YAML in line 3 (expected the node content, but found '<stream end>')"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "is not YAML in line 2 (but found another document); allowed is one"),
    "key twice": ("seed: 1\nmodel: {}\nseed: 2\n", "seed is given twice, again in line 3; allowed is one value a key"),
    "inner key twice": (
        "model:\n  source: a\n  source: b\n",
        "model.source is given twice, again in line 3; allowed is",
    ),
    "section missing": (
        "seed: 1\n",
        "model is missing; allowed is a section with source, n_layer, n_head, n_embd, pretr",
    ),
}


@pytest.mark.parametrize(("text", "sentence"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_wrong_file(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError) as error:
        load_params(str(path))
    assert str(error.value).startswith(f"{path}: {sentence}")


def test_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ParamsError, match="mine.yaml: is not UTF-8 text; allowed is YAML in UTF-8"):
        load_params(str(path))


@pytest.mark.parametrize(
    ("profile", "sentence"),
    [
        ("quik", 'PROFILE: "quik" is not a profile; allowed is one of gpt2-squad, quick, reference, smoke, '),
        ("no/such.yaml", 'PROFILE: "no/such.yaml" is not a file; allowed is one of'),
    ],
)
def test_wrong_profile(profile: str, sentence: str) -> None:
    with pytest.raises(ParamsError) as error:
        load_params(profile)
    assert str(error.value).startswith(sentence)


def test_profile_path_must_not_shadow_a_profile(tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text((ROOT / "params/quick.yaml").read_text())
    with pytest.raises(ParamsError, match="has the name of params/quick.yaml; allowed is any other name"):
        profile_path(str(tmp_path / "quick.yaml"))
    assert profile_path("params/quick.yaml") == profile_path("quick")


def test_error_names_file_where_the_override_is_elsewhere() -> None:
    with pytest.raises(ParamsError, match=r"^params/quick.yaml: lora.ranks is \[8, 8, 8, 8, 8, 8\]; allowed is a list of 2 "):
        load_params("quick", ["precisions=[8, 4]"])


@pytest.mark.parametrize("profile", PROFILES)
def test_committed_profiles_are_valid(profile: str) -> None:
    assert load_params(profile).precisions


def squad_files(folder: Path) -> tuple[Path, Path]:
    first, second = folder / "a.json", folder / "b.json.gz"
    first.write_text("{}")
    second.write_bytes(b"")
    return first, second


def test_files_are_made_absolute_and_apart(tmp_path: Path) -> None:
    a, b = squad_files(tmp_path)
    params = load_params("gpt2-squad", [f"data.train=[{a}]", f"data.validation=[{b}]", f"model.source=dir:{tmp_path}"])
    assert params.data.train == (str(a),)
    assert params.model.source == f"dir:{tmp_path}"
    with pytest.raises(ParamsError, match="allowed is a list that names no file twice"):
        load_params("gpt2-squad", [f"data.train=[{a},{a}]"])
    with pytest.raises(ParamsError, match='data.validation is .*; allowed is files that are not in data.train, which "b.js'):
        load_params("gpt2-squad", [f"data.train=[{b}]", f"data.validation=[{b}]"])


def test_overrides_apply_in_order_and_read_numbers_as_yaml_1_2() -> None:
    params = load_params("quick", ["teacher.full={steps: 9, batch_size: 1, learning_rate: 1e-3}", "teacher.full.steps=7"])
    assert (params.teacher.full.steps, params.teacher.full.learning_rate) == (7, 0.001)
    assert load_params("quick", ["compute.mixed_precision=no"]).compute.mixed_precision == "no"
    assert load_params("quick", ["teacher.alpha=3"]).teacher.alpha == 3.0


def test_aliases_are_copies(tmp_path: Path) -> None:
    text = (ROOT / "params/smoke.yaml").read_text().replace("  full: {", "  full: &same {")
    lines = ["  lora: *same" if line.startswith("  lora: {") else line for line in text.splitlines()]
    path = tmp_path / "mine.yaml"
    path.write_text("\n".join(lines))
    params = load_params(str(path), ["teacher.full.steps=9"])
    assert (params.teacher.full.steps, params.teacher.lora.steps) == (9, 6)


@pytest.mark.parametrize("name", ["cascaded", "consistency"])
def test_learning_from_wider_ones_takes_several_configurations_a_step(name: str) -> None:
    chosen = f"switchable.objective.name={name}"
    for schedule in ("{name: all}", "{name: sandwich}", "{name: random_uniform, passes: 2}"):
        assert load_params("quick", [chosen, f"switchable.schedule={schedule}"]).switchable.objective.name == name


@pytest.mark.parametrize(("bits", "of_8", "of_32"), [("[6, 4]", (6, 4), (8, 6, 4)), ("[8, 4]", (4,), (8, 4))])
def test_a_later_base_may_go_to_the_first(bits: str, of_8: tuple[int, ...], of_32: tuple[int, ...]) -> None:
    params = load_params("quick", [f"sensitivity.bits={bits}"])
    assert [params.lowered_to(base) for base in params.bases] == [of_8, of_32]


def test_budgets_are_within_the_candidates() -> None:
    assert load_params("quick", ["sensitivity.bits=[6, 4]"]).budgets == (8, 6, 5, 4)
    with pytest.raises(ParamsError) as error:
        load_params("quick", ["sensitivity.bits=[6, 4]", "search.budgets=[5, 3]"])
    assert str(error.value) == (
        "SET: search.budgets is [5.0, 3.0]; allowed is a list of numbers of at least 4, the narrowest candidate, or null"
    )


@given(st.lists(st.sampled_from([*range(2, 17), 32]), min_size=2, unique=True))
def test_there_is_always_something_to_lower(widths: list[int]) -> None:
    each = {"ranks": [1] * len(widths), "alphas": [1.0] * len(widths), "dropouts": [0.0] * len(widths)}
    wanted = [w for w in widths if w != 32]
    changes = [f"precisions={widths}", f"post_training.precisions={wanted}", f"lora={json.dumps(each)}"]
    params = load_params("quick", changes)
    first = params.bases[0].w_bits
    assert first in widths
    for base in params.bases:
        lowered = params.lowered_to(base)
        assert lowered == tuple(sorted({w for w in widths if w < base.w_bits}, reverse=True)) and lowered
        assert (first in lowered) == (first < base.w_bits)
    assert 8 not in widths or min(widths) == 8 or params.bases[0].w_bits == 8
    cycled = [p.w_bits for p in params.cycled]
    assert len(cycled) > 1 and cycled == sorted(cycled, reverse=True) and (32 not in cycled or sum(w < 32 for w in widths) == 1)


def test_every_section_has_a_stage_and_no_stage_names_one_twice() -> None:
    assert {name for sections in SECTIONS.values() for name in sections} == {*Params.model_fields}
    for stage in STAGES:
        line = [stage]
        while upstream := UPSTREAM[line[-1]]:
            line.append(upstream)
        named = [name for part in line for name in SECTIONS[part]]
        assert len(named) == len({*named}), stage
    assert tuple(SECTIONS) == tuple(UPSTREAM) == STAGES


_widths = st.lists(st.sampled_from([*range(2, 17), 32]), min_size=2, unique=True)


@given(data=st.data(), widths=_widths, seed=st.integers(0, 2**40))
def test_dump_and_load(data: st.DataObject, widths: list[int], seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    def per_precision(values: st.SearchStrategy[Any]) -> list[Any]:
        return data.draw(st.lists(values, min_size=len(widths), max_size=len(widths)))

    precisions = [Precision(w, data.draw(st.sampled_from([4, 8, 32]))).name for w in widths]
    changes: Mapping[str, Any] = {
        "seed": seed,
        "precisions": precisions,
        "post_training.precisions": [p for p in precisions if p != "32"] or ["8"],
        "lora.ranks": per_precision(st.integers(1, 64)),
        "lora.alphas": per_precision(st.floats(0, 1e9, exclude_min=True)),
        "lora.dropouts": per_precision(st.floats(0, 1, exclude_max=True)),
        "compute.mixed_precision": data.draw(st.sampled_from(["no", "bf16"])),
        "compute.trackers": data.draw(st.sampled_from([[], ["tensorboard"]])),
        "switchable.learning_rate_factors": data.draw(st.none() | st.just([0.5] * len(widths))),
        "switchable.schedule": data.draw(
            st.sampled_from(
                [
                    {"name": "all"},
                    {"name": "sandwich", "passes": 3, "interval": 2},
                    {"name": "scheduled", "pattern": [precisions[0], precisions[-1]]},
                    {"name": "cpt", "cosine": {"cycles": 3, "order": "shuffled"}, "then": {"precision": precisions[-1]}},
                ]
            )
        ),
        "switchable.objective": {"name": "distillation", "divergence": "js", "temperature": data.draw(st.floats(0.1, 9))},
        "comparisons.methods": [{"name": "first"}, {"name": "other", "quantizer": {"clipping": "mse", "nested": True}}],
        "comparisons.specialists": data.draw(st.integers(0, 9)),
        "configurations.names": data.draw(st.sampled_from([None, ["fp32"]])),
        "cpt.precisions": [8, 4, "w3a8"],
        "cpt.untrained": [7, "w5a8"],
    }
    params = load_params("quick", [f"{key}={json.dumps(value)}" for key, value in changes.items()])
    path = tmp_path_factory.mktemp("params") / "mine.yaml"
    path.write_text(yaml.safe_dump(params.model_dump(mode="json")))
    assert load_params(str(path)) == params


README_LINES = re.findall(r"make report(?: PROFILE=(\S+))? SET='([^']+)'", (ROOT / "README.md").read_text())


@pytest.mark.parametrize(("profile", "overrides"), README_LINES)
def test_every_command_of_the_readme_is_valid(profile: str, overrides: str, tmp_path: Path) -> None:
    for name in set(files := re.findall(r"[\w-]+\.json(?:\.gz)?", overrides)):
        (tmp_path / name).touch()
        overrides = overrides.replace(name, str(tmp_path / name))
    assert all(str(tmp_path / name) in overrides for name in files)
    load_params(profile or "quick", overrides.split())


def test_the_readme_has_commands() -> None:
    assert len(README_LINES) > 5
