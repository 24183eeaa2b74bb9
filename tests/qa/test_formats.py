"""Files and directories of questions: every layout gives the same records, and what is wrong is one sentence."""

import gzip
import json
import os
from pathlib import Path

import pandas as pd
import pytest

from qatlib.qa import formats
from qatlib.qa.formats import DataError, Record
from qatlib.qa.squad import load, load_questions

ROWS = [
    {"id": "a", "title": "t", "context": "a red fox", "question": "Who?", "answers": {"text": ["fox"], "answer_start": [6]}},
    {"id": "b", "title": "t", "context": "a red fox", "question": "Which?", "answers": {"text": ["red"], "answer_start": [2]}},
]
RECORDS = [("a", "t", "a red fox", "Who?", [("fox", 6)]), ("b", "t", "a red fox", "Which?", [("red", 2)])]


def article(rows: list[dict], nested: bool) -> dict:
    """The rows as an article of SQuAD, with the hub's form of answers if `nested`."""
    qas = []
    for row in rows:
        pairs = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        listed = [{"text": text, "answer_start": start} for text, start in pairs]
        qas.append({"id": row["id"], "question": row["question"], "answers": row["answers"] if nested else listed})
    return {"title": "t", "paragraphs": [{"context": rows[0]["context"], "qas": qas}]}


LAYOUTS = {
    "SQuAD": json.dumps({"version": "1.1", "data": [article(ROWS, nested=False)]}),
    "SQuAD with the hub's answers": json.dumps({"data": [article(ROWS, nested=True)]}),
    "rows under data": json.dumps({"data": ROWS}),
    "array of rows": json.dumps(ROWS),
    "array of articles": json.dumps([article(ROWS, nested=False)]),
    "lines": "\n".join(map(json.dumps, ROWS)) + "\n",
    "lines of Windows with a blank one": "\r\n\r\n".join(map(json.dumps, ROWS)),
    "lines over several lines": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    "with a byte order mark": "\ufeff" + json.dumps(ROWS),
}


@pytest.mark.parametrize("text", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", ["q.json", "q.jsonl", "q.json.gz", "q.jsonl.gz"])
def test_every_layout_gives_the_same_records_whatever_the_name(tmp_path: Path, text: str, name: str) -> None:
    raw = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    assert [record[1:] for record in formats.read_file(tmp_path / name)] == RECORDS


@pytest.mark.parametrize("answers", ["hub", "listed"])
def test_parquet_gives_them_too(tmp_path: Path, answers: str) -> None:
    rows = (
        ROWS
        if answers == "hub"
        else [row | {"answers": article([row], False)["paragraphs"][0]["qas"][0]["answers"]} for row in ROWS]
    )
    pd.DataFrame(rows).assign(other=1).to_parquet(tmp_path / "q.parquet")
    assert [record[1:] for record in formats.read_file(tmp_path / "q.parquet")] == RECORDS


def test_one_row_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(ROWS[0]))
    assert [record.id for record in formats.read_file(tmp_path / "q.jsonl")] == ["a"]


# what is wrong, and what is said
WRONG = {
    "text that is a number": (
        {"answers": {"text": [1], "answer_start": [6]}},
        "question 'a': 'text' is a int, but must be a str",
    ),
    "text that is null": ({"answers": {"text": [None], "answer_start": [6]}}, "'text' is a NoneType, but must be a str"),
    "offset that is text": ({"answers": {"text": ["fox"], "answer_start": ["6"]}}, "'answer_start' is a str, but must be a int"),
    "offset with a point": (
        {"answers": {"text": ["fox"], "answer_start": [6.5]}},
        "'answer_start' is a float, but must be a int",
    ),
    "more texts": ({"answers": {"text": ["fox", "red"], "answer_start": [6]}}, "2 answer texts but 1 offsets"),
    "answers that are text": ({"answers": "fox"}, "'answers' is a str, but must be a list"),
    "question that is null": ({"question": None}, "'question' is a NoneType, but must be a str"),
    "context that is a number": ({"context": 1}, "'context' is a int, but must be a str"),
    "title that is a list": ({"title": ["t"]}, "'title' is a list, but must be a str"),
    "id that is a number": ({"id": 7}, "row 0: 'id' is a int, but must be a str"),
    "impossible and answered": ({"is_impossible": True}, "'is_impossible' is true, but there are answers"),
    "half a pair in the id": ({"id": "\ud800"}, r"question '\ud800': half a surrogate pair"),
    "half a pair in the title": ({"title": "\udcff"}, "half a surrogate pair in the text"),
    "half a pair in the context": ({"context": "a red fox \ud83d"}, "half a surrogate pair in the text"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_rows_are_checked_one_by_one(tmp_path: Path, change: dict, message: str) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(ROWS[0] | change))
    with pytest.raises(DataError) as raised:
        load_questions([tmp_path / "q.jsonl"], "train")
    assert message in str(raised.value) and "q.jsonl" in str(raised.value)
    str(raised.value).encode()


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("q.json", b"[" * 200_000, "nested too deeply"),
        ("q.json", b'{"data": ' * 50_000, "nested too deeply"),
        ("q.jsonl", b'{"id": "a"}\n{"id": \n', "not JSON"),
        ("q.json", b'{"data": [' + b"1" * 5_000 + b"]}", "not JSON"),
        ("q.json", b"", "not JSON"),
        ("q.parquet", b"PAR1", "not parquet, or damaged"),
        ("q.parquet", b"", "not parquet, or damaged"),
    ],
)
def test_what_is_no_such_file_is_one_sentence(tmp_path: Path, name: str, raw: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError) as raised:
        [*formats.read_file(tmp_path / name)]
    assert message in str(raised.value) and "\n" not in str(raised.value) and str(raised.value).endswith(".")


def test_columns_of_other_types_are_refused_in_parquet(tmp_path: Path) -> None:
    pd.DataFrame([row | {"id": i} for i, row in enumerate(ROWS)]).to_parquet(tmp_path / "q.parquet")
    with pytest.raises(DataError, match="row 0: 'id' is a int, but must be a str"):
        [*formats.read_file(tmp_path / "q.parquet")]


def test_unanswerable_questions_are_refused_or_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    unanswerable = ROWS[1] | {"answers": {"text": [], "answer_start": []}}
    path.write_text("\n".join(map(json.dumps, [ROWS[0], unanswerable, unanswerable | {"id": "c", "is_impossible": True}])))
    with pytest.raises(DataError, match="question 'b': there is no answer; .*'unanswerable' be 'skip'"):
        load([path], "train")
    found = load([path], "train", "skip")
    assert [q.id for q in found.questions] == ["a"] and found.skipped == 2
    path.write_text(json.dumps(unanswerable))
    with pytest.raises(DataError, match="there are no questions with an answer"):
        load([path], "train", "skip")


def test_one_content_has_one_hash_packed_or_not(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_bytes(b"[]")
    (tmp_path / "c.json.gz").write_bytes(gzip.compress(b"[]"))
    assert len({formats.content_hash(path) for path in tmp_path.iterdir()}) == 1


# -------------------------------------------------------------------------------------------------------- directories


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in the hub's layout; nothing may ask the network."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def test_a_directory_is_read_anew_where_time_stamps_are_equal(folder: Path) -> None:
    shard = folder / "validation.jsonl"
    for word in ("fox", "dog"):
        shard.write_text(json.dumps(ROWS[0] | {"context": f"a red {word}", "answers": {"text": [word], "answer_start": [6]}}))
        os.utime(shard, (1_600_000_000, 1_600_000_000))
        assert [q.context for q in load_questions(f"dir:{folder}", "validation")] == [f"a red {word}"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": {"text": ["fox"], "answer_start": [6.5]}}, "'answer_start' is a float, but must be a int"),
        ({"answers": {"text": [3], "answer_start": [6]}}, "'text' is a int, but must be a str"),
        ({"answers": [{"text": "fox", "answer_start": 5}]}, "the answer 'fox' is not at its offset 5"),
        ({"answers": {"text": None, "answer_start": None}}, "'text' is a NoneType, but must be a list"),
    ],
)
def test_types_in_a_directory_are_checked_as_in_files(folder: Path, change: dict, message: str) -> None:
    (folder / "validation.jsonl").write_text(json.dumps(ROWS[0] | change))
    with pytest.raises(DataError) as raised:
        load_questions(f"dir:{folder}", "validation")
    assert message in str(raised.value) and str(folder) in str(raised.value)


@pytest.mark.parametrize("named", ["../outside/v.jsonl", ".hidden/v.jsonl"])
def test_a_directory_reads_no_file_that_its_key_does_not_see(folder: Path, named: str) -> None:
    (folder / named).parent.mkdir()
    (folder / named).write_text(json.dumps(ROWS[0]))
    settings = f"configs:\n- config_name: default\n  data_files:\n  - split: validation\n    path: {named}\n"
    (folder / "README.md").write_text(f"---\n{settings}---\n")
    with pytest.raises(DataError, match="allowed are files inside the directory that are not hidden"):
        load_questions(f"dir:{folder}", "validation")


def test_a_place_can_be_written() -> None:
    Record("q.json", "\ud800", "", "", "", []).where.encode()
