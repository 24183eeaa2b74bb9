"""Files that are always written whole, even when the process is killed; locks; hashes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file atomically: what is written to the scratch path becomes `path` when the block ends without an error.

    A reader sees the whole old file or the whole new one, even if the process is killed. After an error or an interrupt the
    old file is unchanged, and the scratch file is gone.

    Raises:
        IsADirectoryError: `path` is a directory.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; a file is to be written there")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Write a text file atomically, as `replacing`."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="")


@contextmanager
def swapped_in(folder: Path, marker: str, earlier: Sequence[str] = ()) -> Iterator[Path]:
    """Write several files of a folder at once: either all of them take their places, or the folder is as it was.

    The block writes into a scratch folder. When it ends without an error, its files are moved into `folder`. Files of the same
    name are replaced; other files in `folder` are kept. Old files that are memory-mapped stay readable there. If the process
    is killed while files are moved, which takes milliseconds, the marker is missing. The old files are then in `.saving-*/old`
    and the new ones in `.saving-*/new` or in their places.

    Args:
        folder: made if it is missing.
        marker: the file without which a reader refuses the folder. It is moved away first and comes last.
        earlier: further files to remove, those of an earlier save. Folders that become empty are removed too.

    Raises:
        OSError: a file cannot be written or moved, a directory has the name of a new file, or `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; several files are to be saved in a directory of that name")
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    with ExitStack() as after:
        for parent in reversed(made):
            after.callback(_remove_if_empty, parent)
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
        after.callback(_discard, scratch)
        new = scratch / "new"
        new.mkdir()
        yield new
        _move_in(folder, scratch, sorted(_files(new), key=Path(marker).__eq__), [Path(file) for file in earlier])
        shutil.rmtree(scratch / "old", ignore_errors=True)  # a network disk keeps open files until they are closed


def _move_in(folder: Path, scratch: Path, files: Sequence[Path], earlier: Sequence[Path]) -> None:
    """Move `files` from `scratch/new` into `folder`, and those of before to `scratch/old`; after an error, move all back."""
    for file in files:
        if (folder / file).is_dir():
            raise IsADirectoryError(f"{folder / file} is a directory; a file is to be written there")
    replaced = [file for file in dict.fromkeys([*reversed(files), *earlier]) if os.path.lexists(folder / file)]
    moves = [(folder / file, scratch / "old" / file) for file in replaced]
    moves += [(scratch / "new" / file, folder / file) for file in files]
    try:
        for source, target in moves:
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
    except BaseException:
        for source, target in reversed(moves):
            if os.path.lexists(target) and not os.path.lexists(source):  # this one was moved
                target.replace(source)
        raise
    finally:
        for parent in sorted({parent for file in [*files, *earlier] for parent in file.parents}, reverse=True):
            _remove_if_empty(folder / parent)


def _files(folder: Path) -> list[Path]:
    """All files below a folder, relative to it."""
    return [path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]


def _discard(scratch: Path) -> None:
    """Remove a scratch folder, unless moving the old files back has failed as well: they stay then."""
    if not _files(scratch / "old"):
        shutil.rmtree(scratch, ignore_errors=True)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


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
