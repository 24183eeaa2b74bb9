"""YAML as a params file may use it: plain values, every key once, problems told in one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml


class ParamsError(ValueError):
    """A params file or an override that can't be used: one sentence with where, what was given, what is allowed."""


def given(value: Any) -> str:
    """A value as a message shows it, shortened."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}…"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: `1e-3` is a number, `no` and a date are strings."""

    yaml_implicit_resolvers: dict[str, Any] = {}


for _tag, _pattern, _first in (
    ("null", r"null|~|", ["n", "~", ""]),
    ("bool", r"true|false", ["t", "f"]),
    ("int", r"0|[-+]?[1-9]\d*", list("-+0123456789")),
    ("float", r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?|[-+]?\.inf|\.nan", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)

_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "merge", "str", "seq", "map")}


def read_yaml(text: str, where: str) -> Any:
    """The one value that `text` holds, None if it is empty.

    Raises:
        ParamsError: beginning with `where`, what is wrong and in which line.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        problem = next(_problems(node, ()), None)
        value = None if node is None or problem else loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark and "\n" in text.strip() else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ParamsError(f"{where}: is not YAML{line} ({reason}); allowed is one YAML value") from None
    if problem:
        raise ParamsError(f"{where}: {problem}")
    return value


def _problems(node: yaml.Node | None, path: tuple[str, ...], parents: tuple[int, ...] = ()) -> Iterator[str]:
    """What YAML lets through: a key given twice, a key that is no word, a tag, an alias inside itself."""
    if node is None:
        return
    here = ".".join(path) or "the value"
    line = node.start_mark.line + 1
    if id(node) in parents:
        yield f"{here} in line {line} contains itself; allowed is an alias of something else"
    elif node.tag not in _TAGS:
        yield f"{here} in line {line} has the tag {node.tag}; allowed are plain values"
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _problems(item, path, (*parents, id(node)))
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            name = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            dotted = ".".join((*path, name))
            if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith((":str", ":merge")):
                yield f"{dotted} in line {line} is used as a key; allowed are words"
            if name in seen:
                yield f"{dotted} is given twice, again in line {line}; allowed is one value a key"
            seen.add(name)
            yield from _problems(value, (*path, name), (*parents, id(node)))
