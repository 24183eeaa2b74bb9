"""A notebook's access to its run: params, directories, results that survive a kill, and what its page shows.

runs/<profile>/<stage>/
    memo/             what `table` computed and `settled` chose, kept while the results key is the same
    checkpoints/      checkpoints of trainings, kept likewise
    results/          tables (CSV) and figures (SVG) of the latest execution, for the report
    timing/           seconds and memory: the only results that differ between equal runs
    headlines.json, provenance.json, executed.ipynb
    computed.json     the executions that computed the cached results; a page may be made from these much later
    key, results.key, done, kept.json
    .superseded/      the latest two result sets of other code, params or data
"""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from qatlib.files import lock, write_atomic
from qatlib.judging.published import Declarations, published
from qatlib.params.sections import ROOT
from qatlib.run.frames import columns, read_table, to_csv, write_table
from qatlib.run.keys import Run
from qatlib.run.provenance import collect, commit, taken
from qatlib.run.sources import PipelineError
from qatlib.run.stages import UPSTREAM
from qatlib.run.surroundings import alone

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from qatlib.site.show import Format

EXECUTING = "QATLIB_EXECUTING"
"""Set in kernels that the pipeline starts."""

_locks: dict[Path, TextIO] = {}
"""Locks that this kernel holds until it ends, by the stage's directory."""


class Stage:
    """One notebook's access to its run: params, directories, results that survive a kill.

    Creating it checks the params, runs the upstream stage if that is not done, and moves results of older code or params
    away. Headlines and shown results start empty. Results of `table` and checkpoints are kept.

    Args:
        name: the notebook's name, `01_build`.
        profile: a name in params/, or the path of a params file.
        overrides: `dotted.key=YAML value`.
        tables: the declared tables; those of `qatlib.judging.published` by default.

    Raises:
        ParamsError: the params can't be used.
        PipelineError: an upstream stage failed.
    """

    def __init__(
        self,
        name: str,
        profile: str,
        overrides: Sequence[str] = (),
        root: Path = ROOT,
        tables: Declarations | None = None,
    ) -> None:
        alone(os.environ)
        self.started = datetime.now(UTC)
        self._tables = published() if tables is None else tables
        self.name, self.run = name, Run(profile, overrides, root)
        self.params = self.run.params
        self.directory = self.run.directory / name
        self.results = self.directory / "results"
        if EXECUTING in os.environ and self.directory not in _locks:  # the kernel of a killed run may live a moment longer
            _locks[self.directory] = lock(self.directory / ".lock", f"{name}: waiting for its last execution to end")
        if (upstream := UPSTREAM[name]) and not self.run.is_done(upstream):
            if EXECUTING in os.environ:
                raise PipelineError(f"{upstream} is no longer done: code, params or data changed; run {name} again")
            print(f"{name} needs {upstream}, which is not done for {self.run.name}: running it first …", flush=True)
            _execute_elsewhere(self.run, upstream)
        self.run.prepare(name)
        self._earlier = self.run.computed(name)
        self._headlines: dict[str, dict[str, str | bool | None]] = {}
        self._write_headlines()

    def checkpoints(self, name: str) -> Path:
        """The path of one training's checkpoints. Its parent directory is created."""
        path = self.directory / "checkpoints" / _checked(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def upstream(self, stage: str) -> Path:
        """Another stage's directory in the same run."""
        return self.run.directory / stage

    def upstream_table(self, stage: str, name: str) -> pd.DataFrame:
        """What `table(name, …)` returned in another stage of the same run."""
        return read_table(self.upstream(stage) / "memo" / _checked(name))

    def table(self, name: str, compute: Callable[[], pd.DataFrame], published: bool = True) -> pd.DataFrame:
        """The frame that `compute` returns. It is computed once; later calls read it from disk, with the same dtypes.

        The index must be the default one. Columns hold integers, floats, booleans or text. Missing text is an empty string.

        Args:
            published: whether it is also written as `results/<name>.csv`; False if other tables have the same rows.

        Raises:
            TypeError: the index or a column is of another kind.
            PublishedError: a published table differs from its declaration. The computed frame is kept.
        """
        memo = self.directory / "memo" / _checked(name)
        if published:
            self._tables.find(self.name, name)
        if not memo.with_suffix(".dtypes").is_file():
            write_table(memo, compute())
            self._computed()
        frame = read_table(memo)
        if published:
            self._tables.check(self.name, name, frame.columns)
            write_atomic(self.results / f"{name}.csv", memo.with_suffix(".csv").read_bytes().decode())
        return frame

    def settled(self, name: str, choose: Callable[[], str]) -> str:
        """What `choose` gave when it was first asked for, in this stage or upstream of it. Kept as results of `table` are."""
        path = Path("memo", f"{_checked(name)}.txt")
        own, before = self.directory / path, self.upstream(UPSTREAM[self.name] or self.name) / path
        if not own.is_file():
            write_atomic(own, before.read_text(encoding="utf-8") if before.is_file() else choose())
        return own.read_text(encoding="utf-8")

    def measured(self, name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """Like `table`, for measurements of the machine. Equal runs differ in these, so they are kept as `timing/<name>.csv`."""
        path = self.directory / "timing" / f"{_checked(name)}.csv"
        declared = self._tables.find(self.name, name)
        if not path.is_file():
            write_atomic(path, to_csv(compute()))
            self._computed()
        frame = declared.read(path)
        self._tables.check(self.name, name, frame.columns, measured=True)
        return frame

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time a block into `timing/<name>.json`, with the process's peak memory so far; the first time is kept."""
        path = self.directory / "timing" / f"{_checked(name)}.json"
        start = time.perf_counter()
        yield
        if not path.is_file():
            unit = 2**20 if sys.platform == "darwin" else 2**10
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
            seconds = time.perf_counter() - start
            write_atomic(path, json.dumps({"seconds": round(seconds, 3), "peak_rss_mb": round(peak, 1)}) + "\n")
            self._computed()

    def show(
        self,
        frame: pd.DataFrame,
        name: str,
        caption: str,
        formats: Mapping[str, Format] | None = None,
        shown: pd.DataFrame | None = None,
        measured: bool = False,
    ) -> None:
        """Display a table, and write it as `results/<name>.csv`.

        Args:
            shown: a readable version of `frame` for the page. The file always holds all of `frame`.
            measured: whether `frame` was made from a result of `measured`. It is then written as `timing/<name>.csv`.

        Raises:
            PublishedError: the table is not declared, or its columns differ from the declared ones.
        """
        from IPython.display import display

        from qatlib.site.show import table_html

        href = self._publish(frame, name, measured)
        display(table_html(frame if shown is None else shown, caption, href, formats))

    def figure(self, fig: Figure, name: str, frame: pd.DataFrame, alt: str, caption: str) -> None:
        """Display a figure, write it as `results/figures/<name>.svg` and the numbers in it as `results/<name>.csv`."""
        from IPython.display import display

        from qatlib.site.show import figure_html

        href = self._publish(frame, name)
        display(figure_html(fig, self.results / "figures" / f"{name}.svg", alt, caption, href))

    def headline(self, text: str, table: str | None = None, brief: bool = False) -> None:
        """Put a finding on the report's first page, linked to the table `results/<table>.csv`. A repeated finding is shown once.

        Args:
            brief: whether it is one of the few findings that are shown first.

        Raises:
            PublishedError: the table is not declared.
        """
        if table is not None:
            self._tables.find(self.name, table)
        self._headlines[text] = {"text": text, "table": table, "brief": brief}
        self._write_headlines()

    @property
    def headlines(self) -> list[str]:
        """The findings so far."""
        return list(self._headlines)

    def provenance(self, origin: Mapping[str, Any] | None = None) -> None:
        """Write the provenance of this run's figures, for the head of the page. Call it last.

        Args:
            origin: facts about models and data that are not in the params, such as `Study.origin`.
        """
        from IPython.display import Markdown, display

        run = self.run
        found = collect(self.params, run.profile, run.overrides, run.data_hashes, self.started, run.root, self.name)
        found |= {**(origin or {}), "computed": run.computed(self.name), "kept": run.kept(self.name)}
        write_atomic(self.directory / "provenance.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        rows = {
            "profile": " ".join([self.run.name, *found["overrides"]]),
            "code": (found["code"]["commit"] or found["code"]["library_sha256"])[:10],
            "device": found["device"]["name"],
            "seconds": found["duration_s"],
        }
        display(Markdown(" · ".join(f"**{key}** {value}" for key, value in rows.items())))

    @cached_property
    def _commit(self) -> str | None:
        return commit(self.run.root)

    def _computed(self) -> None:
        """Record that this execution computed a cached result, and its time so far."""
        now = {"commit": self._commit, **taken(self.started)}
        write_atomic(self.directory / "computed.json", json.dumps([*self._earlier, now], indent=1) + "\n")

    def _publish(self, frame: pd.DataFrame, name: str, measured: bool = False) -> str:
        """Write a declared table as CSV; returns its address in the report."""
        self._tables.check(self.name, _checked(name), columns(frame), measured)
        kind = "timing" if measured else "results"
        write_atomic(self.directory / kind / f"{name}.csv", to_csv(frame))
        return f"{kind}/{self.name}/{name}.csv"

    def _write_headlines(self) -> None:
        write_atomic(
            self.directory / "headlines.json", json.dumps([*self._headlines.values()], indent=1, ensure_ascii=False) + "\n"
        )


def _checked(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError(f"{name!r} can't name a result: allowed are lower-case letters, digits, '_' and '-'")
    return name


def _execute_elsewhere(run: Run, stage: str) -> None:
    """Run a stage in its own process, since a kernel can't well run another one. Progress is shown in the terminal."""
    command = [sys.executable, "-m", "qatlib.run.pipeline", "run", stage, "--profile", run.profile]
    environment = {key: value for key, value in os.environ.items() if key != EXECUTING}
    result = subprocess.run(
        [*command, "--set", shlex.join(run.overrides)], cwd=run.root, env=environment, stderr=subprocess.PIPE, text=True
    )
    if result.returncode:
        raise PipelineError(result.stderr.strip().splitlines()[-1])
