"""Attacks on the text, and questions from another source, answered at every precision (notebook 5)."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pandas as pd

from qatlib.attacks import candidates
from qatlib.attacks.characters import character_noise
from qatlib.attacks.defence import Set, set_name
from qatlib.attacks.judge import answers_at
from qatlib.attacks.words import WordAttack
from qatlib.files import write_atomic
from qatlib.model import SwitchableModel
from qatlib.precision import FULL_PRECISION, Configuration, Precision
from qatlib.qa.parts import load_shifted, spread
from qatlib.qa.squad import Question, digest, load_questions, write_squad
from qatlib.studies.attackers import NO_ATTACK, Attack, Attackers
from qatlib.studies.robustness import Robustness


class Textual:
    """Text attacks on one model.

    Attributes:
        passes: for each attack on words, windows passed through the model per question. Set by `word_attack`.
    """

    def __init__(self, robustness: Robustness, model: SwitchableModel) -> None:
        self.robustness, self.model, self.study, self.section = robustness, model, robustness.study, robustness.section
        self.widths: list[Precision] = list(dict.fromkeys((FULL_PRECISION, *robustness.sets[0])))
        self.passes: dict[str, float] = {}

    def answered(self, name: str, questions: Sequence[Question], attack: Attack) -> pd.DataFrame:
        """Scores of unchanged questions, at every precision of the first set and at 32 bits.

        A question of the validation set keeps its `paragraph` even if an attack changed its context.

        Args:
            attack: the attack that produced the questions' text; its columns are added.
        """
        unmoved, ways = Attackers(self.study, self.model).no_attack(), answers_at(self.model, self.widths)
        found = self.robustness.judged(name, self.model, unmoved, ways, questions).assign(**attack.columns)
        known = {q.id: q.paragraph for q in self.study.validation}
        return found.assign(paragraph=[known.get(i, p) for i, p in zip(found["id"], found["paragraph"], strict=True)])

    # -- characters -----------------------------------------------------------------------------------------------

    def noisy(self) -> pd.DataFrame:
        """Clean questions, and the same with character noise: `attack` is `none` or `characters`."""
        rate, seed = self.section.noise_rate, self.study.params.seed
        noisy = [character_noise(q, rate, seed) for q in self.robustness.fewer]
        clean = self.answered("characters_none", self.robustness.fewer, NO_ATTACK)
        changed = self.answered("characters", noisy, Attack("characters", "text", varied="method"))
        return pd.concat([clean, changed], ignore_index=True)

    def perplexities(self) -> pd.DataFrame:
        """The sums behind perplexity, on clean and noisy paragraphs. The noise is that of a question's context.

        Returns:
            `precision`, `paragraph`, `nll`, `tokens`, `noisy_nll`, `noisy_tokens`, `noisy_unknown` (noisy tokens that
            the tokenizer does not know). `RPI {4, 8}` has the mean over its set. `random` is true for a drawn precision.
        """
        rate, seed = self.section.noise_rate, self.study.params.seed
        texts = {"": self.study.paragraphs}
        asked = [Question(str(i), "", text, "", ()) for i, text in enumerate(self.study.paragraphs)]
        texts["noisy_"] = [character_noise(q, rate, seed).context for q in asked]
        ids = [self.study.tokenizer(text)["input_ids"] for text in texts["noisy_"]]
        unknown = [tokens.count(self.study.tokenizer.unk_token_id) for tokens in ids]
        parts = []
        for p in self.widths:
            columns: dict[str, pd.Series] = {}
            for prefix, written in texts.items():
                with self.model.at(p):
                    found = self.study.perplexity(self.model, written)
                columns |= {f"{prefix}nll": found["nll"], f"{prefix}tokens": found["tokens"]}
            where = [q.paragraph for q in asked]  # of the clean text, for both
            parts.append(pd.DataFrame({"precision": p.name, "paragraph": where} | columns | {"noisy_unknown": unknown}))
        frame = pd.concat(parts, ignore_index=True)
        first = frame[frame["precision"].isin([p.name for p in self.robustness.sets[0]])]
        figures = ["nll", "tokens", "noisy_nll", "noisy_tokens", "noisy_unknown"]
        mean = first.groupby("paragraph", sort=False, as_index=False)[figures].mean()
        mean = mean.assign(precision=f"RPI {set_name(self.robustness.sets[0])}")
        return pd.concat([frame.assign(random=False), mean.assign(random=True)], ignore_index=True)

    # -- words ----------------------------------------------------------------------------------------------------

    def candidates(self) -> candidates.Candidates:
        """The source of candidate words that the params name."""
        settings = self.section.words
        assert settings
        return candidates.named(settings.candidates, settings.count, self.study.params.seed, self.study.device)

    def word_attack(self) -> pd.DataFrame:
        """QA-Attack at 32 bits, at each precision of the first set, and in expectation over the set; answered at all precisions.

        The attacked questions of each attack are kept as a SQuAD file in the stage's checkpoints: `words_0/attacked.json` etc.
        """
        settings = self.section.words
        assert settings
        questions = spread(self.study.validation, settings.questions)
        parts = [self.answered("words_none", questions, NO_ATTACK)]
        first = self.robustness.sets[0]
        aims: dict[tuple[str, str], Set] = {(f"words at {p.name}", p.name): (p,) for p in self.widths}
        aims[f"words EOT {set_name(first)}", set_name(first)] = first
        for i, ((name, target), aim) in enumerate(aims.items()):
            path = self.study.stage.checkpoints(f"words_{i}") / "attacked.json"
            cost = path.with_name("passes.json")
            if not (path.is_file() and cost.is_file()):
                configurations = [Configuration.uniform(p, self.model.infos) for p in aim]
                options = {"pad_id": self.study.pad_id, "batch_size": self.study.params.evaluation.batch_size}
                attacker = WordAttack(self.model, self.study.featurize, configurations, self.candidates(), **options)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_squad(attacker.attack(questions, settings.ranking, settings.most), path)
                write_atomic(cost, json.dumps(attacker.passed / len(questions)))
            self.passes[name] = float(json.loads(cost.read_text()))
            attacked = {q.id: q for q in load_questions([path], "validation")}
            attack = Attack(name, "text", target, objective="cross_entropy", steps=settings.most, varied="method")
            parts.append(self.answered(f"words_{i}", [attacked[q.id] for q in questions], attack))
        return pd.concat(parts, ignore_index=True)

    # -- elsewhere ------------------------------------------------------------------------------------------------

    def shifted(self) -> pd.DataFrame:
        """Answers to the questions that the params name as shifted, at most `questions` of them; `attack` is `none`.

        They are kept under the content of the questions: other questions cost no other result of the stage.
        """
        source, params = self.section.shifted, self.study.params
        assert source
        found = load_shifted(source, self.section.questions, params.seed, params.data.unanswerable).questions
        return self.answered(f"shifted_{digest(found)[:12]}", found, NO_ATTACK)
