"""What leaves the machine: no path, no home, no user's name."""

import json
import sys
import tempfile
from pathlib import Path

import pytest

from qatlib.run.portable import make_portable, portable, portable_values


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/al ice")
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "alice.b")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("params/mine.yaml", "params/mine.yaml"),
        ("{root}/params/mine.yaml", "params/mine.yaml"),
        ("/home/me/mine.yaml", "…/mine.yaml"),
        ("data.train=[/home/me/a.json,/b.json.gz]", "data.train=[…/a.json,…/b.json.gz]"),
        ("model.source=dir:/home/me/model", "model.source=dir:…/model"),
        ("data.train=[../squad/a.json]", "data.train=[../squad/a.json]"),
        ("data.train=['/mnt/Al Ice/a.json',/home/al ice/b.json]", "data.train=['…/a.json',…/b.json]"),
        ("data.train=[../../home/al ice/my/a.json]", "data.train=[…/a.json]"),
        ("data.train=[../alice.b/a.json]", "data.train=[../…/a.json]"),
        ("hub:rajpurkar/squad", "hub:rajpurkar/squad"),
        ("1 / 2 and a/b", "1 / 2 and a/b"),
    ],
)
def test_no_paths_of_the_machine(text: str, shown: str, tmp_path: Path) -> None:
    assert portable(text.format(root=tmp_path), tmp_path) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/mnt/Al Ice/my data.json", "…/my data.json"),
        ("dir:/mnt/Al Ice/my model", "dir:…/my model"),
        ("dir:/home/al ice/my model/", "dir:…/my model"),
        ("hub:a/b", "hub:a/b"),
        (["/home/al ice/a.json", 3, None], ["…/a.json", 3, None]),
    ],
)
def test_a_path_is_cut_whole(value: object, shown: object, tmp_path: Path) -> None:
    assert portable_values({"x": value}, tmp_path) == {"x": shown}


def test_no_path_of_the_machine_stays_in_a_notebook(tmp_path: Path) -> None:
    lines = [f"{sys.prefix}/lib/tqdm/auto.py:21: TqdmWarning\n", f"{tmp_path}/qatlib/x.py\n", "0.5 / 2 and a/b stay\n"]
    lines += ["/home/al ice/.cache/y.py: no\n", f"{tempfile.gettempdir()}/matplotlib-x1 is\n", "/usr/lib/alice.b/z.py\n"]
    picture = "<img src='data:image/png;base64,AB/tmp/home/alice.b/'></img>"
    shown = {
        "text/html": [f"<b title='{tmp_path}/a b'>{sys.prefix}</b> /home/al ice/.cache", picture],
        "text/plain": "<x at /tmp/y>",
    }
    content = {
        "metadata": {
            "papermill": {"parameters": {"profile": f"{tmp_path}/mine.yaml", "overrides": [f"data.train=[{tmp_path}/a.json]"]}}
        },
        "cells": [
            {"cell_type": "code", "metadata": {}, "source": "f()", "outputs": [{"output_type": "stream", "text": lines}]},
            {"cell_type": "code", "metadata": {}, "source": "g()", "outputs": [{"output_type": "display_data", "data": shown}]},
            {"cell_type": "markdown", "metadata": {}, "source": "x"},
        ],
    }
    path = tmp_path / "executed.ipynb"
    path.write_text(json.dumps(content))
    make_portable(path, tmp_path)
    text = path.read_text()
    assert str(tmp_path) not in text and sys.prefix not in text
    assert "al ice" not in text and "usr" not in text and tempfile.gettempdir() not in text.replace(picture, "")
    assert picture in text and "<b title='a b'>.venv/</b> ~/.cache" in text
    assert ".venv/lib/tqdm/auto.py:21" in text and "0.5 / 2 and a/b stay" in text
