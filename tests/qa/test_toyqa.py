import random
import re
from collections import defaultdict

import pytest
import torch

from qatlib.qa import spans, squad, toyqa


@pytest.fixture(scope="module")
def questions() -> list[squad.Question]:
    return toyqa.generate(500, seed=7)


@pytest.fixture(scope="module")
def tokenizer():
    return toyqa.build_tokenizer()


def test_the_same_seed_gives_the_same_questions(questions):
    assert toyqa.generate(500, seed=7) == questions
    assert toyqa.generate(123, seed=7) == questions[:123]
    assert len({question.id for question in questions}) == len(questions)


def test_another_seed_shares_no_context():
    train, validation = toyqa.generate(5000, seed=0), toyqa.generate(1000, seed=1)
    assert not {q.context for q in train} & {q.context for q in validation}
    assert not {q.id for q in train} & {q.id for q in validation}


def test_the_global_random_states_are_left_alone():
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    toyqa.generate(10, seed=0)
    toyqa.build_model(1, 1, 8, seed=0)
    assert random.getstate() == python_state
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_every_answer_is_at_its_offset_and_each_question_once(questions):
    for question in questions:
        (answer,) = question.answers
        assert question.context[answer.start :].startswith(answer.text)
    assert len({(question.context, question.question) for question in questions}) == len(questions)


def test_it_is_in_squads_layout(questions, tmp_path):
    squad.write_squad(questions, tmp_path / "embedded.json.gz")
    assert squad.read_squad(tmp_path / "embedded.json.gz") == questions


def test_paragraphs_are_clusters_of_three_to_five_questions(questions):
    sizes = defaultdict(int)
    for question in questions:
        sizes[question.paragraph] += 1
    *whole, last = sizes.values()
    assert set(whole) == {3, 4, 5}
    assert 1 <= last <= 5


def test_contexts_and_answers_have_the_lengths_of_the_description(questions):
    words = [len(question.context.split()) for question in questions]
    # Counts of a seed's questions, the same everywhere: 28 to 59 words, 40 on average; four other seeds 25 to 58, 40 to 42.
    assert all(20 <= n <= 70 for n in words) and 35 <= sum(words) / len(words) <= 60
    lengths = [len(question.answers[0].text.split()) for question in questions]
    shares = {n: lengths.count(n) / len(lengths) for n in (1, 2, 3, 4)}
    assert all(shares[n] > 0.1 for n in (1, 2, 3)) and sum(shares.values()) > 0.99  # 0.14 at least; 1


def test_neither_the_person_nor_the_relation_alone_gives_the_answer(questions):
    """Every question's person stands in two facts or more, and its relation's words too."""
    for question in questions:
        for statement, asked, _ in toyqa.RELATIONS:
            pattern = re.escape(asked).replace(re.escape("{person}"), "([A-Z][a-z]+ [A-Z][a-z]+)")
            if match := re.fullmatch(pattern, question.question):
                same_relation = question.context.count(statement.format(person="") + " ")
                same_person = len(re.findall(rf"\b{match[1]} (?:was|has)\b", question.context))
                assert same_relation >= 2 or same_person >= 2
                break
        else:
            raise AssertionError(f"no relation asks {question.question!r}")


def test_where_the_answer_stands_does_not_give_it_away(questions):
    """The answer is in each of the paragraph's sentences about equally often."""
    order = [question.context[: question.answers[0].start].count(".") for question in questions]
    assert all(order.count(sentence) / len(order) > 0.1 for sentence in range(4))  # 0.22 at least, for this seed and others 0.21


def test_tokens_are_words_at_their_offsets_and_all_known(questions, tokenizer):
    assert len(tokenizer) < 1000
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 4
    for question in questions:
        for text in (question.context, spans.PREFIX.format(question=question.question)):
            encoded = tokenizer(text, return_offsets_mapping=True)
            assert tokenizer.unk_token_id not in encoded["input_ids"]
            words = [text[start:end] for start, end in encoded["offset_mapping"]]
            assert words == tokenizer.convert_ids_to_tokens(encoded["input_ids"])
            assert "".join(words) == "".join(text.split())
    assert tokenizer("zygote")["input_ids"] == [tokenizer.unk_token_id]


def test_every_question_fits_the_model_in_one_window(questions, tokenizer):
    model = toyqa.build_model(1, 1, 8, seed=0)
    features = spans.featurize(questions, tokenizer, max_length=model.config.n_positions, stride=32)
    assert len(features) == len(questions)
    assert all(feature.start >= 0 for feature in features)


def test_the_model_follows_its_seed(tokenizer):
    one, same, other = (toyqa.build_model(2, 2, 16, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["transformer.wte.weight"], other["transformer.wte.weight"])


def test_the_model_is_causal_and_right_padding_changes_nothing(questions, tokenizer):
    model = toyqa.build_model(2, 2, 16, seed=0).eval()
    ids = torch.tensor([spans.featurize(questions[:1], tokenizer, 128, 0)[0].input_ids])
    padded = torch.nn.functional.pad(ids, (0, 5), value=tokenizer.pad_token_id)
    with torch.no_grad():
        torch.testing.assert_close(model(padded).logits[:, : ids.shape[1]], model(ids).logits)
