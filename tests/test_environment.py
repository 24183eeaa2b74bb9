"""The three places that name dependencies say the same."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PINS = {line.partition("==")[0].lower().replace("_", "-"): line.partition("==")[2] for line in LINES}


def name_of(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found
    return found[0]


def test_constraints_are_plain_pins() -> None:
    for line in LINES:
        assert re.fullmatch(r"[\w.-]+==[\w.!]+", line), line
    assert len(PINS) == len(LINES)


def test_every_requirement_is_pinned() -> None:
    assert {name_of(r).lower().replace("_", "-") for r in REQUIREMENTS} <= PINS.keys()


def test_conda_environment_mirrors_the_project() -> None:
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert "python=3.12" in conda
    assert pip["pip"] == [f"{name_of(r)}=={PINS[name_of(r).lower().replace('_', '-')]}" for r in REQUIREMENTS]
