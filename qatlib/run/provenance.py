"""The provenance of a stage's figures: all that is needed to make them again, without the owner of the machine."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from qatlib.cores import usable
from qatlib.files import library_hash
from qatlib.params.schema import Params
from qatlib.params.sections import ROOT
from qatlib.run.portable import portable_values
from qatlib.run.stages import SEEDED

LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "safetensors", "numpy", "scipy", "pandas", "pydantic")


def collect(
    params: Params,
    profile: str,
    overrides: Sequence[str],
    data_hashes: Mapping[str, str | None],
    started: datetime,
    root: Path = ROOT,
    stage: str = "",
) -> dict[str, Any]:
    """Everything a reader needs to make the figures again, ready for JSON.

    Args:
        stage: the stage whose training seeds are listed in addition to the params' own seed.
        data_hashes: SHA-256 of the data, by file path or name; None if only the name is known.
        started: when the stage began, with its time zone.
    """
    return {
        "profile": portable_values(profile, root),
        "overrides": portable_values([*overrides], root),
        "seeds": sorted({params.seed, *(getattr(params, SEEDED[stage]).seeds if stage in SEEDED else ())}),
        "code": _code(root),
        "data": [_data(portable_values(name, root), digest) for name, digest in data_hashes.items()],
        "device": _device(),
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
        **taken(started),
        "parameters": portable_values(params.model_dump(mode="json"), root),
    }


def commit(root: Path = ROOT) -> str | None:
    """The commit of the code at `root`; None outside git."""
    return _git(root, "rev-parse", "HEAD")


def taken(started: datetime) -> dict[str, Any]:
    """`started` (ISO 8601, UTC, to the second) and `duration_s` (seconds since then)."""
    seconds = (datetime.now(UTC) - started).total_seconds()
    return {"started": started.astimezone(UTC).isoformat(timespec="seconds"), "duration_s": round(seconds, 1)}


def _data(name: str, digest: str | None) -> dict[str, str]:
    return {"name": name} if digest is None else {"name": name, "sha256": digest}


def _code(root: Path) -> dict[str, Any]:
    head = commit(root)
    return {
        "version": metadata.version("qatlib"),
        "commit": head,
        "dirty": None if head is None else _git(root, "status", "--porcelain", "-unormal", "--", ".", ":!reports") != "",
        "library_sha256": library_hash(root),
    }


def _git(root: Path, *arguments: str) -> str | None:
    """Git's output for the repository at `root`; None without a repository or without git."""
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _device() -> dict[str, Any]:
    """The processor and the cores this process may use. If the stage has loaded torch, also torch's threads and the GPU."""
    device: dict[str, Any] = {"name": _processor(), "cores": usable()}
    if torch := sys.modules.get("torch"):
        device["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            device |= {"name": torch.cuda.get_device_name(), "processor": device["name"]}
    return device


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()
