"""Pieces: each computed once, whatever the order, and neighbours are spread."""

from __future__ import annotations

import pandas as pd

from qatlib.qa.parts import spread
from qatlib.studies.pieces import Piece, run


def test_pieces_are_computed_once_and_come_in_order(make_desk, tmp_path):
    desk = make_desk(tmp_path)
    pieces = [Piece(f"pairs_{i}", lambda i=i: pd.DataFrame({"x": [i]}), published=False) for i in range(3)]
    last, *_ = run(pieces[::-1], desk)
    assert last["x"].tolist() == [2]
    assert [part["x"].item() for part in run(pieces, desk)] == [0, 1, 2]
    assert desk.computed == ["pairs_2", "pairs_1", "pairs_0"]


def test_a_spread_is_even_and_of_all_where_there_are_no_more():
    assert spread([*range(10)], 4) == [0, 3, 6, 9]
    assert spread([1, 2], 5) == spread([1, 2], None) == [1, 2]
