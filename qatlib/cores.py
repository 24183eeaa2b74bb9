"""The cores that this process may use. Free of torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def usable(root: Path = Path("/")) -> int:
    """The cores that a process may keep busy, at least 1: those it may run on, and no more than its control groups' quotas.

    Args:
        root: where `proc` and `sys` are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([cores, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """In cores, of this process's control groups and those above them, of Linux's version 2 or 1."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        own = top / path.lstrip("/")  # in a container it may be the host's path, of which only the top is there
        for group in (own, *own.parents[: len(own.parts) - len(top.parts)]):
            both, quota, period = (group / name for name in ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"))
            if both.is_file():
                given = both.read_text().split()
            else:
                given = [part.read_text().strip() for part in (quota, period) if part.is_file()]
            if len(given) == 2 and given[0] not in ("max", "-1"):
                yield int(given[0]) / int(given[1])
