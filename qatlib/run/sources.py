"""The part of source code that results depend on: imported modules, and their syntax without docstrings. Torch-free."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class PipelineError(RuntimeError):
    """A stage can't run, or it failed: one sentence."""


class NotebookCell(NamedTuple):
    """A notebook's cell: its source, its tags in order, and `code` or `markdown`."""

    source: str
    tags: tuple[str, ...]
    kind: str


def read_cells(notebook: Path) -> list[NotebookCell]:
    """The cells of a notebook.

    Raises:
        PipelineError: the file is not a notebook.
    """
    try:
        found = json.loads(notebook.read_bytes())["cells"]
    except (ValueError, KeyError):
        raise PipelineError(f"notebooks/{notebook.name}: is not a notebook") from None
    return [
        NotebookCell("".join(c["source"]), tuple(sorted(c.get("metadata", {}).get("tags", []))), c["cell_type"]) for c in found
    ]


def meaning(source: str) -> str:
    """Python code without comments, layout, docstrings and a notebook's magics: only this decides what it computes.

    Raises:
        PipelineError: a source that is not Python.
    """
    return _read(source).meaning


def hash_code(paths: Iterable[Path], base: Path) -> str:
    """One SHA-256 over the names, relative to `base`, and the meanings of Python files, in any order."""
    total = hashlib.sha256()
    for path in sorted(set(paths)):
        total.update(f"{path.relative_to(base).as_posix()}\0{meaning(path.read_text(encoding='utf-8'))}\0".encode())
    return total.hexdigest()


def imported(sources: Iterable[str], package: Path, aside: Iterable[Path] = ()) -> set[Path]:
    """The modules of a package that Python sources import, directly or indirectly, anywhere in their code.

    Args:
        sources: Python code; a notebook's magics are ignored.
        package: the package's directory; all its imports must be absolute.
        aside: modules that are left out, together with modules that only they import.

    Raises:
        PipelineError: a source that is not Python.
    """
    left_out, found, known = set(aside), set[Path](), set[str]()
    waiting = list(sources)
    while waiting:
        names = _read(waiting.pop()).imports - known
        known |= names
        for name in names:
            first, *rest = name.split(".")
            if first == package.name:
                files = _module_files(package, rest) - left_out - found
                found |= files
                waiting += [path.read_text(encoding="utf-8") for path in files]
    return found


class _Code(NamedTuple):
    """What a key takes from a source.

    Attributes:
        imports: the dotted names that it imports. Each may be a module or a name in a module.
    """

    meaning: str
    imports: frozenset[str]


@functools.cache
def _read(source: str) -> _Code:
    try:
        tree = ast.parse(re.sub(r"(?m)^\s*[%!].*", "", source))
    except SyntaxError as error:
        raise PipelineError(f"a notebook's cell or a module is not Python: {error}") from None
    imports: set[str] = set()
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_text(line)] or [ast.Pass()]
        elif isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imports.update(f"{node.module}.{alias.name}" for alias in node.names)
    return _Code(ast.unparse(tree), frozenset(imports))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all statements in it. Expressions, nine of ten nodes, hold no import and no docstring."""
    yield node
    for part in ("body", "orelse", "finalbody", "handlers", "cases"):
        for statement in getattr(node, part, ()):
            yield from _statements(statement)


def _is_text(line: ast.stmt) -> bool:
    """Whether a statement is only a string, that is, a docstring of a module, class, function or attribute."""
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


def _module_files(package: Path, names: Sequence[str]) -> set[Path]:
    """The files that Python runs on the import of `package.a.b`: every parent package, and `b` if it is a module."""
    places = [package.joinpath(*names[:depth]) for depth in range(len(names) + 1)]
    candidates = [place / "__init__.py" for place in places] + [place.with_suffix(".py") for place in places[1:]]
    return {path for path in candidates if path.is_file()}
