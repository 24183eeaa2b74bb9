"""`docs/parameters.md`: every key of a params file with its allowed values, default and meaning, read off the schema.

`python -m qatlib.params.document` writes the page. The meanings are the docstrings of the schema's attributes.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import textwrap
from collections.abc import Iterator
from typing import Any, get_args

from pydantic.fields import FieldInfo

from qatlib.arguments import PRECISION
from qatlib.files import write_atomic
from qatlib.params.errors import Schema
from qatlib.params.load import load_params
from qatlib.params.schema import Params
from qatlib.params.sections import ROOT
from qatlib.precision import Precision

PAGE = ROOT / "docs" / "parameters.md"

_HEAD = """# Parameters

Every key of a params file, generated from the schema by `python -m qatlib.params.document`.

- A profile is a file of `params/` (`make report PROFILE=smoke`) or the path of your own file.
- A file that says `extends: quick` has that profile's values where it gives none, key by key within a section. It may name any
  profile of `params/` that does not itself extend another one.
- `make report SET='seed=1 data.stride=16'` overrides single values. Each value is YAML; quote one that has blanks:
  `SET='"switchable.schedule={name: cpt, cosine: {cycles: 8}}"'`.
- Files are checked before anything runs. A mistake stops with one sentence: the file, the key, what was given, what is allowed.
- Relative paths start at the repository.
- A precision is a bit-width for weights and activations (`8`), or both (`w4a8`): 2 to 16, or 32 for 'not quantized'.

The column `quick` shows the value in `params/quick.yaml` where it is short.
"""


def document() -> str:
    """The page as Markdown."""
    parts, quick = [_HEAD], load_params("quick")
    for kind, places in _sections().items():
        where = f"At {', '.join(f'`{place}`' for place in places)}. " if len(places) > 1 else ""
        parts.append(f"## {_heading(kind)}\n\n{where}{_about(kind)}\n")
        alone = len(places) == 1
        parts.append(f"| key | allowed | default |{' `quick` |' * alone} meaning |\n| --- | --- | --- |{' --- |' * alone} --- |")
        parts.append("\n".join(_row(kind, name, field, quick) for name, field in _fields(kind).items()) + "\n")
    return "\n".join(parts)


def _row(kind: type, name: str, field: FieldInfo, value: Any) -> str:
    place, *others = _sections()[kind]
    inner = _inner(field.annotation)
    cells = [f"`{name}`", _link(inner, field.annotation) if inner else _words(place, name)]
    cells.append("required" if field.is_required() else f"`{_shown(field.default)}`")
    if not others:
        for part in [*_parts(place), name]:
            value = getattr(value, part, None)
        text = "" if inner or value is None else _shown(value)
        cells.append(f"`{text}`" if 0 < len(text) <= 40 else "")
    cells.append(meanings(kind).get(name) or (_about(inner) if inner else ""))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _words(place: str, name: str) -> str:
    """What a value may be."""
    location = [0 if part == "[]" else part for part in [*_parts(place.replace("[]", ".[]")), name]]
    return _SCHEMA.words(_SCHEMA.at(location)).replace(PRECISION, "a precision")


def _link(inner: type, annotation: Any) -> str:
    """A section, or a list of them, with a link to its table."""
    heading = _heading(inner)
    anchor = "".join(c for c in heading.lower() if c.isalnum() or c == "_")
    kinds = {getattr(part, "__origin__", part) for part in (annotation, *get_args(annotation))}
    return f"{'a list, each ' * (tuple in kinds)}[{heading}](#{anchor}){' or null' * (type(None) in kinds)}"


def _parts(place: str) -> list[str]:
    return [part for part in place.split(".") if part]


@functools.cache
def _sections() -> dict[type, list[str]]:
    """Every section class with the dotted keys it stands at, the whole file first."""
    found: dict[type, list[str]] = {}
    for kind, place in _places(Params, ""):
        found.setdefault(kind, []).append(place)
    return found


def _places(kind: type, place: str) -> Iterator[tuple[type, str]]:
    yield kind, place
    for name, field in _fields(kind).items():
        if inner := _inner(field.annotation):
            several = "[]" if getattr(field.annotation, "__origin__", None) is tuple else ""
            yield from _places(inner, f"{place}.{name}{several}".lstrip("."))


def _inner(annotation: Any) -> type | None:
    """The section class in an annotation, if there is one."""
    if isinstance(annotation, type) and hasattr(annotation, "__pydantic_fields__"):
        return annotation
    return next((found for part in get_args(annotation) if (found := _inner(part))), None)


def _fields(kind: Any) -> dict[str, FieldInfo]:
    fields: dict[str, FieldInfo] = kind.__pydantic_fields__
    return fields


def _heading(kind: type) -> str:
    """The key of a section that stands once, the name of a class that stands at several keys."""
    places = _sections()[kind]
    return "The file" if kind is Params else f"`{places[0]}`" if len(places) == 1 else kind.__name__


@functools.cache
def meanings(kind: type) -> dict[str, str]:
    """The docstrings of a section's attributes, each on one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for line, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(after, ast.Expr):
            found[line.target.id] = _flat(str(ast.literal_eval(after.value)))
    return found


def _about(kind: type) -> str:
    """A section's docstring without its example."""
    return _flat(inspect.getdoc(kind) or "").partition(" Example:")[0]


def _flat(text: str) -> str:
    return " ".join(text.split())


def _shown(value: Any) -> str:
    """A value as a params file has it."""

    def plain(value: Any) -> Any:
        if isinstance(value, Precision):
            return value.w_bits if value.w_bits == value.a_bits else value.name
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    text = json.dumps(plain(value), ensure_ascii=False)
    return text[1:-1] if isinstance(value, str) else text


_SCHEMA = Schema(Params)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    write_atomic(PAGE, document())
