"""Profiles, files and overrides as a user gives them, and back again."""

import gzip
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from qatlib.params.load import load_params, profile_path, run_name
from qatlib.params.sections import ROOT
from qatlib.params.yaml import ParamsError
from qatlib.precision import Precision

PROFILES = sorted(path.stem for path in (ROOT / "params").glob("*.yaml"))

# override of `quick`, what its refusal says
WRONG = {
    "key in a value": ("seed.x=1", 'seed.x is "1"; allowed is seed itself, which has no keys inside'),
    "deep key": (f"{'a.' * 3_000}b=1", "is no override; allowed is dotted.key=value"),
    "long path": (f"data.train=dir:{'a' * 5_000}", "allowed is a directory that exists after 'dir:'"),
    "long file": (f"data.train=[{'a' * 5_000}.json]", "allowed is a list of files that exist"),
    "half a surrogate pair": ("seed=\udcff", "seed: is not YAML"),
    "no override": ("seed", '"seed" is no override; allowed is dotted.key=value'),
}


@pytest.mark.parametrize(("override", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_override(refusal, override, sentence):
    assert sentence in refusal(override)


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
        ("quik", 'PROFILE: "quik" is not a profile; allowed is one of embedded, gpt2-squad, quick, reference, '),
        ("no/such.yaml", 'PROFILE: "no/such.yaml" is not a file; allowed is one of'),
    ],
)
def test_wrong_profile(profile: str, sentence: str) -> None:
    with pytest.raises(ParamsError) as error:
        load_params(profile)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("profile", ["\udcff", "\ud800.yaml", f"{'x' * 5_000}.yaml", "\0.yaml"])
def test_a_profile_that_no_file_can_be_named(profile: str) -> None:
    with pytest.raises(ParamsError, match=r"^PROFILE: .*; allowed is one of embedded") as error:
        load_params(profile)
    str(error.value).encode()


def test_profile_path_must_not_shadow_a_profile(tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text((ROOT / "params/quick.yaml").read_text())
    with pytest.raises(ParamsError, match="has the name of params/quick.yaml; allowed is any other name"):
        profile_path(str(tmp_path / "quick.yaml"))
    assert profile_path("params/quick.yaml") == profile_path("quick")


@pytest.mark.parametrize(
    "name",
    ["..yaml", "...yaml", "....yaml", ".hidden.yaml", "-rf.yaml", "bench.yaml", "Bench.yml", "compare.html.yaml", "Quick.yaml"],
)
def test_a_run_has_a_folder_of_its_own(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("extends: quick")
    with pytest.raises(ParamsError, match="can't name a run|has the name of params/quick"):
        load_params(str(tmp_path / name))


@pytest.mark.parametrize("name", ["mine", "_mine", "a.b-c_1", "müller", "x" * 200])
def test_a_run_is_named_after_its_file_wherever_that_is(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "my own {x} $y"
    folder.mkdir()
    (folder / f"{name}.yaml").write_text("extends: quick")
    assert profile_path(str(folder / f"{name}.yaml")).is_file() and run_name(str(folder / f"{name}.yaml")) == name
    with pytest.raises(ParamsError, match="can't name a run"):
        run_name(f"{folder}/{name} {'x' * 200}.yaml")


def test_error_names_file_where_the_override_is_elsewhere() -> None:
    with pytest.raises(ParamsError, match=r"^params/quick.yaml: lora.ranks is \[8, 8, 8, 8, 8, 8\]; allowed is a list of 2 "):
        load_params("quick", ["precisions=[8, 4]"])


@pytest.mark.parametrize("profile", PROFILES)
def test_committed_profiles_are_valid(profile: str) -> None:
    assert load_params(profile).precisions


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


def test_a_profile_may_extend_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: quick\nseed: 7\ncpt: {seeds: [1, 2]}\ngenerative: {questions: 10, max_answer_tokens: 2}\n")
    changed = ["seed=7", "cpt.seeds=[1, 2]", "generative={questions: 10, max_answer_tokens: 2}"]
    assert load_params(str(path)) == load_params("quick", changed) != load_params("quick")
    assert load_params(str(path), ["seed=0"]).seed == 0


@pytest.mark.parametrize("base", ["quik", "[quick]", "embedded", "null"])
def test_what_can_be_extended_is_said(base: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {base}\n")
    with pytest.raises(ParamsError, match=r"mine.yaml: extends is .*; allowed is one of .* that extends no other$"):
        load_params(str(path))


_widths = st.lists(st.sampled_from([*range(2, 17), 32]), min_size=2, unique=True)


@settings(max_examples=30)
@given(data=st.data(), widths=_widths, seed=st.integers(0, 2**32 - 1))
def test_dump_and_load(data: st.DataObject, widths: list[int], seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    def per_precision(values: st.SearchStrategy[Any]) -> list[Any]:
        return data.draw(st.lists(values, min_size=len(widths), max_size=len(widths)))

    precisions = [Precision(w, data.draw(st.sampled_from([4, 8, 32]))).name for w in widths]
    changes: Mapping[str, Any] = {
        "seed": seed,
        "precisions": precisions,
        "post_training.precisions": [p for p in precisions if p != "32"] or ["8"],
        "lora.ranks": per_precision(st.integers(1, 64)),
        "lora.alphas": per_precision(st.floats(1e-9, 1e9)),
        "lora.dropouts": per_precision(st.floats(0, 1, exclude_max=True)),
        "compute.mixed_precision": data.draw(st.sampled_from(["auto", "no", "bf16"])),
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


TEXTS = [path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
COMMANDS = re.findall(r"make report(?: PROFILE=(\S+))? SET='([^']+)'", "\n".join(TEXTS))


@pytest.mark.parametrize(("profile", "overrides"), COMMANDS)
def test_every_command_of_the_readme_and_of_docs_is_valid(profile: str, overrides: str, tmp_path: Path) -> None:
    for name in set(files := re.findall(r"[\w-]+\.json(?:\.gz)?", overrides)):
        (tmp_path / name).write_bytes(gzip.compress(name.encode()) if name.endswith(".gz") else name.encode())
        overrides = overrides.replace(name, str(tmp_path / name))
    assert all(str(tmp_path / name) in overrides for name in files)
    load_params(profile or "quick", shlex.split(overrides))


def test_the_readme_and_docs_have_commands() -> None:
    assert len(re.findall(r"make report PROFILE=\S+ SET='", TEXTS[0])) > 1
    assert len(COMMANDS) > 9
