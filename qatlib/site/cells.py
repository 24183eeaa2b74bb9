"""The content of one executed notebook as safe HTML. A stage's page shows it between its provenance and its foot.

nbconvert turns the cells into HTML by the template `templates/stage`. Then everything that runs, loads something or only
shows progress is removed, headings get ids, and links are checked.
"""

import functools
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from bs4 import BeautifulSoup, Tag
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from qatlib.judging.claims.catalog import CLAIMS

TEMPLATES = Path(__file__).parent / "templates"

_WIDGET = "application/vnd.jupyter.widget-view+json"
_NOISE = re.compile(  # tqdm (with a total, without, without widgets); the profiler that counts memory; seaborn's layout
    r"\d+%\|.*\||\d+it \[\d+:\d+|TqdmWarning|import tqdm as|SyncActivityProfilerHandler|figure layout has changed|tight_layout\("
)
_UNWANTED = ["script", "style", "link", "meta", "base", "iframe", "object", "embed", "form", "audio", "video"]
_LOADING = {"src", "srcset", "poster", "background", "data", "action", "formaction", "xlink:href"}
_SCHEMES = {"", "http", "https", "mailto"}
_PAGE_IDS = {"main", "provenance", "contents", "contents-label", "cells"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Heading:
    level: int
    id: str
    text: str


@dataclass(frozen=True)
class Cells:
    """A notebook's content; `title` is its h1, `question` the first paragraph after it, `toc` its h2 and h3."""

    title: str
    question: str
    status: str
    toc: list[Heading]
    body: Markup
    anchors: frozenset[str]
    """Ids of the tables and figures, named after their files: `table-accuracy`."""


def read_cells(report: Path, name: str, stages: set[str], claims: Mapping[str, Sequence[str]]) -> Cells:
    """The content of `report/notebooks/<name>.ipynb`.

    Args:
        stages: the notebooks that have pages to link to.
        claims: the claims that rest on each table, by the table's id: `{"table-accuracy": ["C07"]}`.
    """
    notebook = nbformat.read(report / "notebooks" / f"{name}.ipynb", as_version=4)
    status = _status(notebook)
    _drop_noise(notebook)
    soup = BeautifulSoup(_exporter().from_notebook_node(notebook)[0], "html.parser")
    _clean(soup)
    title = soup.find("h1")
    paragraph = title.find_next("p") if title else None
    title_text = _text(title) if title else name.replace("_", " ")
    if title:
        title.decompose()
    toc = _anchor(soup)
    anchors = _name_tables(soup)
    _link_claims(soup, claims)
    _frame_tables(soup)
    _check_links(soup, report, stages, name)
    return Cells(title_text, _text(paragraph) if paragraph else "", status, toc, Markup(soup), anchors)


@functools.cache
def _exporter() -> HTMLExporter:
    """One exporter for all notebooks, because each new one compiles nbconvert's templates."""
    exporter = HTMLExporter(template_name="stage", extra_template_basedirs=[str(TEMPLATES)], exclude_anchor_links=True)
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    return exporter


def _status(notebook: NotebookNode) -> str:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    if any(output.output_type == "error" for cell in cells for output in cell.outputs):
        return "failed"
    return "complete" if all(cell.execution_count for cell in cells) else "incomplete"


def _drop_noise(notebook: NotebookNode) -> None:
    """Join the pieces of each stream, and remove progress bars and widgets."""
    for cell in notebook.cells:
        kept: list[NotebookNode] = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
                kept[-1].text += output.text
            elif _WIDGET not in output.get("data", {}):
                kept.append(output)
        for output in kept:
            if output.output_type == "stream":
                lines = [line.rstrip("\r").rpartition("\r")[2] for line in output.text.split("\n")]
                output.text = "\n".join(line for line in lines if not _NOISE.search(line))
        if "outputs" in cell:
            cell.outputs = [output for output in kept if output.output_type != "stream" or output.text.strip()]


def _clean(soup: BeautifulSoup) -> None:
    """Remove everything from `soup` that runs or is loaded from elsewhere, and the ids of nbconvert's cells."""
    for tag in soup.find_all(_UNWANTED):
        tag.decompose()
    for tag in soup.find_all(True):
        for name, value in list(tag.attrs.items()):
            text = str(value).strip().lower()
            loads = (name in _LOADING or (name == "href" and tag.name != "a")) and not text.startswith(("data:", "#"))
            scripted = name.startswith("on") or (name == "href" and urlsplit(text).scheme not in _SCHEMES)
            if loads and tag.name == "img" and name == "src":
                tag.insert_after(soup.new_tag("a", href=str(value), string=f"[picture: {tag.get('alt') or value}]"))
                tag.decompose()
                break
            if loads or scripted or (name == "style" and "url(" in text) or (name == "id" and text.startswith("cell-id=")):
                del tag[name]


def _anchor(soup: BeautifulSoup) -> list[Heading]:
    """Give every h2 and h3 a unique id by Jupyter's rule (spaces to dashes), and return the table of contents."""
    for extra in soup.find_all("h1"):
        extra.name = "h2"
    headings = soup.find_all(["h2", "h3"])
    taken = set(_PAGE_IDS)
    for tag in soup.find_all(id=True):
        if tag in headings or tag["id"] in taken:
            del tag["id"]
        else:
            taken.add(str(tag["id"]))
    toc = []
    for tag in headings:
        base = re.sub(r"\s+", "-", _text(tag)) or "section"
        name, count = base, 2
        while name in taken:
            name, count = f"{base}-{count}", count + 1
        taken.add(name)
        tag["id"] = name
        toc.append(Heading(int(tag.name[1]), name, _text(tag)))
    return toc


def _name_tables(soup: BeautifulSoup) -> frozenset[str]:
    """Give every table and figure that has a file an id named after the file. If two share a file, the first gets the id."""
    others = {str(tag["id"]) for tag in soup.find_all(id=True)}
    taken: set[str] = set()
    for figure in soup.select("figure.qat-table, figure.qat-figure"):
        link = figure.find("a", string="CSV", href=True)
        name = f"table-{Path(urlsplit(str(link['href'])).path).stem}" if link else ""
        if name and name not in taken | others:
            figure["id"] = name
            taken.add(name)
    return frozenset(taken)


def _link_claims(soup: BeautifulSoup, claims: Mapping[str, Sequence[str]]) -> None:
    """Link a notebook's verdicts, and the tables that claims rest on, to the ledger."""
    for name, ids in claims.items():
        if link := soup.select_one(f"#{name} a"):
            for claim in reversed(ids):
                link.insert_after(" ", soup.new_tag("a", href=f"claims.html#{claim}", string=claim))
            link.insert_after(" · behind")
    for head in soup.select("#table-claims th[scope=row], #table-claims_cost th[scope=row]"):
        if (name := _text(head)) in CLAIMS:
            head.string = ""
            head.append(soup.new_tag("a", href=f"claims.html#{name}", string=name))


def _frame_tables(soup: BeautifulSoup) -> None:
    """Make tables that are not from `table_html` scroll inside the page too."""
    for table in soup.find_all("table"):
        if not table.find_parent(class_="qat-scroll"):
            table.wrap(soup.new_tag("div", attrs={"class": "qat-scroll", "tabindex": "0"}))
            table.attrs.pop("border", None)


def _check_links(soup: BeautifulSoup, report: Path, stages: set[str], stage: str) -> None:
    """Turn links between notebooks into links between pages. Mark and log links to files that are not in the report."""
    for link in soup.find_all("a", href=True):
        url = urlsplit(str(link["href"]))
        if url.scheme or url.netloc or not url.path:
            continue
        path = unquote(url.path)
        target = Path(path).stem
        if path.endswith((".ipynb", ".html")) and target in stages | {"index", "claims"} and "/" not in path.removeprefix("./"):
            link["href"] = url._replace(path=f"{target}.html").geturl()
        elif not (file := (report / path).resolve()).is_file() or report not in file.parents:
            log.warning("%s links to %s, which is not in the report", stage, path)
            link.name, link.attrs = "span", {"class": "missing", "title": "not in this report"}


def _text(tag: Tag) -> str:
    return " ".join(tag.get_text().split())
