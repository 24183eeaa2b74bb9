"""A pydantic validation error as one sentence: what was given, and what is allowed instead, read off the schema."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from qatlib.params.yaml import given, shortened


def complaint(error: ValidationError, model: type[BaseModel]) -> tuple[str, str]:
    """The dotted key and the sentence of one error; an unknown key goes first, for its right spelling is missing too.

    Validators of `model` say what is allowed by a ValueError, or by a PydanticCustomError `inner` with a context of
    `key` (below its own), `given` and `allowed`.
    """
    errors = error.errors(include_url=False)
    unknown = [e for e in errors if e["type"] in ("extra_forbidden", "unexpected_keyword_argument")]
    first = (unknown or errors)[0]
    context = first.get("ctx", {})
    loc = (*first["loc"], context["key"]) if first["type"] == "inner" else first["loc"]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{shortened(part)}" for part in loc).lstrip(".")
    schema = _schema(model)
    if unknown:
        names = sorted(schema.section(loc[:-1]))
        near = difflib.get_close_matches(str(loc[-1]), names, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return key, f"{key} is an unknown key, given {given(first['input'])}; allowed are {', '.join(names)}{hint}"
    if first["type"] == "inner":
        return key, f"{key} is {given(context['given'])}; allowed is {context['allowed']}"
    allowed = str(context["error"]) if first["type"] == "value_error" else schema.words(schema.at(loc))
    state = "missing" if first["type"] == "missing" else given(first["input"])
    return key, f"{key} is {state}; allowed is {allowed}"


@functools.cache
def _schema(model: type[BaseModel]) -> Schema:
    return Schema(model)


class Schema:
    """A model's JSON schema, to be asked what stands where."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.root = model.model_json_schema()

    def _resolve(self, node: dict[str, Any]) -> dict[str, Any]:
        """Follow references and pass over `or null`."""
        while "$ref" in node or "anyOf" in node:
            node = next((n for n in node.get("anyOf", ()) if n.get("type") != "null"), node)
            if "$ref" in node:
                node = self.root["$defs"][node["$ref"].rpartition("/")[2]]
        return node

    def at(self, loc: Sequence[str | int]) -> dict[str, Any]:
        """The schema of what stands at `loc`."""
        node = self.root
        for part in loc:
            node = self._resolve(node)
            node = node["items"] if isinstance(part, int) else node["properties"][part]
        return node

    def section(self, loc: Sequence[str | int]) -> list[str]:
        """The keys of the section at `loc`."""
        return list(self._resolve(self.at(loc))["properties"])

    def words(self, node: dict[str, Any]) -> str:
        """A schema in words: `an integer of at least 1`."""
        if {"type": "null"} in node.get("anyOf", ()):
            inner = self._resolve(node)
            return f"{self.words(inner)}{',' * (inner.get('type') == 'array')} or null"
        node = self._resolve(node)
        if "properties" in node:
            return f"a section with {', '.join(node['properties'])}"
        if "description" in node:
            return str(node["description"])
        if "enum" in node or "const" in node:
            return " or ".join(repr(value) for value in node.get("enum", [node.get("const")]))
        if "prefixItems" in node:
            return f"a list of {len(node['prefixItems'])}, each {self.words(node['prefixItems'][0])}"
        if node["type"] == "array":
            count = node.get("minItems", 0)
            least = f" of at least {'one' if count == 1 else count}" if count else ""
            return f"a list{least}, each {self.words(node['items'])}"
        limits = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most", "exclusiveMaximum": "less than"}
        bounds = [
            f"{word} {node[key]:{',' if isinstance(node[key], int) else 'g'}}" for key, word in limits.items() if key in node
        ]
        name = {"integer": "an integer", "number": "a number", "boolean": "true or false", "string": "text"}[node["type"]]
        return f"{name} of {' and '.join(bounds)}" if bounds else name
