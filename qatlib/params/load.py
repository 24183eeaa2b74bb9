"""A profile's params file with its overrides, checked before anything starts, and which stage depends on what of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qatlib.files import is_a
from qatlib.params.errors import complaint
from qatlib.params.schema import Params
from qatlib.params.sections import ROOT
from qatlib.params.yaml import DEEPEST, ParamsError, given, read_yaml

NO_RUNS = ("bench", "compare.html")
"""What `make bench` and `make compare` write to `reports/`."""


def profile_path(profile: str, root: Path = ROOT) -> Path:
    """The params file of a profile: `quick` for `params/quick.yaml`, or a path; its stem names the run."""
    names = _names(root)
    allowed = f"allowed is one of {', '.join(names)}, or the path of a .yaml file"
    if not profile.endswith((".yaml", ".yml")):
        if profile not in names:
            raise ParamsError(f"PROFILE: {given(profile)} is not a profile; {allowed}")
        return root / "params" / f"{profile}.yaml"
    path = root / profile
    if not is_a(path, Path.is_file):
        raise ParamsError(f"PROFILE: {given(profile)} is not a file; {allowed}")
    name = run_name(profile)
    for other in names:  # on some disks Quick and quick are one folder
        own = root / "params" / f"{other}.yaml"
        if name.casefold() == other.casefold() and path.resolve() != own.resolve():
            raise ParamsError(f"PROFILE: {given(profile)} has the name of params/{other}.yaml; allowed is any other name")
    return path


def run_name(profile: str) -> str:
    """The name of a profile's run: that of its folders in `runs/` and `reports/`, which must be nobody else's.

    Raises:
        ParamsError: it can't name a folder of its own.
    """
    name = Path(profile).stem if profile.endswith((".yaml", ".yml")) else profile
    if not re.fullmatch(r"\w[\w.-]*", name) or len(name.encode()) > 200:  # a file's name has at most 255 bytes
        allowed = "allowed are up to 200 letters, digits, '.', '_' and '-', of which '.' and '-' are not the first"
        raise ParamsError(f"PROFILE: {given(profile)} can't name a run; {allowed}")
    if name.casefold() in NO_RUNS:
        raise ParamsError(f"PROFILE: {given(profile)} can't name a run; reports/{name} is not a run's; allowed is any other name")
    return name


def _names(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / "params").glob("*.yaml"))


def load_params(profile: str, overrides: Sequence[str] = (), root: Path = ROOT) -> Params:
    """Read a profile's params file, apply overrides such as `data.stride=64`, check everything.

    A file that says `extends: quick` has that profile's values where it gives none: of a section key by key.

    Raises:
        ParamsError: in one sentence, the file or `SET`, the dotted key, what was given and what is allowed.
    """
    path = profile_path(profile, root)
    shown = _shown(path, root)
    values = _read(path, root)
    if "extends" in values:
        values = _extended(values, shown, root)
    changed = [_override(values, text) for text in overrides]
    try:
        return Params.model_validate_json(json.dumps(values), strict=True, context={"root": root})
    except ValidationError as error:
        key, sentence = complaint(error, Params)
        touched = [c for c in changed if f"{key}.".startswith((f"{c}.", f"{c}[")) or c.startswith(f"{key}.")]
        raise ParamsError(f"{'SET' if touched else shown}: {sentence}") from None


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _read(path: Path, root: Path) -> dict[str, Any]:
    """What a params file holds, as it stands there."""
    shown = _shown(path, root)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ParamsError(f"{shown}: is not UTF-8 text; allowed is YAML in UTF-8") from None
    values = read_yaml(text, shown)
    if not isinstance(values, dict):
        raise ParamsError(f"{shown}: holds {given(values)}; allowed is a mapping with {', '.join(Params.model_fields)}")
    values = json.loads(json.dumps(values))  # an alias becomes a copy, so that overriding one leaves the other
    return dict(values)


def _extended(values: dict[str, Any], shown: str, root: Path) -> dict[str, Any]:
    """`values` over those of the profile that their `extends` names."""
    name, names = values.pop("extends"), _names(root)
    extended = _read(root / "params" / f"{name}.yaml", root) if name in names else None
    if extended is None or "extends" in extended:
        allowed = f"one of {', '.join(names)} that extends no other"
        raise ParamsError(f"{shown}: extends is {given(name)}; allowed is {allowed}")
    for key, value in values.items():
        inner = extended.get(key)
        extended[key] = inner | value if isinstance(inner, dict) and isinstance(value, dict) else value
    return extended


def _override(values: dict[str, Any], text: str) -> str:
    """Set one `dotted.key=YAML value` in place; returns the key."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key) or key.count(".") > DEEPEST:
        raise ParamsError(f"SET: {given(text)} is no override; allowed is dotted.key=value")
    *parents, last = key.split(".")
    section = values
    for depth, name in enumerate(parents):
        if section.get(name) is None:
            section[name] = {}
        section = section[name]
        if not isinstance(section, dict):
            inner = ".".join(parents[: depth + 1])
            raise ParamsError(f"SET: {key} is {given(value)}; allowed is {inner} itself, which has no keys inside")
    section[last] = read_yaml(value, f"SET: {key}")
    return key
