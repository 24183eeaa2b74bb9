"""A made-up stage of a run, every text of which is hostile; no kernel runs."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from qatlib.site.show import table_html

EVIL = "<script>document.title = 'owned'</script><img src=x onerror=alert(1)>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20"><rect width="40" height="20"/></svg>'


def code(source: str, *outputs, tags=()):
    return new_code_cell(source, execution_count=1, metadata={"tags": list(tags)}, outputs=list(outputs))


def shown(html: str):
    return new_output("display_data", {"text/html": html, "text/plain": "<HTML object>"})


def stream(name: str, text: str):
    return new_output("stream", name=name, text=text)


def notebook(stage: str):
    table = table_html(pd.DataFrame({"question": [EVIL], "f1": [0.5]}), "Questions", f"results/{stage}/scores.csv")
    image = f'<img src="data:image/svg+xml;base64,{base64.b64encode(SVG).decode()}" alt="a bar">'
    return new_notebook(
        cells=[
            new_markdown_cell(f"# Title of {stage}\n\nWhat does {stage} ask?\n\nMore."),
            code("seed = 0", tags=["parameters"]),
            code("seed = 1", tags=["injected-parameters"]),
            code("train()", stream("stderr", "\r 0%|   | 0/9"), stream("stderr", "\r100%|███| 9/9\nUserWarning: old\n")),
            code(
                "bar()",
                new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "BAR"}),
            ),
            new_markdown_cell("## Scores & more\n\nSee [the next](02_switchable_train.ipynb#Scores-&-more)."),
            code("show(scores)", shown(table.data), shown(image)),
            code("print(evil)", stream("stdout", EVIL), new_output("execute_result", {"text/plain": EVIL})),
            new_markdown_cell("### Detail\n\n![outside](https://example.org/x.png) [paper](https://example.org/p)"),
            new_markdown_cell("### Detail\n\n[gone](results/none.csv) [up](../../secret) [js](javascript:alert(1))"),
            code("careless()", shown(f'<style>@import url("https://example.org/x.css")</style><b id="main">b</b>{EVIL}')),
            new_markdown_cell("# A second h1"),
        ],
        metadata={"language_info": {"name": "python"}},
    )


def _write_stage(run: Path, stage: str, headlines=True) -> Path:
    folder = run / stage
    (folder / "results" / "figures").mkdir(parents=True)
    (folder / "timing").mkdir()
    (folder / "results" / "scores.csv").write_text("question,f1\na,1\nb,0\n")
    (folder / "results" / "figures" / "bar.svg").write_bytes(SVG)
    (folder / "timing" / "times.json").write_text("{}")
    nbformat.write(notebook(stage), folder / "executed.ipynb")
    provenance = {
        "profile": EVIL,
        "parameters": {"train": {"lr": 3e-4, "bits": [2, 4]}, "text": EVIL},
        "overrides": [],
        "code": {"version": "0.1.0", "commit": "0123456789abcdef", "dirty": True, "library_sha256": "ff" * 32},
        "data": [{"name": "toyqa", "sha256": "ee" * 32, "questions": 400}],
        "seeds": [0, 1, 2],
        "device": {"name": "a CPU"},
        "started": "2026-01-02T03:04:05.678901+00:00",
        "duration_s": 125.4,
    }
    (folder / "provenance.json").write_text(json.dumps(provenance))
    lines = [{"text": f"{stage} loses 1.5 F1 {EVIL}", "table": "scores"}, {"text": "no table", "table": None}]
    (folder / "headlines.json").write_text(json.dumps(lines if headlines else []))
    return folder


@pytest.fixture(scope="session")
def hostile() -> str:
    """The text that must stay text."""
    return EVIL


@pytest.fixture(scope="session")
def write_stage() -> Callable[..., Path]:
    """`write_stage(run, stage, headlines=True)` puts a finished stage into the run's folder and returns its own."""
    return _write_stage
