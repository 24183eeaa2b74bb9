"""What a notebook showed stays, as text; what runs, loads or only shows progress goes; links lead to pages."""

import re

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from qatlib.site import cells, pages
from qatlib.site.show import table_html


@pytest.fixture(scope="module")
def content(tmp_path_factory, write_stage) -> cells.Cells:
    folder = tmp_path_factory.mktemp("cells")
    write_stage(folder / "run", "01_build")
    pages.publish(folder / "run", folder / "report")
    return cells.read_cells(folder / "report", "01_build", {"01_build", "02_switchable_train"}, {"table-scores": ["C07", "C08"]})


@pytest.fixture(scope="module")
def page(content) -> BeautifulSoup:
    return BeautifulSoup(content.body, "html.parser")


def test_title_and_question_are_taken_out(content, page):
    assert (content.title, content.question, content.status) == ("Title of 01_build", "What does 01_build ask?", "complete")
    assert page.find("h1") is None


def test_contents_name_every_heading(content, page):
    assert [heading.text for heading in content.toc] == ["Scores & more", "Detail", "Detail", "A second h1"]
    headings = page.find_all(["h2", "h3"])
    assert [(h.id, h.text, h.level) for h in content.toc] == [(h["id"], h.get_text(), int(h.name[1])) for h in headings]


def test_code_is_folded(page):
    for block in page.find_all(class_="highlight"):
        assert block.find_parent("details").summary
        assert not block.find_parent("details").has_attr("open")
    summaries = [details.summary.get_text() for details in page.find_all("details", class_="code")]
    assert len(summaries) == 7
    assert sum(summary.startswith("parameters") for summary in summaries) == 2


def test_progress_is_dropped_and_warnings_folded(page):
    assert "9/9" not in page.get_text()
    assert "BAR" not in page.get_text()
    assert page.find(string=re.compile("UserWarning")).find_parent("details", class_="log")


def test_links_between_notebooks_become_links_between_pages(page):
    assert page.find("a", string="the next")["href"].startswith("02_switchable_train.html#")


def test_dead_links_are_struck_out(page):
    for text in ("gone", "up"):
        assert page.find(string=text).parent.name == "span"


def test_tables_can_be_linked_to_and_verdicts_lead_back_to_the_ledger(page):
    table = page.find(id="table-scores")
    assert table.name == "figure" and table.figcaption.get_text().endswith("CSV · behind C07 C08")
    assert [a["href"] for a in table.find_all("a")[1:]] == ["claims.html#C07", "claims.html#C08"]
    frame = pd.DataFrame({"claim": ["C07", "C99"], "verdict": ["reproduced", "reproduced"]})
    soup = BeautifulSoup(table_html(frame, "Claims", "results/01_build/claims.csv").data * 2, "html.parser")
    assert cells._name_tables(soup) == {"table-claims"}
    cells._link_claims(soup, {})
    assert [a["href"] for a in soup.find_all("a") if a.get_text() != "CSV"] == ["claims.html#C07"]
    assert soup.tbody.get_text(" ").split() == ["C07", "reproduced", "C99", "reproduced"]
