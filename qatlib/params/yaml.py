"""YAML as a params file may use it: plain values of modest size, every key once, problems told in one sentence."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from qatlib.qa.formats import printable


class ParamsError(ValueError):
    """A params file or an override that can't be used: one sentence with where, what was given, what is allowed."""


LONGEST, DEEPEST, MOST = 100_000, 20, 10_000
"""Characters of a text, levels of nesting and values, copies by aliases included: far more than any params need."""


def given(value: Any) -> str:
    """A value as a message shows it, shortened."""
    return shortened(json.dumps(value, ensure_ascii=False))


def shortened(text: str) -> str:
    """A text as a message shows it: at most 120 characters, halves of surrogate pairs as escapes."""
    text = printable(text[:121])
    return text if len(text) <= 120 else f"{text[:117]}…"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: `1e-3` is a number, `no` and a date are strings."""

    yaml_implicit_resolvers: dict[str, Any] = {}
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As the library's, which nests its calls without a limit."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(None, None, f"nested more than {DEEPEST} levels deep", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


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
    if len(text) > LONGEST:
        raise ParamsError(f"{where}: has {len(text):,} characters; allowed are at most {LONGEST:,}")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _extent(node, (), {})
        value = None if node is None else loader.construct_document(node)
        json.dumps(value, ensure_ascii=False).encode()
    except ParamsError as error:
        raise ParamsError(f"{where}: {error}") from None
    except UnicodeEncodeError:
        raise ParamsError(f"{where}: holds half a surrogate pair; allowed is valid Unicode") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark and "\n" in text.strip() else ""
        reason = shortened(" ".join(str(getattr(error, "problem", None) or error).split()))
        raise ParamsError(f"{where}: is not YAML{line} ({reason}); allowed is one YAML value") from None
    return value


def _extent(node: yaml.Node, path: tuple[str, ...], known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """The number of values and the levels of nesting that a node stands for if every alias is a copy.

    Args:
        known: the extents of nodes seen before, by id; None for those that the present node is inside of.

    Raises:
        ParamsError: what YAML lets through: a key given twice, a key that is no word, a tag, an alias inside itself, aliases that
            stand for too much.
    """
    here, line = ".".join(path) or "the value", node.start_mark.line + 1
    if id(node) in known:
        if (found := known[id(node)]) is None:
            raise ParamsError(f"{here} in line {line} contains itself; allowed is an alias of something else")
        return found
    if node.tag not in _TAGS:
        raise ParamsError(f"{here} in line {line} has the tag {shortened(node.tag)}; allowed are plain values")
    known[id(node)] = None
    extents = [(0, 0)]
    if isinstance(node, yaml.SequenceNode):
        extents += [_extent(item, path, known) for item in node.value]
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            name = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            dotted = ".".join((*path, shortened(name)))
            if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith((":str", ":merge")):
                raise ParamsError(f"{dotted} in line {line} is used as a key; allowed are words")
            if name in seen:
                raise ParamsError(f"{dotted} is given twice, again in line {line}; allowed is one value a key")
            seen.add(name)
            extents.append(_extent(value, (*path, shortened(name)), known))
    known[id(node)] = size, depth = 1 + sum(size for size, _ in extents), 1 + max(depth for _, depth in extents)
    if size > MOST or depth > DEEPEST:
        limit = f"at most {MOST:,} values, nested at most {DEEPEST} deep"
        raise ParamsError(f"{here} in line {line} stands for too much, each alias being a copy; allowed are {limit}")
    return size, depth
