"""Content keys: what a stage was made from, whether it still stands, and what `make` may believe. Torch-free.

A stage has two keys. Its *results key* covers what it keeps, trainings and answers: the library's modules that the
notebook imports, and those that they import in turn; the pinned versions, its part of the params, the data files, the
notebook's computing cells, the upstream stage's results. Its *key* adds what only tables and pages depend on: prose,
cells tagged `show`, the modules that turn answers into tables and verdicts, this package's modules for showing. Time
stamps decide nothing: `sync` makes them agree with the keys before `make` looks at them.
"""

from __future__ import annotations

import ast
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from qatlib.report.params import SECTIONS, STAGES, UPSTREAM, load_params, profile_path
from qatlib.report.sections import ROOT

_SHOWING = {
    *("sections.py", "experiments.py", "schema.py", "params.py", "complaints.py", "strict_yaml.py"),
    *("keys.py", "stage.py", "pipeline.py", "tables.py", "provenance.py", "figures.py"),
}
"""Modules of this package that no result depends on but by way of the params."""
_JUDGING = ("results.py", "stats.py", "claims.py", "attacks/scores.py", "attacks/checks.py", "report/attack_checks.py")
"""Modules that nothing passes through which a stage keeps: made anew, from kept answers, at every execution of a notebook."""


SETS_ASIDE = 2
"""So many sets of results of other code, params or data a stage keeps aside."""
_KEPT = ("memo", "checkpoints", "timing", "kept.json", "computed.json", "results.key")
"""What belongs to a results key; the key is moved last, so that what a kill interrupts goes on the next time."""


class PipelineError(RuntimeError):
    """A stage that can't run or did not: one sentence."""


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
        self.name = profile_path(profile, root).stem
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
        """SHA-256 of every file or directory the params name, by path; None for what is not on this machine."""
        data, source = self.params.data, self.params.model.source
        attacks = self.params.adversarial
        parts = (data.train, data.validation, attacks.shifted or ())
        named = [item for part in parts for item in ([part] if isinstance(part, str) else part)]
        words = attacks.words.candidates if attacks.words else ""
        return {item: _hash_source(item) for item in (*named, source, *([words] if ":" in words else []))}

    @functools.cached_property
    def keys(self) -> dict[str, Keys]:
        """The keys of every stage, as things are now."""
        package = self.root / "qatlib"
        showing = {package / "report" / name for name in _SHOWING}
        judging = {*(package / name for name in _JUDGING), *(package / "report" / "verdicts").glob("*.py")}
        pins = hash_files([self.root / "constraints.txt"], self.root)
        params = self.params.model_dump(mode="json")
        params["model"]["source"] = self._content(self.params.model.source)
        for section, part in (("data", "train"), ("data", "validation"), ("adversarial", "shifted")):
            source = getattr(getattr(self.params, section), part) or ()
            params[section][part] = [self._content(item) for item in ([source] if isinstance(source, str) else source)]
        if words := params["adversarial"]["words"]:
            words["candidates"] = self._content(words["candidates"])
        keys: dict[str, Keys] = {}
        for stage in STAGES:
            sources = _cells(self.notebook(stage))
            computing = [s for s, tags, kind in sources if kind == "code" and not {"show", "parameters"} & {*tags}]
            code = [s for s, _, kind in sources if kind == "code"]
            library = hash_files(imported(code, package, showing | judging), package)
            page = hash_files(imported(code, package, showing) | showing, package)
            sections = {name: params[name] for name in SECTIONS[stage]}
            upstream = UPSTREAM[stage]
            results = _digest([library, pins, sections, computing, keys[upstream].results if upstream else None])
            keys[stage] = Keys(results, _digest([results, page, sources]))
        return keys

    def _content(self, source: str) -> str:
        """A source as a key has it: what stands in the files, whatever they are called and wherever they lie."""
        return self.data_hashes.get(source) or source

    @property
    def report_key(self) -> str:
        """The key of the rendered report."""
        package = self.root / "qatlib"
        files = [*imported(["import qatlib.report.site"], package), *(package / "report" / "templates").rglob("*")]
        return _digest([{stage: key.stage for stage, key in self.keys.items()}, hash_files(files, package)])

    def is_done(self, stage: str) -> bool:
        """Whether a stage has run to its end with its present key, and all it made is still there."""
        return _stands(self.directory / stage / "done", self.directory / stage, self.keys[stage].stage)

    def mark_done(self, stage: str) -> None:
        """Write down that a stage is complete, and every file it consists of."""
        _mark(self.directory / stage / "done", self.directory / stage, self.keys[stage].stage)

    def mark_published(self) -> None:
        """Write down that the report is complete, and every file it consists of."""
        _mark(self.directory / "published", self.report, self.report_key)

    def sync(self) -> None:
        """Bring the time stamps `make` compares into line with the keys: write those that changed, drop stale marks."""
        for stage in STAGES:
            directory = self.directory / stage
            if (directory / "done").is_file():
                for path in _lost(directory / "done", directory):
                    path.unlink(missing_ok=True)  # a file that has changed is no result: it is made again
            _sync(directory / "key", directory / "done", directory, self.keys[stage].stage)
        _sync(self.directory / "report.key", self.directory / "published", self.report, self.report_key)

    def prepare(self, stage: str) -> None:
        """Set aside what other code, params or data made, take back what the present ones made; start the page anew.

        So an edit that is undone, or a parameter that is set back, costs nothing. The latest `SETS_ASIDE` sets stay.
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
        _drop(*sorted(aside.glob("*"), key=lambda path: path.stat().st_mtime_ns)[:-SETS_ASIDE])
        _drop(directory / "results")

    def keep(self, stage: str, why: str) -> None:
        """Say that what a stage keeps is what the present code, params and data would make, and write down why.

        For changes that no figure depends on, where making a day's results again would show no more: a comment, a new option.
        The page's provenance says so.

        Raises:
            PipelineError: the stage keeps nothing.
        """
        directory = self.directory / stage
        if not (marker := directory / "results.key").is_file():
            raise PipelineError(f"{stage}: keeps nothing yet; allowed is a stage that has begun")
        if self.is_prepared(stage):
            return
        write_atomic(directory / "kept.json", json.dumps([*self.kept(stage), why], indent=1, ensure_ascii=False) + "\n")
        write_atomic(marker, self.keys[stage].results)

    def kept(self, stage: str) -> list[str]:
        """Why a stage's results were kept over changes, the oldest first."""
        return self._read_list(stage, "kept.json")

    def computed(self, stage: str) -> list[dict[str, Any]]:
        """The executions that computed what a stage keeps, the oldest first: `commit`, `started`, `duration_s`."""
        return self._read_list(stage, "computed.json")

    def _read_list(self, stage: str, name: str) -> list[Any]:
        path = self.directory / stage / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []

    def is_prepared(self, stage: str) -> bool:
        """Whether what a stage keeps belongs to the present results key."""
        marker = self.directory / stage / "results.key"
        return marker.is_file() and marker.read_text() == self.keys[stage].results


def _move_kept(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in _KEPT:
        if (source / name).exists():
            if (target / name).is_dir():  # which a rename does not replace, other than a file
                shutil.rmtree(target / name)
            (source / name).rename(target / name)


def _drop(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader, or a kill, finds the old one or the new one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8", newline="")
    scratch.replace(path)


def lock(path: Path, waiting: str) -> TextIO:
    """Hold a lock until the returned file is closed or the process ends, however it ends; says so if it must wait."""
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


def imported(sources: Iterable[str], package: Path, aside: Iterable[Path] = ()) -> set[Path]:
    """The modules of a package that Python sources import, at any depth of their code, and those that these import in turn.

    Args:
        sources: code; a notebook's magics are no part of it.
        package: the package's directory; its imports are absolute ones.
        aside: modules that are left out with what only they import.

    Raises:
        PipelineError: a source that is not Python.
    """
    left_out, found = set(aside), set[Path]()
    waiting = [re.sub(r"(?m)^\s*[%!].*", "", source) for source in sources]
    while waiting:
        for name in _imports(waiting.pop()):
            first, *rest = name.split(".")
            if first == package.name:
                files = _module_files(package, rest) - left_out - found
                found |= files
                waiting += [path.read_text(encoding="utf-8") for path in files]
    return found


@functools.cache
def _imports(source: str) -> set[str]:
    """The dotted names of what code imports: modules, and what may be a module or something in one."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except SyntaxError as error:
        raise PipelineError(f"a notebook's cell or a module is not Python: {error}") from None
    whole = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return whole | {f"{n.module}.{alias.name}" for n in nodes if isinstance(n, ast.ImportFrom) for alias in n.names}


def _module_files(package: Path, names: Sequence[str]) -> set[Path]:
    """What Python runs on the import of `package.a.b`: every package on the way and the module, where the last is one."""
    places = [package.joinpath(*names[:depth]) for depth in range(len(names) + 1)]
    candidates = [place / "__init__.py" for place in places] + [place.with_suffix(".py") for place in places[1:]]
    return {path for path in candidates if path.is_file()}


def _hash_source(source: str) -> str | None:
    """What a source that `params` has checked holds; the hidden files of a directory are left out."""
    if source.startswith("dir:"):
        base = Path(source.removeprefix("dir:"))
        return hash_files(_visible(base), base)
    if not source.endswith((".json", ".json.gz")):
        return None
    with Path(source).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _visible(base: Path) -> Iterable[Path]:
    """The files under a directory, but for hidden ones and those in hidden directories."""
    files = (path for path in sorted(base.rglob("*")) if path.is_file())
    return (path for path in files if not any(part.startswith(".") for part in path.relative_to(base).parts))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _cells(notebook: Path) -> list[tuple[str, list[str], str]]:
    """Source, tags and type of every cell."""
    try:
        cells = json.loads(notebook.read_bytes())["cells"]
    except (ValueError, KeyError):
        raise PipelineError(f"notebooks/{notebook.name}: is not a notebook") from None
    return [("".join(c["source"]), sorted(c.get("metadata", {}).get("tags", [])), c["cell_type"]) for c in cells]


def _contents(base: Path) -> dict[str, int]:
    """Sizes of the files under `base`, hidden ones, keys and marks aside."""
    aside = {"key", "done", "executed.failed.ipynb"}
    return {p.relative_to(base).as_posix(): p.stat().st_size for p in _visible(base) if p.name not in aside}


def _mark(mark: Path, base: Path, key: str) -> None:
    write_atomic(mark, json.dumps({"key": key, "files": _contents(base)}, indent=1) + "\n")


def _lost(mark: Path, base: Path) -> list[Path]:
    """The files a mark names that are gone or have changed in size."""
    files = json.loads(mark.read_text())["files"]
    return [base / n for n, size in files.items() if not (base / n).is_file() or (base / n).stat().st_size != size]


def _stands(mark: Path, base: Path, key: str) -> bool:
    return mark.is_file() and json.loads(mark.read_text())["key"] == key and not _lost(mark, base)


def _sync(key_file: Path, mark: Path, base: Path, key: str) -> None:
    if not key_file.is_file() or key_file.read_text() != key:
        write_atomic(key_file, key)
    if _stands(mark, base, key):
        if mark.stat().st_mtime_ns <= key_file.stat().st_mtime_ns:
            mark.touch()
    else:
        mark.unlink(missing_ok=True)
