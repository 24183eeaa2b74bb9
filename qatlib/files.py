"""Files that are always written whole, even when the process is killed; locks; hashes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import pandas as pd


def write_atomic(path: Path, text: str) -> None:
    """Write a file atomically: a reader sees the whole old file or the whole new one, even if the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8", newline="")
    scratch.replace(path)


def is_a(path: Path, kind: Callable[[Path], bool]) -> bool:
    """`kind(path)`, for `Path.is_file` or `Path.is_dir`; False where the system refuses to look: a name may be too long."""
    try:
        return kind(path)
    except OSError:
        return False


def read_cells(path: Path) -> pd.DataFrame:
    """The cells of a CSV file as text, as they were written: nothing in them is a number, is missing or is a blank line."""
    import pandas as pd  # imported here: it takes a second, and most of what needs this module needs no table

    return pd.read_csv(path, dtype="str", keep_default_na=False, skip_blank_lines=False, lineterminator="\n")


def lock(path: Path, waiting: str) -> TextIO:
    """Hold a lock until the returned file is closed or the process ends, even by a kill. Prints a line if it must wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(waiting, file=sys.stderr, flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def hash_files(paths: Iterable[Path], base: Path) -> str:
    """One SHA-256 over the names, relative to `base`, and contents of the files among `paths`, in any order."""
    total = hashlib.sha256()
    for path in sorted(set(paths)):
        if path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{path.relative_to(base).as_posix()}\0{content}\n".encode())
    return total.hexdigest()


def library_hash(root: Path) -> str:
    """SHA-256 over the modules of the library at `root`."""
    package = root / "qatlib"
    return hash_files(package.rglob("*.py"), package)
