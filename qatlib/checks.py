"""Checks of plain arguments, each with one sentence: what is given, and what is allowed. Free of torch.

Values are given by name, as in `whole(1, batch_size=batch_size)`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sized
from numbers import Integral, Real
from typing import Any


def filled(**lists: Any) -> None:
    """
    Raises:
        ValueError: a value is no list (a text is none), or it is empty.
    """
    for name, value in lists.items():
        if isinstance(value, str) or not isinstance(value, Sized):
            raise ValueError(f"{name} is {_shown(value)}; allowed is a list")
        if not len(value):
            raise ValueError(f"{name} is empty; allowed is a list with at least one entry")


def whole(least: int, /, **values: Any) -> None:
    """
    Raises:
        ValueError: a value is no integer of at least `least`.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} is {_shown(value)}; allowed is an integer of at least {least}")


def finite(least: float = -math.inf, /, *, above: bool = False, **values: Any) -> None:
    """
    Raises:
        ValueError: a value is no finite number of at least `least`, or, on request, above it.
    """
    for name, value in values.items():
        number = not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
        if not number or value < least or (above and value == least):
            bound = "" if least == -math.inf else f" above {least:g}" if above else f" of at least {least:g}"
            raise ValueError(f"{name} is {_shown(value)}; allowed is a finite number{bound}")


def one_of(allowed: Collection[Any], **values: Any) -> None:
    """
    Raises:
        ValueError: a value is not one of those allowed.
    """
    for name, value in values.items():
        if value not in allowed:
            raise ValueError(f"{name} is {_shown(value)}; allowed is one of {', '.join(map(repr, allowed))}")


def _shown(value: Any) -> str:
    """A value in one short line."""
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= 80 else f"{shown[:80]}…"
