"""The studies' own questions. One paragraph answers each, with figures from a report's tables and the ledger's verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qatlib.judging.rule import SEEDS
from qatlib.site.ledger import Entry, failed_checks, interval, number
from qatlib.site.tables import OlderReport, Row, address, has_run, table

ALPHA = 0.05
"""Corrected p-value below which two models differ."""


@dataclass(frozen=True)
class AnsweredQuestion:
    """One question, its answer, and the paths of the tables behind it, relative to the report."""

    question: str
    text: str
    links: tuple[str, ...]


def answers(report: Path, entries: Sequence[Entry]) -> list[AnsweredQuestion]:
    """This report's answers: does CPT help, does RPI defend, which configuration is best, which objective helps.

    Raises:
        PublishedError: the present code made the report, and a table or column is missing from it.
    """
    return [_answered(report, entries, *asked) for asked in _QUESTIONS]


def _answered(
    report: Path, entries: Sequence[Entry], question: str, stage: str, answer: Callable[..., AnsweredQuestion]
) -> AnsweredQuestion:
    try:
        return answer(question, stage, report, entries)
    except OlderReport as older:
        return AnsweredQuestion(question, str(older), ())


def _cpt(question: str, stage: str, report: Path, entries: Sequence[Entry]) -> AnsweredQuestion:
    others = ("static", "random shared", "cpt shuffled")  # these too have one adapter for all precisions
    rows, language = (
        [r for r in table(report, stage, name) if r["model"] == "cpt shared" and r["over"] in others]
        for name in ("gaps", "perplexity_gaps")
    )
    at_cost = [r for r in table(report, stage, "equal_bitops_gaps") if r["over"] == "static"]
    parts = _differences(rows, "F1 points") + _differences(language, "percent of perplexity (below 0 is better)")
    parts += [f"at equal bit operations {r['model']} over static: {interval(r, 'difference')} F1 points" for r in at_cost]
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


def _rpi(question: str, stage: str, report: Path, entries: Sequence[Entry]) -> AnsweredQuestion:
    rows = [r for r in table(report, stage, "against_static") if r["attacker"] in ("adaptive", "worst")]
    parts = [f"{r['defence']} over {r['over']} under {r['attack']}: {interval(r, 'difference')} F1 points" for r in rows]
    trained = [r for r in table(report, stage, "trainings") if rows and r["training"] == "adversarial"]
    for r in trained:
        pair = f"{rows[0]['defence']} over static {r['static']} under worst"
        parts.append(f"trained as there, seed {r['seed']}: {pair}: {interval(r, 'gain')} F1 points, n = {r['n']}")
    paper = (
        "Double-Win Quant reports large gains of random precision, after adversarial training at random precision and against "
        "attackers who do not average over the draw; EOT does, and worst is the worst attack of every question. The last of "
        "these sets is the control: its precisions are alike, so that drawing from it must gain nothing."
    )
    if rows and not trained:
        paper += " Its training was not done in this report."
    said = _said(entries, ("C20", "C21", "C23", "C24", "C25", "C26"))
    worst = [r for r in rows if r["attacker"] == "worst"]
    judged = [r for r in worst if r["defence"] != rows[-1]["defence"]] or worst  # the last is the control
    heads = [_tally("Drawing precisions, against the most robust static one and each under its worst attack,", judged)]
    if failed := failed_checks(report):
        heads.append(", ".join(failed))
    tables = ("against_static", "trainings", "protocols", "attack_checks")
    return _answer(report, question, heads, parts, paper, said, stage, tables)


def _configuration(question: str, stage: str, report: Path, _: Sequence[Entry]) -> AnsweredQuestion:
    rows = table(report, stage, "recommended")
    heads = []
    if good := [r for r in rows if number(r["f1_change_high"]) >= 0]:
        leanest = min(good, key=lambda r: float(r["budget"]))
        least = f"the fewest average weight bits searched at which {leanest['n']} questions do not show F1 to be lost"
        heads.append(f"{least}: {float(leanest['budget']):g}, as the integer program spends them ({leanest['file']})")
        if (unseen := -number(leanest["f1_change_low"])) > 0:
            heads.append(f"so many questions would not show a loss of up to {unseen:.0f} points")
    parts = [
        f"within {float(r['budget']):g} bits ({number(r['average_bits']):.2f} spent) F1 {interval(r, 'f1_change')} points"
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


def _objective(question: str, stage: str, report: Path, _: Sequence[Entry]) -> AnsweredQuestion:
    rows = table(report, stage, "method_gaps")
    told = {r["model"] for r in rows if _clear(r)}
    heads = [_tally(f"{model} over {over}", _pair(rows, model, over)) for model, over in _pairs(rows) if model in told]
    if rest := [r for r in rows if r["model"] not in told]:
        heads.append(_tally(f"{', '.join(model for model, _ in _pairs(rest))}, each over {rest[0]['over']},", rest))
    alone = [r for r in rows if number(r["difference_low"]) > 0 or number(r["difference_high"]) < 0]
    parts = [f"{len(rows) - len(alone)} of {len(rows)} intervals, each by itself, hold 0"] if rows else []
    parts += [f"{r['model']} over {r['over']} at {r['precision']} bits: {interval(r, 'difference')} F1 points" for r in alone]
    alike = "All are trained with the same number of passes, or a few less where a step's do not divide it."
    tables = ("method_gaps", "ablation")
    return _answer(report, question, heads, parts, alike, "", stage, tables)


def _clear(row: Row) -> bool:
    return number(row["p"]) < ALPHA and _seeds(row) >= SEEDS


def _seeds(row: Row) -> int:
    """Number of trainings behind a row; `SEEDS` if its table is declared for one model only."""
    return int(row["seeds"]) if row.declared.declares("seeds") else SEEDS


def _tally(what: str, rows: Sequence[Row], lower_is_better: bool = False) -> str:
    """Number of comparisons with a significant difference, better or worse. Comparing trainings takes several seeds."""
    if not rows:
        return ""
    clear = [r for r in rows if _clear(r)]
    sign = -1 if lower_is_better else 1
    better = sum(sign * number(r["difference"]) > 0 for r in clear)
    worse = len(clear) - better
    said = "is not seen to help" if better == worse else "hurts more than it helps" if worse > better else "helps in part"
    if better == len(rows):
        said = "helps"
    few = f" (fewer than {SEEDS} trainings)" if any(_seeds(r) < SEEDS for r in rows) else ""
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
) -> AnsweredQuestion:
    if not parts:  # the params do not ask for this
        said = "has no such table" if has_run(report, stage) else "has not run"
        return AnsweredQuestion(question, f"Not tested in this report: {stage.replace('_', ' ')} {said}.", ())
    links = tuple(path for name in tables if (path := address(report, stage, name)))
    figures = [f"{text[0].upper()}{text[1:]}." for text in ("; ".join(filter(None, heads)), "; ".join(parts)) if text]
    return AnsweredQuestion(question, " ".join(x for x in (*figures, beside, said) if x), links)


def _pairs(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((r["model"], r["over"]) for r in rows))


def _pair(rows: Sequence[Row], model: str, over: str) -> list[Row]:
    return [r for r in rows if r["model"] == model and r["over"] == over]


def _differences(rows: Sequence[Row], unit: str) -> list[str]:
    found = []
    for model, over in _pairs(rows):
        at = ", ".join(f"{interval(r, 'difference')} at {r['precision']}" for r in _pair(rows, model, over))
        found.append(f"{model} over {over}, in {unit}: {at} bits")
    return found


def _said(entries: Sequence[Entry], ids: Sequence[str]) -> str:
    chosen = [e for e in entries if e.id in ids]
    return " ".join(f"{e.id} ({e.claim.says}): {e.said}." for e in chosen)


_QUESTIONS = (
    ("Does cyclic precision training help here, and does it match the CPT paper?", "04_cpt", _cpt),
    ("Does random precision inference defend, and does it match Double-Win Quant?", "05_adversarial", _rpi),
    ("Which configuration is best, and how was it found?", "03_sensitivity_heatmaps", _configuration),
    ("Which extra objective or schedule helps?", "02_switchable_train", _objective),
)
