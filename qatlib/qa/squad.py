"""SQuAD: reading, writing and sampling questions, and exact match and F1 of every question.

Source of the data layout and of the scores: Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine
Comprehension of Text", and its official script evaluate-v1.1.py.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple

from qatlib.checks import whole
from qatlib.files import replacing
from qatlib.qa.formats import DataError, Record, read_file, read_rows
from qatlib.seeds import stream


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


Unanswerable = Literal["refuse", "skip"]
"""What happens to questions without an answer."""


class Loaded(NamedTuple):
    """The questions of one split, and the number of unanswerable ones that were left out."""

    questions: list[Question]
    skipped: int


# ---------------------------------------------------------------------------------------------------------- reading


def _question(record: Record) -> Question:
    """A checked Question. Every answer must be at its offset in the context."""
    where, context = record.where, record.context
    for text, start in record.answers:
        if not text.strip():
            raise DataError(f"{where}: an answer is empty; it must be a part of the context.")
        if start < 0 or context[start : start + len(text)] != text:
            raise DataError(f"{where}: the answer {text!r} is not at its offset {start} in the context, where it must stand.")
    try:
        "".join(record[1:5]).encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: half a surrogate pair in the text; it must be valid Unicode.") from None
    return Question(*record[1:5], tuple(Answer(text, start) for text, start in record.answers))


def _checked(records: Iterable[Record], source: str, unanswerable: Unanswerable) -> Loaded:
    """The questions that have answers. DataError if two share an id, if there are none, or if one has no answer but must."""
    first_seen: dict[str, str] = {}
    kept, skipped = [], 0
    for record in records:
        question = _question(record)
        if question.id in first_seen:
            raise DataError(f"{record.where}: the id was already used in {first_seen[question.id]}; ids must be unique.")
        first_seen[question.id] = record.source
        if question.answers:
            kept.append(question)
        elif unanswerable == "skip":
            skipped += 1
        else:
            raise DataError(
                f"{record.where}: there is no answer; every question must have at least one, or 'unanswerable' be 'skip'."
            )
    if not kept:
        raise DataError(f"{source}: there are no questions{' with an answer' * bool(skipped)}; at least one is needed.")
    return Loaded(kept, skipped)


def read_squad(paths: str | Path | Sequence[str | Path], unanswerable: Unanswerable = "refuse") -> list[Question]:
    """Read one or several files of questions, in order: SQuAD's JSON, or rows as JSON, JSON Lines or parquet; plain or `.gz`.

    Args:
        unanswerable: what happens to questions without an answer (SQuAD 2.0): `refuse` them, or `skip` them.

    Raises:
        DataError: a file is missing, cut short, not JSON or not in a known layout; an answer is not at its offset; a
            question has no answer; two questions share an id; there are no questions.

    Example:
        >>> questions = read_squad(["train-v1.1.json", "dev-v1.1.json"])
        >>> answer = questions[0].answers[0]
        >>> questions[0].context[answer.start :].startswith(answer.text)
        True
    """
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    return load(files, "", unanswerable).questions


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
    path = Path(path)
    with replacing(path) as scratch:
        scratch.write_bytes(gzip.compress(raw, mtime=0) if path.name.endswith(".gz") else raw)


def load(source: str | Sequence[str | Path], split: str, unanswerable: Unanswerable = "refuse") -> Loaded:
    """Load the questions of one split, and count those that are left out.

    Args:
        source: `"hub:ID"`, a data set of the hub; `"dir:PATH"`, a local directory in the hub's layout (parquet or JSON
            shards); or a list of files as `read_squad` takes them, which together are the split.
        split: in the syntax of the `datasets` library: `"train"`, `"validation"`, `"train[:1000]"`.
        unanswerable: as in `read_squad`.

    Raises:
        DataError: the source cannot be used, for any reason. There is no fallback source.
    """
    if not isinstance(source, str):
        records = (record for path in source for record in read_file(path))
        return _checked(records, ", ".join(map(str, source)) or "the list of files", unanswerable)
    kind, _, name = source.partition(":")
    if kind not in ("hub", "dir") or not name:
        raise DataError(f"data source '{source}': not known; allowed are 'hub:ID', 'dir:PATH' and a list of files.")
    if kind == "dir" and not Path(name).is_dir():
        raise DataError(f"{source}: the directory does not exist; give one that holds a hub data set's shards.")
    return _checked(read_rows(source, split), f"{source}, split '{split}'", unanswerable)


def digest(questions: Sequence[Question]) -> str:
    """SHA-256 over everything that the questions say, in their order."""
    return hashlib.sha256(repr(questions).encode()).hexdigest()


def load_questions(source: str | Sequence[str | Path], split: str, unanswerable: Unanswerable = "refuse") -> list[Question]:
    """The questions of `load`."""
    return load(source, split, unanswerable).questions


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
