"""The benchmark's arithmetic, and that every comparison runs and writes what it found."""

from __future__ import annotations

import json
from importlib.metadata import version as installed

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks.measure import Row, compare_bytes, compare_times
from qatlib.latency import in_turn

CPU = torch.device("cpu")


def test_rounds_are_in_turn_and_the_ratio_is_of_one_round():
    order: list[str] = []
    works = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = in_turn(works, 0, CPU, least=4)
    assert [len(series) for series in times.values()] == [4, 4]
    rounds = ["".join(order[i : i + 2]) for i in range(0, len(order), 2)]
    assert rounds == ["ab", "ba"] * 3  # two to warm up
    row = compare_times("g", "c", times, "a", "b")
    assert row.low <= row.ratio <= row.high and row.rounds == 4


def test_a_machine_that_slows_down_for_a_while_changes_no_ratio():
    speed = np.array([1.0, 1, 5, 5, 1])
    row = compare_times("g", "c", {"ours": 2e-3 * speed, "peer": 1e-3 * speed}, "ours", "peer", "≤ 2")
    assert (row.low, row.ratio, row.high, row.value, row.peer_value, row.target) == (2, 2, 2, 2, 1, "≤ 2")


def test_bytes_have_no_spread():
    assert compare_bytes("g", "c", ("ours", 3e6), ("peer", 2e6)) == Row("g", "c", "ours", "peer", "MB", 3, 2, 1.5, 1.5, 1.5, 1)


def test_every_comparison_runs_and_is_written(tmp_path, capsys):
    bench.main(["--quick", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "bench.json").read_text())
    table = pd.read_csv(tmp_path / "bench.csv")
    assert len(table) == len(written["rows"]) and written["environment"]["torch"] == installed("torch")
    groups = {"training step", "cyclic training", "attack", "peak memory of a step", "switching", "inference", "memory", "disk"}
    groups |= {"rotated training step", "rotated deployed pass", "mixed precision", "busy machine"}
    assert set(table["group"]) == groups and (table["ratio"] > 0).all()
    assert capsys.readouterr().out.count(" ratio ") == len(table)
    stored = table[table["ours"] == "all widths stored"]
    assert stored["ratio"].item() < 1.3  # 1.18: scales weigh more in a tiny model


def test_an_unknown_comparison_is_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--only", "everything"])
    assert "invalid choice: 'everything'" in capsys.readouterr().err
