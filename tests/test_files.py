"""Files are written whole, locks are held by one, hashes tell names and contents apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qatlib.files import hash_files, lock, replacing, swapped_in, write_atomic


def test_a_file_is_the_old_or_the_new_one_and_nothing_stays_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.txt"
    write_atomic(path, "old\n")
    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        patched.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
        write_atomic(path, "new\n")
    assert path.read_bytes() == b"old\n"
    write_atomic(path, "new\n")
    assert path.read_bytes() == b"new\n" and [p.name for p in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_a_file_that_is_not_finished_leaves_the_one_before_and_nothing_beside_it(error, tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(type(error)), replacing(path) as scratch:
        scratch.write_text("half")
        raise error
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]
    with pytest.raises(IsADirectoryError, match="is a directory; a file is to be written there"), replacing(tmp_path):
        pass


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


OLD = {"config": "old", "marker": "old", "parts/a/x": "old", "parts/b/x": "old", "parts/a/mine": "mine", "notes.txt": "mine"}
NEW = {"config": "new", "marker": "new", "parts/a/x": "new", "parts/c/x": "new"}
AFTER = NEW | {"parts/a/mine": "mine", "notes.txt": "mine"}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def swap(folder: Path) -> None:
    with swapped_in(folder, "marker", ["parts/a/x", "parts/b/x", "parts/d/x"]) as new:
        write(new, NEW)


def test_a_folder_gets_all_new_files_loses_those_of_before_and_keeps_the_users_own(tmp_path):
    write(tmp_path, OLD)
    opened = (tmp_path / "config").open()
    swap(tmp_path)
    assert tree(tmp_path) == AFTER and not (tmp_path / "parts/b").exists()
    assert opened.read() == "old"  # so is a file that is memory-mapped
    write(tmp_path, {"parts/b/x": "mine"})
    swap(tmp_path / "below" / "it")
    assert tree(tmp_path / "below" / "it") == NEW


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_a_swap_that_fails_anywhere_leaves_the_folder_as_it_was(error, tmp_path, monkeypatch):
    write(tmp_path / "f", OLD)
    replace, count = Path.replace, 0
    for stop in range(1, 99):

        def failing(self, target, stop=stop):
            nonlocal count
            count += 1
            if count == stop:
                raise error
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", failing)
        count = 0
        try:
            swap(tmp_path / "f")
        except type(error):
            assert tree(tmp_path / "f") == OLD and len([*(tmp_path / "f").iterdir()]) == 4
        else:
            break
    assert stop == 9 and tree(tmp_path / "f") == AFTER  # four files out, four in


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_a_block_that_fails_leaves_nothing_behind(error, tmp_path):
    for folder in (tmp_path / "new" / "below", tmp_path / "f"):
        write(tmp_path / "f", OLD)
        with pytest.raises(type(error)), swapped_in(folder, "marker", ["parts/b/x"]) as new:
            write(new, {"config": "half"})
            raise error
        assert tree(tmp_path) == {f"f/{name}": text for name, text in OLD.items()} and [*tmp_path.iterdir()] == [tmp_path / "f"]


def test_what_cannot_be_moved_back_is_kept(tmp_path, monkeypatch):
    write(tmp_path, OLD)
    replace = Path.replace

    def failing(self, target):
        if "new" in self.parts or "old" in self.parts:
            raise OSError("gone")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="gone"):
        swap(tmp_path)
    (scratch,) = tmp_path.glob(".saving-*")
    assert tree(scratch / "old") == {name: "old" for name, text in OLD.items() if text == "old"}
    assert not (tmp_path / "marker").exists()  # so that no reader takes a mixture for a whole


@pytest.mark.parametrize(
    ("block", "message"), [("config", "config is a directory; a file is to be written there"), ("parts", "parts")]
)
def test_what_is_in_the_way_is_said_and_left(block, message, tmp_path):
    write(tmp_path, {"config/x": "mine"} if block == "config" else {"parts": "mine"})
    before = tree(tmp_path)
    with pytest.raises(OSError, match=message):
        swap(tmp_path)
    assert tree(tmp_path) == before and len([*tmp_path.iterdir()]) == 1
    write(tmp_path, {"file": "mine"})
    with pytest.raises(NotADirectoryError, match="file is a file; several files are to be saved in a directory"):
        swap(tmp_path / "file")


def test_a_killed_process_leaves_the_old_files_or_the_new_ones(tmp_path):
    code = """
import os, pathlib, sys
from qatlib.files import swapped_in
with swapped_in(pathlib.Path(sys.argv[1]), "marker") as new:
    (new / "marker").write_text("new")
    os.kill(os.getpid(), 9)
"""
    write(tmp_path, {"marker": "old"})
    subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert (tmp_path / "marker").read_text() == "old"


def test_a_lock_is_held_by_one_process(tmp_path):
    code = "import pathlib, sys, qatlib.files as f; f.lock(pathlib.Path(sys.argv[1]), 'waiting'); print('got it')"
    held = lock(tmp_path / "l", "waiting")
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "l")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert other.stderr is not None and other.stderr.readline() == "waiting\n" and other.poll() is None
    held.close()
    assert other.communicate()[0] == "got it\n"


def test_a_hash_is_of_names_and_contents_in_any_order(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("1")
    b.write_text("2")
    found = hash_files([a, b], tmp_path)
    assert hash_files([b, a, a, tmp_path / "none"], tmp_path) == found != hash_files([a], tmp_path)
    a.write_text("2")
    b.write_text("1")
    assert hash_files([a, b], tmp_path) != found
