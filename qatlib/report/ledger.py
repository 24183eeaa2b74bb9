"""The claims ledger: what the studies claim, what they measured, and what a report's own result files say of it.

Made from `results/<stage>/claims.csv` (and `timing/<stage>/claims_cost.csv`, where a claim is about time) and the tables those
rows name; nothing is computed that does not stand there.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qatlib.claims import MARGIN, SEEDS, Verdict, combined
from qatlib.report.verdicts.catalog import CLAIMS, Claim

RULE = (
    "A claim is taken as a set of effects that it says are above 0. Reproduced: the whole interval of each lies above 0. Not "
    "reproduced: that of one does not, and ends below what would matter "
    f"({MARGIN:g} point of F1 or percent, where a table does not say otherwise). Undecided at this size: anything else, and "
    f"a claim about a training with fewer than {SEEDS} trainings."
)


@dataclass(frozen=True)
class Effect:
    """A figure that a verdict rests on."""

    effect: str
    value: float
    low: float
    high: float
    n: int
    seeds: int
    stage: str
    href: str
    """Of the table behind it, relative to the report."""

    @property
    def interval(self) -> str:
        """As a page shows it."""
        if math.isnan(self.value):
            return "no figure"
        figures = (f"{x:.3f}" if abs(x) < 1 else f"{x:.1f}" for x in (self.value, self.low, self.high))
        return "{} [{}, {}]".format(*figures).replace("-", "−")


@dataclass(frozen=True)
class Entry:
    """One claim with what this report has to say of it."""

    id: str
    claim: Claim
    verdict: Verdict | None
    """None where it could not be tested."""
    effects: tuple[Effect, ...]
    why: str
    """Why it was not tested, or not in full."""

    @property
    def said(self) -> str:
        """The verdict in words."""
        return "undecided at this size" if self.verdict == "undecided" else self.verdict or "not tested"

    @property
    def trainings(self) -> int:
        """The fewest seeds of its effects."""
        return min((e.seeds for e in self.effects), default=0)


def read_ledger(report: Path) -> list[Entry]:
    """The ledger of a report's folder, all claims in order."""
    return [_entry(report, name, claim) for name, claim in CLAIMS.items()]


def _entry(report: Path, name: str, claim: Claim) -> Entry:
    verdicts: list[Verdict] = []
    effects: list[Effect] = []
    missing: list[str] = []
    for stage in claim.stages:
        rows = [row for row in claim_rows(report, stage) if row["claim"] == name]
        found = [row for row in rows if int(row["n"]) > 0]
        if found:
            verdicts.append(_verdict(found[0]["verdict"]))
            effects += [_effect(report, stage, row) for row in found]
        else:
            missing.append(rows[0]["effect"] if rows else f"{stage.replace('_', ' ')} has not come to it")
    if verdicts and missing:
        verdicts.append("undecided")
    verdict = combined(verdicts) if verdicts else None
    return Entry(name, claim, verdict, tuple(effects), "; ".join(dict.fromkeys(missing)))


def _verdict(text: str) -> Verdict:
    for known in ("reproduced", "not reproduced", "undecided"):
        if text == known:
            return known
    raise ValueError(f"{text!r} in a claims.csv is no verdict")


def _effect(report: Path, stage: str, row: Mapping[str, str]) -> Effect:
    places = (f"results/{stage}/{row['table']}.csv", f"timing/{stage}/{row['table']}.csv")
    href = next((place for place in places if (report / place).is_file()), f"results/{stage}/claims.csv")
    value, low, high = (_number(row[key]) for key in ("value", "value_low", "value_high"))
    return Effect(row["effect"], value, low, high, int(row["n"]), int(row["seeds"]), stage, href)


def _number(text: str) -> float:
    return float(text) if text else math.nan  # of a score of 0 no share is kept


def claim_rows(report: Path, stage: str) -> list[dict[str, str]]:
    """What a stage says of claims, an effect a row."""
    return [*table(report, stage, "claims"), *table(report, stage, "claims_cost", "timing")]


def table(report: Path, stage: str, name: str, kind: str = "results") -> list[dict[str, str]]:
    """The rows of a result table; none where the stage has not written it."""
    path = report / kind / stage / f"{name}.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _plain(effect: Effect) -> dict[str, Any]:
    """Without what JSON has no word for."""
    return {key: None if isinstance(x, float) and math.isnan(x) else x for key, x in asdict(effect).items()}


def as_json(entries: Sequence[Entry], about: Mapping[str, Any]) -> dict[str, Any]:
    """The ledger as `claims.json` holds it."""
    claims = [
        {"id": e.id, **asdict(e.claim), "verdict": e.said, "why": e.why, "effects": [_plain(effect) for effect in e.effects]}
        for e in entries
    ]
    return {"rule": RULE, **about, "claims": claims}


@dataclass(frozen=True)
class Answer:
    """One of the exercise's own questions, answered in a paragraph of computed figures."""

    question: str
    text: str
    links: tuple[str, ...]


def answers(report: Path, entries: Sequence[Entry]) -> list[Answer]:
    """Does CPT help, does RPI defend, which configuration is best, which objective helps: what this report's tables say."""
    return [_cpt(report, entries), _rpi(report, entries), _configuration(report), _objective(report)]


def _cpt(report: Path, entries: Sequence[Entry]) -> Answer:
    stage, question = "04_cpt", "Does cyclic precision training help here, and does it match the CPT paper?"
    parts = _differences(table(report, stage, "gaps"), "cpt shared", ("static", "random separate", "cpt shuffled"), "F1 points")
    at_cost = [r for r in table(report, stage, "equal_bitops_gaps") if r["over"] == "static"]
    parts += [f"at equal bit operations {r['model']} over static: {_interval(r, 'difference')} F1 points" for r in at_cost]
    paper = (
        "The CPT paper finds equal or better accuracy than static training at fewer bit operations, for training from scratch."
    )
    return _answer(
        report, question, parts, paper, _said(entries, ("C16", "C17", "C18", "C19")), stage, ("gaps", "equal_bitops_gaps")
    )


def _rpi(report: Path, entries: Sequence[Entry]) -> Answer:
    stage, question = "05_adversarial", "Does random precision inference defend, and does it match Double-Win Quant?"
    rows = [r for r in table(report, stage, "against_static") if r["attack"] == "worst" or r["attack"].startswith("EOT")]
    parts = [f"{r['defence']} over {r['over']} under {r['attack']}: {_interval(r, 'difference')} F1 points" for r in rows]
    paper = (
        "Double-Win Quant reports large gains of random precision, after adversarial training at random precision and against "
        "attackers who do not average over the draw; EOT does, and worst is the worst attack of every question."
    )
    return _answer(report, question, parts, paper, _said(entries, ("C20", "C23", "C25")), stage, ("against_static", "protocols"))


def _configuration(report: Path) -> Answer:
    stage, question = "03_sensitivity_heatmaps", "Which configuration is best, and how was it found?"
    rows = table(report, stage, "search")
    parts = []
    for budget in dict.fromkeys(r["budget"] for r in rows):
        best = max((r for r in rows if r["budget"] == budget), key=lambda r: _number(r["f1"]))
        parts.append(f"at {budget} average bits {best['method']} has F1 {_interval(best, 'f1')}")
    how = (
        "Every block and role was lowered alone and what that cost was measured; programs and greedy searches chose under a "
        "budget of average weight bits, and all were judged on questions that the search never saw."
    )
    return _answer(report, question, parts, how, "", stage, ("search", "search_gaps", "recommended"))


def _objective(report: Path) -> Answer:
    stage, question = "02_switchable_train", "Which extra objective or schedule helps?"
    rows = table(report, stage, "method_gaps")
    parts = []
    for model, over in dict.fromkeys((r["model"], r["over"]) for r in rows):
        parts += _differences(rows, model, (over,), "F1 points")
    return _answer(
        report, question, parts, "All are trained with the same number of passes.", "", stage, ("method_gaps", "ablation")
    )


def _answer(
    report: Path, question: str, parts: Sequence[str], beside: str, said: str, stage: str, tables: Sequence[str]
) -> Answer:
    if not parts:
        return Answer(question, f"Not tested in this report: {stage.replace('_', ' ')} has no such table.", ())
    links = tuple(path for name in tables if (report / (path := f"results/{stage}/{name}.csv")).is_file())
    text = "; ".join(parts)
    return Answer(question, " ".join(x for x in (f"{text[0].upper()}{text[1:]}.", beside, said) if x), links)


def _differences(rows: Sequence[Mapping[str, str]], model: str, over: Sequence[str], unit: str) -> list[str]:
    found = []
    for other in over:
        mine = [r for r in rows if r["model"] == model and r["over"] == other]
        if mine:
            at = ", ".join(f"{_interval(r, 'difference')} at {r['precision']}" for r in mine)
            found.append(f"{model} over {other}, in {unit}: {at} bits")
    return found


def _interval(row: Mapping[str, str], name: str) -> str:
    value, low, high = (_number(row[key]) for key in (name, f"{name}_low", f"{name}_high"))
    sign = "+" if name == "difference" else ""
    return "no figure" if math.isnan(value) else f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]".replace("-", "−")


def _said(entries: Sequence[Entry], ids: Sequence[str]) -> str:
    chosen = [e for e in entries if e.id in ids]
    return " ".join(f"{e.id} ({e.claim.says}): {e.said}." for e in chosen)
