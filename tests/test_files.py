"""Files are written whole, locks are held by one, hashes tell names and contents apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qatlib.files import hash_files, is_a, lock, read_cells, write_atomic


def test_a_file_is_the_old_or_the_new_one_and_nothing_stays_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.txt"
    write_atomic(path, "old\n")
    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        patched.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
        write_atomic(path, "new\n")
    assert path.read_bytes() == b"old\n"
    write_atomic(path, "new\n")
    assert path.read_bytes() == b"new\n" and [p.name for p in path.parent.iterdir()] == ["a.txt"]


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


def test_a_name_that_no_system_takes_is_nothing(tmp_path):
    (tmp_path / "a").touch()
    assert is_a(tmp_path / "a", Path.is_file) and not is_a(tmp_path / "a", Path.is_dir)
    assert not is_a(tmp_path / ("a" * 5_000), Path.is_file)


def test_cells_are_text_whatever_they_spell(tmp_path):
    (tmp_path / "t.csv").write_text('x\n \n007\nNA\n""\n"a\n,"\n')
    assert read_cells(tmp_path / "t.csv")["x"].tolist() == [" ", "007", "NA", "", "a\n,"]
