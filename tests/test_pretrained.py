"""Models of the hub, of directories and of packages; what is none of them is said in one sentence."""

from __future__ import annotations

import json

import pytest

from qatlib.pretrained import ModelError, load_pretrained, version_of


def test_a_model_of_the_hub_with_the_commit_it_is_of(tmp_path, byte_level_tokenizer, tiny_lm, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--somebody--tiny"
    for part in (tiny_lm(), byte_level_tokenizer):
        part.save_pretrained(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    lm, _ = load_pretrained("hub:somebody/tiny")
    assert lm.num_parameters() == tiny_lm().num_parameters()
    assert version_of("hub:somebody/tiny") == commit
    assert version_of("hub:somebody/other") is version_of(f"dir:{cached / 'snapshots' / commit}") is None


def bad_directories(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("noweights", "pickled"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("dir:{}/nowhere", "no such directory"),
        ("dir:{}/empty", "no config.json"),
        ("dir:{}/noweights", "no weights in it"),
        ("dir:{}/pickled", "pickled ones are not"),
        ("hub:nobody/nothing", "nobody/nothing"),
        ("gpt2", "allowed are hub:ID, dir:PATH"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(source, message, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bad_directories(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        load_pretrained(source.format(tmp_path))
    assert len(str(caught.value).splitlines()) == 1
