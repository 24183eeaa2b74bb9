"""A provenance file as a reader sees it: the main facts, each execution once, nested values by dotted keys."""

from __future__ import annotations

import pytest

from qatlib.site.origin import duration, executions, flatten, moment, summary

PROVENANCE = {
    "profile": "quick",
    "code": {"commit": "a" * 40, "dirty": True, "version": "1.0"},
    "device": {"name": "a processor"},
    "mixed_precision": "bf16",
    "data": [{"name": "dev.json", "questions": 1200}, {"name": "train.json"}],
    "parameters": {"model": {"source": "embedded", "n_layer": 4, "n_embd": 128}},
    "seeds": [0, 1],
    "overrides": [],
    "started": "2026-01-02T03:04:05+00:00",
    "duration_s": 75.0,
    "computed": [
        {"commit": "b" * 40, "started": "2026-01-01T00:00:00+00:00", "duration_s": 3690.0},
        {"commit": "a" * 40, "started": "2026-01-02T03:04:05+00:00", "duration_s": 70.0},
    ],
}


def test_the_main_facts_are_lines_of_text():
    found = dict(summary(PROVENANCE))
    assert found["Commit"] == ["aaaaaaaaaa and uncommitted changes"] and found["Overrides"] == ["none"]
    assert found["Model"] == ["embedded (4 blocks, 128 wide)"] and found["Device"] == ["a processor"]
    assert found["Mixed precision"] == ["bf16"]
    assert found["Data"] == ["dev.json (1,200 questions), train.json"] and found["Seeds"] == ["0, 1"]
    assert found["Computed earlier"] == ["2026-01-01 00:00 +00:00 by bbbbbbbbbb, 1 h 1 min"]
    assert summary({}) == [] and "Kept over changes" not in found


def test_an_execution_counts_once():
    assert [e["duration_s"] for e in executions(PROVENANCE)] == [3690.0, 75.0]
    assert moment(PROVENANCE) == "2026-01-02 03:04 +00:00"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (7260, "2 h 1 min")])
def test_durations_are_hours_minutes_or_seconds(seconds, text):
    assert duration(seconds) == text


def test_nested_values_are_rows_by_dotted_keys():
    nested = {"a": {"b": 1, "c": [1, 2]}, "d": [{"name": "x", "e": None}, {"f": True}], "g": {}}
    assert flatten(nested) == [("a.b", "1"), ("a.c", "1, 2"), ("d[x].name", "x"), ("d[x].e", ""), ("d[1].f", "True"), ("g", "")]
