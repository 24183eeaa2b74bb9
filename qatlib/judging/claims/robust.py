"""C20 to C26: random precision inference (RPI) and other defences under the worst attacker known here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from qatlib.attacks.defence import Set, set_name
from qatlib.judging import results
from qatlib.judging.attack_checks import BELIEVABLE
from qatlib.judging.attack_scores import attacked, contrast, drops, gains, select, with_rpi, worst_over
from qatlib.judging.claims import Effect, verdict_table
from qatlib.judging.stats import Estimate, cluster_bootstrap, percentage
from qatlib.precision import FULL_PRECISION

S0_CUT = 58.0
"""S0's RPI removes at least this percentage of the drop at 8 bits."""

ALIKE = 10.0
"""A rise of perplexity counts as equal to that at 32 bits if it differs by at most this percentage."""

DEFENCES = ("C20", "C21", "C23", "C24", "C25")
"""Claims that something is a defence. An attack that is too weak would reproduce them."""

UNKNOWN = 0.01
"""If the share of unknown tokens in noisy text is at least this, the noise is of another kind."""

EVERY_ATTACK = "every attack"
"""For each question the worst of all attacks made, whatever their target."""


def verdicts(
    rows: pd.DataFrame,
    perplexities: pd.DataFrame,
    sets: Sequence[Set],
    draws: int,
    undermined: bool = False,
    **options: Any,
) -> pd.DataFrame:
    """C20 to C26. Every way of answering is judged by the worst attack on each question, out of the same attacks (some adaptive).

    Args:
        rows: `attack_rows` of notebook 5, scores under attack (`qatlib.judging.attack_scores`) with `experiment`: `main` and
            `trainings` from `Robustness.matrix`, the latter with `training` and `seed`; `finer` from `.drawn_finer`;
            `hotflip` from `.hotflipped`; and, if there are any, `words` from `Textual.word_attack`.
        perplexities: the result of `Textual.perplexities`.
        sets: all sets that RPI draws from.
        draws: number of mixed configurations that the finer draws are averaged over.
        undermined: whether a failed check rules out any claim for a defence (`attack_rules.undermining`).

    Returns:
        As `verdict_table`; effects are in points of F1, for C20 and C22 in percent.
    """
    main, finer, hotflip, words, trainings = (
        rows[rows["experiment"] == name].drop(columns="experiment").dropna(axis=1, how="all")
        for name in ("main", "finer", "hotflip", "words", "trainings")
    )
    first, answered = sets[0], set(main["answered"])
    rpi, complete = f"RPI {set_name(first)}", attacked(main, *sets)
    lost = drops(complete)
    found: dict[str, list[Effect] | str] = {
        "C20": [_cut(lost, rpi, **options)] if "8" in answered else "takes 8 bits in a set",
        "C21": _less_lost(with_rpi(words, first), first, rpi, **options) if len(words) else "takes adversarial.words",
        "C22": _alike(perplexities, **options),
        "C23": _against_fp32(main, lost, with_rpi(hotflip, first), first, **options)
        if "32" in answered
        else "takes 32 bits in a set",
        "C24": _fewer_widths(complete, sets, **options),
        # a mean over few draws has noise from the draws, which the interval over questions does not cover
        "C25": _finest(finer, **options)
        if draws >= BELIEVABLE
        else f"takes {BELIEVABLE} draws a kind, of which this profile has {draws} (adversarial.draws)",
        "C26": _weaker(gains(trainings, ["training", "seed"], first, list(trainings["answered"].unique())), **options),
    }
    return verdict_table(found, DEFENCES if undermined else ())


def _worst(frame: pd.DataFrame) -> pd.DataFrame:
    """Clean answers, and those under the worst of all attacks in the frame, question by question."""
    clean = frame["family"] == "none"
    attacks = frame.loc[~clean, "attack"].unique().tolist()
    return pd.concat([frame[clean], worst_over(frame, attacks, EVERY_ATTACK)], ignore_index=True)


def _drop_beyond(frame: pd.DataFrame, more: str, less: str, attack: str, metric: str = "f1_drop", **options: Any) -> Estimate:
    """How much more F1 (or EM) one way of answering loses than another."""
    return contrast(select(frame, more, attack), select(frame, less, attack), metric, **options)


def _cut(lost: pd.DataFrame, rpi: str, **options: Any) -> Effect:
    fixed, random = (select(lost, way, "worst") for way in ("8", rpi))
    pair = fixed.merge(random, on=["id", "paragraph"], suffixes=("", "_rpi"))
    share = percentage(pair["f1_drop"] - pair["f1_drop_rpi"], pair["f1_drop"], pair["paragraph"], **options)
    return Effect(f"percent of the drop at 8 bits that {rpi} takes away", share, "drops", above=S0_CUT)


def _less_lost(words: pd.DataFrame, first: Set, rpi: str, **options: Any) -> list[Effect] | str:
    lost = drops(_worst(words))
    if not (lost["f1_drop"].any() or lost["em_drop"].any()):
        return "takes words whose exchange costs something: here nothing is lost, at any precision"
    return [
        Effect(
            f"{metric.upper()} lost at {p.name} bits less that by {rpi}",
            _drop_beyond(lost, p.name, rpi, EVERY_ATTACK, f"{metric}_drop", **options),
            "text_attacks",
        )
        for metric in ("f1", "em")
        for p in first
        if p != FULL_PRECISION
    ]


def _against_fp32(main: pd.DataFrame, lost: pd.DataFrame, hotflip: pd.DataFrame, first: Set, **options: Any) -> list[Effect]:
    """How much less is lost than at 32 bits, and how much lower clean F1 is, as S4 claims."""
    rpi, clean = f"RPI {set_name(first)}", with_rpi(main[main["family"] == "none"], first)
    lower = [
        Effect(
            f"clean F1 at 32 bits less that by {way}",
            contrast(select(clean, "32", "none"), select(clean, way, "none"), **options),
            "transfer_cells",
        )
        for way in ("8", rpi)
        if way in set(clean["answered"])
    ]
    kinds = {"PGD": (lost, "worst", "drops"), "HotFlip": (drops(_worst(hotflip)), EVERY_ATTACK, "text_attacks")}
    return lower + [
        Effect(f"{kind}: F1 lost at 32 bits less that by {way}", _drop_beyond(frame, "32", way, attack, **options), table)
        for kind, (frame, attack, table) in kinds.items()
        for way in ("8", rpi)
        if way in set(frame["answered"])
    ]


def _fewer_widths(complete: pd.DataFrame, sets: Sequence[Set], **options: Any) -> list[Effect] | str:
    two, three = (next((s for s in sets if {p.name for p in s} == names), None) for names in ({"4", "8"}, {"4", "6", "8"}))
    if not two or not three:
        return "takes {4, 8} and {4, 6, 8} in adversarial.sets"
    a, b = (select(complete, f"RPI {set_name(s)}", "worst") for s in (two, three))
    return [Effect(f"F1 of {set_name(two)} over {set_name(three)}", contrast(a, b, **options), "transfer_cells")]


def _finest(finer: pd.DataFrame, **options: Any) -> list[Effect]:
    batch = select(_worst(finer), "per batch", EVERY_ATTACK)
    kinds = ("per layer", "per token")
    return [
        Effect(f"F1 of drawing {kind} over per batch", contrast(_crossed(finer, kind), batch, **options), "finer")
        for kind in kinds
    ]


def _crossed(finer: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Each question's F1 on one half of the draws, under the attack that is worst on the other half. Mean of both ways.

    If chosen and scored on the same draws, the worst attack would also include their bad luck.
    """
    attacked = finer[(finer["family"] != "none") & (finer["drawn"] == kind)]
    halves = [attacked[attacked["half"] == half] for half in ("even", "odd")]
    scored = []
    for chosen_on, scored_on in (halves, halves[::-1]):
        worst = chosen_on.sort_values("f1", kind="stable").drop_duplicates("id")[["id", "attack"]]
        scored.append(scored_on.merge(worst, on=["id", "attack"]))
    return pd.concat(scored).groupby(["id", "paragraph"], sort=False, as_index=False)[["f1"]].mean()


def _weaker(gained: pd.DataFrame, **options: Any) -> list[Effect] | str:
    alike, consistency = (gained[gained["training"] == name] for name in ("random pair", "consistency"))
    if alike.empty or consistency.empty:
        return "takes random pair, which differs in its loss alone, and consistency among adversarial.methods"
    name = "gain of RPI after random pair training less that after consistency training"
    return [Effect(name, contrast(alike, consistency, "gain", **options), "trainings")]


def noise_rises(perplexities: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """By how many percent character noise raises perplexity at every precision, with intervals by paragraph."""
    rows = []
    for name in perplexities["precision"].unique():
        mine = perplexities[perplexities["precision"] == name]
        columns = [mine[c] for c in ("noisy_nll", "noisy_tokens", "nll", "tokens")]
        found = cluster_bootstrap(columns, mine["paragraph"], _rise, **options)
        rows.append({"precision": name, **results.interval("rise", found), "paragraphs": found.n})
    return pd.DataFrame(rows)


def unknown_share(perplexities: pd.DataFrame) -> float:
    """The share of the noisy paragraphs' tokens that their tokenizer does not know."""
    return float(perplexities["noisy_unknown"].sum() / perplexities["noisy_tokens"].sum())


def _rise(noisy: Any, noisy_tokens: Any, clean: Any, tokens: Any) -> Any:
    return 100 * (np.exp(noisy / noisy_tokens - clean / tokens) - 1)


def _alike(perplexities: pd.DataFrame, **options: Any) -> list[Effect] | str:
    """Each precision's rise as a percentage of the rise at 32 bits. It must be close to 100."""
    if unknown_share(perplexities) > UNKNOWN:
        return "takes a tokenizer that can spell: here a word with a typo is an unknown one, which is no noise but a hole"
    base = perplexities[perplexities["precision"] == "32"]
    effects: list[Effect] = []
    columns = ("noisy_nll", "noisy_tokens", "nll", "tokens")
    for name in (n for n in perplexities["precision"].unique() if n != "32" and len(base)):
        mine = perplexities[perplexities["precision"] == name]
        pair = mine.merge(base, on="paragraph", suffixes=("", "_32"))
        both = [pair[f"{c}{side}"] for side in ("", "_32") for c in columns]
        share = cluster_bootstrap(both, pair["paragraph"], lambda *t: 100 * _rise(*t[:4]) / _rise(*t[4:]), **options)
        said = f"rise of perplexity {f'by {name}' if mine['random'].all() else f'at {name} bits'} in percent of that at 32"
        effects += [Effect(said, share, "noise_rises", above=100 - ALIKE), Effect(said, share, "noise_rises", below=100 + ALIKE)]
    return effects or "takes 32 bits beside another precision"
