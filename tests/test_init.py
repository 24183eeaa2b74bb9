"""The public names: what README offers, what the package has, and what its examples say are the same."""

import ast
import doctest
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import qatlib
from qatlib.lora import LoraSpec
from qatlib.model import SwitchableModel
from qatlib.precision import Precision
from qatlib.qa import toyqa
from qatlib.qa.spans import featurize
from qatlib.qa.squad import write_squad

ROOT = Path(__file__).parents[1]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def imports(source: str, module: str = "qatlib") -> set[str]:
    """The names that code imports from a module."""
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom))
    return {alias.name for node in nodes if node.module == module for alias in node.names}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return toyqa.build_tokenizer()


@pytest.fixture
def workplace(tmp_path, monkeypatch, tiny_lm, tokenizer) -> Path:
    """A working directory with two SQuAD files and a run's checkpoints; `hub:gpt2` is a tiny model of 12 blocks."""
    lm = tiny_lm(vocab_size=len(tokenizer), n_layer=12, n_embd=16, n_head=2, n_positions=384)
    cached = tmp_path / "hub/models--gpt2"
    for part in (lm, tokenizer):
        part.save_pretrained(cached / "snapshots/0")
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    write_squad(toyqa.generate(8, seed=0), "train-v1.1.json")
    write_squad(toyqa.generate(8, seed=1), "dev-v1.1.json")
    model = SwitchableModel(tiny_lm(vocab_size=len(tokenizer)))
    model.add_adapters({8: LoraSpec(2, 4), 4: LoraSpec(2, 4)})
    run = Path("runs/quick")
    model.save(run / "02_switchable_train/checkpoints/switchable", tokenizer)
    (run / "03_sensitivity_heatmaps/results").mkdir(parents=True)
    with model.at({"attn": "w4a8", "mlp": 4}):
        model.configuration.save(run / "03_sensitivity_heatmaps/results/configuration_4.yaml")
    return tmp_path


def names_of_examples(tiny_lm: Any, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What docstring examples take as given: the public names, a model with adapters, data, a batch."""
    model = SwitchableModel(tiny_lm(vocab_size=len(tokenizer), n_positions=128)).eval()
    model.add_adapters({8: LoraSpec(2, 4), 4: LoraSpec(2, 4)})
    questions = toyqa.generate(8, seed=0)
    features = featurize(questions, tokenizer, max_length=128, stride=32)
    given = {"model": model, "tokenizer": tokenizer, "questions": questions, "features": features, "torch": torch, "Path": Path}
    given |= {"batch": qatlib.collate(features, 0), "precisions": [Precision(8, 8), Precision(4, 4)]}
    return {name: getattr(qatlib, name) for name in qatlib.__all__} | given


@pytest.mark.parametrize("name", qatlib.__all__)
def test_a_public_name_has_an_example_that_runs(name, workplace, tiny_lm, tokenizer):
    found = getattr(qatlib, name)
    test = doctest.DocTestParser().get_doctest(found.__doc__, names_of_examples(tiny_lm, tokenizer), name, None, None)
    assert test.examples and any(name in example.source for example in test.examples)
    assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test).failed == 0


def test_the_examples_of_the_readme_run_one_after_the_other(workplace):
    names: dict[str, Any] = {}
    for source in EXAMPLES:
        exec(re.sub(r"\bsteps=\d+", "steps=2", source), names)
    assert {*names["scores"]} >= {"em", "f1"} and len(names["loss"]) == 8
    assert [*names["deployed"].configuration.values()] == [*names["model"].configuration.values()]
    assert {p.name for p in names["deployed"].configuration.values()} == {"4", "w4a8"}


def test_the_readme_uses_every_public_name_and_no_other():
    assert set().union(*map(imports, EXAMPLES)) == {*qatlib.__all__}


def test_the_table_of_modules_is_true():
    for name in qatlib.__all__:
        assert getattr(qatlib, name).__module__ == f"qatlib.{qatlib._MODULES[name]}", name
    assert {*qatlib.__all__} <= {*dir(qatlib)}
    with pytest.raises(AttributeError, match="module 'qatlib' has no attribute 'quantise'"):
        qatlib.quantise  # noqa: B018


def test_importing_the_package_imports_nothing_else():
    code = "import sys, qatlib; print(*sys.modules); from qatlib import Precision; print(*sys.modules)"
    bare, with_a_name = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).splitlines()
    assert not {"torch", "transformers", "pydantic", "yaml"} & {*bare.split()}
    assert "torch" not in with_a_name.split()


def test_code_with_a_content_key_imports_modules_and_not_public_names():
    package = [(path, path.read_text()) for path in (ROOT / "qatlib").rglob("*.py")]
    cells = [(path, re.findall(r"from qatlib import [\w, ]+", path.read_text())) for path in (ROOT / "notebooks").glob("*.ipynb")]
    for path, source in [*package, *((path, "\n".join(lines)) for path, lines in cells)]:
        assert not imports(source) & {*qatlib.__all__}, path
