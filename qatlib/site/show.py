"""Figures and tables for a notebook, readable both in JupyterLab and in the report.

`figure_html` and `table_html` return HTML that needs no script, no style sheet and no other file. The links to CSV files
(`results/<stage>/<name>.csv`) are relative to the report's pages and work only there.
"""

import base64
import io
import os
from collections.abc import Callable, Hashable, Mapping
from html import escape
from itertools import cycle, product
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns  # type: ignore[import-untyped]
from cycler import cycler
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qatlib.files import write_atomic

Format = str | Callable[[object], str]

# Paths, not text: an SVG inside an <img> can't load a font. Text would use some font of the reader's machine and could
# overrun its boxes. Outlines look the same everywhere. The words are in `alt`, the caption and the CSV.
# (The type is Any because rcParams wants literal keys, which a dict does not have.)
_SVG: Any = {"svg.fonttype": "path", "svg.hashsalt": "qatlib", "svg.image_inline": True}
# By default matplotlib writes the date and its version, so that the same figure would differ from run to run.
_NO_STAMP = {"Date": None, "Creator": None}

_LINES = ["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2, 2, 2))]
_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]


def set_style() -> None:
    """Set the figures' style for this process: seaborn's colour-blind palette on white. Successive lines differ in colour,
    dash and marker, so that they stay distinct in a grey print. Nothing of a user's own style is left."""
    mpl.rcdefaults()
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    colors = sns.color_palette("colorblind", len(_LINES)).as_hex()
    mpl.rcParams.update(
        _SVG
        | {
            "axes.prop_cycle": cycler(color=colors) + cycler(linestyle=_LINES) + cycler(marker=_MARKERS),
            "axes.edgecolor": "0.3",
            "axes.labelsize": 10,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "errorbar.capsize": 2.5,
            "figure.constrained_layout.use": True,
            "figure.figsize": (7.2, 4.0),
            "font.family": "DejaVu Sans",  # comes with matplotlib: the same outlines on every machine
            "grid.color": "0.88",
            "image.cmap": "cividis",  # steady in lightness: readable in grey and to colour-blind readers
            "legend.fontsize": 9,
            "legend.frameon": False,
            "lines.linewidth": 1.6,
            "lines.markersize": 5,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
        }
    )


def heatmaps(cells: pd.DataFrame, metric: str, label: str, digits: int = 2) -> Figure:
    """Block × role heatmaps of one metric: one row per kind of lowering, one column per bit-width, one colour scale for all.

    A cell whose interval contains zero is hatched, and its number is in brackets. The few largest cells lie beyond the ends
    of the colour scale.

    Args:
        cells: columns `block`, `role`, `lowered`, `bits`, and the metric with `_low` and `_high`; one row per cell.
        label: the metric in words, with its unit.
    """
    kinds, widths = cells["lowered"].unique(), cells["bits"].unique()
    roles, blocks = cells["role"].unique(), cells["block"].nunique()
    size = (1.2 + len(widths) * (0.62 * len(roles) + 0.5), len(kinds) * (0.27 * blocks + 1.1))
    fig, axes = plt.subplots(len(kinds), len(widths), figsize=size, squeeze=False, sharex=True, sharey=True)
    fig.set_visible(False)  # else seaborn draws the whole figure after every heatmap, to check whether labels overlap
    limit = cells[metric].abs().quantile(0.98)
    for (i, kind), (j, bits) in product(enumerate(kinds), enumerate(widths)):
        ax, rows = axes[i, j], cells[(cells["lowered"] == kind) & (cells["bits"] == bits)]
        if rows.empty:  # this bit-width is for weights only
            ax.set_axis_off()
            continue
        tables = {name: rows.pivot(index="block", columns="role", values=name)[roles] for name in _bounds(metric)}
        value, below, above = tables.values()
        unsure = (below <= 0) & (above >= 0)
        texts = value.map(lambda x: f"{x:z.{digits}f}".replace("-", "−"))
        texts = texts.where(~unsure, "(" + texts + ")")
        last = j == len(widths) - 1
        style = {
            "vmin": -limit,
            "vmax": limit,
            "cmap": "vlag",
            "cbar": last,
            "cbar_kws": {"label": label, "extend": "both" if (cells[metric].abs() > limit).any() else "neither"},
            "annot_kws": {"size": 7},
        }
        sns.heatmap(value, annot=texts, fmt="", ax=ax, linewidths=0.5, **style)
        for y, x in zip(*np.nonzero(unsure.to_numpy()), strict=True):
            ax.add_patch(Rectangle((x, y), 1, 1, fill=False, hatch="///", edgecolor="0.75", linewidth=0))
        ax.set(title=f"{kind}, {bits} bits", xlabel="", ylabel="block" if j == 0 else "")
        ax.tick_params(axis="x", rotation=40)
    fig.set_visible(True)
    return fig


def forest(table: pd.DataFrame, metric: str, rows: str, hue: str, panels: str, xlabel: str) -> Figure:
    """One point with its interval per row of a table, left and right of a line at 0: one panel for each value of `panels`.

    Args:
        table: columns `rows`, `hue`, `panels`, and the metric with `_low` and `_high`.
        rows: what the lines of a panel are; `hue`: what its points differ in, by colour and marker.
        xlabel: the metric in words, with its unit.
    """
    names, hues, shown = (table[column].unique() for column in (rows, hue, panels))
    size = (1.6 + 2.9 * len(shown), 1.1 + 0.16 * len(names) * (len(hues) + 1))
    fig, axes = plt.subplots(1, len(shown), figsize=size, sharey=True, squeeze=False)
    places = {name: -i for i, name in enumerate(names)}
    for ax, panel in zip(axes[0], shown, strict=True):
        for i, (one, marker) in enumerate(zip(hues, cycle(_MARKERS))):
            found = table[(table[panels] == panel) & (table[hue] == one)]
            y = found[rows].map(places) + 0.35 - 0.7 * (i + 0.5) / len(hues)
            ends = [found[metric] - found[f"{metric}_low"], found[f"{metric}_high"] - found[metric]]
            ax.errorbar(found[metric], y, xerr=ends, linestyle="", marker=marker, label=one)
        ax.axvline(0, color="0.3", linewidth=1)
        ax.set(title=panel, xlabel=xlabel, yticks=[*places.values()], yticklabels=names)
    axes[0, -1].legend(title=hue, loc="upper left", bbox_to_anchor=(1, 1))
    return fig


def _bounds(metric: str) -> tuple[str, str, str]:
    return metric, f"{metric}_low", f"{metric}_high"


def figure_html(fig: Figure, path_svg: str | os.PathLike[str], alt: str, caption: str, csv_href: str | None = None) -> HTML:
    """Save `fig` as an SVG (the same figure gives the same bytes), close it, and return it as an accessible <figure>.

    alt: what the figure shows, for readers who cannot see it; not empty. caption: plain text, escaped here.
    csv_href: the CSV behind the figure, `results/<stage>/<name>.csv`.
    The picture is embedded as base64, so the internal ids of two figures cannot collide. ValueError if `alt` is empty.
    """
    if not alt.strip():
        raise ValueError(f"figure {path_svg}: alt must say what the figure shows")
    buffer = io.BytesIO()
    with mpl.rc_context(_SVG):
        fig.savefig(buffer, format="svg", metadata=_NO_STAMP, bbox_inches="tight", facecolor="white")
    plt.close(fig)
    write_atomic(Path(path_svg), buffer.getvalue().decode())
    source = base64.b64encode(buffer.getvalue()).decode("ascii")
    return HTML(
        '<figure class="qat-figure" style="margin:1.5em 0">'
        f'<div class="qat-scroll" style="overflow-x:auto" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f'<img src="data:image/svg+xml;base64,{source}" alt="{escape(alt)}" style="max-width:100%;height:auto"></div>'
        f"<figcaption>{escape(caption)}{_csv_link(csv_href)}</figcaption></figure>"
    )


def table_html(frame: pd.DataFrame, caption: str, csv_href: str, formats: Mapping[str, Format] | None = None) -> HTML:
    """`frame` as an accessible table. All its text is escaped, so it may hold text of a data set.

    The index gives the row headers. The default index is left out, and the first column gives the headers instead.
    formats: by column, a format specification (`".1f"`, `",d"`, `".1%"`) or a function from a value to its text. By default
    floats have 2 decimals, or 2 significant digits below 0.005, so that no small p-value prints as 0.00. Integers have
    thousands separators. A missing value is a dash. KeyError if `formats` names an unknown column.
    """
    plain_index = isinstance(frame.index, pd.RangeIndex) and frame.index.name is None
    heads = 1 if plain_index else frame.index.nlevels
    shown = frame if plain_index else frame.reset_index()
    names = [_column_name(column) for column in shown.columns]
    formats = dict(formats or {})
    if unknown := sorted(set(formats) - set(names)):
        raise KeyError(f"formats for {unknown}, but the columns are {names}")

    columns = [shown.iloc[:, i].tolist() for i in range(len(names))]
    align = ["right" if _is_numeric(values) else "left" for values in columns]
    header = "".join(
        f'<th scope="col" style="text-align:{side}">{escape(name)}</th>' for name, side in zip(names, align, strict=True)
    )
    rows = []
    for row in zip(*columns, strict=True):
        cells = []
        for i, (value, name, side) in enumerate(zip(row, names, align, strict=True)):
            tag, scope = ("th", ' scope="row"') if i < heads else ("td", "")
            text = _format(value, formats.get(name))
            wrap = ";white-space:nowrap" if len(text) <= 24 else ""  # an interval stays on one line
            cells.append(f'<{tag}{scope} style="text-align:{side}{wrap}">{escape(text)}</{tag}>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return HTML(
        '<figure class="qat-table" style="margin:1.5em 0">'
        f"<figcaption>{escape(caption)}{_csv_link(csv_href)}</figcaption>"
        f'<div class="qat-scroll" style="overflow-x:auto" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table><thead><tr>{header}</tr></thead><tbody>\n" + "\n".join(rows) + "\n</tbody></table></div></figure>"
    )


def _csv_link(href: str | None) -> str:
    return f' <a href="{escape(href)}">CSV</a>' if href else ""


def _column_name(column: Hashable) -> str:
    """A column's heading. The levels of a MultiIndex are joined."""
    return " / ".join(str(level) for level in column if level != "") if isinstance(column, tuple) else str(column)


def _is_missing(value: Any) -> bool:
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def _is_numeric(values: list[object]) -> bool:
    """Whether a column holds numbers: at least one, and otherwise only missing values."""
    present = [value for value in values if not _is_missing(value)]
    return bool(present) and all(isinstance(value, Real) and not isinstance(value, bool | np.bool_) for value in present)


def _format(value: object, given: Format | None) -> str:
    if _is_missing(value):
        return "–"
    if callable(given):
        return given(value)
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if not isinstance(value, Real):
        return str(value)
    if given is None and isinstance(value, Integral):
        given = ",d"
    elif given is None:
        given = ".2g" if 0 < abs(float(value)) < 0.005 else ",.2f"
    text = format(value, given)
    if not text.startswith("-"):
        return text
    return f"−{text[1:]}" if text.strip("-0.,%") else text[1:]  # a real minus sign, as wide as a digit; 0.0 gets none
