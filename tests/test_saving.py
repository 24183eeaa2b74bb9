"""What is read is checked, what is written is whole, and a weight is left out of a file only if loading ties it again."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from qatlib.arguments import QuantizerArguments
from qatlib.saving import ModelError, check_files, check_tensors, read_json, read_tensors, save_file, untied


@dataclass
class Form:
    number: int
    quantizer: QuantizerArguments
    words: list[str]


WHOLE = '{"number": 1, "quantizer": {"weights": "per_tensor"}, "words": ["a"]}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WHOLE[:-9].encode(), "Invalid JSON: EOF"),
        (b"\xff" + WHOLE.encode(), "Invalid JSON"),
        (b"[1]", r"the whole is \[1\]; allowed is an object"),
        (WHOLE.replace("1", '"1"').encode(), "number is '1'; allowed is a valid integer"),
        (WHOLE.replace("number", "no").encode(), "number is missing"),
        (WHOLE.replace("per_tensor", "all").encode(), "quantizer.weights is 'all'; allowed is 'per_channel', "),
        (WHOLE.replace("weights", "weight").encode(), "quantizer.weight is 'per_tensor'; unexpected keyword argument"),
        (WHOLE.replace('"a"', "{}").encode(), r"words.0 is \{\}; allowed is a valid string"),
    ],
)
def test_a_json_file_that_does_not_hold_its_form_is_refused_in_one_sentence(text, message, tmp_path):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(ModelError, match=f"a.json: {message}") as caught:
        read_json(tmp_path / "a.json", Form)
    assert len(str(caught.value).splitlines()) == 1


def test_a_json_file_may_have_to_hold_every_key_of_a_section(tmp_path):
    (tmp_path / "a.json").write_text(WHOLE)
    assert read_json(tmp_path / "a.json", Form).quantizer == QuantizerArguments(weights="per_tensor")
    with pytest.raises(ModelError, match="a.json: quantizer.activations is missing"):
        read_json(tmp_path / "a.json", Form, "quantizer")
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ModelError, match=f"{path.name}: "):
            read_json(path, Form)


def test_tensors_are_refused_by_name(tmp_path):
    path, expected = tmp_path / "a.safetensors", {"a": torch.zeros(2, 3), "b": torch.zeros(1, dtype=torch.int64)}
    save_file({"a": torch.zeros(3, 2).t(), "b": torch.ones(1, dtype=torch.int64)}, path)
    check_tensors(path, read_tensors(path), expected)
    for changed, message in (
        ({"a": torch.zeros(3, 2)}, r"which has a of shape \(2, 3\)"),
        (
            {"a": torch.zeros(2, 3, dtype=torch.int64)},
            "a is of type torch.int64, and the model beside it has torch.float32",
        ),
        ({"c": torch.zeros(1)}, "which has no c"),
    ):
        with pytest.raises(ModelError, match=message):
            check_tensors(path, read_tensors(path) | changed, expected)
    with pytest.raises(ModelError, match="which has b of shape"):
        check_tensors(path, {"a": expected["a"]}, expected)
    path.write_bytes(path.read_bytes()[:-1])
    for broken in (path, tmp_path / "none", tmp_path):
        with pytest.raises(ModelError, match=f"{broken.name}: "):
            read_tensors(broken)


def test_what_cannot_be_written_names_the_file(tmp_path):
    with pytest.raises(OSError, match="nowhere/a: "):
        save_file({"a": torch.zeros(1)}, tmp_path / "nowhere" / "a")


def test_a_directory_of_a_save_that_was_killed_says_where_its_files_are(tmp_path):
    with pytest.raises(ModelError, match="no a in it, so no model was saved here$"):
        check_files(tmp_path, ["a"], "model")
    (tmp_path / ".saving-1/old").mkdir(parents=True)
    (tmp_path / ".saving-1/old/a").touch()
    with pytest.raises(ModelError, match="a save was killed, and .*/.saving-1 has its files and those before it"):
        check_files(tmp_path, ["a"], "model")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
def test_weights_come_back_whatever_the_config_says_of_ties(kind, own, tied, tiny_lm, tokens, tmp_path):
    lm = tiny_lm(kind, tie_word_embeddings=tied)
    weight = lm.get_input_embeddings().weight
    lm.get_output_embeddings().weight = nn.Parameter(torch.randn_like(weight)) if own else weight
    state = untied(lm, lm.state_dict())
    assert len(lm.state_dict()) - len(state) == (tied and not own)
    lm.config.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path).eval()(tokens).logits, lm(tokens).logits)
