"""What each section of a params file refuses by itself."""

import gzip
from pathlib import Path

import pytest

from qatlib.params.load import load_params
from qatlib.params.yaml import ParamsError

SOURCES = "'embedded', 'hub:ID', 'dir:PATH' or a list of files of questions (.json, .json.gz, .jsonl, .jsonl.gz, .parquet)"

# override of `quick`, what its refusal says
WRONG = {
    "long warm-up": (
        "teacher.lora.warmup_steps=999",
        "teacher.lora.warmup_steps is 999; allowed is an integer from 0 to steps",
    ),
    "bits twice": (
        "post_training.comparison.bits=[4, 4]",
        "post_training.comparison.bits is [4, 4]; allowed is a list with each value once, which 4 is not",
    ),
    "post-training at 32": (
        "post_training.precisions=[8, 32]",
        "post_training.precisions is [8, 32]; allowed is a list with each precision once and without 32",
    ),
    "static scales": (
        "quantizer.activations=per_tensor_static",
        "quantizer.activations is \"per_tensor_static\"; allowed is 'per_token': static scales are compared in 01_build",
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
        'allowed is a list of files named .json, .json.gz, .jsonl, .jsonl.gz or .parquet, which "Makefile" is not',
    ),
    "no files": ("data.train=[]", f"data.train is []; allowed is {SOURCES}"),
    "bare file": ("data.train=a.json", f'data.train is "a.json"; allowed is {SOURCES}'),
    "no directory": ("data.train=dir:no", "data.train is \"dir:no\"; allowed is a directory that exists after 'dir:'"),
    "no hub id": ("data.train=hub:a/b/c", "data.train is \"hub:a/b/c\"; allowed is 'hub:NAME' or 'hub:OWNER/NAME'"),
    "how many": (
        "data.train_questions=null",
        "data.train_questions is null; allowed is an integer of at least 1, because",
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
}


@pytest.mark.parametrize("name", ["copy.json", "dev.json.gz", "again.jsonl"])
def test_a_file_for_validation_is_no_training_file_under_another_name(name: str, tmp_path: Path) -> None:
    raw = b'[{"id": "1"}]'
    (tmp_path / "dev.json").write_bytes(raw)
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    overrides = ["model={source: hub:gpt2}", f"data.train=[{tmp_path}/dev.json]", f"data.validation=[{tmp_path}/{name}]"]
    with pytest.raises(ParamsError, match=f'allowed is files with other contents than those of data.train, unlike "{name}"$'):
        load_params("quick", overrides)


@pytest.mark.parametrize(("override", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_override(refusal, override, sentence):
    assert sentence in refusal(override)


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
