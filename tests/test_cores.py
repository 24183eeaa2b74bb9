"""Cores are those of the affinity, and no more than a container's quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qatlib.cores import usable


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def machine(root: Path, groups: str, **files: str) -> Path:
    """A machine of which only control groups are there; in names `__` is a folder's end, and `_` a dot."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        *folders, last = name.split("__")
        path = root.joinpath("sys/fs/cgroup", *folders)
        path.mkdir(parents=True, exist_ok=True)
        (path / last.replace("_", ".", 1)).write_text(text + "\n")
    return root


def test_without_control_groups_they_are_those_that_the_process_may_run_on(tmp_path: Path) -> None:
    assert usable(tmp_path) == 8


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/a/b\n", {"a__b__cpu_max": "300000 100000"}, 3),
        ("0::/a/b\n", {"a__cpu_max": "250000 100000", "a__b__cpu_max": "max 100000"}, 2),
        ("0::/a/b\n", {"other__cpu_max": "100000 100000"}, 8),
        ("0::/\n", {"cpu_max": "50000 100000"}, 1),
        ("0::/\n", {"cpu_max": "9900000 100000"}, 8),
        (
            "5:memory:/m\n4:cpu,cpuacct:/host/id\n0::/\n",
            {"cpu__cpu_cfs_quota_us": "400000", "cpu__cpu_cfs_period_us": "100000"},
            4,
        ),
        ("4:cpu:/a\n", {"cpu__a__cpu_cfs_quota_us": "-1", "cpu__a__cpu_cfs_period_us": "100000"}, 8),
        ("5:memory:/m\n", {"cpu__cpu_cfs_quota_us": "100000", "cpu__cpu_cfs_period_us": "100000"}, 8),
    ],
)
def test_a_quota_of_the_process_or_of_a_group_above_it_counts(
    tmp_path: Path, groups: str, files: dict[str, str], cores: int
) -> None:
    assert usable(machine(tmp_path, groups, **files)) == cores


def test_this_machine_has_one_at_least() -> None:
    assert 1 <= usable() <= 8
