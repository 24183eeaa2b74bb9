"""Named streams of random numbers: every use of chance has a seed of its own."""

from __future__ import annotations

import hashlib
import json


def stream(seed: int, name: str, *of: int | str) -> int:
    """The seed of one use of chance, from 0 to 2⁶³ − 1: the first bits of SHA-256 over `seed`, `name` and `of`.

    Two uses never share numbers, for any seeds. `stream(0, "dropout", 1)` and `stream(1, "dropout", 0)` are independent;
    with sums such as `seed + 1` they would be equal.

    Args:
        seed: the seed of the run or of the training.
        name: the name of the use; every call in the package has its own name.
        of: numbers or names that distinguish several draws of one use, such as a process or a draw.

    Example:
        >>> stream(0, "order of the data") != stream(0, "dropout")
        True
    """
    digest = hashlib.sha256(json.dumps([seed, name, *of]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
