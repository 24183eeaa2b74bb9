"""Trains and evaluates a tiny model and writes down what it found: `test_training` runs it in one process and in two."""

import contextlib
import os
import sys
from pathlib import Path

import torch
from accelerate import notebook_launcher
from safetensors.torch import save_file

from qatlib.arguments import ObjectiveArguments, TrainingArguments
from qatlib.lora import LoraSpec
from qatlib.model import SwitchableModel
from qatlib.precision import Precision
from qatlib.qa.evaluate import evaluate_perplexity, evaluate_spans, mean_span_loss
from qatlib.qa.spans import featurize
from qatlib.qa.toyqa import build_model, build_tokenizer, generate
from qatlib.schedule import random_per_layer
from qatlib.training import fit

WIDTHS = [Precision(8, 8), Precision(4, 4)]
ARGS = TrainingArguments(steps=4, batch_size=7, learning_rate=1e-2, lm_weight=0.5, checkpoint_every=2)


def measure(folder: Path) -> None:
    """Write metrics and trained weights of every run, and scores, into `folder`; names begin with the process's rank."""
    rank = os.environ.get("RANK", "0")
    tokenizer, questions = build_tokenizer(), generate(20, 0)
    features = featurize(questions, tokenizer, 128, 32)
    torch.manual_seed(1)
    teacher = SwitchableModel(build_model(1, 2, 16, 1)).eval()

    def train(run: str, dropout: float, killed_at: int | None = None) -> None:
        torch.manual_seed(100 + int(rank))  # processes that were not seeded alike start from the first one's weights
        model = SwitchableModel(build_model(1, 2, 16, 0))
        model.add_adapters({p.w_bits: LoraSpec(2, 4, dropout) for p in WIDTHS})
        draw = random_per_layer(WIDTHS, model.infos, seed=5, passes=2)

        def schedule(step):
            if step == killed_at:
                raise KeyboardInterrupt
            return draw(step)

        options = {"objective": ObjectiveArguments("distillation", temperature=2.0), "teacher": teacher}
        options |= {"probe": lambda: {"loss": mean_span_loss(model, features, pad_id=1, batch_size=3)}}
        options |= {"mixed_precision": "no", "trackers": ["tensorboard"], "log_dir": folder / "logs", "description": run}
        rows = fit(model, features, ARGS, schedule, pad_id=1, seed=3, checkpoint=folder / f"{run}.safetensors", **options)
        rows.to_csv(folder / f"{rank}.{run}.csv", index=False)
        save_file({name: p.detach() for name, p in model.named_parameters() if p.requires_grad}, folder / f"{rank}.{run}.weights")

    train("plain", 0.0)
    train("whole", 0.3)
    with contextlib.suppress(KeyboardInterrupt):
        train("broken", 0.3, killed_at=3)
    train("broken", 0.3)
    passes: list[int] = []
    teacher.register_forward_hook(lambda *_: passes.append(1))
    scores = evaluate_spans(teacher, questions, features, pad_id=1, batch_size=3, max_answer_tokens=5)
    scores.to_csv(folder / f"{rank}.scores.csv", index=False)
    texts = [question.context for question in questions]
    perplexity = evaluate_perplexity(teacher, tokenizer, texts, pad_id=1, max_length=64, batch_size=3)
    perplexity.to_csv(folder / f"{rank}.perplexity.csv", index=False)
    (folder / f"{rank}.passes").write_text(str(len(passes)))


if __name__ == "__main__":
    notebook_launcher(measure, (Path(sys.argv[1]),), num_processes=2, use_port=sys.argv[2])
