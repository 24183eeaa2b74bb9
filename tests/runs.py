"""Real runs of the smoke profile, in copies of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
ALICE = {"HOME": "/proc/alice", "LOGNAME": "alice"}
"""A user whose home can't be written."""


def copy(root: Path) -> Path:
    """A clean copy of what a run is made from."""
    for name in ("qatlib", "notebooks", "params"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("Makefile", "constraints.txt"):
        shutil.copy(REPOSITORY / name, root)
    return root


def start(root: Path, target: str) -> subprocess.Popen[bytes]:
    command = ["make", target, "PROFILE=smoke", "-o", f"{sys.prefix}/ready", f"VENV={sys.prefix}"]
    env = os.environ | {"PYTHONPATH": str(root), **ALICE}  # kernels prefer that path to their own directory
    return subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def finish(process: subprocess.Popen[bytes]) -> None:
    output, _ = process.communicate()
    assert process.returncode == 0, output.decode()[-2000:]
