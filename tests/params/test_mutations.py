"""Params files that chance has spoiled: each is accepted rightly or refused in one sentence, and nothing else happens.

A mutation changes the text of a real profile, or values in it. Both are drawn from `random.Random(seed)` alone.
"""

import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qatlib.params.load import load_params
from qatlib.params.sections import ROOT
from qatlib.params.yaml import ParamsError, read_yaml

PROFILES = [path.read_text() for path in sorted((ROOT / "params").glob("*.yaml"))]
QUICK, ALL = 100, 3_000

# what may stand anywhere in a text
TOKENS = [
    *"[]{}:,-#&*!|>'\"%@`?~\t\0\ud800\U0001f600",
    *("\n", "\r\n", "  ", "---\n", "...\n", "<<: *a\n", "&a ", "*a", "!!python/object/apply:os.system [touch evaluated]"),
    *("$(touch evaluated)", "`touch evaluated`", "${HOME}", "{{ 7 * 7 }}", "__import__('os').system('touch evaluated')"),
    *("null", "true", ".nan", "-.inf", "1e999", "9" * 30, "9" * 5_000, "0x10", "1_000", "010", "-1", "0.5", "[" * 50, "- " * 50),
]
# what may stand for any value
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 32, 33, 2**31, 2**32, 2**63, 2**64, 10**30, -(10**30)),
    *(0.5, -0.5, 1e-300, 1e-9, 1e9, 1e300, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        " ",
        "x",
        "8",
        "w4a8",
        "w99a8",
        "embedded",
        "no",
        "null",
        "NA",
        "C2",
        "hub:a/b",
        "hub:",
        "dir:/",
        "dir:",
        "dir:nowhere",
    ),
    *(
        "../../etc/passwd",
        "a.json",
        "/dev/zero",
        "~",
        "$HOME",
        "é\u2028\U0001f600",
        "\ud800",
        "\udcff",
        "x" * 5_000,
        "a\nb",
        "\0",
    ),
    *([], [[]], [[[]]], [8], [8, 8], [8, 4], [None], ["8", 8], [1e300, 1], ["a.json", "a.json"], list(range(500)), {}, {"": {}}),
    *(
        {"x": 1},
        {"name": "all"},
        {"source": "embedded"},
        {"epsilon": 1e300},
        {"steps": 10**30},
        {"a": {"b": {"c": {"d": [[[1]]]}}}},
    ),
]


def mutated(seed: int) -> str:
    """A profile's text with one to three mutations."""
    rng = random.Random(seed)
    text = rng.choice(PROFILES)
    for _ in range(rng.randint(1, 3)):
        text = rng.choice([_in_text, _in_values, _in_values])(text, rng)
    return text


def _in_text(text: str, rng: random.Random) -> str:
    """Characters or lines that are lost, doubled, moved, exchanged or put in."""
    start, lines = rng.randrange(len(text) + 1), text.splitlines(keepends=True)
    end, line, other = start + rng.randint(1, 20), rng.randrange(len(lines) or 1), rng.randrange(len(lines) or 1)
    kind = rng.randrange(7)
    if kind == 0 or not lines:
        return text[:start] + rng.choice(TOKENS) + text[start:]
    if kind == 1:
        return text[:start] + text[end:]
    if kind == 2:
        return text[:start] + text[start:end] * 2 + text[end:]
    if kind == 3:
        return text[:start]
    if kind == 4:
        lines[line] = rng.choice([" ", "  ", "\t"]) + lines[line]
    if kind == 5:
        lines[line], lines[other] = lines[other], lines[line]
    if kind == 6:
        lines[line] *= 2
    return "".join(lines)


def _in_values(text: str, rng: random.Random) -> str:
    """A value that is another one, that is lost, doubled, wrapped, or stands under another key."""
    try:
        values = read_yaml(text, "here")
    except ParamsError:
        return _in_text(text, rng)
    places = list(_places(values))
    if not places:
        return _in_text(text, rng)
    inside, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind <= 1:
        inside[key] = rng.choice(VALUES)
    elif kind == 2:
        del inside[key]
    elif kind == 3 and isinstance(inside, list):
        inside.insert(rng.randrange(len(inside) + 1), inside[key])
    elif kind == 4:
        inside[key] = [inside[key]] if rng.random() < 0.5 else {"x": inside[key]}
    elif isinstance(inside, dict):
        inside[rng.choice([f"{key}x", key.upper(), "x", "", "seed", "\ud800", "k" * 999])] = inside.pop(key)
    return json.dumps(values)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in [*value] if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


class Watch:
    """What the interpreter does to the machine while it is watched: programs started, and files written, moved or deleted."""

    EVENTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "shutil.rmtree")
    EVENTS += ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink", "os.utime", "os.chmod")

    def __init__(self) -> None:
        self.watching, self.seen = False, list[str]()
        sys.addaudithook(self._hook)  # for as long as the process lives

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.watching and event == "open":
            _, mode, flags = arguments
            if set(mode or "") & set("wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.seen.append(f"{event} {arguments}")
        elif self.watching and event in self.EVENTS:
            self.seen.append(f"{event} {arguments}")

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.watching = True
        try:
            yield
        finally:
            self.watching = False


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture
def judge(watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[range], int]:
    """Loads the mutants of some seeds, and returns how many were accepted."""

    def judged(seeds: range) -> int:
        load_params("smoke")  # imports are over
        path, accepted = tmp_path / "mine.yaml", 0
        monkeypatch.chdir(tmp_path)
        for seed in seeds:
            path.write_bytes(mutated(seed).encode("utf-8", "surrogatepass"))
            try:
                with watch():
                    params = load_params(str(path))
            except ParamsError as error:
                sentence = str(error)
                sentence.encode()
                assert sentence.startswith(f"{path}: ") and "\n" not in sentence and len(sentence) < 2_000, seed
                assert "allowed" in sentence, seed
                continue
            accepted += 1
            assert params.named and params.quantizers and params.specialized and params.budgets, seed
            assert all(params.lowered_to(base) for base in params.bases) and len(params.cycled) > 1, seed
            path.write_text(json.dumps(params.model_dump(mode="json")))
            assert load_params(str(path)) == params, seed
        assert watch.seen == [] and [*tmp_path.iterdir()] == [path]
        return accepted

    return judged


def test_spoiled_params_are_refused_in_a_sentence_or_accepted_rightly(judge) -> None:
    accepted = judge(range(QUICK))
    assert QUICK / 20 < accepted < QUICK / 2  # neither all nor none of them are spoiled


@pytest.mark.slow
def test_three_thousand_of_them(judge) -> None:
    assert 0 < judge(range(QUICK, ALL)) < ALL


def test_a_seed_gives_one_mutant() -> None:
    assert [mutated(seed) for seed in range(20)] == [mutated(seed) for seed in range(20)]
    assert len({mutated(seed) for seed in range(100)}) > 95


def test_what_is_watched_is_seen(watch: Watch, tmp_path: Path) -> None:
    with watch():
        (tmp_path / "a").touch()
        (tmp_path / "a").unlink()
    assert {"open", "os.remove"} <= {line.split()[0] for line in watch.seen}
    watch.seen.clear()
