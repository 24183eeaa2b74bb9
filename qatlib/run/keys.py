"""Content keys: what a stage was made from, and whether its results are still valid. Torch-free.

A stage has two keys. Its *results key* is for cached results (trainings and answers). It covers the modules that the notebook
imports, directly or indirectly, outside the folders `WITHOUT_RESULTS`; the pinned versions; the stage's sections of the params;
the data files; the notebook's computing cells; and the upstream stage's results. Its *stage key* adds what only tables and pages
depend on: prose, cells tagged `show`, the modules in those folders, and sources whose results are kept under their content. Code
counts by its syntax: comments, layout and docstrings change no key. Time stamps decide nothing: `sync` makes them agree with the
keys before `make` reads them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qatlib.files import hash_files, write_atomic
from qatlib.params.load import load_params, run_name
from qatlib.params.sections import ROOT
from qatlib.qa.formats import SUFFIXES
from qatlib.run.sources import PipelineError, hash_code, imported, meaning, read_cells
from qatlib.run.stages import BY_CONTENT, SECTIONS, STAGES, UPSTREAM

WITHOUT_RESULTS = ("params", "judging", "run", "site")
"""Folders of the package whose code changes no cached result. Params count by their values."""

SETS_ASIDE = 2
"""Number of older result sets (of other code, params or data) that a stage keeps."""
_KEPT = ("memo", "checkpoints", "timing", "kept.json", "computed.json", "results.key")
"""The files of one result set. The key is moved last, so an interrupted move is finished at the next start."""


class Keys(NamedTuple):
    """A stage's two content keys."""

    results: str
    stage: str


class Run:
    """One profile with its overrides: its resolved params, its directory, and the state of its stages.

    Raises:
        ParamsError: the params can't be used.
    """

    def __init__(self, profile: str, overrides: Sequence[str] = (), root: Path = ROOT) -> None:
        self.profile, self.overrides, self.root = profile, list(overrides), root
        self.params = load_params(profile, overrides, root)
        self.name = run_name(profile)
        self.directory = root / "runs" / self.name
        self.report = root / "reports" / self.name

    def notebook(self, stage: str) -> Path:
        """The notebook of a stage, which must exist."""
        path = self.root / "notebooks" / f"{stage}.ipynb"
        if not path.is_file():
            raise PipelineError(f"notebooks/{stage}.ipynb: no such notebook; the stages are {', '.join(STAGES)}")
        return path

    @functools.cached_property
    def data_hashes(self) -> dict[str, str | None]:
        """SHA-256 of every file or directory that the params name, by path; None for a source that is not on this machine."""
        data, source = self.params.data, self.params.model.source
        attacks = self.params.adversarial
        parts = (data.train, data.validation, attacks.shifted or ())
        named = [item for part in parts for item in ([part] if isinstance(part, str) else part)]
        words = attacks.words.candidates if attacks.words else ""
        return {item: _hash_source(item) for item in (*named, source, *([words] if ":" in words else []))}

    @functools.cached_property
    def keys(self) -> dict[str, Keys]:
        """The present keys of every stage."""
        package = self.root / "qatlib"
        aside = {path for folder in WITHOUT_RESULTS for path in (package / folder).rglob("*.py")} | {package / "__init__.py"}
        pins = hash_files([self.root / "constraints.txt"], self.root)
        params = self.params.model_dump(mode="json")
        params["model"]["source"] = self._content(self.params.model.source)
        for section, part in (("data", "train"), ("data", "validation"), ("adversarial", "shifted")):
            source = getattr(getattr(self.params, section), part) or ()
            params[section][part] = [self._content(item) for item in ([source] if isinstance(source, str) else source)]
        if words := params["adversarial"]["words"]:
            words["candidates"] = self._content(words["candidates"])
        apart = {stage: [params[section].pop(name) for name in names] for stage, (section, names) in BY_CONTENT.items()}
        keys: dict[str, Keys] = {}
        for stage in STAGES:
            cells = read_cells(self.notebook(stage))
            code = [cell.source for cell in cells if cell.kind == "code"]
            computing = [c.source for c in cells if c.kind == "code" and not {"show", "parameters"} & {*c.tags}]
            library = hash_code(imported(code, package, aside), package)
            page = hash_code(imported(code, package), package)
            sections = {name: params[name] for name in SECTIONS[stage]}
            upstream = UPSTREAM[stage]
            before = keys[upstream].results if upstream else None
            results = _digest([library, pins, sections, [meaning(source) for source in computing], before])
            keys[stage] = Keys(results, _digest([results, page, cells, apart.get(stage)]))
        return keys

    def _content(self, source: str) -> str:
        """What a key holds of a source: the contents of its files, not their names or places."""
        return self.data_hashes.get(source) or source

    @property
    def report_key(self) -> str:
        """The key of the rendered report."""
        package = self.root / "qatlib"
        data = (path for folder in ("site/templates", "judging/tables") for path in (package / folder).rglob("*"))
        files = [*imported(["import qatlib.site.pages"], package), *data]
        return _digest([{stage: key.stage for stage, key in self.keys.items()}, hash_files(files, package)])

    def is_done(self, stage: str) -> bool:
        """Whether a stage has finished with its present key, and all its files are still there."""
        return _stands(self.directory / stage / "done", self.directory / stage, self.keys[stage].stage)

    def mark_done(self, stage: str) -> None:
        """Record that a stage is complete, with the list of its files."""
        _mark(self.directory / stage / "done", self.directory / stage, self.keys[stage].stage)

    @property
    def is_published(self) -> bool:
        """Whether the rendered report is that of the present keys, and all its files are still there."""
        return _stands(self.directory / "published", self.report, self.report_key)

    def mark_published(self) -> None:
        """Record that the report is complete, with the list of its files."""
        _mark(self.directory / "published", self.report, self.report_key)

    def sync(self) -> None:
        """Make the time stamps that `make` compares agree with the keys: write changed keys, delete stale marks."""
        for stage in STAGES:
            directory = self.directory / stage
            if (directory / "done").is_file():
                for path in _lost(directory / "done", directory):
                    path.unlink(missing_ok=True)  # a changed file is not a valid result: it is made again
            _sync(directory / "key", directory / "done", directory, self.keys[stage].stage)
        done = [self.directory / stage / "done" for stage in STAGES]
        _sync(self.directory / "report.key", self.directory / "published", self.report, self.report_key, done)

    def prepare(self, stage: str) -> None:
        """Move results of other code, params or data away, restore those of the present ones, and start the page anew.

        Undoing an edit, or setting a parameter back, therefore reuses cached results. The latest `SETS_ASIDE` sets are kept.
        """
        directory = self.directory / stage
        marker, aside = directory / "results.key", directory / ".superseded"
        own = aside / self.keys[stage].results
        if not self.is_prepared(stage):
            if marker.is_file() and any((directory / name).exists() for name in _KEPT[:-1]):
                _move_kept(directory, aside / marker.read_text())
            _drop(*(directory / name for name in _KEPT))
            write_atomic(marker, self.keys[stage].results)
        if own.is_dir():
            _move_kept(own, directory)
            _drop(own)
        _drop(*sorted(aside.glob("*"), key=_age)[:-SETS_ASIDE])
        _drop(directory / "results")

    def keep(self, stage: str, why: str) -> None:
        """Declare that a stage's cached results are valid for the present code, params and data, and record the reason.

        This is for changes that no figure depends on, such as a new option. It avoids computing a day's results again.
        The page's provenance shows the reason.

        Raises:
            PipelineError: the stage has no cached results.
        """
        directory = self.directory / stage
        if not (marker := directory / "results.key").is_file():
            raise PipelineError(f"{stage}: keeps nothing yet; allowed is a stage that has begun")
        if self.is_prepared(stage):
            return
        write_atomic(directory / "kept.json", json.dumps([*self.kept(stage), why], indent=1, ensure_ascii=False) + "\n")
        write_atomic(marker, self.keys[stage].results)

    def kept(self, stage: str) -> list[str]:
        """The reasons for which a stage's results were kept after changes, the oldest first."""
        return self._read_list(stage, "kept.json")

    def computed(self, stage: str) -> list[dict[str, Any]]:
        """The executions that computed a stage's cached results, the oldest first: `commit`, `started`, `duration_s`."""
        return self._read_list(stage, "computed.json")

    def _read_list(self, stage: str, name: str) -> list[Any]:
        path = self.directory / stage / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []

    def is_prepared(self, stage: str) -> bool:
        """Whether a stage's cached results belong to the present results key."""
        marker = self.directory / stage / "results.key"
        return marker.is_file() and marker.read_text() == self.keys[stage].results


def _move_kept(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in _KEPT:
        if (source / name).exists():
            if (target / name).is_dir():  # a rename replaces a file, but not a directory
                shutil.rmtree(target / name)
            (source / name).rename(target / name)


def _age(path: Path) -> float:
    """The time stamp that sets are ordered by; 0 for one in the future, from a clock that was wrong."""
    stamp = path.stat().st_mtime
    return stamp if stamp <= time.time() else 0


def _drop(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _hash_source(source: str) -> str | None:
    """SHA-256 of a source that `params` has checked, without a directory's hidden files; None if it is not on this machine."""
    if source.startswith("dir:"):
        base = Path(source.removeprefix("dir:"))
        return hash_files(_visible(base), base)
    if not source.endswith(SUFFIXES):
        return None
    with Path(source).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _visible(base: Path) -> Iterable[Path]:
    """The files under a directory, except hidden ones and those in hidden directories."""
    files = (path for path in sorted(base.rglob("*")) if path.is_file())
    return (path for path in files if not any(part.startswith(".") for part in path.relative_to(base).parts))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _contents(base: Path) -> dict[str, int]:
    """Sizes of the files under `base`, without hidden files, keys and marks."""
    aside = {"key", "done", "executed.failed.ipynb"}
    return {p.relative_to(base).as_posix(): p.stat().st_size for p in _visible(base) if p.name not in aside}


def _mark(mark: Path, base: Path, key: str) -> None:
    write_atomic(mark, json.dumps({"key": key, "files": _contents(base)}, indent=1) + "\n")


def _lost(mark: Path, base: Path) -> list[Path]:
    """The files named by a mark that are missing or have another size."""
    files = json.loads(mark.read_text())["files"]
    return [base / n for n, size in files.items() if not (base / n).is_file() or (base / n).stat().st_size != size]


def _stands(mark: Path, base: Path, key: str) -> bool:
    return mark.is_file() and json.loads(mark.read_text())["key"] == key and not _lost(mark, base)


def _sync(key_file: Path, mark: Path, base: Path, key: str, before: Iterable[Path] = ()) -> None:
    """Write a changed key, and delete a stale mark or make it newer than its key and the marks `before` it.

    Stamps that lie in the future, from a clock that was wrong, are set to now: nothing that is made later would be newer.
    """
    if not key_file.is_file() or key_file.read_text() != key:
        write_atomic(key_file, key)
    if not _stands(mark, base, key):
        mark.unlink(missing_ok=True)
        return
    older = [key_file, *(path for path in before if path.is_file())]
    for path in (*older, mark):
        if path.stat().st_mtime > time.time():
            path.touch()
    if mark.stat().st_mtime_ns <= max(path.stat().st_mtime_ns for path in older):
        mark.touch()
