import json
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_notebook, new_output

from qatlib.site import pages as site

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def run(tmp_path_factory, write_stage) -> Path:
    run = tmp_path_factory.mktemp("runs") / "toy"
    for stage in ("01_build", "02_switchable_train", "05_adversarial"):
        write_stage(run, stage)
    return run


@pytest.fixture(scope="module")
def report(run, tmp_path_factory) -> Path:
    report = tmp_path_factory.mktemp("reports") / "toy"
    site.publish(run, report)
    return report


@pytest.fixture(scope="module")
def pages(report) -> dict[str, BeautifulSoup]:
    return {path.name: BeautifulSoup(path.read_text("utf-8"), "html.parser") for path in report.glob("*.html")}


@pytest.fixture(scope="module")
def page(pages) -> BeautifulSoup:
    return pages["01_build.html"]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestEveryPage:
    def test_one_for_each_stage_and_the_index(self, pages):
        assert set(pages) == {"index.html", "claims.html", "01_build.html", "02_switchable_train.html", "05_adversarial.html"}

    def test_nothing_is_loaded_from_outside_the_page(self, pages):
        for page in pages.values():
            assert not page.find_all(["script", "link", "iframe", "object", "embed", "base"])
            assert not [tag for tag in page.find_all(src=True) if not tag["src"].startswith("data:")]
            assert not [tag for tag in page.find_all(href=True) if tag.name != "a"]
            for css in [
                *(tag.get_text() for tag in page.find_all("style")),
                *(t["style"] for t in page.find_all(style=True)),
            ]:
                assert "@import" not in css
                assert "url(" not in css

    def test_the_browser_is_told_to_refuse_scripts_and_requests(self, pages):
        for page in pages.values():
            policy = page.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
            assert "default-src 'none'" in policy
            assert "script-src" not in policy

    def test_no_handler_and_no_script_address(self, pages):
        for page in pages.values():
            for tag in page.find_all(True):
                assert not [name for name in tag.attrs if name.startswith("on")]
                assert not str(tag.get("href", "")).startswith("javascript")

    def test_text_of_the_data_set_is_shown_as_text(self, pages, hostile):
        assert pages["index.html"].get_text().count(hostile) >= 4  # three headlines and the profile
        page = pages["01_build.html"]
        assert page.find("pre", class_="printed").get_text().strip() == hostile
        assert page.find(class_="output_execute_result").get_text().strip() == hostile
        assert page.find("figure", class_="qat-table").tbody.th.get_text() == hostile
        assert page.find(id="provenance").get_text().count(hostile) == 3  # the summary, its block, a parameter

    def test_structure(self, pages):
        for page in pages.values():
            assert page.html["lang"] == "en"
            assert len(page.find_all("h1")) == 1
            assert page.find("a", class_="skip")["href"] == "#" + page.main["id"]
            assert page.find("a", attrs={"aria-current": "page"})
            assert all(image.get("alt") for image in page.find_all("img"))

    def test_ids_are_unique(self, pages):
        for page in pages.values():
            ids = [tag["id"] for tag in page.find_all(id=True)]
            assert len(ids) == len(set(ids))

    def test_every_local_link_leads_somewhere(self, report, pages):
        for name, page in pages.items():
            for link in page.find_all("a", href=True):
                url = urlsplit(link["href"])
                if url.scheme:
                    continue
                assert (report / unquote(url.path or name)).is_file(), link
                if url.fragment:
                    target = pages[unquote(url.path or name)]
                    assert target.find(id=unquote(url.fragment)), link


class TestStagePage:
    def test_provenance_then_contents_then_cells(self, page):
        order = [tag["id"] for tag in page.main.find_all(id=["provenance", "contents", "cells"])]
        assert order == ["provenance", "contents", "cells"]
        assert page.h1.find_next(id=True)["id"] == "provenance"

    def test_provenance_summary_is_readable_and_the_rest_folded(self, page):
        block = page.find(id="provenance")
        folded = block.details.extract().get_text(" ")
        summary = block.get_text(" ")
        for text in (
            "0123456789 and uncommitted changes",
            "a CPU",
            "toyqa (400 questions)",
            "2 min 5 s",
            "2026-01-02 03:04",
        ):
            assert text in summary
        for text in ("train.lr", "0.0003", "2, 4", "ee" * 32):
            assert text in folded

    def test_contents_name_every_heading(self, page):
        links = [link.get_text() for link in page.find(id="contents").find_all("a")]
        assert links and links == [heading.get_text() for heading in page.article.find_all(["h2", "h3"])]

    def test_neighbours(self, page):
        assert page.find("a", rel="next")["href"] == "02_switchable_train.html"
        assert page.find("a", rel="prev") is None


class TestIndex:
    def test_headlines_link_to_their_page_and_table(self, pages):
        item = next(li for li in pages["index.html"].main.find_all("li") if "01_build loses" in li.get_text())
        assert item.a["href"] == "results/01_build/scores.csv"
        assert item.find_previous("h3").a["href"] == "01_build.html"

    def test_stages_have_question_and_status(self, pages):
        rows = pages["index.html"].find("table", class_="stages").tbody.find_all("tr")
        texts = {row.th.get_text(): [cell.get_text() for cell in row.find_all("td")] for row in rows}
        assert list(texts) == [stage.replace("_", " ") for stage in site.STAGES]
        assert texts["01 build"][:2] == ["What does 01_build ask?", "complete"]
        assert texts["04 cpt"][:2] == ["", "not run"]

    def test_every_csv_is_listed_with_its_size(self, report, pages):
        hrefs = {link["href"] for link in pages["index.html"].find_all("a", href=True)}
        assert {str(path.relative_to(report)) for path in report.rglob("*.csv")} <= hrefs
        assert "2 rows × 2 columns" in pages["index.html"].get_text()

    def test_without_headlines_it_says_so(self, tmp_path, write_stage):
        write_stage(tmp_path / "run", "01_build", headlines=False)
        site.publish(tmp_path / "run", tmp_path / "report")
        assert "no figures yet" in (tmp_path / "report" / "index.html").read_text()

    def test_stages_of_different_code_are_pointed_out(self, tmp_path, write_stage):
        for stage in ("01_build", "04_cpt"):
            folder = write_stage(tmp_path / "run", stage)
            provenance = json.loads((folder / "provenance.json").read_text())
            provenance["code"]["library_sha256"] = stage
            (folder / "provenance.json").write_text(json.dumps(provenance))
        site.publish(tmp_path / "run", tmp_path / "report")
        assert "different versions" in (tmp_path / "report" / "index.html").read_text()

    def test_a_page_made_again_tells_when_its_figures_were_computed(self, tmp_path, write_stage):
        folder = write_stage(tmp_path / "run", "01_build")
        provenance = json.loads((folder / "provenance.json").read_text())
        provenance["computed"] = [{"commit": "abcdef0123456789", "started": "2026-01-01T01:00:00+00:00", "duration_s": 3600}]
        provenance["computed"].append({"commit": "0123456789abcdef", "started": provenance["started"], "duration_s": 60})
        (folder / "provenance.json").write_text(json.dumps(provenance))
        site.publish(tmp_path / "run", tmp_path / "report")
        for page in ("index", "01_build"):
            text = (tmp_path / "report" / f"{page}.html").read_text()
            assert "2026-01-01 01:00 +00:00 by abcdef0123, 1 h 0 min" in text and "1 h 2 min in 2 executions" in text

    def test_what_differs_between_stages_names_them(self, tmp_path, write_stage):
        for stage, why in {"01_build": "a comment.", "04_cpt": "a comment.", "05_adversarial": "a word."}.items():
            folder = write_stage(tmp_path / "run", stage)
            provenance = json.loads((folder / "provenance.json").read_text()) | {"kept": [why, why]}
            (folder / "provenance.json").write_text(json.dumps(provenance))
        site.publish(tmp_path / "run", tmp_path / "report")
        block = BeautifulSoup((tmp_path / "report/index.html").read_text(), "html.parser").find(id="provenance")
        assert "01, 04: a comment; 05: a word" in block.details.extract().get_text()  # folded: it may be long
        assert "a comment" not in block.get_text() and "Device" in block.get_text()


class TestFiles:
    def test_what_the_run_left_is_copied_as_it_is(self, run, report):
        published = tree(report)
        for stage in ("01_build", "05_adversarial"):
            assert published[f"notebooks/{stage}.ipynb"] == (run / stage / "executed.ipynb").read_bytes()
            for name, data in tree(run / stage / "results").items():
                assert published[f"results/{stage}/{name}"] == data
        assert {"timing/01_build/times.json", "provenance/01_build.json", "headlines/01_build.json"} <= set(published)

    def test_render_needs_the_report_only_and_gives_the_same_bytes(self, report, tmp_path):
        copy = tmp_path / "toy"
        shutil.copytree(report, copy, ignore=shutil.ignore_patterns("*.html"))
        site.main(["render", str(copy)])
        assert tree(copy) == tree(report)

    def test_pages_of_stages_no_longer_there_vanish(self, report, tmp_path):
        copy = tmp_path / "toy"
        shutil.copytree(report, copy)
        (copy / "notebooks" / "05_adversarial.ipynb").unlink()
        site.render(copy)
        assert not (copy / "05_adversarial.html").exists()
        assert "05_adversarial.html" not in (copy / "index.html").read_text()

    def test_publish_leaves_nothing_of_the_old_report(self, tmp_path, write_stage):
        write_stage(tmp_path / "run", "01_build")
        stale = tmp_path / "reports" / "toy" / "results" / "01_build" / "stale.csv"
        stale.parent.mkdir(parents=True)
        stale.touch()
        site.publish(tmp_path / "run", tmp_path / "reports" / "toy")
        assert not stale.exists()
        assert [path.name for path in (tmp_path / "reports").iterdir()] == ["toy"]

    def test_what_no_run_wrote_is_neither_replaced_nor_deleted(self, tmp_path, write_stage):
        write_stage(tmp_path / "run", "01_build")
        report = tmp_path / "reports" / "toy"
        site.publish(tmp_path / "run", report)
        (report / "notes.html").write_text("mine")
        (report / "09_gone.html").write_text("of a stage that was removed")
        site.render(report)
        assert (report / "notes.html").read_text() == "mine" and not (report / "09_gone.html").exists()
        with pytest.raises(site.ForeignFileError, match="reports/toy: notes.html was not written by a run"):
            site.publish(tmp_path / "run", report)
        assert (report / "notes.html").read_text() == "mine"

    def test_a_failed_publish_leaves_the_old_report(self, report, run, tmp_path):
        shutil.copytree(report, tmp_path / "toy")
        shutil.copytree(run, tmp_path / "run")
        (tmp_path / "run" / "02_switchable_train" / "executed.ipynb").write_text("{broken")
        with pytest.raises(nbformat.reader.NotJSONError):
            site.publish(tmp_path / "run", tmp_path / "toy")
        assert tree(tmp_path / "toy") == tree(report)
        assert {path.name for path in tmp_path.iterdir()} == {"toy", "run"}

    def test_a_failed_cell_shows_its_error(self, tmp_path, write_stage, hostile):
        folder = write_stage(tmp_path / "run", "01_build")
        error = new_output("error", ename="ValueError", evalue=hostile, traceback=[f"\x1b[31mValueError\x1b[0m: {hostile}"])
        nbformat.write(new_notebook(cells=[new_code_cell("fail()", outputs=[error])]), folder / "executed.ipynb")
        site.publish(tmp_path / "run", tmp_path / "report")
        page = BeautifulSoup((tmp_path / "report" / "01_build.html").read_text(), "html.parser")
        alert = page.find("div", role="alert").get_text()
        assert f"ValueError: {hostile}" in alert
        assert "\x1b" not in alert

    def test_nothing_to_publish_or_render_is_an_error(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            site.publish(tmp_path, tmp_path / "report")
        with pytest.raises(FileNotFoundError):
            site.render(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_a_browser_without_network_shows_every_image_and_runs_no_script(report, tmp_path):
    """A copy of the page is allowed one script more, which writes down what the browser made of it."""
    probe = """<script nonce="probe">addEventListener("load", () => {
        document.body.dataset.widths = Array.from(document.images, image => image.naturalWidth).join(" ");
        document.body.dataset.requests = performance.getEntriesByType("resource")
            .filter(entry => !entry.name.startsWith("data:")).length;
    })</script></body>"""
    html = (report / "01_build.html").read_text("utf-8")
    html = html.replace("default-src 'none';", "default-src 'none'; script-src 'nonce-probe';").replace("</body>", probe)
    (tmp_path / "probe.html").write_text(html, "utf-8")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-sync",
    ]
    flags += ["--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND"]
    address = (tmp_path / "probe.html").as_uri()
    command = [str(CHROMIUM), *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", address]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout  # only a hang takes so long
    page = BeautifulSoup(dom, "html.parser")
    assert page.title.get_text().startswith("Title of 01_build")
    assert [int(width) for width in page.body["data-widths"].split()] == [40]
    assert page.body["data-requests"] == "0"


REPORTS = Path(__file__).parents[2] / "reports"


@pytest.mark.parametrize("name", ["embedded", pytest.param("reference", marks=pytest.mark.slow)])
def test_a_committed_report_is_what_its_own_files_make(name, tmp_path):
    """In a fresh clone, without a GPU, weights or data: `make html PROFILE=reference`."""
    committed = REPORTS / name
    again = shutil.copytree(committed, tmp_path / name, ignore=shutil.ignore_patterns("*.html", "claims.json"))
    site.render(again)
    pages = {path.name for path in committed.glob("*.html")} | {"claims.json"}
    assert len(pages) > 3 and all((again / name).read_bytes() == (committed / name).read_bytes() for name in pages)
