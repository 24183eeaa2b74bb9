"""README and docs/ name what exists, and every module has its line."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "qatlib").rglob("*.py"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_paths_and_links_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    named = re.findall(r"\b(?:qatlib|docs|params|tests|notebooks|benchmarks)/[\w./-]*[\w/]", text)
    for name in named:
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link
    modules = {name.split("(")[0] for name in re.findall(r"`(qatlib(?:\.\w+)+)`", text)}
    for dotted in modules:
        *parents, last = dotted.split(".")
        place = ROOT.joinpath(*parents)
        known = [place / last, place / f"{last}.py", place.with_suffix(".py"), place / "__init__.py"]
        assert any(path.exists() for path in known), dotted


def test_the_anchors_of_the_parameters_exist() -> None:
    text = (ROOT / "docs/parameters.md").read_text()
    headings = {re.sub(r"[^\w-]", "", title.lower()) for title in re.findall(r"^## (.+)$", text, re.M)}
    assert {*re.findall(r"\]\(#([^)]+)\)", text)} <= headings


@pytest.mark.parametrize("module", [name for name in MODULES if Path(name).name != "__init__.py"])
def test_a_module_has_a_line_in_the_map(module: str) -> None:
    assert f"| `{module}` | " in (ROOT / "docs/developing.md").read_text()


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert all(f"(docs/{page.name})" in readme for page in PAGES[1:])
