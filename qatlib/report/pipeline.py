"""Stages and their engine: what a notebook uses to keep its results, and what `make` calls to run it.

runs/<profile>/<stage>/
    memo/             what `table` and `record` computed, kept while the results key stands
    checkpoints/      likewise, what training wrote
    results/          tables (CSV), records (JSON) and figures (SVG) of the latest execution, for the report
    timing/           seconds and memory: the only results that differ between equal runs
    headlines.json, provenance.json, executed.ipynb
    key, results.key, done, kept.json
"""

from __future__ import annotations

import argparse
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qatlib.report.keys import PipelineError, Run, lock, write_atomic
from qatlib.report.params import STAGES, UPSTREAM
from qatlib.report.provenance import collect, portable
from qatlib.report.sections import ROOT
from qatlib.report.strict_yaml import ParamsError
from qatlib.report.tables import read_table, to_csv, write_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from qatlib.report.figures import Format

_EXECUTING = "QATLIB_EXECUTING"
"""Set in kernels that `execute` starts."""


class Stage:
    """One notebook's hold on its run: params, directories, results that survive a kill.

    Creating it checks the params, runs the upstream stage if that is not done, and drops what older code or params
    left. The notebook's headlines and shown results start anew; what `table`, `record` and checkpoints keep stays.

    Args:
        name: the notebook's name, `01_build`.
        profile: a name in params/, or the path of a params file.
        overrides: `dotted.key=YAML value`.

    Raises:
        ParamsError: params that can't be used.
        PipelineError: an upstream stage that failed.
    """

    def __init__(self, name: str, profile: str, overrides: Sequence[str] = (), root: Path = ROOT) -> None:
        self.started = datetime.now(UTC)
        self.name, self.run = name, Run(profile, overrides, root)
        self.params = self.run.params
        self.directory = self.run.directory / name
        self.results = self.directory / "results"
        if _EXECUTING in os.environ:  # the kernel of a run that was killed may live for a moment more
            self._lock = lock(self.directory / ".lock", f"{name}: waiting for its last execution to end")
        if (upstream := UPSTREAM[name]) and not self.run.is_done(upstream):
            if _EXECUTING in os.environ:
                raise PipelineError(f"{upstream} is no longer done: code, params or data changed; run {name} again")
            print(f"{name} needs {upstream}, which is not done for {self.run.name}: running it first …", flush=True)
            _execute_elsewhere(self.run, upstream)
        self.run.prepare(name)
        self._headlines: list[dict[str, str | bool | None]] = []
        self._write_headlines()

    def checkpoints(self, name: str) -> Path:
        """The path of one training's checkpoints; its parent exists."""
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
        """The frame that `compute` returns, computed once: from then on it is read from disk, with the same dtypes.

        The index must be the default one and the columns of integers, floats, booleans or text, in which a missing
        value is an empty string.

        Args:
            published: also written as `results/<name>.csv`; False where other tables have the same rows.

        Raises:
            TypeError: another index or another kind of column.
        """
        memo = self.directory / "memo" / _checked(name)
        if not memo.with_suffix(".dtypes").is_file():
            write_table(memo, compute())
        if published:
            write_atomic(self.results / f"{name}.csv", memo.with_suffix(".csv").read_bytes().decode())
        return read_table(memo)

    def record(self, name: str, compute: Callable[[], Any]) -> Any:
        """The JSON value that `compute` returns, computed once; also written as `results/<name>.json`."""
        memo = self.directory / "memo" / f"{_checked(name)}.json"
        if not memo.is_file():
            write_atomic(memo, json.dumps(compute(), indent=1, allow_nan=False) + "\n")
        text = memo.read_text(encoding="utf-8")
        write_atomic(self.results / f"{name}.json", text)
        return json.loads(text)

    def measured(self, name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """Like `table`, for what is measured of the machine: kept as `timing/<name>.csv`, since equal runs differ in it."""
        import pandas as pd

        path = self.directory / "timing" / f"{_checked(name)}.csv"
        if not path.is_file():
            write_atomic(path, to_csv(compute()))
        return pd.read_csv(path)

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
            shown: what the page has in place of `frame`: the same, made readable. The file has all of `frame`.
            measured: `frame` comes of what `measured` returned, and stands beside it as `timing/<name>.csv`.
        """
        from IPython.display import display

        from qatlib.report.figures import table_html

        kind = "timing" if measured else "results"
        write_atomic(self.directory / kind / f"{_checked(name)}.csv", to_csv(frame))
        href = self._href(name, kind)
        display(table_html(frame if shown is None else shown, caption, href, formats))

    def figure(self, fig: Figure, name: str, frame: pd.DataFrame, alt: str, caption: str) -> None:
        """Display a figure, write it as `results/figures/<name>.svg` and the numbers in it as `results/<name>.csv`."""
        from IPython.display import display

        from qatlib.report.figures import figure_html

        self._write_csv(frame, name)
        svg = self.results / "figures" / f"{_checked(name)}.svg"
        display(figure_html(fig, svg, alt, caption, self._href(name)))

    def headline(self, text: str, table: str | None = None, brief: bool = False) -> None:
        """Put a finding on the report's first page, linked to the table `results/<table>.csv`.

        Args:
            brief: whether it is among the few that a busy reader is shown first.
        """
        self._headlines.append({"text": text, "table": table, "brief": brief})
        self._write_headlines()

    @property
    def headlines(self) -> list[str]:
        """The findings so far."""
        return [str(line["text"]) for line in self._headlines]

    def provenance(self, origin: Mapping[str, Any] | None = None) -> None:
        """Write where this run's figures come from, for the head of the page; call it last.

        Args:
            origin: what the params can't say of models and data, such as `Study.origin`.
        """
        from IPython.display import Markdown, display

        run = self.run
        found = collect(self.params, run.profile, run.overrides, run.data_hashes, self.started, run.root)
        found |= {**(origin or {}), "kept": run.kept(self.name)}
        write_atomic(self.directory / "provenance.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        rows = {
            "profile": " ".join([self.run.name, *found["overrides"]]),
            "code": (found["code"]["commit"] or found["code"]["library_sha256"])[:10],
            "device": found["device"]["name"],
            "seconds": found["duration_s"],
        }
        display(Markdown(" · ".join(f"**{key}** {value}" for key, value in rows.items())))

    def _write_csv(self, frame: pd.DataFrame, name: str) -> None:
        write_atomic(self.results / f"{_checked(name)}.csv", to_csv(frame))

    def _href(self, name: str, kind: str = "results") -> str:
        return f"{kind}/{self.name}/{name}.csv"

    def _write_headlines(self) -> None:
        write_atomic(self.directory / "headlines.json", json.dumps(self._headlines, indent=1, ensure_ascii=False) + "\n")


def _checked(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError(f"{name!r} can't name a result: allowed are lower-case letters, digits, '_' and '-'")
    return name


def execute(run: Run, stage: str) -> None:
    """Run a stage's notebook, and those upstream of it, unless they are done.

    Raises:
        PipelineError: the notebook failed; it is left as `executed.failed.ipynb`.
    """
    if upstream := UPSTREAM[stage]:
        execute(run, upstream)
    with lock(run.directory / ".lock", f"waiting for the other run of {run.name} to end"):
        if not run.is_done(stage):
            _execute(run, stage)


def _execute(run: Run, stage: str) -> None:
    import papermill
    import zmq
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets import default

    class OwnKernel(AsyncKernelManager):
        """A kernel of this very Python, whatever kernels the machine has registered."""

        @default("kernel_spec_manager")
        def _only_native(self) -> KernelSpecManager:
            return KernelSpecManager(kernel_dirs=[])

        @default("transport_encryption")
        def _private(self) -> str:
            return "auto" if zmq.has("curve") else "disabled"

    directory = run.directory / stage
    executing, failed = directory / ".executing.ipynb", directory / "executed.failed.ipynb"
    (directory / "done").unlink(missing_ok=True)
    directory.mkdir(parents=True, exist_ok=True)
    print(f"{stage} ({run.name})", file=sys.stderr, flush=True)
    os.environ |= {_EXECUTING: "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    # glibc: large pages for large tensors, which spares page faults; an attack's pass of SmolLM2 took 7.5 s in place of 9
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    try:
        papermill.execute_notebook(
            str(run.notebook(stage)),
            str(executing),
            parameters={"profile": run.profile, "overrides": run.overrides},
            cwd=str(run.root),
            stderr_file=sys.stderr,  # the notebook's own progress bars
            kernel_manager_class=OwnKernel,
        )
    except (PapermillExecutionError, DeadKernelError) as error:
        executing.replace(failed)
        name, text = getattr(error, "ename", "the kernel died"), getattr(error, "evalue", str(error))
        last = " ".join(text.strip().splitlines()[-3:])
        where = failed.relative_to(run.root)
        raise PipelineError(f"{stage} failed: {name}: {last} (the notebook so far: {where})") from None
    if not run.is_prepared(stage):
        raise PipelineError(f"{stage}: code, params or data changed while it ran, or its notebook made no Stage")
    failed.unlink(missing_ok=True)
    _make_portable(executing, run.root)
    executing.replace(directory / "executed.ipynb")
    run.mark_done(stage)


def _make_portable(notebook: Path, root: Path) -> None:
    """Take the machine's paths out of a notebook that papermill wrote: parameters, where files lay, warnings that name one."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    content["metadata"]["papermill"] |= {
        "input_path": f"notebooks/{notebook.parent.name}.ipynb",
        "output_path": "executed.ipynb",
    }
    given = content["metadata"]["papermill"]["parameters"]
    given["profile"] = portable(given["profile"], root)
    given["overrides"] = [portable(text, root) for text in given["overrides"]]
    for cell in content["cells"]:
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell["source"] = portable("".join(cell["source"]), root)
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream":
                text = "".join(output["text"])
                output["text"] = text.replace(f"{root}/", "").replace(f"{sys.prefix}/", ".venv/")
    write_atomic(notebook, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _execute_elsewhere(run: Run, stage: str) -> None:
    """`execute` in a process of its own, since a kernel can't well run another; its progress is in the terminal."""
    command = [sys.executable, "-m", "qatlib.report.pipeline", "run", stage, "--profile", run.profile]
    environment = {key: value for key, value in os.environ.items() if key != _EXECUTING}
    result = subprocess.run(
        [*command, "--set", shlex.join(run.overrides)], cwd=run.root, env=environment, stderr=subprocess.PIPE, text=True
    )
    if result.returncode:
        raise PipelineError(result.stderr.strip().splitlines()[-1])


def publish(run: Run) -> None:
    """Render the report of a run whose stages are all done.

    Raises:
        PipelineError: a stage is not done.
    """
    if waiting := [stage for stage in STAGES if not run.is_done(stage)]:
        raise PipelineError(f"{run.name}: no report before {', '.join(waiting)} ran to the end")
    from qatlib.report import site  # here, since it takes longer to import than the rest to run

    site.publish(run.directory, run.report)
    run.mark_published()
    print(f"report written: {run.report.relative_to(run.root)}/index.html")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line that `make` uses; returns the exit status: 1 a stage failed, 2 input that can't be used."""
    parser = argparse.ArgumentParser(prog="python -m qatlib.report.pipeline", description="Run the stages of a report.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in {
        "check": "check the params",
        "keys": "bring the keys that make looks at up to date",
        "run": "run one stage, and those upstream of it that are not done",
        "publish": "render the report of a run that is done",
        "keep": "say that what a stage keeps is what the changed code, params or data would make",
    }.items():
        command = commands.add_parser(name, help=text, description=text)
        if name in ("run", "keep"):
            command.add_argument("stage", choices=STAGES)
        if name == "keep":
            command.add_argument("--why", required=True, help="one sentence for the page's provenance")
        command.add_argument("--profile", default="quick", help="a name in params/, or the path of a params file")
        command.add_argument("--set", default="", help="overrides: 'dotted.key=value other.key=value'")
    given = parser.parse_args(arguments)
    try:
        try:
            overrides = shlex.split(given.set)
        except ValueError as error:
            raise ParamsError(f"SET: {given.set!r} can't be split ({error}); allowed is key=value key=value") from None
        run = Run(given.profile, overrides)
        if given.command == "keys":
            run.sync()
        elif given.command == "run":
            execute(run, given.stage)
        elif given.command == "keep":
            run.keep(given.stage, given.why)
        elif given.command == "publish":
            publish(run)
    except (ParamsError, PipelineError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ParamsError) else 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
