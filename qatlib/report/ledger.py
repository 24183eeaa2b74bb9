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
from qatlib.stats import with_interval

ALPHA = 0.05
"""Corrected p-value below which two models differ in the answers to the questions below."""

RULE = (
    "A claim is taken as one or several figures, each of which it says lies above a bound, or below one. Reproduced: the "
    "intervals of all lie wholly on the claim's side of it. Not reproduced: an interval does not, and ends less than the margin "
    "beyond the bound on the claim's side, so that what it leaves possible would not matter. Undecided at this size: anything "
    f"else, and a claim about a training with fewer than {SEEDS} trainings. The margin is {MARGIN:g} point of F1 or percent, and "
    "0.02 nats of loss for a layer (a choice: of twenty layers so lowered it makes two fifths of a nat), unless the table names "
    "another. Intervals are of 95 % unless the parameters say otherwise: bootstraps of whole paragraphs, joined by Student's t "
    "of the trainings where there are several; of configurations where n counts these; by F for a ratio of spreads; of times, "
    "quartiles. One figure refutes a claim of several, each at its own level, uncorrected for their number."
)


@dataclass(frozen=True)
class Effect:
    """A figure that a verdict rests on."""

    effect: str
    must_be: str
    """What the claim says of it, such as `> 95`."""
    value: float
    low: float
    high: float
    margin: float
    n: int
    seeds: int
    stage: str
    href: str
    """Of the table behind it, relative to the report."""
    source: str = ""
    """Of the file that has the figure itself, likewise."""

    @property
    def anchor(self) -> str:
        """Its id on the stage's page."""
        return f"table-{Path(self.href).stem}"

    @property
    def interval(self) -> str:
        """As a page shows it."""
        if math.isnan(self.value):
            return "no figure"
        triple = self.value, self.low, self.high
        return with_interval(*triple, "z.3f" if max(map(abs, triple)) < 1 else "z.1f")


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

    def over_all(self, name: str) -> str:
        """`n` or `seeds` of its effects, from the fewest to the most."""
        found = sorted({getattr(e, name) for e in self.effects})
        return "–".join(map(str, found if len(found) < 3 else (found[0], found[-1])))


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
    trainings = min((e.seeds for e in effects), default=SEEDS)
    if claim.about_training and trainings < SEEDS:
        missing.append(f"rests on {trainings} of the {SEEDS} trainings that it takes")
    if verdicts and "05_adversarial" in claim.stages:
        missing += [f"of the attacks {failed}" for failed in _failed(report)]
    if any("perplexity" in e.effect for e in effects):
        missing += _worn(report)
    verdict = combined(verdicts) if verdicts else None
    return Entry(name, claim, verdict, tuple(effects), "; ".join(dict.fromkeys(missing)))


def _worn(report: Path) -> list[str]:
    """What fine-tuning made of the language model that perplexities are of, where it is another by more than a tenth."""
    at = {r["model"]: float(r["perplexity"]) for r in table(report, "01_build", "teacher_perplexity")}
    start = at.pop("pretrained", math.nan)
    said = [f"{name.replace('_', ' ')} {end:.0f}" for name, end in at.items() if end > 1.1 * start]
    return [f"in perplexity, which fine-tuning for answers alone took from {start:.0f} up ({', '.join(said)})"] if said else []


def _failed(report: Path) -> list[str]:
    """The checks of the attacks that failed, in words."""
    rows = table(report, "05_adversarial", "attack_checks")
    return [f"check {r['check']} failed ({r['what']} {_interval(r, 'value')})" for r in rows if r["holds"] == "FAIL"]


def _verdict(text: str) -> Verdict:
    for known in ("reproduced", "not reproduced", "undecided"):
        if text == known:
            return known
    raise ValueError(f"{text!r} in a claims.csv is no verdict")


def _effect(report: Path, stage: str, row: Mapping[str, str]) -> Effect:
    places = (f"results/{stage}/{row['table']}.csv", f"timing/{stage}/{row['table']}.csv")
    href = next((place for place in places if (report / place).is_file()), f"results/{stage}/claims.csv")
    value, low, high, margin = (_number(row[key]) for key in ("value", "value_low", "value_high", "margin"))
    return Effect(
        row["effect"], row["must_be"], value, low, high, margin, int(row["n"]), int(row["seeds"]), stage, href, row["source"]
    )


def _number(text: str) -> float:
    return float(text) if text else math.nan  # of a score of 0 no share is kept


def claim_rows(report: Path, stage: str) -> list[dict[str, str]]:
    """What a stage says of claims, an effect a row, with `source`, the file that it stands in."""
    files = {f"results/{stage}/claims.csv": ("claims", "results"), f"timing/{stage}/claims_cost.csv": ("claims_cost", "timing")}
    return [row | {"source": path} for path, (name, kind) in files.items() for row in table(report, stage, name, kind)]


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
    """One of the studies' own questions, answered in a paragraph of computed figures."""

    question: str
    text: str
    links: tuple[str, ...]


def answers(report: Path, entries: Sequence[Entry]) -> list[Answer]:
    """Does CPT help, does RPI defend, which configuration is best, which objective helps: what this report's tables say."""
    return [_cpt(report, entries), _rpi(report, entries), _configuration(report), _objective(report)]


def _cpt(report: Path, entries: Sequence[Entry]) -> Answer:
    stage, question = "04_cpt", "Does cyclic precision training help here, and does it match the CPT paper?"
    others = ("static", "random shared", "cpt shuffled")  # with one adapter for all precisions as well
    rows, language = (
        [r for r in table(report, stage, name) if r["model"] == "cpt shared" and r["over"] in others]
        for name in ("gaps", "perplexity_gaps")
    )
    at_cost = [r for r in table(report, stage, "equal_bitops_gaps") if r["over"] == "static"]
    parts = _differences(rows, "F1 points") + _differences(language, "percent of perplexity (below 0 is better)")
    parts += [f"at equal bit operations {r['model']} over static: {_interval(r, 'difference')} F1 points" for r in at_cost]
    spent = {(r["model"], r["trained_at"]): float(r["bitops"]) for r in table(report, stage, "costs")}
    cycled = [bits for (model, _), bits in spent.items() if model == "cpt shared"]
    parts += [
        f"cpt shared takes {cycled[0] / bits:.2f} of the bit operations of static training at {at} bits, the passes being equal"
        for (model, at), bits in spent.items()
        if model == "static" and cycled
    ][:1]
    paper = (
        "The CPT paper finds equal or better accuracy than static training at fewer bit operations, for training from scratch."
    )
    if missing := [other for other in others if other not in {r["over"] for r in rows}]:
        open_ = ", so that cycle and mixture are not told apart here" if missing[-2:] == [*others[1:]] else ""
        paper += f" Not trained beside it in this report: {', '.join(missing)}{open_}."
    said = _said(entries, ("C16", "C17", "C18", "C19"))
    heads = [
        _tally("CPT with a shared adapter, in F1,", [*rows, *at_cost]),
        _tally("in perplexity it", language, lower_is_better=True),
    ]
    tables = ("gaps", "perplexity_gaps", "equal_bitops_gaps", "costs")
    return _answer(report, question, heads, parts, paper, said, stage, tables)


def _rpi(report: Path, entries: Sequence[Entry]) -> Answer:
    stage, question = "05_adversarial", "Does random precision inference defend, and does it match Double-Win Quant?"
    rows = [r for r in table(report, stage, "against_static") if r["attack"] == "worst" or r["attack"].startswith("EOT")]
    parts = [f"{r['defence']} over {r['over']} under {r['attack']}: {_interval(r, 'difference')} F1 points" for r in rows]
    trained = [r for r in table(report, stage, "trainings") if rows and r["training"] == "adversarial"]
    for r in trained:
        said = f"trained as there, seed {r['seed']}: {rows[0]['defence']} over static {r['static']} under worst: "
        parts.append(f"{said}{_interval(r, 'gain')} F1 points, n = {r['n']}")
    paper = (
        "Double-Win Quant reports large gains of random precision, after adversarial training at random precision and against "
        "attackers who do not average over the draw; EOT does, and worst is the worst attack of every question. The last of "
        "these sets is the control: its precisions are alike, so that drawing from it must gain nothing."
    )
    if rows and not trained:
        paper += " Its training was not done in this report."
    said = _said(entries, ("C20", "C21", "C23", "C24", "C25", "C26"))
    first = [r for r in rows if r["defence"] == rows[0]["defence"]]
    heads = [_tally("Drawing precisions, against the most robust static one,", first)]
    if failed := _failed(report):
        heads.append(", ".join(failed))
    tables = ("against_static", "trainings", "protocols", "attack_checks")
    return _answer(report, question, heads, parts, paper, said, stage, tables)


def _configuration(report: Path) -> Answer:
    stage, question = "03_sensitivity_heatmaps", "Which configuration is best, and how was it found?"
    rows = [r for r in table(report, stage, "recommended") if "f1_change" in r]  # an older report's tell less
    heads = []
    if good := [r for r in rows if _number(r["f1_change_high"]) >= 0]:
        leanest = min(good, key=lambda r: float(r["budget"]))
        least = f"the fewest average weight bits searched at which {leanest['n']} questions do not show F1 to be lost"
        heads.append(f"{least}: {float(leanest['budget']):g}, as the integer program spends them ({leanest['file']})")
        if (unseen := -_number(leanest["f1_change_low"])) > 0:
            heads.append(f"so many questions would not show a loss of up to {unseen:.0f} points")
    parts = [
        f"within {float(r['budget']):g} bits ({_number(r['average_bits']):.2f} spent) F1 {_interval(r, 'f1_change')} points"
        for r in rows
    ]
    parts = parts and [f"against all layers at the base, paired: {', '.join(parts)}"]
    others = [name for name in dict.fromkeys(r["method"] for r in table(report, stage, "search")) if name != "ILP"]
    how = (
        "Every block and role was lowered alone and what that cost was measured; an integer program chose under a budget of "
        f"average weight bits, beside other choices ({', '.join(others)}), and all were judged on questions that the search "
        "never saw."
    )
    return _answer(report, question, heads, parts, how, "", stage, ("search", "search_gaps", "recommended"))


def _objective(report: Path) -> Answer:
    stage, question = "02_switchable_train", "Which extra objective or schedule helps?"
    rows = table(report, stage, "method_gaps")
    told = {r["model"] for r in rows if _clear(r)}
    heads = [_tally(f"{model} over {over}", _pair(rows, model, over)) for model, over in _pairs(rows) if model in told]
    if rest := [r for r in rows if r["model"] not in told]:
        heads.append(_tally(f"{', '.join(model for model, _ in _pairs(rest))}, each over {rest[0]['over']},", rest))
    alone = [r for r in rows if _number(r["difference_low"]) > 0 or _number(r["difference_high"]) < 0]
    parts = [f"{len(rows) - len(alone)} of {len(rows)} intervals, each by itself, hold 0"] if rows else []
    parts += [f"{r['model']} over {r['over']} at {r['precision']} bits: {_interval(r, 'difference')} F1 points" for r in alone]
    alike = "All are trained with the same number of passes, or a few less where a step's do not divide it."
    tables = ("method_gaps", "ablation")
    return _answer(report, question, heads, parts, alike, "", stage, tables)


def _clear(row: Mapping[str, str]) -> bool:
    return _number(row.get("p", "")) < ALPHA and int(row.get("seeds", SEEDS)) >= SEEDS


def _tally(what: str, rows: Sequence[Mapping[str, str]], lower_is_better: bool = False) -> str:
    """In how many comparisons a difference is clear, to either side; between trainings it takes several of them."""
    if not rows:
        return ""
    clear = [r for r in rows if _clear(r)]
    sign = -1 if lower_is_better else 1
    better = sum(sign * _number(r["difference"]) > 0 for r in clear)
    worse = len(clear) - better
    said = "is not seen to help" if better == worse else "hurts more than it helps" if worse > better else "helps in part"
    if better == len(rows):
        said = "helps"
    few = f" (fewer than {SEEDS} trainings)" if any(int(r.get("seeds", SEEDS)) < SEEDS for r in rows) else ""
    undecided = len(rows) - len(clear)
    tallied = f"better in {better}, worse in {worse}, undecided in {undecided} of {len(rows)} comparisons{few}"
    return f"{what} {said}: {tallied}, by p after Holm"


def _answer(
    report: Path,
    question: str,
    heads: Sequence[str],
    parts: Sequence[str],
    beside: str,
    said: str,
    stage: str,
    tables: Sequence[str],
) -> Answer:
    if not parts:
        return Answer(question, f"Not tested in this report: {stage.replace('_', ' ')} has no such table.", ())
    links = tuple(path for name in tables if (report / (path := f"results/{stage}/{name}.csv")).is_file())
    figures = [f"{text[0].upper()}{text[1:]}." for text in ("; ".join(filter(None, heads)), "; ".join(parts)) if text]
    return Answer(question, " ".join(x for x in (*figures, beside, said) if x), links)


def _pairs(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((r["model"], r["over"]) for r in rows))


def _pair(rows: Sequence[Mapping[str, str]], model: str, over: str) -> list[Mapping[str, str]]:
    return [r for r in rows if r["model"] == model and r["over"] == over]


def _differences(rows: Sequence[Mapping[str, str]], unit: str) -> list[str]:
    found = []
    for model, over in _pairs(rows):
        at = ", ".join(f"{_interval(r, 'difference')} at {r['precision']}" for r in _pair(rows, model, over))
        found.append(f"{model} over {over}, in {unit}: {at} bits")
    return found


def _interval(row: Mapping[str, str], name: str) -> str:
    value, low, high = (_number(row[key]) for key in (name, f"{name}_low", f"{name}_high"))
    sign = "+" if name in ("difference", "f1_change", "gain") else ""
    return "no figure" if math.isnan(value) else with_interval(value, low, high, f"{sign}z.1f")


def _said(entries: Sequence[Entry], ids: Sequence[str]) -> str:
    chosen = [e for e in entries if e.id in ids]
    return " ".join(f"{e.id} ({e.claim.says}): {e.said}." for e in chosen)
