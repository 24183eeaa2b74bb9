"""The stand-alone HTML report of a run.

`publish` copies a run's result files into the report's folder. `render` makes every page from that folder alone. A fresh
clone therefore rebuilds a committed report by `python -m qatlib.site.pages render reports/<profile>`, without a model, data
or a kernel. The pages hold no script and load nothing. Each has a content security policy that enforces this.
"""

import argparse
import csv
import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]

from qatlib.files import write_atomic
from qatlib.judging.published import PublishedError
from qatlib.run.stages import STAGES
from qatlib.site import ledger
from qatlib.site.answers import answers
from qatlib.site.cells import TEMPLATES, Cells, read_cells
from qatlib.site.folder import STAGE_PAGE, ForeignFileError, check_folder
from qatlib.site.origin import duration, executions, flatten, moment, summary
from qatlib.site.tables import OlderReport, missing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class File:
    """A result file; `href` is relative to the report."""

    name: str
    href: str
    contents: str


@dataclass
class Page:
    """One notebook as the report shows it. `cells` is None if it has not run."""

    name: str
    cells: Cells | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    headlines: list[dict[str, Any]] = field(default_factory=list)
    files: list[File] = field(default_factory=list)

    @property
    def label(self) -> str:
        return self.name.replace("_", " ")

    @property
    def tables(self) -> list[File]:
        return [file for file in self.files if file.href.startswith("results/") and file.name.endswith(".csv")]

    @property
    def summary(self) -> list[tuple[str, str]]:
        rows = [(label, "; ".join(values)) for label, values in summary(self.provenance)]
        return [*rows, ("Started", self.started), ("Took", self.took)]

    @property
    def sections(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """The whole provenance as titled blocks of rows. Single values are in the block "run"."""
        blocks: dict[str, list[tuple[str, str]]] = {"run": []}
        for key, value in self.provenance.items():
            rows = flatten(value)
            if rows[0][0]:
                blocks[key] = rows
            else:
                blocks["run"] += [(key, rows[0][1])]
        return [block for block in blocks.items() if block[1]]

    @property
    def started(self) -> str:
        """The start of the first execution that computed the shown results."""
        return next((moment(execution) for execution in executions(self.provenance)), "")

    @property
    def took(self) -> str:
        """The total time of all executions, including the last one, which made the page."""
        made = executions(self.provenance)
        several = f" in {len(made)} executions" if len(made) > 1 else ""
        return duration(sum(e["duration_s"] for e in made)) + several if made else ""


def publish(run_dir: str | os.PathLike[str], report_dir: str | os.PathLike[str]) -> None:
    """Replace `report_dir` by the report of the run in `run_dir`: every stage that has an `executed.ipynb`.

    The new report is built beside the old one and then replaces it as a whole. So no stale file stays, and a failure does not
    change the old report. FileNotFoundError if no stage has run, ForeignFileError if no run wrote what would be replaced.
    """
    run, report = Path(run_dir).resolve(), Path(report_dir).resolve()
    check_folder(report)
    stages = sorted(path.parent for path in run.glob("*/executed.ipynb"))
    if not stages:
        raise FileNotFoundError(f"no <stage>/executed.ipynb in {run}")
    report.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=report.parent, prefix=f".{report.name}.") as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        for stage in stages:
            _copy(stage / "executed.ipynb", new / "notebooks" / f"{stage.name}.ipynb")
            for kind in ("provenance", "headlines"):
                _copy(stage / f"{kind}.json", new / kind / f"{stage.name}.json")
            for kind in ("results", "timing"):
                if (stage / kind).is_dir():
                    shutil.copytree(stage / kind, new / kind / stage.name)
        _render(new, profile=report.name)
        if report.exists():
            report.rename(old)
        try:
            new.rename(report)
        except OSError:
            if old.exists():
                old.rename(report)
            raise


def render(report_dir: str | os.PathLike[str]) -> None:
    """Make every HTML page of `report_dir` from the notebooks and files in it. Pages of removed stages are deleted.

    FileNotFoundError if there is no notebook in it.
    """
    report = Path(report_dir).resolve()
    _render(report, profile=report.name)


def _copy(source: Path, target: Path) -> None:
    if source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _render(report: Path, profile: str) -> None:
    found = {path.stem for path in report.glob("notebooks/*.ipynb")}
    if not found:
        raise FileNotFoundError(f"no notebooks/*.ipynb in {report}")
    entries = ledger.read_ledger(report)
    stages = [_read_stage(report, name, found, entries) if name in found else Page(name) for name in sorted(found | {*STAGES})]
    shown = [stage for stage in stages if stage.cells]

    env = environment()
    common = {
        "profile": profile,
        "nav": [("index", f"{profile} report"), ("claims", "claims ledger")] + [(stage.name, stage.label) for stage in shown],
        "css": page_style(),
    }
    overview = _overview(stages)
    said = Counter(entry.said for entry in entries)
    pages = {"index.html": env.get_template("index.html.j2").render(common, here="index", said=said, **overview)}
    for i, stage in enumerate(shown):
        previous = (shown[i - 1].name, shown[i - 1].label) if i else None
        following = (shown[i + 1].name, shown[i + 1].label) if i + 1 < len(shown) else None
        pages[f"{stage.name}.html"] = env.get_template("page.html.j2").render(
            common, here=stage.name, stage=stage, previous=previous, next=following
        )
    about = {"profile": profile, "run": dict(overview["summary"])}
    write_atomic(report / "claims.json", json.dumps(ledger.as_json(entries, about), indent=1, ensure_ascii=False) + "\n")
    pages["claims.html"] = env.get_template("claims.html.j2").render(
        common,
        here="claims",
        entries=entries,
        answers=answers(report, entries),
        rule=ledger.RULE,
        summary=overview["summary"],
        anchors={stage.name: stage.cells.anchors for stage in shown if stage.cells},
    )
    for name, page in pages.items():
        write_atomic(report / name, page)
    for path in report.glob("*.html"):
        if path.name not in pages and STAGE_PAGE.fullmatch(path.name):
            path.unlink()


def environment() -> Environment:
    """The template environment of all pages. It escapes everything that is put into a template."""
    return Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def page_style() -> Markup:
    """The style sheet that every page contains."""
    highlight = "\n".join(HtmlFormatter(style="default").get_token_style_defs(".highlight"))
    return Markup((TEMPLATES / "report.css").read_text("utf-8") + highlight)


def _overview(stages: list[Page]) -> dict[str, Any]:
    """What the index shows about all stages. A provenance value that all stages share is shown once."""
    found: dict[str, dict[str, list[str]]] = {}
    for stage in stages:
        for label, values in summary(stage.provenance):
            for value in values:
                found.setdefault(label, {}).setdefault(value, []).append(stage.name[:2])
    run = [stage for stage in stages if stage.provenance]
    hashes = {(stage.provenance.get("code") or {}).get("library_sha256") for stage in run}
    return {
        "stages": stages,
        "summary": [
            (label, "; ".join(value if len(at) == len(run) else f"{', '.join(at)}: {value}" for value, at in values.items()))
            for label, values in found.items()
        ],
        "mixed_code": len(hashes) > 1,
        "brief": [line for stage in stages for line in stage.headlines if line["brief"]],
        "headlines": [(stage, stage.headlines) for stage in stages if stage.headlines],
        "files": [(stage, file) for stage in stages for file in stage.files],
    }


def _read_stage(report: Path, name: str, stages: set[str], entries: Sequence[ledger.Entry]) -> Page:
    cells = read_cells(report, name, stages, ledger.claims_behind(entries, name))
    stage = Page(name, cells, read_json(report / f"provenance/{name}.json", {}))
    stage.files = [_describe(report, path) for kind in ("results", "timing") for path in _files(report / kind / name)]
    tables = {Path(file.name).stem: file.href for file in stage.tables}
    for headline in read_json(report / f"headlines/{name}.json", []):
        table = str(headline.get("table") or "").removesuffix(".csv")
        if table and table not in tables:
            _refuse_unless_older(missing(report, name, f"the table {table}, which a headline names"))
        line = {"text": headline["text"], "href": tables.get(table, ""), "brief": headline.get("brief", False)}
        stage.headlines.append(line)

    return stage


def _refuse_unless_older(error: PublishedError) -> None:
    if not isinstance(error, OlderReport):
        raise error
    log.warning("%s", error)


def read_json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text("utf-8")) if path.exists() else default


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in {".csv", ".json"})


def _describe(report: Path, path: Path) -> File:
    href = path.relative_to(report).as_posix()
    contents = "times and memory" if href.startswith("timing/") else "JSON"
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            columns = len(next(rows, []))
            contents = f"{sum(1 for _ in rows):,} rows × {columns} columns"
    return File(path.name, quote(href), contents)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m qatlib.site.pages", description="Make the HTML report.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("render", help="make the pages again from what stands in a report's folder")
    command.add_argument("report_dir", type=Path)
    command = commands.add_parser("publish", help="replace a report by that of a run")
    command.add_argument("run_dir", type=Path)
    command.add_argument("report_dir", type=Path)
    given = parser.parse_args(arguments)
    try:
        if given.command == "render":
            render(given.report_dir)
        else:
            publish(given.run_dir, given.report_dir)
    except (FileNotFoundError, ForeignFileError) as error:
        parser.exit(2, f"error: {error}\n")
    print((given.report_dir / "index.html").resolve())


if __name__ == "__main__":
    main()
