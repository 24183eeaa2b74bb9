"""The Makefile: what a user gives is text, and nothing is emptied or removed but what make made. Python is a stub here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
STUB = """#!/bin/sh
# A Python that can make an environment, has pip there, and writes down how it was called.
{{ printf '%s|' "$@" "PROFILE=$PROFILE" "SET=$SET" "RUNS=$RUNS"; echo; }} >> {log}
case "$*" in
  *"-m venv"*) for last; do :; done; find "$last" -mindepth 1 -delete 2>/dev/null
    mkdir -p "$last/bin"; cp "$0" "$last/bin/python"; touch "$last/pyvenv.cfg";;
  *"install.py"*|*"pip install"*) test ! -e {log}.offline;;
  *) exit 0;;
esac
"""
EVIL = ["$(shell touch {it})`touch {it}`", '$$(touch {it})"; touch {it}; "', "'; touch {it}; '", "a\ntouch {it}\n"]


class Checkout:
    """A copy of what make reads, with a stub of Python."""

    def __init__(self, folder: Path) -> None:
        self.root, self.log, self.python = folder / "checkout", folder / "log", folder / "python"
        self.root.mkdir()
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(REPOSITORY / name, self.root)
        for name in ("qatlib", "benchmarks", "tests", "notebooks", "params"):
            (self.root / name).mkdir()
        self.python.write_text(STUB.format(log=self.log))
        self.python.chmod(0o755)
        self.path = folder / "bin"  # without the machine's own Pythons
        self.path.mkdir()
        for tool in ("sh", "make", "ls", "paste", "grep", "touch", "find", "mkdir", "cp", "rm"):
            (self.path / tool).symlink_to(str(shutil.which(tool)))

    def make(self, *arguments: str, **given: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": str(self.path), "PYTHON": str(self.python)} | given
        return subprocess.run(["make", *arguments], cwd=self.root, capture_output=True, text=True, env=env, timeout=60)

    @property
    def calls(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The first line of a refusal."""
    assert done.returncode == 2
    return done.stderr.splitlines()[0]


@pytest.mark.parametrize("by", ["argument", "environment"])
@pytest.mark.parametrize("text", EVIL)
@pytest.mark.parametrize("name", ["PROFILE", "SET", "RUNS", "VENV", "PYTHON"])
def test_nothing_that_is_given_is_ever_run(checkout: Checkout, tmp_path: Path, name: str, text: str, by: str) -> None:
    text = text.format(it=tmp_path / "ran")
    for target in ("help", "report", "compare", "distclean"):
        checkout.make(target, *([f"{name}={text}"] if by == "argument" else []), **({name: text} if by == "environment" else {}))
        assert not (tmp_path / "ran").exists(), target


@pytest.mark.parametrize("by", ["argument", "environment"])
@pytest.mark.parametrize("text", [r"data.train=[/a$5.json] b='c d' e=\"f\" 50% # \n `g` ~ $$ $(x) ü", "--help", ""])
def test_python_gets_what_was_given_letter_by_letter(checkout: Checkout, text: str, by: str) -> None:
    given = {"PROFILE": text, "SET": text, "RUNS": text}
    arguments = [f"{name}={value}" for name, value in given.items()] if by == "argument" else []
    for target in ("report", "html", "compare"):
        done = checkout.make(target, *arguments, **({} if arguments else given))
        assert done.returncode == 0, done.stderr
    called = checkout.calls.splitlines()
    assert sum(f"--set={text}|" in line for line in called) >= 1
    assert sum(f"--profile={text}|" in line for line in called) >= 2
    assert sum(f"--runs={text}|" in line for line in called) == 1
    assert all(f"PROFILE={text}|SET={text}|RUNS={text}|" in line for line in called)


@pytest.mark.parametrize("target", ["report", "test", "lab", "html", "compare", "bench", "distclean"])
def test_a_folder_that_is_no_environment_is_never_emptied(checkout: Checkout, tmp_path: Path, target: str) -> None:
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs/thesis.txt").write_text("precious")
    (tmp_path / "envs/ready").touch()
    before = sorted(checkout.root.rglob("*"))
    for venv in (str(tmp_path / "envs"), "../envs", ".", "..", "params/..", "Makefile"):
        said = sentence(checkout.make(target, f"VENV={venv}"))
        assert said.startswith("VENV: ") and venv in said
    assert (tmp_path / "envs/thesis.txt").read_text() == "precious" and sorted(checkout.root.rglob("*")) == before


@pytest.mark.parametrize("venv", ["", "My envs/q", "a b", "-rf", "~/envs", "a:b", "a%b", "$HOME", "a;b", "#", "a*", "*", "a'b"])
def test_a_path_that_make_or_a_shell_reads_is_no_environment(checkout: Checkout, venv: str) -> None:
    (checkout.root / "My").mkdir()
    (checkout.root / "My/thesis.txt").write_text("precious")
    for target in ("report", "distclean"):
        assert f'VENV: "{venv}" can\'t be used; allowed is a path without blanks' in sentence(
            checkout.make(target, f"VENV={venv}")
        )
    assert (checkout.root / "My/thesis.txt").read_text() == "precious" and not checkout.calls


def test_an_environment_is_made_mended_and_removed(checkout: Checkout) -> None:
    venv = checkout.root / "v"
    assert checkout.make("v/ready", "VENV=v").returncode == 0
    assert checkout.calls.count("venv|") == 1 and "qatlib/run/install.py|-c|constraints.txt|-e|.[test]|" in checkout.calls
    (venv / "bin/python").unlink()  # the Python it was made of is gone
    os.utime(checkout.root / "pyproject.toml")
    assert checkout.make("v/ready", "VENV=v").returncode == 0
    assert checkout.calls.count("venv|") == 2 and (venv / "bin/python").is_file()
    assert checkout.make("distclean", "VENV=v").returncode == 0
    assert not venv.exists() and (checkout.root / "Makefile").is_file()


def test_an_environment_whose_setting_up_broke_off_is_taken_up(checkout: Checkout) -> None:
    offline = Path(f"{checkout.log}.offline")
    offline.touch()
    done = checkout.make("report", "VENV=v")
    assert "v/ready: pip could not install" in sentence(done)
    offline.unlink()
    (checkout.root / "v/bin/python").unlink()
    assert checkout.make("report", "VENV=v").returncode == 0


@pytest.mark.parametrize("kind", ["pyvenv.cfg", "conda-meta/history"])
def test_a_users_environment_is_filled_and_never_removed(checkout: Checkout, tmp_path: Path, kind: str) -> None:
    theirs = tmp_path / "theirs"
    for name in (kind, "bin/python", "lib/theirs.py"):
        (theirs / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(checkout.python, theirs / name)
    assert checkout.make("report", f"VENV={theirs}").returncode == 0
    assert "qatlib/run/install.py|-c|constraints.txt|-e|.[test]|" in checkout.calls and "venv|" not in checkout.calls
    assert "was not made by make" in sentence(checkout.make("distclean", f"VENV={theirs}"))
    (theirs / "bin/python").unlink()
    os.utime(checkout.root / "pyproject.toml")
    assert "no environment with pip" in sentence(checkout.make("report", f"VENV={theirs}"))
    assert (theirs / "lib/theirs.py").is_file()


def test_python_that_can_not_be_used_is_named(checkout: Checkout) -> None:
    done = checkout.make("report", "VENV=v", PYTHON="$(none) 'here'")
    assert sentence(done).startswith("PYTHON: Python 3.11 or 3.12 with its venv module is needed, and $(none) 'here' is neither")
    assert not (checkout.root / "v").exists()


@pytest.mark.parametrize("target", ["smollm2", "peers"])
def test_without_a_network_a_sentence_says_what_is_missing(checkout: Checkout, target: str) -> None:
    assert checkout.make("v/ready", "VENV=v").returncode == 0
    Path(f"{checkout.log}.offline").touch()
    assert f"v/{target}: pip could not install" in sentence(checkout.make(f"v/{target}", "VENV=v"))


def test_clean_removes_what_runs_wrote_alone(checkout: Checkout) -> None:
    written = ["runs/a/x", "reports/mine/notebooks/x", "reports/mine/provenance/x", "reports/compare.html"]
    written += ["reports/.mine.abc/new/notebooks/x", "reports/.mine.abc/new/provenance/x", "qatlib/__pycache__/x"]
    kept = ["reports/notes.md", "reports/drafts/thesis.txt", "reports/my talk/x", "reports/bench/bench.csv"]
    kept += [f"reports/{name}/{part}/x" for name in ("reference", "embedded") for part in ("notebooks", "provenance")]
    for name in (*written, *kept):
        (checkout.root / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout.root / name).touch()
    assert checkout.make("clean").returncode == 0
    assert not [name for name in written if (checkout.root / name).exists()]
    assert not [name for name in kept if not (checkout.root / name).exists()]
