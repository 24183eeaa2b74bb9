"""Tables on disk: reading the CSV gives back exactly the frame that was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from qatlib.files import read_cells, write_atomic

if TYPE_CHECKING:
    import pandas as pd

_KINDS = {"i": "int64", "f": "float64", "b": "bool"}


def to_csv(frame: pd.DataFrame) -> str:
    """A frame as CSV, floats to the last digit. The index is written too, unless it only counts rows."""
    return frame.to_csv(index=not _counts_rows(frame), lineterminator="\n")


def columns(frame: pd.DataFrame) -> list[str]:
    """The columns that `to_csv` writes. An index without a name has an empty column name."""
    index = [] if _counts_rows(frame) else [str(name or "") for name in frame.index.names]
    return [*index, *map(str, frame.columns)]


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write `<path>.csv`, and then the column types as `<path>.dtypes`, because CSV has none.

    Raises:
        TypeError: the index is not the default one, or a column holds anything but integers, floats, booleans or text.
    """
    dtypes = {str(name): _KINDS.get(dtype.kind, str(dtype)) for name, dtype in frame.dtypes.items()}
    if bad := [f"{name} ({dtype})" for name, dtype in dtypes.items() if dtype not in (*_KINDS.values(), "str")]:
        raise TypeError(f"table {path.name}: allowed are integers, floats, booleans and text, not {', '.join(bad)}")
    if not _counts_rows(frame):
        raise TypeError(f"table {path.name}: its index would be lost; make it a column by reset_index")
    write_atomic(path.with_suffix(".csv"), to_csv(frame))
    write_atomic(path.with_suffix(".dtypes"), json.dumps(dtypes) + "\n")


def read_table(path: Path) -> pd.DataFrame:
    """The frame that `write_table` was given; missing text is an empty string."""
    import pandas as pd

    dtypes = json.loads(path.with_suffix(".dtypes").read_text())
    # Read as text first: then every version of pandas keeps all digits of a float, and an id of digits stays text.
    text = read_cells(path.with_suffix(".csv"))
    return pd.DataFrame({name: _typed(text[name], dtype) for name, dtype in dtypes.items()})


def _typed(column: pd.Series, dtype: str) -> pd.Series:
    if dtype == "bool":
        return column == "True"
    if dtype == "float64":
        return column.replace("", "nan").astype("float64")
    return column.astype("int64") if dtype == "int64" else column


def _counts_rows(frame: pd.DataFrame) -> bool:
    import pandas as pd

    return isinstance(frame.index, pd.RangeIndex) and frame.index.name is None
