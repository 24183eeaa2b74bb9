"""Named streams of random numbers: every use of chance has a seed of its own."""

from __future__ import annotations

import hashlib
import json


def stream(seed: int, name: str, *of: int | str) -> int:
    """The seed of one use of chance, from 0 to 2⁶³ − 1: the first bits of SHA-256 over the seed, the name and what it is of.

    Two uses never share numbers, whatever their seeds: `stream(0, "dropout", 1)` and `stream(1, "dropout", 0)` have
    nothing in common, as sums such as `seed + 1` would.

    Args:
        seed: of the run or of the training.
        name: of the use; every call in the package has a name of its own.
        of: numbers or names that tell several draws of one use apart, such as a process or a draw.

    Example:
        >>> stream(0, "order of the data") != stream(0, "dropout")
        True
    """
    digest = hashlib.sha256(json.dumps([seed, name, *of]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
