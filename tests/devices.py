"""Runs every path of the library with one quantizer, on the CPU and on the device of `tests.elsewhere`.

`python -m tests.devices OPTIONS` is a process of its own, since torch then knows of an accelerator until the process ends. It
prints what each path found on each device.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from transformers import BertConfig, BertForMaskedLM

from qatlib import latency
from qatlib.arguments import AttackArguments, ObjectiveArguments, QuantizerArguments, TrainingArguments
from qatlib.arithmetic import reduced_precision
from qatlib.attacks import candidates, defence, embedding, judge, rounding, tokens, words
from qatlib.cost import cost_table
from qatlib.deployed import DeployedModel, deploy, deploy_nested
from qatlib.landscape import sharpness
from qatlib.learned import learn_allocation
from qatlib.lora import LoraSpec
from qatlib.model import SwitchableModel
from qatlib.norms import quantized_norms
from qatlib.precision import Configuration, Precision, names_by_group
from qatlib.qa.calibration import calibrate, calibrate_clips, set_static_range
from qatlib.qa.evaluate import evaluate_perplexity, evaluate_spans
from qatlib.qa.generate import evaluate_answers
from qatlib.qa.loss import collate
from qatlib.qa.spans import featurize
from qatlib.qa.toyqa import build_model, build_tokenizer, generate
from qatlib.schedule import make_schedule
from qatlib.scheduling import ScheduleArguments
from qatlib.search import Allocation, weight_bits
from qatlib.sensitivity import output_noise, sweep_block
from qatlib.training import fit
from tests import elsewhere

TOKENIZER, QUESTIONS = build_tokenizer(), generate(6, 0)
FEATURES = featurize(QUESTIONS, TOKENIZER, 128, 32)
WIDTHS = [Precision(8, 8), Precision(4, 4)]
ANSWERING: Any = {"pad_id": 1, "batch_size": 4, "max_answer_tokens": 5}
load_file = safetensors.torch.load_file
Path_ = Callable[[SwitchableModel], Any]


def made(quantizer: QuantizerArguments, device: torch.device) -> SwitchableModel:
    """The same model on any device, calibrated, with adapters that are not zero."""
    torch.manual_seed(0)
    model = SwitchableModel(build_model(2, 2, 32, 0), quantizer)
    model.add_adapters({8: LoraSpec(2, 4), 4: LoraSpec(2, 4), 32: LoraSpec(2, 4)})
    for width in (8, 4, 32):
        for parameter in model.adapter_parameters(width):
            torch.nn.init.normal_(parameter, std=0.05)
    model.to(device).lm.tie_weights()
    if quantizer.clipping == "mse":
        calibrate_clips(model, FEATURES[:2], [8, 4])
    if quantizer.learned_steps:
        model.learn_steps(WIDTHS)
    if quantizer.activations == "per_tensor_static":
        calibrate(model, FEATURES[:2])
    model.set_precision(8)
    return model


def trained(objective: str, **options: Any) -> Path_:
    def path(model: SwitchableModel) -> Any:
        args = TrainingArguments(steps=2, batch_size=4, learning_rate=1e-3, lm_weight=0.5, checkpoint_every=1, **options)
        schedule = make_schedule(ScheduleArguments("all"), WIDTHS, model.infos, seed=0, steps=2)
        teacher = made(model.quantizer, model.qa_outputs.weight.device) if objective == "distillation" else None
        with tempfile.TemporaryDirectory() as folder:
            where: Any = {"checkpoint": Path(folder, "fit.safetensors"), "objective": ObjectiveArguments(objective)}
            where["mixed_precision"] = "no"
            return [
                fit(model, FEATURES, args, schedule, pad_id=1, seed=0, teacher=teacher, **where)["span_loss"].tolist()
                for _ in range(2)  # the second time from the last checkpoint
            ]

    return path


def saved(model: SwitchableModel) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder), TOKENIZER)
        again, _ = SwitchableModel.load(Path(folder))
    return spans(again.to(model.qa_outputs.weight.device))


def deployed(model: SwitchableModel) -> Any:
    found = deploy(model, {"attn": 8, "mlp": 4})
    with tempfile.TemporaryDirectory() as folder:
        found.save(Path(folder), TOKENIZER)
        again, _ = DeployedModel.load(Path(folder), model.qa_outputs.weight.device)
    ids = batch(model).input_ids
    return [summed(found(ids).start), summed(again(ids).start), list(found.memory().values())]


def loaded(path: Path, device: Any = "cpu") -> dict[str, torch.Tensor]:
    """Safetensors' own reader knows torch's own devices only."""
    return {name: value.to(device) for name, value in load_file(path).items()}


def deployed_nested(model: SwitchableModel) -> Any:
    if not model.quantizer.nested:
        return None
    found = deploy_nested(model, [8, 4])
    found.set_precision(4)
    return summed(found(batch(model).input_ids).end)


def merged(model: SwitchableModel) -> Any:
    model.merge_adapter()
    return spans(model)


def unfrozen(model: SwitchableModel) -> Any:
    model.unfreeze_base()
    output = model(batch(model).input_ids)
    output.start.sum().backward()
    model.freeze_base()
    return summed(output.start)


def requantized(model: SwitchableModel) -> Any:
    model.set_quantizer(QuantizerArguments())
    return spans(model)


def batch(model: SwitchableModel) -> Any:
    return collate(FEATURES[:4], 1, model.qa_outputs.weight.device)


def spans(model: SwitchableModel) -> Any:
    found = []
    for spec in (32, 8, 4, "w4a8", {"attn": 8, "mlp": 4}):
        with model.at(spec):
            found += evaluate_spans(model, QUESTIONS, FEATURES, **ANSWERING)["loss"].tolist()
    return found


def perplexity(model: SwitchableModel) -> Any:
    texts = [question.context for question in QUESTIONS]
    return evaluate_perplexity(model, TOKENIZER, texts, pad_id=1, max_length=64, batch_size=2)["nll"].tolist()


def answers(model: SwitchableModel) -> Any:
    options: Any = {"pad_id": 1, "max_length": 128, "batch_size": 3, "max_answer_tokens": 3}
    return evaluate_answers(model, TOKENIZER, QUESTIONS[:3], **options)["loss"].tolist()


def pgd(model: SwitchableModel) -> Any:
    attack = AttackArguments(0.3, "l2", steps=2, restarts=2, loss="margin")
    return embedding.attack_embeddings(model, batch(model), attack, defence.every(WIDTHS, model), 0)[1].tolist()


def other_attacks(model: SwitchableModel) -> Any:
    fgsm, draws, few = AttackArguments.fgsm(0.3), defence.per_layer(WIDTHS, model, 0, 2), batch(model)
    found = embedding.attack_embeddings(model, few, fgsm, draws, 0)[1].tolist()
    found += embedding.random_search(model, few, AttackArguments(0.3, steps=2), draws, 0)[1].tolist()
    noisy = embedding.random_noise(model, few, fgsm, 0)
    return [*found, summed(noisy), embedding.nonzero_gradients(model, few, defence.static(WIDTHS[0], model))]


def hotflip(model: SwitchableModel) -> Any:
    few = batch(model)
    allowed = torch.ones(model.lm.config.vocab_size, dtype=torch.bool, device=few.input_ids.device)
    return tokens.hotflip(model, few, 2, defence.static(WIDTHS[0], model), allowed)[1].tolist()


def word_attack(model: SwitchableModel) -> Any:
    source = candidates.vocabulary([["red", "blue", "north", "south", "garden"]], 2, 0)
    each = [Configuration.uniform(p, model.infos) for p in WIDTHS]
    attack = words.WordAttack(
        model, lambda questions: featurize(questions, TOKENIZER, 128, 32), each, source, pad_id=1, batch_size=16
    )
    return attack.losses(attack.attack(QUESTIONS[:2], "both", 1)).tolist()


def masked_words(model: SwitchableModel) -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(TOKENIZER), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    lm = BertForMaskedLM(config).eval().to(model.qa_outputs.weight.device)
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"mask_token": TOKENIZER.eos_token})
    source = candidates.masked_lm(lm, tokenizer, len(TOKENIZER))
    text = QUESTIONS[0].context
    spots = [(text.index(word), text.index(word) + len(word)) for word in text.split()[:12]]
    return [len(source(QUESTIONS[0], spot)) for spot in spots]


def defended(model: SwitchableModel) -> Any:
    ids = batch(model).input_ids
    with defence.per_token(WIDTHS, model, torch.Generator().manual_seed(0)):
        found = [summed(model(ids).start)]
    with rounding.noisy_rounding(model, torch.Generator().manual_seed(0)):
        found.append(summed(model(ids).start))
    way = judge.answers_at(model, WIDTHS)
    return [
        *found,
        *judge.judged(model, QUESTIONS, FEATURES, lambda b: model.embed(b.input_ids), way, **ANSWERING)["loss"].tolist(),
    ]


def swept(model: SwitchableModel) -> Any:
    found = sweep_block(model, QUESTIONS, FEATURES, 1, WIDTHS[1:], **ANSWERING)["loss"].tolist()
    return found + output_noise(model, FEATURES[:2], WIDTHS[1:])["sqnr_db"].tolist()


def learned(model: SwitchableModel) -> Any:
    groups, cost = tuple(names_by_group(model.infos)), weight_bits(model.infos, WIDTHS)
    problem = Allocation(groups, tuple(WIDTHS), np.zeros_like(cost), cost)
    options: Any = {"steps": 2, "batch_size": 3, "learning_rate": 0.1, "penalty": 1.0, "pad_id": 1, "seed": 0}
    return learn_allocation(model, FEATURES, problem, 6.0, **options).shares.tolist()


def costs(model: SwitchableModel) -> Any:
    return cost_table(model, {"8": 8, "mixed": {"attn": 8, "mlp": 4}}).select_dtypes("number").to_numpy().tolist()


def timed(model: SwitchableModel) -> Any:
    def once(layer: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
        y = layer(x)
        return summed(y if isinstance(y, torch.Tensor) else y.start)

    latency._milliseconds = once  # torch's timer waits for streams, which this device has none of
    with torch.no_grad():  # not in inference mode, which does not know tensors of a class of their own
        groups = latency.group_latencies.__wrapped__(model, WIDTHS, 3)
        return [*map(len, groups), len(latency.pass_latencies.__wrapped__(model, {"8": 8}, 1, 4))]


def flattened(model: SwitchableModel) -> Any:
    return sharpness(model, QUESTIONS[:3], featurize(QUESTIONS[:3], TOKENIZER, 128, 32), [0.1], 1, 0, **ANSWERING)[
        "loss_change"
    ].tolist()


def normed(model: SwitchableModel) -> Any:
    with quantized_norms(model, 8):
        return summed(model(batch(model).input_ids).start)


def ranged(model: SwitchableModel) -> Any:
    set_static_range(model, 3.0)
    return spans(model)


def in_bf16(model: SwitchableModel) -> Any:
    with reduced_precision(model, "bf16"):
        return bool(model(batch(model).input_ids).start.isfinite().all())


def summed(values: torch.Tensor) -> float:
    return float(values.detach().double().abs().sum())


PATHS: dict[str, Path_] = {
    path.__name__: path
    for path in (
        *(spans, perplexity, answers, saved, deployed, deployed_nested, unfrozen, pgd, other_attacks, hotflip, word_attack),
        *(masked_words, defended, swept, learned, costs, timed, flattened, normed, ranged, in_bf16, merged, requantized),
    )
}
PATHS |= {f"trained: {name}": trained(name) for name in ("average", "joint", "cascaded", "consistency", "distillation")}
PATHS |= {"trained: gradients of 8 bits": trained("average", gradient_bits=8)}
PATHS |= {"trained: recomputed": trained("average", gradient_checkpointing=True)}


def main(options: str, misplaced: str) -> None:
    """Print what every path found as JSON, by path and device."""
    elsewhere.install()
    safetensors.torch.load_file = loaded
    quantizer, found = QuantizerArguments(**json.loads(options)), {}
    with elsewhere.use():
        for name, path in PATHS.items():
            each = {}
            for device in (torch.device("cpu"), elsewhere.DEVICE):
                model = made(quantizer, device)
                if misplaced and device == elsewhere.DEVICE:
                    owner, _, leaf = misplaced.rpartition(".")
                    module = model.get_submodule(owner)
                    setattr(module, leaf, torch.nn.Parameter(getattr(module, leaf).detach().cpu()))
                torch.manual_seed(1)
                each[device.type] = path(model)
            found[name] = each
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "")
