"""A deployed model answers like the model it was made of, from fewer bytes."""

from __future__ import annotations

import pytest
import torch

from qatlib.arguments import QuantizerArguments
from qatlib.deployed import DeployedModel, deploy, deploy_nested
from qatlib.layers import LoraSpec
from qatlib.model import SwitchableModel
from qatlib.pretrained import ModelError
from qatlib.qa.evaluate import evaluate_perplexity, evaluate_spans
from qatlib.qa.spans import featurize
from qatlib.qa.toyqa import build_model, build_tokenizer, generate
from tests.damage import check_refused, damages, emptied

WIDTHS = (2, 3, 4, 5, 6, 7, 8)
MIXED = [{"attn_bits": 3, "mlp_bits": 12}, {"attn_bits": 32, "mlp_bits": 5}]


def stirred(model: SwitchableModel) -> SwitchableModel:
    torch.manual_seed(0)
    model.add_adapters({w: LoraSpec(2, 4) for w in (*WIDTHS, 12, 32)})
    for layer in model.layers:
        for adapter in layer.adapters.values():
            torch.nn.init.normal_(adapter.lora_B, std=0.1)
    return model.eval()


@pytest.fixture
def model(tiny_lm):
    return stirred(SwitchableModel(tiny_lm()))


def same(deployed: DeployedModel, model: SwitchableModel, tokens: torch.Tensor) -> bool:
    """Hidden states, span and next-token logits: to the last bit where both multiply codes, else within float rounding."""
    with torch.no_grad():
        ours, theirs = deployed(tokens), model(tokens)
        pairs = [(ours.start, theirs.start), (ours.end, theirs.end), (ours.hidden, theirs.hidden)]
        pairs.append((deployed.next_token_logits(ours.hidden), model.next_token_logits(theirs.hidden)))
    if all(max(p) <= 8 for p in model.configuration.values()):
        return all(torch.equal(a, b) for a, b in pairs)
    # fp32 sums of 48 products are within 48 * 2^-24 = 3e-6 of their size; 32 bits in place of 8 are 50,000 times that off.
    return all(torch.allclose(a, b, atol=2e-5 * float(b.abs().max())) for a, b in pairs)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("a_bits", [2, 4, 8, 32])
def test_logits_are_the_fake_quantized_models_at_every_width(kind, a_bits, tokens, tiny_lm):
    model = stirred(SwitchableModel(tiny_lm(kind)))
    for w_bits in WIDTHS:
        spec = f"w{w_bits}a{a_bits}"
        with model.at(spec):
            assert same(deploy(model, spec), model, tokens), spec


def test_mixed_configurations_too_and_the_model_itself_is_left_alone(model, tokens):
    before = model.configuration
    deployed = deploy(model, MIXED)
    assert model.configuration == before
    with model.at(MIXED):
        assert deployed.configuration == model.configuration and same(deployed, model, tokens)
    for p in model.parameters():
        p.data.zero_()
    assert deployed(tokens).start.abs().max() > 0


def test_every_question_gets_the_same_answer():
    questions, tokenizer = generate(60, 1), build_tokenizer()
    features = featurize(questions, tokenizer, 128, 32)
    how = {"pad_id": 1, "batch_size": 16}
    model = stirred(SwitchableModel(build_model(2, 2, 32, 0)))
    for spec in ("8", "w4a8"):
        deployed = deploy(model, spec)
        model.set_precision(spec)
        ours, theirs = (evaluate_spans(m, questions, features, **how, max_answer_tokens=10) for m in (deployed, model))
        assert ours["prediction"].tolist() == theirs["prediction"].tolist()
        assert ours["loss"].tolist() == theirs["loss"].tolist()
        texts = [q.context for q in questions[:8]]
        nll = [evaluate_perplexity(m, tokenizer, texts, **how, max_length=128)["nll"].tolist() for m in (deployed, model)]
        assert nll[0] == nll[1]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_saved_models_come_back_equal_and_in_the_bytes_of_the_formula(kind, tokens, tmp_path, byte_level_tokenizer, tiny_lm):
    model = stirred(SwitchableModel(tiny_lm(kind)))
    for i, spec in enumerate(["8", "3", "w4a32", MIXED]):
        deployed, path = deploy(model, spec), tmp_path / str(i)
        deployed.save(path, byte_level_tokenizer)
        again, _ = DeployedModel.load(path)
        assert again.configuration == deployed.configuration and again.infos == deployed.infos
        assert torch.allclose(again(tokens).start, deployed(tokens).start, atol=1e-5)  # float products of 0.2 may round otherwise
        assert again.lm.get_output_embeddings().weight.equal(model.lm.get_output_embeddings().weight)
        formula = deployed.configuration.storage_bytes(deployed.infos)
        header = 250 * len(model.infos)  # safetensors names every tensor, in 190 bytes; in a real model that is nothing
        assert formula <= (path / "weights.safetensors").stat().st_size < formula + header
        assert not [p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pkl")]


def test_several_widths_are_stored_as_the_widest_and_switch_among_them(model, tokens, tmp_path, byte_level_tokenizer):
    model.set_quantizer(QuantizerArguments(nested=True))
    nested = deploy_nested(model, [8, 6, 4, "w2a8"])
    nested.save(tmp_path, byte_level_tokenizer)
    again, _ = DeployedModel.load(tmp_path)
    assert nested.configuration == deploy(model, 8).configuration
    seen = {}
    for spec in (8, 4, "w2a8", {"mlp": 6}, 4, 8):
        with nested.at(spec), again.at(spec):
            y = nested(tokens).start
            assert torch.equal(y, seen.setdefault(str(spec), y)) or isinstance(spec, dict)
            assert torch.equal(again(tokens).start, y)
    for spec in (4, "w2a8", {"mlp": 6, "attn": 8}, 8):
        with nested.at(spec), model.at(spec):
            assert same(nested, model, tokens), spec
    assert not same(nested, model, tokens)  # the model is at 32 bits again
    only = deploy(model, 8).memory()
    assert nested.memory()["codes"] == only["codes"] and nested.memory()["scales"] == 4 * only["scales"]


def test_a_width_that_was_not_deployed_is_refused_and_nothing_switched(model):
    model.set_quantizer(QuantizerArguments(nested=True))
    deployed = deploy_nested(model, [8, 4])
    before = deployed.configuration
    with pytest.raises(ValueError, match="was not deployed with 3-bit weights, only with 4, 8 bits"):
        deployed.set_precision({"attn": 4, "mlp": 3})
    assert deployed.configuration == before
    with pytest.raises(ValueError, match="no codes hold 32-bit weights"):
        deploy_nested(model, [32, 8])
    with pytest.raises(ValueError, match="weights of 4, 6 bits: codes of several widths are one store only under"):
        deploy_nested(model, [6, 4])
    with pytest.raises(ValueError, match="no precision is given to deploy"):
        deploy_nested(model, [])
    model.set_quantizer(QuantizerArguments())
    with pytest.raises(ValueError, match="weights of 4, 8 bits: codes of several widths"):
        deploy_nested(model, [8, 4])


def test_nothing_is_trained_and_nothing_is_pickled(model):
    deployed = deploy(model, 8)
    assert not any(p.requires_grad for p in deployed.parameters())
    assert not any("c_attn" in name or "lora" in name for name in deployed.state_dict())


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("own", [True, False])
def test_an_own_head_and_a_tied_one_come_back_whatever_their_name(own, kind, tokens, tmp_path, byte_level_tokenizer, tiny_lm):
    lm = tiny_lm(kind, tie_word_embeddings=True)
    if own:
        lm.get_output_embeddings().weight = torch.nn.Parameter(torch.randn_like(lm.get_input_embeddings().weight))
    deployed = deploy(SwitchableModel(lm), 8)
    deployed.save(tmp_path, byte_level_tokenizer)
    again, _ = DeployedModel.load(tmp_path)
    assert torch.equal(again.lm(tokens).logits, deployed.lm(tokens).logits)
    assert (again.lm.get_output_embeddings().weight is again.lm.get_input_embeddings().weight) != own


def test_generation_config_and_mode_come_back(model, tmp_path, byte_level_tokenizer):
    model.lm.generation_config.eos_token_id, model.lm.generation_config.temperature = [0, 5], 0.6
    deploy(model, 8).save(tmp_path, byte_level_tokenizer)
    again = DeployedModel.load(tmp_path)[0]
    assert (again.lm.generation_config.eos_token_id, again.lm.generation_config.temperature) == ([0, 5], 0.6)
    assert not any(m.training for m in again.modules())


def test_a_save_that_fails_leaves_what_was_there(model, tmp_path, byte_level_tokenizer, monkeypatch):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes.txt").write_text("mine")
    deploy(model, 8).save(tmp_path / "m", byte_level_tokenizer)
    before = {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()}
    assert before["notes.txt"] == b"mine"

    def failing(tensors, path, metadata=None):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("qatlib.deployed.save_file", failing)
    for path in (tmp_path / "m", tmp_path / "new"):
        with pytest.raises(OSError, match="no space"):
            deploy(model, 4).save(path, byte_level_tokenizer)
    with pytest.raises(ValueError, match="saved with its tokenizer"):
        deploy(model, 4).save(tmp_path / "m", None)  # type: ignore[arg-type]
    assert {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()} == before and [*tmp_path.iterdir()] == [tmp_path / "m"]


@pytest.mark.parametrize("bits", [4, 32])
@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "tokenizer.json", "deployed.json", "weights.safetensors", "rest.safetensors"],
)
def test_a_damaged_file_is_named_in_one_sentence(name, bits, tmp_path, byte_level_tokenizer, model):
    deploy(model, bits).save(tmp_path, byte_level_tokenizer)
    contents = [*damages(tmp_path / name), *(emptied(tmp_path / name) if name == "deployed.json" else [])]
    check_refused(tmp_path / name, iter(contents), lambda: DeployedModel.load(tmp_path), str(tmp_path))


def test_other_directories_are_refused_in_one_sentence(model, tmp_path, byte_level_tokenizer):
    with pytest.raises(ModelError, match="no deployed model was saved here"):
        DeployedModel.load(tmp_path)
    deploy(model, 8).save(tmp_path, byte_level_tokenizer)
    other = deploy(model, 8)
    other.qa_outputs = torch.nn.Linear(32, 2, bias=False)
    other.save(tmp_path / "half", byte_level_tokenizer)
    with pytest.raises(ModelError, match="does not fit the model beside it"):
        DeployedModel.load(tmp_path / "half")
