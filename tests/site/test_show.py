import base64
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from matplotlib.figure import Figure

from qatlib.site.show import figure_html, forest, heatmaps, set_style, table_html

CSV = "results/01_build/table.csv"


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        plt.switch_backend("agg")
        set_style()
        yield
    plt.close("all")


def draw() -> Figure:
    fig, ax = plt.subplots()
    ax.plot([2, 4, 8], [1, 2, 3], label="a & b")
    ax.fill_between([2, 8], 0, 1, hatch="/")
    ax.legend()
    return fig


def cells(frame: pd.DataFrame, **kw) -> list[list[str]]:
    table = BeautifulSoup(table_html(frame, "caption", CSV, **kw).data, "html.parser").table
    return [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in table.tbody.find_all("tr")]


class TestFigure:
    def test_same_figure_same_bytes(self, tmp_path):
        for name in ("a.svg", "b.svg"):
            figure_html(draw(), tmp_path / name, "alt", "caption")
        assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()

    @pytest.mark.parametrize("own", [{"text.usetex": True}, {"axes.titlepad": 20}, {"savefig.bbox": None, "font.size": 20}])
    def test_a_users_own_style_changes_no_figure(self, tmp_path, own):
        figure_html(draw(), tmp_path / "a.svg", "alt", "caption")
        plt.rcParams.update(own)
        set_style()
        figure_html(draw(), tmp_path / "b.svg", "alt", "caption")
        assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()

    def test_svg_is_saved_whole_and_embedded_as_it_is(self, tmp_path):
        path = tmp_path / "figures" / "f.svg"
        soup = BeautifulSoup(figure_html(draw(), path, "alt", "caption").data, "html.parser")
        assert base64.b64decode(soup.img["src"].removeprefix("data:image/svg+xml;base64,")) == path.read_bytes()
        assert [p.name for p in path.parent.iterdir()] == ["f.svg"], "no temporary file stays"

    def test_svg_needs_no_font_and_carries_no_date(self, tmp_path):
        figure_html(draw(), tmp_path / "f.svg", "alt", "caption")
        svg = (tmp_path / "f.svg").read_text()
        assert "<text" not in svg
        assert "dc:date" not in svg

    def test_closes_the_figure(self, tmp_path):
        figure_html(draw(), tmp_path / "f.svg", "alt", "caption")
        assert plt.get_fignums() == []

    def test_texts_are_escaped(self, tmp_path):
        evil = '"><script>alert(1)</script>'
        soup = BeautifulSoup(figure_html(draw(), tmp_path / "f.svg", evil, evil, CSV).data, "html.parser")
        assert soup.script is None
        assert soup.img["alt"] == evil
        assert evil in soup.figcaption.get_text()
        assert soup.a["href"] == CSV

    def test_an_empty_alt_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="alt"):
            figure_html(draw(), tmp_path / "f.svg", " ", "caption")

    def test_lines_differ_without_colour(self):
        lines = [plt.plot([0, 1])[0] for _ in range(8)]
        assert len({line.get_marker() for line in lines}) == 8
        assert len({str(line.get_linestyle()) + str(line._unscaled_dash_pattern) for line in lines}) == 8


class TestTable:
    @pytest.mark.parametrize("where", ["value", "column", "index", "caption"])
    def test_everything_is_escaped(self, where):
        evil = "<script>alert(1)</script>&amp;"
        frame = pd.DataFrame({evil if where == "column" else "text": [evil if where == "value" else "x"]})
        if where == "index":
            frame.index = [evil]
        soup = BeautifulSoup(table_html(frame, evil if where == "caption" else "caption", CSV).data, "html.parser")
        assert soup.script is None
        assert evil in soup.get_text()

    @pytest.mark.parametrize(
        "value, text",
        [
            (12.3456, "12.35"),
            (-1.5, "−1.50"),
            (0.00031, "0.00031"),
            (0.0, "0.00"),
            (1234567.0, "1,234,567.00"),
            (1234567, "1,234,567"),
            (np.float32(2.5), "2.50"),
            (np.int64(4), "4"),
            (float("nan"), "–"),
            (np.float32("nan"), "–"),
            (None, "–"),
            (pd.NA, "–"),
            (True, "yes"),
            (np.bool_(False), "no"),
            ("2.5", "2.5"),
        ],
    )
    def test_default_formats(self, value, text):
        frame = pd.DataFrame({"name": ["row"], "value": pd.Series([value], dtype=object)})
        assert cells(frame) == [["row", text]]

    def test_given_formats(self):
        frame = pd.DataFrame({"share": [0.256], "f1": [80.123], "gain": [-0.04], "id": [7]})
        formats = {"share": ".1%", "f1": ".1f", "gain": ".1f", "id": lambda i: f"#{i}"}
        assert cells(frame, formats=formats) == [["25.6%", "80.1", "0.0", "#7"]]

    def test_a_format_for_no_column_is_refused(self):
        with pytest.raises(KeyError, match="f2"):
            table_html(pd.DataFrame({"f1": [1.0]}), "caption", CSV, {"f2": ".1f"})

    def test_numbers_stand_right_and_texts_left(self):
        frame = pd.DataFrame({"name": ["a", "b"], "n": [1, 2], "gap": [None, 2.5], "mixed": ["x", 1]})
        row = BeautifulSoup(table_html(frame, "caption", CSV).data, "html.parser").tbody.tr
        sides = [re.search(r"text-align:(\w+)", cell["style"])[1] for cell in row.find_all(["th", "td"])]
        assert sides == ["left", "right", "right", "left"]

    def test_headers_have_scopes(self):
        index = pd.MultiIndex.from_product([["qkv"], [2, 4]], names=["role", "bits"])
        soup = BeautifulSoup(table_html(pd.DataFrame({"f1": [1.0, 2.0]}, index), "c", CSV).data, "html.parser")
        assert [th["scope"] for th in soup.thead.find_all("th")] == ["col"] * 3
        assert [th.get_text() for th in soup.tbody.find_all("th", scope="row")] == ["qkv", "2", "qkv", "4"]
        assert soup.a["href"] == CSV

    def test_an_empty_frame_is_a_table_without_rows(self):
        assert cells(pd.DataFrame({"a": [], "b": []})) == []


def test_heatmaps_leave_out_roles_that_a_block_does_not_have():
    rows = [(b, r, "both", 4, b + 1.0, b + 0.5, b + 2.0) for b, r in ((0, "qkv"), (0, "other"), (1, "qkv"))]
    columns = ["block", "role", "lowered", "bits", "loss", "loss_low", "loss_high"]
    fig = heatmaps(pd.DataFrame(rows, columns=columns), "loss", "nats")
    texts = [text.get_text() for text in next(ax for ax in fig.axes if ax.get_title("left")).texts]
    assert texts == ["1.00", "1.00", "2.00"]


def test_heatmaps_mark_the_cells_that_may_be_nothing():
    rows = [(b, r, "both", bits, b + 1.0, b - 0.5, b + 2.0) for b in range(2) for r in ("qkv", "mlp_in") for bits in (4, 2)]
    columns = ["block", "role", "lowered", "bits", "loss", "loss_low", "loss_high"]
    fig = heatmaps(pd.DataFrame(rows, columns=columns), "loss", "nats")
    maps = [ax for ax in fig.axes if ax.get_title("left")]
    assert [ax.get_title("left") for ax in maps] == ["both, 4 bits", "both, 2 bits"]
    for ax in maps:
        assert [text.get_text() for text in ax.texts] == ["(1.00)", "(1.00)", "2.00", "2.00"]
        assert {patch.get_xy() for patch in ax.patches if patch.get_hatch()} == {(0, 0), (1, 0)}


def test_a_forest_has_a_panel_for_each_change_and_a_point_for_each_row():
    rows = [
        (part, precision, change, x, x - 0.1, x + 0.2)
        for change, x in (("added", 1.0), ("removed", -2.0))
        for part in ("rotation", "clipping")
        for precision in ("4", "w2a8")
    ]
    columns = ["part", "precision", "change", "saved", "saved_low", "saved_high"]
    fig = forest(pd.DataFrame(rows, columns=columns), "saved", "part", "precision", "change", "nats")
    assert [ax.get_title("left") for ax in fig.axes] == ["added", "removed"]
    for ax, x in zip(fig.axes, (1.0, -2.0), strict=True):
        points = [point for container in ax.containers for point in zip(*container.lines[0].get_data(), strict=True)]
        assert len(points) == 4 and {value for value, _ in points} == {x}
        assert len({y for _, y in points}) == 4  # none hides another
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == ["rotation", "clipping"]
    plt.close(fig)
