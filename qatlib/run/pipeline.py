"""The engine of a report: `make` calls it to run stages by papermill and to publish them."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from qatlib.files import lock
from qatlib.params.load import run_name
from qatlib.params.sections import ROOT
from qatlib.params.yaml import ParamsError
from qatlib.qa.formats import DataError, printable
from qatlib.run.inputs import check_inputs
from qatlib.run.keys import Run
from qatlib.run.portable import make_portable
from qatlib.run.sources import PipelineError
from qatlib.run.stage import EXECUTING
from qatlib.run.stages import QUESTIONS, STAGES, UPSTREAM
from qatlib.run.surroundings import check_loopback, folder, settle, without_addresses
from qatlib.site.folder import ForeignFileError, check_folder
from qatlib.site.origin import duration, executions

INSTALLED = {"pip:smollm2-135m": ("smollm2",)}
"""What the Makefile installs into the environment for a source of weights."""


def execute(run: Run, stage: str) -> None:
    """Run a stage's notebook and its upstream notebooks, unless they are done.

    Raises:
        PipelineError: the notebook failed; it is left as `executed.failed.ipynb`.
        ParamsError, DataError: something that a stage, this one or a later one, needs cannot be used.
    """
    if upstream := UPSTREAM[stage]:
        execute(run, upstream)
    with lock(run.directory / ".lock", f"waiting for the other run of {run.name} to end"):
        if not run.is_done(stage):
            check_inputs(run.params)
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
        """A kernel of the running Python. Kernels registered on the machine are ignored."""

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
    label, start = f"{STAGES.index(stage) + 1}/{len(STAGES)} {stage} ({run.name})", time.monotonic()
    expected = f": {duration(seconds)} in the last report" if (seconds := expected_seconds(run, stage)) else ""
    print(f"{label}{expected}", file=sys.stderr, flush=True)
    folder(run.root).mkdir(exist_ok=True)
    os.environ |= {EXECUTING: "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    # glibc: large pages for large tensors cause fewer page faults; an attack's pass of SmolLM2 took 7.5 s instead of 9
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    try:
        check_loopback()  # else a kernel is waited for, for a minute
        papermill.execute_notebook(
            _literal(run.notebook(stage)),
            _literal(executing),
            kernel_name="python3",  # whatever kernel the notebook was saved with
            language="python",
            parameters={"profile": run.profile, "overrides": run.overrides},
            cwd=str(run.root),
            stderr_file=sys.stderr,  # the notebook's own progress bars
            kernel_manager_class=OwnKernel,
            shutdown_kernel="immediate",  # all is written; torch would take seconds to end
            store_widget_state=False,  # bars, which pages leave out
        )
    except (PapermillExecutionError, RuntimeError) as error:  # nbclient has no class of its own for a kernel that can't start
        where = ""
        if executing.is_file():
            where = f" (the notebook so far: {executing.replace(failed).relative_to(run.root)})"
        death = "the kernel died" if isinstance(error, DeadKernelError) else "the kernel did not start"
        name, text = getattr(error, "ename", death), getattr(error, "evalue", str(error))
        last = " ".join(text.strip().splitlines()[-3:])
        raise PipelineError(f"{stage} failed: {name}: {last}{where}") from None
    if not run.is_prepared(stage):
        raise PipelineError(f"{stage}: code, params or data changed while it ran, or its notebook made no Stage")
    failed.unlink(missing_ok=True)
    make_portable(executing, run.root)
    executing.replace(directory / "executed.ipynb")
    run.mark_done(stage)
    print(f"{label}: done in {duration(time.monotonic() - start)}", file=sys.stderr, flush=True)


def expected_seconds(run: Run, stage: str) -> float | None:
    """The seconds in which a stage computed what the last report shows; None if not known, or if results are kept."""
    last = run.report / "provenance" / f"{stage}.json"
    if run.is_prepared(stage) or not last.is_file():
        return None
    return sum(execution["duration_s"] for execution in executions(json.loads(last.read_text(encoding="utf-8"))))


def answers(report: Path) -> list[str]:
    """The report's answers to the studies' questions, a line each."""
    lines = []
    for stage, question in QUESTIONS.items():
        path = report / "headlines" / f"{stage}.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        lines += [f"{question} {line['text']}" for line in found if line["brief"]][:1]
    return lines


def _literal(path: Path) -> str:
    """A path in which papermill, which formats paths, finds nothing to fill in."""
    return str(path).replace("{", "{{").replace("}", "}}")


def publish(run: Run) -> None:
    """Render the report of a run whose stages are all done.

    Raises:
        PipelineError: a stage is not done.
    """
    if waiting := [stage for stage in STAGES if not run.is_done(stage)]:
        raise PipelineError(f"{run.name}: no report before {', '.join(waiting)} ran to the end")
    from qatlib.site import pages  # imported here, because the import takes longer than all the rest

    pages.publish(run.directory, run.report)
    run.mark_published()
    print(f"report written: {run.report.relative_to(run.root)}/index.html", *answers(run.report), sep="\n")


def html(profile: str) -> int:
    """Render the report of a profile again. Neither its params nor its run are needed."""
    from qatlib.site import pages

    name = run_name(profile)
    report = ROOT / "reports" / name
    if not (report / "notebooks").is_dir():
        there = ", ".join(sorted(path.parent.name for path in ROOT.glob("reports/*/notebooks"))) or "none yet"
        raise ParamsError(f"PROFILE: there is no report in reports/{name}; those there are: {there} (make report makes one)")
    pages.render(report)
    print(report / "index.html")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line that `make` uses. Returns the exit status: 1 if a stage failed, 2 if the input can't be used."""
    parser = argparse.ArgumentParser(prog="python -m qatlib.run.pipeline", description="Run the stages of a report.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in {
        "check": "check the params, and read the data that they name",
        "keys": "bring the keys that make looks at up to date",
        "run": "run one stage, and those upstream of it that are not done",
        "needs": "print the run's name, and the weights that make installs for it",
        "publish": "render the report of a run that is done",
        "html": "render a report again from its own files",
        "keep": "say that what a stage keeps is what the changed code, params or data would make",
    }.items():
        command = commands.add_parser(name, help=text, description=text)
        if name in ("run", "keep"):
            command.add_argument("stage", choices=STAGES)
        if name == "keep":
            command.add_argument("--why", required=True, help="one sentence for the page's provenance")
        command.add_argument("--profile", default="quick", help="a name in params/, or the path of a params file")
        if name != "html":
            command.add_argument("--set", default="", help="overrides: 'dotted.key=value other.key=value'")
    given = parser.parse_args(arguments)
    settle(os.environ, ROOT)
    without_addresses()
    try:
        for option, text in vars(given).items():
            if printable(text) != text:
                raise ParamsError(f"{option}: holds half a surrogate pair, or bytes that are no text; allowed is valid Unicode")
        if given.command == "html":
            return html(given.profile)
        try:
            overrides = shlex.split(given.set)
        except ValueError as error:
            raise ParamsError(f"SET: {given.set!r} can't be split ({error}); allowed is key=value key=value") from None
        run = Run(given.profile, overrides)
        if given.command in ("keys", "publish"):
            check_folder(run.report)
        if given.command == "check":
            check_inputs(run.params)
        elif given.command == "keys":
            run.sync()
            if run.is_published:
                print(f"report is up to date: {run.report.relative_to(run.root)}/index.html")
        elif given.command == "needs":
            print(run.name, *INSTALLED.get(run.params.model.source, ()))
        elif given.command == "run":
            execute(run, given.stage)
        elif given.command == "keep":
            run.keep(given.stage, given.why)
        elif given.command == "publish":
            publish(run)
    except (PipelineError, ForeignFileError) as error:
        print(error, file=sys.stderr)
        return 1
    except (ParamsError, DataError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:  # a full or read-only disk
        print(f"{given.command}: {error.filename or 'a file'} can't be used: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
