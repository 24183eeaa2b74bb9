"""Files of questions as records: SQuAD's nested JSON, and the rows that the hub exports as JSON, JSON Lines or parquet.

JSON's layout is told by the content, never by the name: an item is a row with one question, or an article of SQuAD. Answers are
a list of `{text, answer_start}` (SQuAD), or two lists in `{text, answer_start}` (the hub).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

SUFFIXES = (".json", ".json.gz", ".jsonl", ".jsonl.gz", ".parquet")
"""Endings of the files that can be read."""

_COLUMNS = ["id", "title", "context", "question", "answers", "is_impossible"]


class DataError(ValueError):
    """Data that cannot be used. The message is one sentence: what is wrong, where, and what is allowed."""


class Record(NamedTuple):
    """One question as its file has it. The types are checked, the offsets are not."""

    source: str
    id: str
    title: str
    context: str
    question: str
    answers: list[tuple[str, int]]

    @property
    def where(self) -> str:
        """The place, as messages name it."""
        return _place(self.source, self.id)


def read_file(path: str | Path) -> Iterator[Record]:
    """The questions of one file, in order. Raises DataError."""
    where = str(path)
    if where.endswith(".parquet"):
        return _records(((f"{where}, row {i}", row) for i, row in enumerate(_parquet(path))), where)
    value = _json(path)
    if isinstance(value, list) or _is_row(value):
        rows = value if isinstance(value, list) else [value]
        return _records(((f"{where}, row {i}", row) for i, row in enumerate(rows)), where)
    articles = _field(value, "data", list, where)
    return _records(((f"{where}, data[{i}]", article) for i, article in enumerate(articles)), where)


def read_rows(source: str, split: str) -> Iterator[Record]:
    """The questions of one split of `hub:ID` or `dir:PATH`, in order. Raises DataError."""
    import datasets  # imported here: it takes seconds, and no other source needs it

    kind, _, name = source.partition(":")
    # The library's cache knows a directory's files by their time stamps, which other contents may share.
    with tempfile.TemporaryDirectory() as fresh:
        try:
            if kind == "dir" and (other := _unseen(datasets.load_dataset_builder(name, cache_dir=fresh), Path(name))):
                raise ValueError(f"it names {other}; allowed are files inside the directory that are not hidden")
            rows = datasets.load_dataset(name, split=split, cache_dir=fresh if kind == "dir" else None)
        except Exception as error:  # its libraries raise many types, which all mean the same here
            reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
            raise DataError(f"{source}, split '{split}': the data set cannot be loaded ({reason}).") from error
        yield from _records(((source, row) for row in rows), source)


def _unseen(builder: Any, base: Path) -> str | None:
    """A file of a data set that does not count for its content key, because it is hidden or outside of its directory."""
    named = (os.path.relpath(file, base) for files in (builder.config.data_files or {}).values() for file in files)
    return next((name for name in named if any(part.startswith(".") for part in Path(name).parts)), None)


def content_hash(path: str | Path) -> str:
    """SHA-256 of a file's content, unpacked if the name ends in `.gz`. Raises DataError."""
    return hashlib.sha256(_bytes(path)).hexdigest()


def printable(text: str) -> str:
    """`text` with halves of surrogate pairs, which no file can hold, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


# --------------------------------------------------------------------------------------------------------- containers


def _bytes(path: str | Path) -> bytes:
    try:
        raw = Path(path).read_bytes()
        return gzip.decompress(raw) if str(path).endswith(".gz") else raw
    except FileNotFoundError:
        raise DataError(f"{path}: the file does not exist; give a file of questions ({', '.join(SUFFIXES)}).") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the gzip file is damaged or cut short ({error}); fetch it again.") from None
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({error.strerror}).") from None


def _json(path: str | Path) -> Any:
    """The file's JSON value, or the list of its values if there are several (JSON Lines)."""
    raw = _bytes(path)
    try:
        text = raw.decode(json.detect_encoding(raw))
        decoder, values, end = json.JSONDecoder(), list[Any](), len(text) - len(text.lstrip())
        while end < len(text) or not values:
            value, end = decoder.raw_decode(text, end)
            values.append(value)
            while end < len(text) and text[end].isspace():
                end += 1
    except RecursionError:
        raise DataError(f"{path}: the JSON is nested too deeply; a file of questions is needed.") from None
    except ValueError as error:  # JSON's own and UTF-8's errors
        raise DataError(f"{path}: the file is not JSON ({error}); a file of questions is needed.") from None
    return values[0] if len(values) == 1 else values


def _parquet(path: str | Path) -> list[dict[str, Any]]:
    import pyarrow.parquet  # type: ignore[import-untyped]  # imported here: it takes a second, and no other format needs it

    try:
        found: list[dict[str, Any]] = pyarrow.parquet.ParquetFile(path).read(columns=_COLUMNS).to_pylist()
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's own errors are among them
        reason = str(error).partition("\n")[0].rstrip(".")
        raise DataError(f"{path}: the file is not parquet, or damaged ({reason}).") from None
    return found


# ------------------------------------------------------------------------------------------------------------- layouts


def _place(source: str, id: str) -> str:
    return f"{source}, question '{printable(id)}'"


def _field(node: object, key: str, kind: type, where: str) -> Any:
    """`node[key]` if it has the given JSON type; otherwise a DataError that names the key and the place."""
    if not isinstance(node, Mapping) or key not in node:
        raise DataError(f"{where}: the key '{key}' is missing; SQuAD's layout has it there.")
    if type(node[key]) is not kind:
        raise DataError(f"{where}: '{key}' is a {type(node[key]).__name__}, but must be a {kind.__name__}.")
    return node[key]


def _is_row(item: object) -> bool:
    return isinstance(item, Mapping) and bool({"context", "question"} & item.keys())


def _records(items: Iterable[tuple[str, object]], source: str) -> Iterator[Record]:
    """The questions of articles and rows, each given with its place."""
    for where, item in items:
        if _is_row(item):
            yield _record(item, item, where, source)
            continue
        title = _field(item, "title", str, where)
        for p, paragraph in enumerate(_field(item, "paragraphs", list, where)):
            inside = f"{where}.paragraphs[{p}]"
            context = _field(paragraph, "context", str, inside)
            for q, qa in enumerate(_field(paragraph, "qas", list, inside)):
                yield _record(qa, {"title": title, "context": context}, f"{inside}.qas[{q}]", source)


def _record(qa: object, around: object, place: str, source: str) -> Record:
    """One question, with the title and the context that stand in `around`."""
    id = _field(qa, "id", str, place)
    where = _place(source, id)
    title, context = (_field(around, key, str, where) for key in ("title", "context"))
    question, answers = _field(qa, "question", str, where), _answers(qa, where)
    if answers and isinstance(qa, Mapping) and qa.get("is_impossible") is True:
        raise DataError(f"{where}: 'is_impossible' is true, but there are answers; allowed is one or the other.")
    return Record(source, id, title, context, question, answers)


def _answers(qa: object, where: str) -> list[tuple[str, int]]:
    found = qa.get("answers") if isinstance(qa, Mapping) else None
    if isinstance(found, Mapping):
        texts, starts = (_field(found, key, list, where) for key in ("text", "answer_start"))
        if len(texts) != len(starts):
            raise DataError(f"{where}: {len(texts)} answer texts but {len(starts)} offsets, which must pair up.")
        listed: list[Any] = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    else:
        listed = _field(qa, "answers", list, where)
    return [(_field(answer, "text", str, where), _field(answer, "answer_start", int, where)) for answer in listed]
