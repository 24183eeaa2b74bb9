"""The claims ledger: what the studies claim, what they measured, and what a report's result files say about it.

It is made from `results/<stage>/claims.csv` (for claims about time, `timing/<stage>/claims_cost.csv`) and from the tables
that those rows name. No figure is computed here. A claim is 'not tested' if its own row says so, or if its stage has not
run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qatlib.judging.claims.catalog import CLAIMS, Claim
from qatlib.judging.published import published
from qatlib.judging.rule import MARGIN, SEEDS, Verdict, combined
from qatlib.judging.stats import with_interval
from qatlib.site.tables import OlderReport, Row, address, has_run, missing, table

RULE = (
    "A claim is read as one or more figures, each above or below a bound. Reproduced: every interval lies wholly on the claim's "
    "side of its bound. Not reproduced: one interval reaches the wrong side of its bound, and its better end is less than the "
    "margin past the bound. The effect is then absent, opposite or too small to matter. Undecided at this size: anything else, "
    f"and any claim about a training method with fewer than {SEEDS} trainings. The margin is {MARGIN:g} point of F1 or percent, "
    "and 0.02 nats of loss for one layer, unless the table names another. (0.02 nats is a choice: over twenty layers it is 0.4 "
    "nats.) Intervals are of 95 % unless the parameters say otherwise. Most intervals are bootstraps over whole paragraphs. With "
    "several trainings, Student's t over the trainings is added. For configurations, n counts configurations. A ratio of spreads "
    "has an interval by F. Times have quartiles. One figure is enough to refute a claim of several. Each figure is judged at its "
    "own level, without a correction for their number."
)


@dataclass(frozen=True)
class Evidence:
    """A figure that a verdict rests on."""

    effect: str
    must_be: str
    """The claimed bound, such as `> 95`."""
    value: float
    low: float
    high: float
    margin: float
    n: int
    seeds: int
    stage: str
    href: str
    """Path of the table behind it, relative to the report."""
    source: str = ""
    """Path of the file that holds the figure itself, relative to the report."""

    @property
    def anchor(self) -> str:
        """The table's id on the stage's page."""
        return f"table-{Path(self.href).stem}"

    @property
    def interval(self) -> str:
        """The figure with its interval, as a page shows it."""
        if math.isnan(self.value):
            return "no figure"
        triple = self.value, self.low, self.high
        return with_interval(*triple, "z.3f" if max(map(abs, triple)) < 1 else "z.1f")


@dataclass(frozen=True)
class Entry:
    """One claim with this report's evidence and verdict."""

    id: str
    claim: Claim
    verdict: Verdict | None
    """None if it could not be tested."""
    effects: tuple[Evidence, ...]
    why: str
    """Why it was not tested, or not in full."""

    @property
    def said(self) -> str:
        """The verdict in words."""
        return "undecided at this size" if self.verdict == "undecided" else self.verdict or "not tested"

    def over_all(self, name: str) -> str:
        """`n` or `seeds` of its effects, from the smallest to the largest."""
        found = sorted({getattr(e, name) for e in self.effects})
        return "–".join(map(str, found if len(found) < 3 else (found[0], found[-1])))


def read_ledger(report: Path) -> list[Entry]:
    """The ledger of a report's folder, all claims in order.

    Raises:
        PublishedError: the present code made the report, and a table, a column or a claim's row is missing from it.
    """
    return [_entry(report, name, claim) for name, claim in CLAIMS.items()]


def _entry(report: Path, name: str, claim: Claim) -> Entry:
    verdicts: list[Verdict] = []
    effects: list[Evidence] = []
    reasons: list[str] = []
    for stage in claim.stages:
        try:
            rows = _rows_of(report, stage, name)
            found = [row for row in rows if int(row["n"]) > 0]
            effects += [_effect(report, stage, row) for row in found]
        except OlderReport as older:
            reasons.append(str(older))
            continue
        if found:
            verdicts.append(_verdict(found[0]["verdict"]))
        else:
            reasons.append(rows[0]["effect"] if rows else f"{stage.replace('_', ' ')} has not run")
    if verdicts and reasons:
        verdicts.append("undecided")
    trainings = min((e.seeds for e in effects), default=SEEDS)
    if claim.about_training and trainings < SEEDS:
        reasons.append(f"rests on {trainings} of the {SEEDS} trainings that it takes")
    if verdicts and claim.attacked and (failed := _or_older(failed_checks, report)):
        reasons.append(f"of the attacks {', '.join(failed)}")
    if any("perplexity" in e.effect for e in effects):
        reasons += _or_older(_worn, report)
    verdict = combined(verdicts) if verdicts else None
    return Entry(name, claim, verdict, tuple(effects), "; ".join(dict.fromkeys(reasons)))


def _rows_of(report: Path, stage: str, claim: str) -> list[Row]:
    """A stage's rows about one claim. A stage that has run must have at least one."""
    rows = [row for row in claim_rows(report, stage) if row["claim"] == claim]
    if not rows and has_run(report, stage):
        raise missing(report, stage, f"a row on {claim} in the claims of {stage}")
    return rows


def _or_older(read: Callable[[Path], list[str]], report: Path) -> list[str]:
    try:
        return read(report)
    except OlderReport as older:
        return [str(older)]


def claims_behind(entries: Sequence[Entry], stage: str) -> dict[str, list[str]]:
    """The claims that rest on each table of a stage's page, by the table's anchor."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        for anchor in {e.anchor: None for e in entry.effects if e.stage == stage}:
            found.setdefault(anchor, []).append(entry.id)
    return found


def _worn(report: Path) -> list[str]:
    """A warning if fine-tuning raised the language model's perplexity by more than a tenth."""
    at = {r["model"]: float(r["perplexity"]) for r in table(report, "01_build", "teacher_perplexity")}
    start = at.pop("pretrained", math.nan)
    said = [f"{name.replace('_', ' ')} {end:.0f}" for name, end in at.items() if end > 1.1 * start]
    return [f"fine-tuning on answers alone raised perplexity from {start:.0f} ({', '.join(said)})"] if said else []


def failed_checks(report: Path) -> list[str]:
    """The checks of the attacks that failed, in words."""
    rows = table(report, "05_adversarial", "attack_checks")
    return [f"check {r['check']} failed ({r['what']} {interval(r, 'value')})" for r in rows if r["holds"] == "FAIL"]


def _verdict(text: str) -> Verdict:
    for known in ("reproduced", "not reproduced", "undecided"):
        if text == known:
            return known
    raise ValueError(f"{text!r} in a claims.csv is no verdict")


def _effect(report: Path, stage: str, row: Row) -> Evidence:
    if (href := address(report, stage, row["table"])) is None:
        raise missing(report, stage, f"the table {row['table']}, which a claim rests on")
    value, low, high, margin = (number(row[key]) for key in ("value", "value_low", "value_high", "margin"))
    return Evidence(
        row["effect"], row["must_be"], value, low, high, margin, int(row["n"]), int(row["seeds"]), stage, href, row.source
    )


def number(text: str) -> float:
    """A number from a CSV file; NaN for an empty cell."""
    return float(text) if text else math.nan  # a share of a score of 0 is not defined


def claim_rows(report: Path, stage: str) -> list[Row]:
    """A stage's rows about claims, one effect per row."""
    names = [t.name for t in published().tables[stage] if t.name in ("claims", "claims_cost")]
    return [row for name in names for row in table(report, stage, name)]


def interval(row: Mapping[str, str], name: str) -> str:
    """A row's figure with its interval, for a sentence. A difference gets its sign."""
    value, low, high = (number(row[key]) for key in (name, f"{name}_low", f"{name}_high"))
    sign = "+" if name in ("difference", "f1_change", "gain") else ""
    return "no figure" if math.isnan(value) else with_interval(value, low, high, f"{sign}z.1f")


def _plain(effect: Evidence) -> dict[str, Any]:
    """An effect for JSON, with None for NaN."""
    return {key: None if isinstance(x, float) and math.isnan(x) else x for key, x in asdict(effect).items()}


def as_json(entries: Sequence[Entry], about: Mapping[str, Any]) -> dict[str, Any]:
    """The ledger as `claims.json` holds it."""
    claims = [
        {"id": e.id, **asdict(e.claim), "verdict": e.said, "why": e.why, "effects": [_plain(effect) for effect in e.effects]}
        for e in entries
    ]
    return {"rule": RULE, **about, "claims": claims}
