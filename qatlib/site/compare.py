"""Several reports side by side: different parameters, paired differences on equal questions, tables, figures.

Everything is made from the reports' own result files, like every page. Neither models nor data are needed.
"""

from __future__ import annotations

import argparse
import base64
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from qatlib.files import write_atomic
from qatlib.judging import results, stats
from qatlib.judging.published import published
from qatlib.run.stages import STAGES
from qatlib.site.origin import flatten
from qatlib.site.pages import environment, page_style, read_json
from qatlib.site.show import table_html

_MOST = 60
"""Largest number of rows that are shown of a table."""


@dataclass(frozen=True)
class Report:
    """A report's folder and its name."""

    name: str
    folder: Path

    def provenance(self, stage: str) -> dict[str, Any]:
        """The provenance of one stage; empty if it has not run."""
        found: dict[str, Any] = read_json(self.folder / "provenance" / f"{stage}.json", {})
        return found

    def files(self, stage: str, pattern: str) -> dict[str, Path]:
        """Result files of one stage by their stem."""
        return {path.stem: path for path in sorted((self.folder / "results" / stage).glob(pattern))}


def compare(folders: Sequence[Path], out: Path, **options: Any) -> Path:
    """Write one page about two or more reports. The others are compared with the first.

    Args:
        folders: the folders of reports, as `make report` writes them.
        out: the page to write.
        options: options of `qatlib.judging.stats.cluster_bootstrap`.

    Raises:
        ValueError: fewer than two reports, the same report twice, or a folder without a report.
    """
    if len(folders) < 2 or len({f.resolve() for f in folders}) < len(folders):
        raise ValueError(f"RUNS: allowed are two reports or more, each once, not {', '.join(map(str, folders)) or 'none'}")
    if lost := [f for f in folders if not (f / "provenance").is_dir()]:
        raise ValueError(f"RUNS: {lost[0]} is no report; allowed are names in reports/ and paths of what make report left")
    runs = [Report(f.resolve().name, f) for f in folders]
    sections = [(stage.replace("_", " "), section) for stage in STAGES if (section := list(_stage(runs, stage)))]
    page = (
        environment()
        .get_template("compare.html.j2")
        .render(
            profile=" and ".join(run.name for run in runs),
            nav=[],
            here="compare",
            css=page_style(),
            runs=[run.name for run in runs],
            parameters=_shown(_parameters(runs), "Parameters, code, device and data that differ", "Nothing."),
            pairs=_shown(
                paired_differences(runs, **options),
                f"Against {runs[0].name}: paired differences on what both were asked; of perplexities in percent; p after Holm",
                "No evaluation of these reports has questions in common.",
            ),
            sections=sections,
        )
    )
    write_atomic(out, page)
    return out


def _parameters(runs: Sequence[Report]) -> pd.DataFrame:
    """Parameters, code, device and data that differ: `what`, and a column a run."""
    rows: dict[str, dict[str, str]] = {}
    for run in runs:
        for stage in STAGES:
            found = run.provenance(stage)
            for part in ("parameters", "mixed_precision", "code", "device", "data", "libraries"):
                for key, value in flatten(found.get(part), part):
                    rows.setdefault(key, {}).setdefault(run.name, value)
    differ = [{"what": key} | found for key, found in rows.items() if len(set(found.values())) > 1 or len(found) < len(runs)]
    return pd.DataFrame(differ, columns=["what", *(run.name for run in runs)]).fillna("–")


def paired_differences(runs: Sequence[Report], **options: Any) -> pd.DataFrame:
    """Every evaluation that the first run shares with another run, on their common questions or paragraphs.

    Returns:
        One row per evaluation, run and metric: `evaluation`, `run`, `over`, `metric` (`F1`, `EM` or `perplexity`), `value` and
        `value_over` (percent, or the perplexity), `difference` (points, or percent of the perplexity, with `_low`, `_high`), `p`
        (Holm-corrected over the table), `n`. Evaluations without common questions are left out.
    """
    rows = []
    for stage in STAGES:
        first = _evaluations(runs[0], stage)
        for run in runs[1:]:
            for name, mine in _evaluations(run, stage).items():
                if name in first:
                    where = {"evaluation": name, "run": run.name, "over": runs[0].name}
                    rows += [where | gap for gap in _gaps(mine, first[name], **options)]
    columns = ["evaluation", "run", "over", "metric", "value", "value_over"]
    table = pd.DataFrame(rows, columns=[*columns, "difference", "difference_low", "difference_high", "p", "n"])
    return table.assign(p=stats.holm(table["p"].tolist()))


def _evaluations(run: Report, stage: str) -> dict[str, pd.DataFrame]:
    """By name, one row per question or paragraph: the scores of models, without attack and under the main attacks."""
    declared, found = published(), {}
    for name, path in run.files(stage, "*.csv").items():
        if declared.declares(stage, name) and declared.find(stage, name).scored:
            found[name.removeprefix("scores_").replace("_", " ")] = _read(stage, path)
    for path in run.files(stage, "attack_rows.csv").values():
        attacked = _read(stage, path)
        for (attack, at), rows in attacked[attacked["experiment"] == "main"].groupby(["attack", "answered"], sort=False):
            found[f"attack {attack}, answered at {at}"] = rows
    return found


def _gaps(mine: pd.DataFrame, other: pd.DataFrame, **options: Any) -> Iterator[dict[str, Any]]:
    spoken = "nll" in mine
    keys = ["paragraph", "tokens"] if spoken else ["id", "paragraph"]
    common = mine[keys].merge(other[keys]).drop_duplicates()
    if common["paragraph"].nunique() < 2:
        return
    both = [frame.merge(common).assign(model=name, precision="", seed=0) for name, frame in (("mine", mine), ("other", other))]
    scores, cells = pd.concat(both, ignore_index=True), (results.Cell("mine", ""), results.Cell("other", ""))
    for metric in ("perplexity",) if spoken else ("f1", "em"):
        gap = results.paired(scores, *cells, metric, **options)
        values = [_value(frame, metric) for frame in both]
        row = {"metric": metric if spoken else metric.upper(), "value": values[0], "value_over": values[1]}
        yield row | results.interval("difference", gap) | {"p": gap.p, "n": gap.n}


def _value(frame: pd.DataFrame, metric: str) -> float:
    return float(np.exp(frame["nll"].sum() / frame["tokens"].sum()) if metric == "perplexity" else frame[metric].mean())


def _stage(runs: Sequence[Report], stage: str) -> Iterator[tuple[str, list[tuple[str, Markup]]]]:
    """Every table and figure that at least two runs have: its name, and (run, HTML) for each of these runs."""
    figures, declared = runs[0].files(stage, "figures/*.svg"), published()

    def detailed(name: str) -> bool:
        return declared.declares(stage, name) and declared.find(stage, name).detailed

    for pattern, shown in (("*.csv", _table), ("figures/*.svg", _figure)):
        found = {run.name: run.files(stage, pattern) for run in runs}
        for name in dict.fromkeys(n for files in found.values() for n in files):
            have = [(run, files[name]) for run, files in found.items() if name in files]
            hidden = pattern == "*.csv" and (name in figures or detailed(name))  # a figure's numbers, or too many rows
            if len(have) > 1 and not hidden:
                yield name.replace("_", " "), [(run, shown(stage, run, path)) for run, path in have]


def _read(stage: str, path: Path) -> pd.DataFrame:
    """A table of a report as it is declared; as pandas reads it if it is of other code, and not declared any more."""
    declared = published().declares(stage, path.stem)
    return published().find(stage, path.stem).read(path) if declared else pd.read_csv(path)


def _table(stage: str, run: str, path: Path) -> Markup:
    frame = _read(stage, path)
    cut = f", the first {_MOST} of its {len(frame):,} rows" if len(frame) > _MOST else ""
    return _shown(frame.head(_MOST), run + cut)


def _shown(frame: pd.DataFrame, caption: str, without: str = "An empty table.") -> Markup:
    if frame.empty:
        return Markup("<p>{}</p>").format(without)
    return Markup(table_html(results.readable(frame), caption, "").data)


def _figure(stage: str, run: str, path: Path) -> Markup:
    source = base64.b64encode(path.read_bytes()).decode("ascii")
    name = path.stem.replace("_", " ")
    image = Markup('<img src="data:image/svg+xml;base64,{}" alt="{} of {}">').format(source, name, run)
    return Markup('<figure class="qat-figure">{}<figcaption>{}</figcaption></figure>').format(image, run)


def main(arguments: list[str] | None = None) -> None:
    """`python -m qatlib.site.compare --runs "a b" --out reports/compare.html`."""
    parser = argparse.ArgumentParser(prog="python -m qatlib.site.compare", description="Put reports side by side.")
    parser.add_argument("--runs", required=True, help="names in reports/, or paths of reports; one with a blank in quotes")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        runs = shlex.split(given.runs)
    except ValueError as error:
        parser.exit(2, f"error: RUNS: {given.runs!r} can't be split ({error}); allowed are names with blanks between them\n")
    try:
        print(compare([Path(run if "/" in run else f"reports/{run}") for run in runs], given.out))
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
