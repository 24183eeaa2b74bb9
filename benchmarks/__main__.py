"""`python -m benchmarks`: every comparison on the CPU, and on the GPU where there is one; a table, a JSON and a CSV."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.attacking import attack
from benchmarks.inference import inference
from benchmarks.machine import busy, mixed_precision
from benchmarks.measure import Row
from benchmarks.memory import memory
from benchmarks.models import QUICK, Settings
from benchmarks.rotating import rotating
from benchmarks.switching import switching
from benchmarks.training import cyclic_training, training_step
from qatlib.run.surroundings import alone

COMPARISONS: tuple[Callable[[Settings, torch.device], Iterator[Row]], ...] = (
    training_step,
    cyclic_training,
    rotating,
    attack,
    switching,
    inference,
    memory,
    mixed_precision,
    busy,
)
"""A comparison is a function that yields rows; a new one is added here."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for; results are written after every row, so that a run cut short keeps what it has."""
    names = [comparison.__name__ for comparison in COMPARISONS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--quick", action="store_true", help="tiny models, a few rounds: figures mean nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args(arguments)
    alone(os.environ)
    settings = QUICK if options.quick else Settings()
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    rows: list[dict[str, Any]] = []
    about = {"environment": environment(), "settings": asdict(settings)}
    for device in devices:
        for comparison in COMPARISONS:
            if comparison.__name__ not in options.only:
                continue
            for row in comparison(settings, device):
                rows.append({"device": device.type, **asdict(row)})
                print(line(rows[-1], new_group=len(rows) == 1 or rows[-2]["group"] != row.group), flush=True)
                write(options.out, about, rows)
    print(f"written: {options.out}/bench.json, bench.csv")


def line(row: dict[str, Any], new_group: bool) -> str:
    """A row of the printed table."""
    head = f"\n{row['group']} ({row['device']}, {row['unit']})\n" if new_group else ""
    spread = f" [{row['low']:.3f}, {row['high']:.3f}] n={row['rounds']}" if row["unit"] == "ms" else ""
    against = f"{row['ours']} {_number(row['value'])} : {row['peer']} {_number(row['peer_value'])}"
    target = f"   meant: {row['target']}" if row["target"] else ""
    return f"{head}  {row['case']:<44} {against:<80} ratio {row['ratio']:.3f}{spread}{target}"


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def environment() -> dict[str, Any]:
    """Where figures come from."""
    versions = {}
    for package in ("torch", "transformers", "peft", "torchao"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "load_before": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.is_file() else []
    return next((text.partition(": ")[2] for text in lines if text.startswith("model name")), platform.processor())


def write(out: Path, about: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """`bench.json` with the environment, `bench.csv` with the rows alone."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.json").write_text(json.dumps({**about, "rows": rows}, indent=1))
    pd.DataFrame(rows).to_csv(out / "bench.csv", index=False)


if __name__ == "__main__":
    main()
