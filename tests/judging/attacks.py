"""The columns of made-up attacks."""

from __future__ import annotations

import pandas as pd

from qatlib.studies.attackers import NO_ATTACK, Attack


def gradient(name: str, target: str, **changes: str | float) -> Attack:
    """An attack along a gradient against a precision, a set or a way of drawing."""
    settings: dict[str, str | float] = {"epsilon": 0.5, "objective": "cross_entropy", "steps": 2}
    return Attack(name, "gradient", target, **(settings | changes))


CLEAN_AND_NOISE = (NO_ATTACK, Attack("noise", "noise", epsilon=0.5))


def described(frame: pd.DataFrame, attacks: dict[str, Attack]) -> pd.DataFrame:
    """Rows with `attack`, and the columns of each; the key is a row's `attack`."""
    columns = pd.DataFrame([attacks[name].columns for name in frame["attack"]], index=frame.index)
    return frame.drop(columns="attack").join(columns)
