"""The switchable model with integer storage and kernels: bytes on disk, agreement of the answers, seconds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from qatlib.deployed import deploy
from qatlib.latency import in_turn, peak_bytes
from qatlib.layers import multiplied_as_floats
from qatlib.model import SwitchableModel
from qatlib.precision import Configuration
from qatlib.qa.evaluate import evaluate_spans
from qatlib.qa.parts import spread
from qatlib.studies.study import Study
from qatlib.switching import Output

SECONDS = 1.0
"""Minimum time for which each compared model is timed."""


def stored_sizes(study: Study, model: SwitchableModel) -> pd.DataFrame:
    """Bytes of the switchable weights with their scales, by formula and on disk, and of the whole directory.

    Returns:
        One row per deployed precision or configuration: `precision`, `w_bits` and `a_bits` (means over the weights),
        `formula_bytes`, `disk_bytes`, `directory_bytes` (everything a user needs: embeddings, norms, adapters, tokenizer too).
    """
    rows = []
    for name, spec in study.params.deployed.items():
        folder = study.stage.checkpoints(f"deployed_{name}")
        deploy(model, spec).save(folder, study.tokenizer)
        configuration = Configuration.resolve(spec, model.infos)
        formula = configuration.storage_bytes(model.infos, model.quantizer.scale_group)
        w_bits, a_bits = configuration.average_bits(model.infos)
        on_disk = {"disk_bytes": _bytes(folder / "weights.safetensors"), "directory_bytes": sum(map(_bytes, folder.iterdir()))}
        rows.append({"precision": name, "w_bits": w_bits, "a_bits": a_bits, "formula_bytes": formula} | on_disk)
    return pd.DataFrame(rows, columns=["precision", "w_bits", "a_bits", "formula_bytes", "disk_bytes", "directory_bytes"])


def _bytes(path: Path) -> int:
    return path.stat().st_size


def agreement(study: Study, model: SwitchableModel) -> pd.DataFrame:
    """Compare the simulation (codes multiplied as floats) with the deployed model, at every deployed precision.

    Returns:
        One row per precision: `precision`, `f1` and `deployed_f1` in percent, `same_answers` in percent of the questions,
        `loss_difference` (largest, nats), `n`.
    """
    params = study.params
    questions = spread(study.validation, params.deployment.questions)
    features = study.featurize(questions)

    def ask(answering: Any, name: str) -> pd.DataFrame:
        return evaluate_spans(answering, questions, features, **study.answering, description=name)

    rows = []
    for name, spec in params.deployed.items():
        with model.at(spec), multiplied_as_floats(model.layers):
            simulated = ask(model, f"simulated at {name}")
        real = ask(deploy(model, spec), f"deployed at {name}")
        rows.append(
            {
                "precision": name,
                "f1": simulated["f1"].mean(),
                "deployed_f1": real["f1"].mean(),
                "same_answers": 100 * (simulated["prediction"] == real["prediction"]).mean(),
                "loss_difference": (simulated["loss"] - real["loss"]).abs().max(),
                "n": len(questions),
            }
        )
    return pd.DataFrame(rows, columns=["precision", "f1", "deployed_f1", "same_answers", "loss_difference", "n"])


@torch.no_grad()
def latencies(study: Study, model: SwitchableModel, base: Path) -> pd.DataFrame:
    """Time of a forward pass of the span model: teacher in fp32 and bf16, and deployed models with their adapters, in turn.

    Returns:
        One row per model, batch size and length: `model`, `batch`, `tokens` (of each window), `milliseconds` (median),
        `iqr_milliseconds`, `tokens_per_second`, `peak_megabytes` (of tensors that a pass adds to the model's own), and
        `speedup` over fp32, the median of the rounds' ratios with their quartiles `speedup_low` and `speedup_high`; `rounds`.
    """
    teacher, sizes = study.saved_model(base), study.params.deployment
    contestants: dict[str, Callable[[torch.Tensor], Output]] = {
        "fp32": teacher,
        "bf16": study.saved_model(base).bfloat16(),
        **{f"deployed {name}": deploy(model, spec) for name, spec in study.params.deployed.items()},
    }
    rows = []
    for batch in sizes.batch_sizes:
        for tokens in sizes.lengths:
            ids = torch.randint(1, teacher.lm.config.vocab_size, (batch, tokens), device=study.device)
            works = {name: partial(contestant, ids) for name, contestant in contestants.items()}
            times = in_turn(works, SECONDS * len(works), study.device, least=3)
            for name, series in times.items():
                first, median, third = np.percentile(series, [25, 50, 75])
                slow, speedup, fast = np.percentile(times["fp32"] / series, [25, 50, 75])
                row = {"model": name, "batch": batch, "tokens": tokens, "milliseconds": 1e3 * median}
                row |= {"iqr_milliseconds": 1e3 * (third - first), "tokens_per_second": batch * tokens / median}
                row |= {"peak_megabytes": peak_bytes(works[name], study.device) / 1e6}
                rows.append(row | {"speedup": speedup, "speedup_low": slow, "speedup_high": fast, "rounds": len(series)})
    return pd.DataFrame(rows)
