"""Every use of chance has a stream of its own, and no seed is made by arithmetic."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest
import torch

from qatlib.attacks.embedding import own_seed
from qatlib.qa.loss import collate
from qatlib.qa.spans import featurize
from qatlib.qa.toyqa import build_tokenizer, generate
from qatlib.seeds import stream

PACKAGE = Path(__file__).parents[1] / "qatlib"
NAMED = {"stream": 1, "own_seed": 2, "generator": 2, "_ball": 4, "_pgd_within": 3}
"""Functions that take a stream's name, and its place among their arguments."""
DRAWS = {"manual_seed", "default_rng", "Random"}
APART = {"judging/stats.py"}  # the bootstrap: its seed is an argument of the interval, and it judges only


def calls() -> list[tuple[str, ast.Call, str]]:
    """Every call in the package: its module, itself, and the name of what is called."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and name not in APART:
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                found.append((name, node, called))
    return found


def test_no_two_calls_share_a_name():
    names = [
        node.args[place].value
        for _, node, called in calls()
        if (place := NAMED.get(called)) is not None and isinstance(node.args[place], ast.Constant)
    ]
    assert len(names) > 20 and not [name for name, count in Counter(names).items() if count > 1]


def test_whatever_draws_is_seeded_by_a_named_stream():
    for module, node, called in calls():
        if called in DRAWS and node.args:
            (seed,) = node.args
            assert isinstance(seed, ast.Call) and getattr(seed.func, "id", "") in NAMED, f"{module}: {ast.unparse(node)}"


def test_streams_of_other_seeds_names_or_draws_differ():
    found = [stream(seed, name, *of) for seed in (0, 1, 1009) for name in ("a", "b") for of in ((), (0,), (1,), ("1",), (0, 1))]
    assert len({*found}) == len(found) and all(0 <= seed < 2**63 for seed in found)
    assert stream(0, "a", 1) == stream(0, "a", 1)


@pytest.mark.parametrize("query", range(3))
def test_the_attackers_random_start_is_not_the_defenders_draw(query):
    """They were one stream, `seed + 7919` against `seed + 1000 · draw`, where draw 0 met the first restart."""
    batch = collate(featurize(generate(4, 0), build_tokenizer(), 96, 32), 1)
    start, draw = own_seed(batch, 0, "start of PGD"), own_seed(batch, 0, "tokens that the defender draws", query)
    first, second = (torch.rand(8, generator=torch.Generator().manual_seed(seed)) for seed in (start, draw))
    assert not torch.equal(first, second)
    assert own_seed(batch, 0, "start of PGD") == start
