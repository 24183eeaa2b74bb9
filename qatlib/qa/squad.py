"""SQuAD: reading, writing and sampling questions, and exact match and F1 of every question.

Source of the data layout and of the scores: Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine
Comprehension of Text", and its official script evaluate-v1.1.py.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import re
import string
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from qatlib.checks import whole
from qatlib.seeds import stream


class DataError(ValueError):
    """Data that cannot be used. The message is one sentence: what is wrong, where, and what is allowed."""


@dataclass(frozen=True)
class Answer:
    """One annotated answer: `context[start : start + len(text)] == text`, in characters."""

    text: str
    start: int


@dataclass(frozen=True)
class Question:
    """One question about one paragraph, with at least one answer."""

    id: str
    title: str
    context: str
    question: str
    answers: tuple[Answer, ...]

    @property
    def paragraph(self) -> str:
        """12 hex digits that identify the context. Paragraphs are the bootstrap's clusters: their questions are dependent."""
        return hashlib.sha256(self.context.encode()).hexdigest()[:12]


# ---------------------------------------------------------------------------------------------------------- reading


def _field(node: object, key: str, kind: type, where: str) -> Any:
    """`node[key]` if it has the given JSON type; otherwise a DataError that names the key and the place."""
    if not isinstance(node, Mapping) or key not in node:
        raise DataError(f"{where}: the key '{key}' is missing; SQuAD v1.1's layout has it there.")
    if type(node[key]) is not kind:
        raise DataError(f"{where}: '{key}' is a {type(node[key]).__name__}, but must be a {kind.__name__}.")
    return node[key]


def _question(source: str, id: str, title: str, context: str, question: str, answers: list[tuple[str, int]]) -> Question:
    """A checked Question. Every answer must be at its offset in the context."""
    where = f"{source}, question '{id}'"
    if not answers:
        raise DataError(f"{where}: there is no answer; every question must have at least one.")
    for text, start in answers:
        if not text.strip():
            raise DataError(f"{where}: an answer is empty; it must be a part of the context.")
        if start < 0 or context[start : start + len(text)] != text:
            raise DataError(f"{where}: the answer {text!r} is not at its offset {start} in the context, where it must stand.")
    try:
        (context + question).encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: half a surrogate pair in the text; it must be valid Unicode.") from None
    return Question(id, title, context, question, tuple(Answer(text, start) for text, start in answers))


def _unique(questions: Iterable[tuple[str, Question]], empty: str) -> list[Question]:
    """The questions of (source, question) pairs. DataError if two share an id, or (with the text `empty`) if there are none."""
    first_seen: dict[str, str] = {}
    kept = []
    for source, question in questions:
        if question.id in first_seen:
            raise DataError(
                f"{source}, question '{question.id}': the id was already used in {first_seen[question.id]}; ids must be unique."
            )
        first_seen[question.id] = source
        kept.append(question)
    if not kept:
        raise DataError(f"{empty}: there are no questions; at least one is needed.")
    return kept


def _read_json(path: str | Path) -> object:
    try:
        raw = Path(path).read_bytes()
        return json.loads(gzip.decompress(raw) if str(path).endswith(".gz") else raw)
    except FileNotFoundError:
        raise DataError(f"{path}: the file does not exist; give a SQuAD v1.1 JSON file, plain or .gz.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the gzip file is damaged or cut short ({error}); fetch it again.") from None
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({error.strerror}).") from None
    except ValueError as error:  # JSON's own and UTF-8's errors
        raise DataError(f"{path}: the file is not JSON ({error}); a SQuAD v1.1 JSON file is needed.") from None


def _read_file(path: str | Path) -> Iterable[Question]:
    for a, article in enumerate(_field(_read_json(path), "data", list, f"{path}")):
        in_article = f"{path}, data[{a}]"
        title = _field(article, "title", str, in_article)
        for p, paragraph in enumerate(_field(article, "paragraphs", list, in_article)):
            in_paragraph = f"{in_article}.paragraphs[{p}]"
            context = _field(paragraph, "context", str, in_paragraph)
            for q, qa in enumerate(_field(paragraph, "qas", list, in_paragraph)):
                id = _field(qa, "id", str, f"{in_paragraph}.qas[{q}]")
                where = f"{path}, question '{id}'"
                answers = [
                    (_field(answer, "text", str, where), _field(answer, "answer_start", int, where))
                    for answer in _field(qa, "answers", list, where)
                ]
                yield _question(str(path), id, title, context, _field(qa, "question", str, where), answers)


def read_squad(paths: str | Path | Sequence[str | Path]) -> list[Question]:
    """Read one or several SQuAD v1.1 JSON files, plain or gzipped (`.gz`), in order.

    Raises:
        DataError: a file is missing, cut short, not JSON or not in the layout; an answer is not at its offset; a
            question has no answer; two questions share an id; there are no questions.

    Example:
        >>> questions = read_squad(["train-v1.1.json", "dev-v1.1.json"])
        >>> answer = questions[0].answers[0]
        >>> questions[0].context[answer.start :].startswith(answer.text)
        True
    """
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    pairs = ((str(path), question) for path in files for question in _read_file(path))
    return _unique(pairs, ", ".join(map(str, files)) or "the list of files")


def write_squad(questions: Sequence[Question], path: str | Path) -> None:
    """Write questions as a SQuAD v1.1 JSON file (gzipped when the name ends in `.gz`) that `read_squad` reads back.

    The bytes depend only on the questions. Writing is atomic: the file is complete or does not exist.
    """
    articles = [
        {
            "title": title,
            "paragraphs": [
                {
                    "context": context,
                    "qas": [
                        {
                            "id": q.id,
                            "question": q.question,
                            "answers": [{"text": a.text, "answer_start": a.start} for a in q.answers],
                        }
                        for q in in_paragraph
                    ],
                }
                for context, in_paragraph in groupby(in_article, key=lambda q: q.context)
            ],
        }
        for title, in_article in groupby(questions, key=lambda q: q.title)
    ]
    raw = json.dumps({"version": "1.1", "data": articles}).encode()
    # The temporary file is in the same folder, because a rename is atomic only within one file system.
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(gzip.compress(raw, mtime=0) if path.name.endswith(".gz") else raw)
    temporary.replace(path)


def load_questions(source: str | Sequence[str | Path], split: str) -> list[Question]:
    """Load the questions of one split.

    Args:
        source: `"hub:ID"`, a data set of the hub; `"dir:PATH"`, a local directory in the hub's layout (parquet or JSON
            shards); or a list of SQuAD v1.1 JSON files, which together are the split.
        split: in the syntax of the `datasets` library: `"train"`, `"validation"`, `"train[:1000]"`.

    Raises:
        DataError: the source cannot be used, for any reason. There is no fallback source.
    """
    if not isinstance(source, str):
        return read_squad(source)
    kind, _, name = source.partition(":")
    if kind not in ("hub", "dir") or not name:
        raise DataError(f"data source '{source}': not known; allowed are 'hub:ID', 'dir:PATH' and a list of files.")
    if kind == "dir" and not Path(name).is_dir():
        raise DataError(f"{source}: the directory does not exist; give one that holds a hub data set's shards.")

    import datasets  # imported here: it takes seconds, and no other source needs it

    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # its libraries raise many types, which all mean the same here
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise DataError(f"{source}, split '{split}': the data set cannot be loaded ({reason}).") from error

    def parse(row: Mapping[str, Any]) -> Question:
        id = _field(row, "id", str, source)
        where = f"{source}, question '{id}'"
        title, context, question = (_field(row, key, str, where) for key in ("title", "context", "question"))
        answers = _field(row, "answers", dict, where)
        texts, starts = (_field(answers, key, list, where) for key in ("text", "answer_start"))
        if len(texts) != len(starts):
            raise DataError(f"{where}: {len(texts)} answer texts but {len(starts)} offsets, which must pair up.")
        return _question(source, id, title, context, question, list(zip(texts, starts, strict=True)))

    return _unique(((source, parse(row)) for row in rows), f"{source}, split '{split}'")


def sample(questions: Sequence[Question], n: int | None, seed: int) -> list[Question]:
    """At most `n` questions (None: all), drawn without replacement with `seed`, in their original order."""
    if n is not None:
        whole(0, n=n)
    if n is None or n >= len(questions):
        return list(questions)
    return [questions[i] for i in sorted(random.Random(stream(seed, "sample of the questions")).sample(range(len(questions)), n))]


# ------------------------------------------------------------------------------------------------------------- scores


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, English articles and extra whitespace (evaluate-v1.1.py)."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_NO_PUNCTUATION)).split())


def _token_f1(prediction: str, answer: str) -> float:
    predicted, wanted = normalize_answer(prediction).split(), normalize_answer(answer).split()
    same = sum((Counter(predicted) & Counter(wanted)).values())
    return 2 * same / (len(predicted) + len(wanted)) if same else 0.0


def exact_match(prediction: str, answers: Sequence[Answer]) -> float:
    """1.0 if the normalized prediction equals one of the normalized answers, else 0.0 (evaluate-v1.1.py)."""
    wanted = normalize_answer(prediction)
    return float(any(normalize_answer(answer.text) == wanted for answer in answers))


def f1(prediction: str, answers: Sequence[Answer]) -> float:
    """F1, in [0, 1], of the prediction's bag of tokens against an answer's, maximum over the answers (evaluate-v1.1.py)."""
    return max((_token_f1(prediction, answer.text) for answer in answers), default=0.0)
