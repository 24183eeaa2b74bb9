"""Where a report comes from: a provenance file as lines for a reader."""

from __future__ import annotations

import re
from typing import Any


def summary(provenance: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The main facts of a provenance file, each label with its values; empty if there is no file."""
    if not provenance:
        return []
    code, device, data = (provenance.get(key) or {} for key in ("code", "device", "data"))
    commit = str(code.get("commit") or "unknown")[:10] + (" and uncommitted changes" if code.get("dirty") else "")
    earlier = [f"{moment(e)} by {str(e['commit'])[:10]}, {duration(e['duration_s'])}" for e in executions(provenance)[:-1]]
    if isinstance(device, dict):
        device = device.get("name") or device.get("type") or _plain(device)
    if isinstance(data, list):
        counts = [f" ({item['questions']:,} questions)" if item.get("questions") else "" for item in data]
        data = [f"{item.get('name', '')}{count}" for item, count in zip(data, counts, strict=True)]
    rows = {
        "Profile": provenance.get("profile"),
        "Commit": commit,
        "Computed earlier": earlier,
        "Library": " ".join(str(code[key])[:10] for key in ("version", "library_sha256") if code.get(key)),
        "Device": device,
        "Mixed precision": provenance.get("mixed_precision"),
        "Model": _model((provenance.get("parameters") or {}).get("model") or {}, provenance.get("model_version")),
        "Data": _plain(data),
        "Seeds": _plain(provenance.get("seeds")),
        "Overrides": _plain(provenance.get("overrides")) or "none",
        "Kept over changes": list(dict.fromkeys(why.rstrip(".") for why in provenance.get("kept", []))),
    }
    return [(label, value if isinstance(value, list) else [str(value)]) for label, value in rows.items() if value]


def executions(provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """The executions that computed cached results, and the one that made the page, each once; the oldest first."""
    page = {"commit": (provenance.get("code") or {}).get("commit")} | {k: provenance.get(k) for k in ("started", "duration_s")}
    earlier = [e for e in provenance.get("computed", []) if e["started"] != page["started"]]
    return [e for e in (*earlier, page) if e["started"] and e["duration_s"] is not None]


def moment(execution: dict[str, Any]) -> str:
    """The start of an execution, to the minute."""
    return re.sub(r"T(\d\d:\d\d)[\d:.]*", r" \1 ", str(execution["started"])).strip()


def duration(seconds: float) -> str:
    """Seconds as hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _model(section: dict[str, Any], version: str | None) -> str:
    """The source of the weights and their version. For a model without given weights also its shape."""
    about = [version] if version else []
    about += [f"{section[key]} {word}" for key, word in (("n_layer", "blocks"), ("n_embd", "wide")) if section.get(key)]
    return str(section.get("source", "")) + (f" ({', '.join(about)})" if about else "")


def _plain(value: Any) -> str:
    return ", ".join(f"{key} {item}".strip() for key, item in flatten(value)) if value else ""


def flatten(value: Any, key: str = "") -> list[tuple[str, str]]:
    """Nested dicts and lists as rows (dotted key, text). A scalar, or a list of scalars, is one row."""
    if isinstance(value, dict) and value:
        return [row for name, item in value.items() for row in flatten(item, f"{key}.{name}".lstrip("."))]
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        names = [item.get("name", i) if isinstance(item, dict) else i for i, item in enumerate(value)]
        return [row for name, item in zip(names, value, strict=True) for row in flatten(item, f"{key}[{name}]")]
    text = ", ".join(map(str, value)) if isinstance(value, list) else "" if value in (None, {}) else str(value)
    return [(key, text)]
