"""The places that name dependencies say the same, and name what is imported."""

import ast
import functools
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PLAIN, EXTRAS = PROJECT["dependencies"], PROJECT["optional-dependencies"]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PINS = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in LINES}
SHOWING = ("run", "site", "judging")
"""The folders of the package that only a report needs."""


MADE = [*PLAIN, *(r for extra in ("report", "words", "tensorboard", "test") for r in EXTRAS[extra] if "qatlib[" not in r)]
"""What make installs."""


def brought(requirements: Iterable[str]) -> set[str]:
    """The distributions that pip installs for some requirements, as those of this environment say."""
    found: set[str] = set()
    waiting = [Requirement(requirement) for requirement in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            found.add(name)
            waiting += map(Requirement, metadata.requires(name) or ())
    return found


def imported(source: str) -> set[str]:
    """The packages outside the standard library that code imports, at any depth."""
    nodes = [*ast.walk(ast.parse(source))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"qatlib"}


def cells(notebook: Path) -> str:
    found = json.loads(notebook.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in found if cell["cell_type"] == "code")


@functools.cache
def owners() -> dict[str, set[str]]:
    """The distributions that each importable name of this environment is from."""
    return {name: {*map(canonicalize_name, of)} for name, of in metadata.packages_distributions().items()}


def missing(sources: Iterable[str], requirements: Iterable[str]) -> set[str]:
    """What the sources import and the requirements do not bring."""
    there, names = brought(requirements), set().union(*map(imported, sources))
    return {name for name in names if not there & owners().get(name, set())}


def sources(showing: bool) -> list[str]:
    package = ROOT / "qatlib"
    return [p.read_text() for p in package.rglob("*.py") if (p.relative_to(package).parts[0] in SHOWING) == showing]


def test_who_runs_the_tests_has_all_that_a_report_needs() -> None:
    assert Requirement(EXTRAS["test"][0]).extras == {"report", "words", "tensorboard"}


def test_constraints_are_plain_pins() -> None:
    for line in LINES:
        assert re.fullmatch(r"[\w.-]+==[\w.!]+", line), line
    assert len(PINS) == len(LINES)


def test_everything_that_make_installs_is_pinned() -> None:
    assert {canonicalize_name(Requirement(r).name) for r in MADE} <= brought(MADE) <= PINS.keys() | {"setuptools"}


def test_conda_environment_mirrors_the_project() -> None:
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert "python=3.12" in conda
    assert pip["pip"] == [f"{(name := Requirement(r).name)}=={PINS[canonicalize_name(name)]}" for r in MADE]


def test_the_library_imports_what_its_plain_dependencies_bring() -> None:
    assert missing(sources(showing=False), PLAIN) == {"lemminflect"}  # imported where words are asked for alone
    assert missing(sources(showing=False), [*PLAIN, *EXTRAS["words"]]) == set()


def test_the_report_imports_what_its_extra_brings() -> None:
    notebooks = [cells(path) for path in (ROOT / "notebooks").glob("*.ipynb")]
    assert missing([*sources(showing=True), *notebooks], [*PLAIN, *EXTRAS["report"]]) == set()


@pytest.mark.parametrize("name", ["jupyterlab", "papermill", "nbconvert", "seaborn"])
def test_a_package_of_the_report_is_no_part_of_the_library(name: str) -> None:
    assert name in brought(EXTRAS["report"]) - brought(PLAIN)


def test_the_public_names_work_without_the_packages_of_the_report() -> None:
    aside = brought(EXTRAS["report"]) - brought([*PLAIN, *EXTRAS["words"]])
    names = [name for name, of in owners().items() if of <= aside]
    assert {"matplotlib", "seaborn", "papermill", "IPython"} <= {*names}
    code = f"import sys; sys.modules |= dict.fromkeys({names}); import qatlib; [getattr(qatlib, name) for name in qatlib.__all__]"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
