"""The stages cover the params, each section once on the way to a stage."""

from qatlib.params.schema import Params
from qatlib.params.sections import ROOT
from qatlib.run.stages import QUESTIONS, SECTIONS, STAGES, UPSTREAM


def test_every_section_has_a_stage_and_no_stage_names_one_twice() -> None:
    assert {name for sections in SECTIONS.values() for name in sections} == {*Params.model_fields}
    for stage in STAGES:
        line = [stage]
        while upstream := UPSTREAM[line[-1]]:
            line.append(upstream)
        named = [name for part in line for name in SECTIONS[part]]
        assert len(named) == len({*named}), stage
    assert tuple(SECTIONS) == tuple(UPSTREAM) == STAGES


def test_a_stage_answers_each_question_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text().replace("\n", " ")
    assert " ".join(QUESTIONS.values()) in readme and QUESTIONS.keys() <= {*STAGES}
