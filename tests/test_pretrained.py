"""Models of the hub, of directories and of packages; what is none of them is said in one sentence."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

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


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "phi", "opt"])
def test_a_directory_without_files_of_a_tokenizer_is_refused(kind, tmp_path, tiny_lm):
    """transformers makes a tokenizer of nothing for some families, which turns every text into nothing."""
    tiny_lm(kind).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"dir:{tmp_path}: .*tokenizer") as caught:
        load_pretrained(f"dir:{tmp_path}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_tokenizer_of_several_files_is_whole_or_refused(tmp_path, byte_level_tokenizer, tiny_lm):
    tiny_lm().save_pretrained(tmp_path)
    for name, text in zip(("vocab.json", "merges.txt"), parts_of(byte_level_tokenizer), strict=True):
        (tmp_path / name).write_text(text)
    assert load_pretrained(f"dir:{tmp_path}")[1]("the king")["input_ids"] == byte_level_tokenizer("the king")["input_ids"]
    for name in ("vocab.json", "merges.txt"):
        raw = (tmp_path / name).read_bytes()
        for broken in (None, raw[:-20] if name == "vocab.json" else raw + b"\nx", b"\xff" + raw):
            (tmp_path / name).unlink()
            if broken is not None:
                (tmp_path / name).write_bytes(broken)
            with pytest.raises(ModelError, match=str(tmp_path)) as caught:
                load_pretrained(f"dir:{tmp_path}")
            assert len(str(caught.value).splitlines()) == 1
            (tmp_path / name).write_bytes(raw)


def parts_of(tokenizer) -> tuple[str, str]:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return json.dumps(model["vocab"]), "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"])


@pytest.mark.parametrize("sharded", [False, True])
def test_weights_that_are_missing_or_of_another_model_are_named(sharded, tmp_path, byte_level_tokenizer, tiny_lm):
    whole = tmp_path / "whole"
    tiny_lm().save_pretrained(whole, max_shard_size="40KB" if sharded else "1GB")
    byte_level_tokenizer.save_pretrained(whole)
    assert load_pretrained(f"dir:{whole}")[0].num_parameters() == tiny_lm().num_parameters()
    part = sorted(whole.glob("*.safetensors"))[-1]
    tensors = load_file(part)
    name = next(n for n, t in tensors.items() if t.ndim == 2)

    def broken(kind: str) -> None:
        shutil.copytree(whole, tmp_path / "broken", dirs_exist_ok=True)
        path = tmp_path / "broken" / part.name
        if kind == "gone":
            path.unlink()
        elif kind == "cut":
            path.write_bytes(path.read_bytes()[:-9])
        else:
            changed = {"fewer": {}, "integers": {name: tensors[name].long()}, "shape": {name: tensors[name][:-1].clone()}}[kind]
            save_file({n: t for n, t in tensors.items() if n != name} | changed, path, {"format": "pt"})

    for kind, message in {
        "gone": "no weights in it" if not sharded else f"{part.name}: ",
        "cut": f"{part.name}: not a whole safetensors file",
        "fewer": f"its weights have no {name}, which a GPT2LMHeadModel of its config has",
        "integers": f"{part.name}: {name} is of type I64; allowed are floats",
        "shape": str(tmp_path),
    }.items():
        broken(kind)
        with pytest.raises(ModelError, match=message) as caught:
            load_pretrained(f"dir:{tmp_path / 'broken'}")
        assert len(str(caught.value).splitlines()) == 1
