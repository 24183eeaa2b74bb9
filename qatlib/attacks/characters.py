"""Character noise: typos, swaps and look-alikes in the words around an answer. It does not use the model."""

from __future__ import annotations

from typing import Literal

import numpy as np

from qatlib.attacks.text import free_words, with_changes
from qatlib.checks import filled, finite, one_of
from qatlib.qa.squad import Question
from qatlib.seeds import stream

Kind = Literal["typo", "swap", "homoglyph"]

KINDS: tuple[Kind, ...] = ("typo", "swap", "homoglyph")

_KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
NEIGHBOURS = {
    letter: "".join(
        other
        for y, line in enumerate(_KEYBOARD)
        for x, other in enumerate(line)
        if other != letter and abs(y - row) <= 1 and abs(x + 0.5 * y - column - 0.5 * row) <= 1
    )
    for row, keys in enumerate(_KEYBOARD)
    for column, letter in enumerate(keys)
}
"""The keys around each key of a QWERTY keyboard."""

HOMOGLYPHS = dict(zip("aceiopxyABCEHIKMOPTX", "асеіорхуАВСЕНІКМОРТХ", strict=True))
"""Latin letters and the Cyrillic ones that look like them."""


def character_noise(question: Question, rate: float, seed: int, kinds: tuple[Kind, ...] = KINDS) -> Question:
    """Change one character in about a share `rate` of the free words with at least four letters.

    Lengths do not change. A typo replaces a letter by a neighbouring key, a swap exchanges two neighbouring letters, a
    homoglyph replaces a letter by one that looks like it. The first letter is never changed, as in most real typing errors.
    A word that no kind can change stays as it is.

    Args:
        rate: probability that a word is changed.
        seed: together with the question's id it determines all changes.

    Raises:
        ValueError: the rate is no probability, or there is no such kind.
    """
    finite(0, rate=rate)
    filled(kinds=kinds)
    if rate > 1:
        raise ValueError(f"rate is {rate}; allowed is a number from 0 to 1")
    for kind in kinds:
        one_of(KINDS, kinds=kind)
    rng = np.random.default_rng(stream(seed, "character noise", question.id))
    changes = {}
    for start, end in free_words(question):
        word = question.context[start:end]
        if len(word) < 4 or rng.random() >= rate:
            continue
        for kind in rng.permutation(len(kinds)):
            if found := _changed(word, kinds[kind], rng):
                changes[start, end] = found
                break
    return with_changes(question, changes)


def _changed(word: str, kind: Kind, rng: np.random.Generator) -> str | None:
    """The word with one change of this kind after its first letter, or None if this kind changes nothing."""
    if kind == "swap":
        places = [i for i in range(1, len(word) - 1) if word[i] != word[i + 1]]
        if not places:
            return None
        i = int(rng.choice(places))
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    table = HOMOGLYPHS if kind == "homoglyph" else NEIGHBOURS
    places = [i for i in range(1, len(word)) if word[i] in table]
    if not places:
        return None
    i = int(rng.choice(places))
    return word[:i] + str(rng.choice(list(table[word[i]]))) + word[i + 1 :]
