"""The embedded data set: generated extractive question answering in SQuAD's own layout, its tokenizer and its model.

A paragraph states the same few kinds of fact about several people, in any order. So neither the position nor the kind of an
answer reveals it: the question names the person and the relation, and both must be matched. Every phrase that can be an answer
ends with its head noun ("old silver key", "5 June 1923"), because a causal model must see at an answer's last token that it is
the last. A GPT-2 of under a million parameters learns this from scratch in about a minute and a half on two free cores.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from qatlib.checks import whole
from qatlib.qa.spans import PREFIX
from qatlib.qa.squad import Answer, Question
from qatlib.seeds import stream

WORDS = {
    kind: words.split()
    for kind, words in {
        "first name": "Anna Boris Clara David Elena Felix Greta Henry Irene Jonas Karin Louis Maria Nadia Oscar Paula "
        "Quinn Rosa Simon Tania Ulrich Vera Walter Zoe",
        "surname": "Abel Baker Cohen Dahl Evans Fisher Grant Hansen Ibsen Jensen Keller Lopez Meyer Novak Olsen Porter "
        "Quist Roth Schmidt Turner Unger Vogel Weber Young",
        "office": "mayor bishop sheriff doctor judge captain",
        "town": "Alden Bergen Corby Dover Elgin Fargo Ghent Hanover Ilford Jarrow Kelso Lisbon Malmo Naples Oxford "
        "Padua Quebec Riga Salem Turin Utrecht Verona Windsor York",
        "side": "North South East West New Old Upper Lower",
        "month": "January February March April May June July August September October November December",
        "size": "small large broken heavy tiny ancient",
        "colour": "red blue green silver golden black white brown",
        "thing": "key lamp clock mirror violin boat coat ring chair map vase drum ladder bottle basket helmet wagon "
        "candle pillow carpet mask whistle kettle anchor",
        "goods": "coins horses books letters stamps apples barrels paintings flags shells",
    }.items()
}
NUMBERS = range(2, 100)
YEARS = range(1900, 1960)
TAILS = [
    "in the spring",
    "after a long wait",
    "with great joy",
    "despite the rain",
    "for the first time",
    "without any help",
    "during the war",
    "to everyone's surprise",
]


def _word(rng: random.Random, kind: str) -> str:
    return rng.choice(WORDS[kind])


def _phrase(rng: random.Random, modifiers: tuple[str, ...], head: str) -> str:
    """A head noun after some of the modifiers; a coin toss decides on each."""
    return " ".join([_word(rng, kind) for kind in modifiers if rng.random() < 0.5] + [head])


def _place(rng: random.Random) -> str:
    return _phrase(rng, ("side",), _word(rng, "town"))


def _date(rng: random.Random) -> str:
    return f"{rng.randint(2, 28)} {_word(rng, 'month')} {rng.choice(YEARS)}"


def _official(rng: random.Random) -> str:
    return f"{_word(rng, 'office')} of {_place(rng)}"


def _thing(rng: random.Random) -> str:
    return _phrase(rng, ("size", "colour"), _word(rng, "thing"))


def _amount(rng: random.Random) -> str:
    return f"{rng.choice(NUMBERS)} {_phrase(rng, ('colour',), _word(rng, 'goods'))}"


# (statement up to its answer, question, generator of answers). Several relations share a kind of answer, and some share their
# verb. Statement and question use the same words.
RELATIONS: tuple[tuple[str, str, Callable[[random.Random], str]], ...] = (
    ("{person} was born in", "Where was {person} born in?", _place),
    ("{person} was married in", "Where was {person} married in?", _place),
    ("{person} was arrested in", "Where was {person} arrested in?", _place),
    ("{person} was hired on", "When was {person} hired on?", _date),
    ("{person} was promoted on", "When was {person} promoted on?", _date),
    ("{person} was hired by the", "Who was {person} hired by?", _official),
    ("{person} was taught by the", "Who was {person} taught by?", _official),
    ("{person} has bought the", "What has {person} bought?", _thing),
    ("{person} has repaired the", "What has {person} repaired?", _thing),
    ("{person} has sold", "How many has {person} sold?", _amount),
    ("{person} has received", "How many has {person} received?", _amount),
)


def generate(n: int, seed: int, part: str = "train") -> list[Question]:
    """`n` questions, 3 to 5 on each paragraph (the last may have fewer), the same for the same `(n, seed, part)`.

    A paragraph states 4 or 5 facts out of 2 people x 3 relations or 3 people x 2 relations. Two seeds, or two parts, have no
    context in common, except with negligible probability. A smaller `n` gives the first of the same questions.

    Raises:
        ValueError: `n` is negative.
    """
    whole(0, n=n)
    rng = random.Random(stream(seed, "embedded questions", part))
    questions: list[Question] = []
    while len(questions) < n:
        n_people = rng.choice((2, 3))
        first_names, surnames = rng.sample(WORDS["first name"], n_people), rng.sample(WORDS["surname"], n_people)
        people = [f"{first_name} {surname}" for first_name, surname in zip(first_names, surnames, strict=True)]
        relations = rng.sample(RELATIONS, 5 - n_people)
        facts = [(person, relation) for person in people for relation in relations]
        context, asked = "", []
        for person, (statement, question, draw) in rng.sample(facts, rng.choice((4, 5))):
            context += statement.format(person=person) + " "
            answer = Answer(draw(rng), len(context))
            context += answer.text + (f" {rng.choice(TAILS)}. " if rng.random() < 0.5 else ". ")
            asked.append((question.format(person=person), answer))
        context = context.strip()
        for question, answer in rng.sample(asked, rng.randint(3, len(asked))):
            id = f"embedded-{part}-{seed}-{len(questions)}"
            questions.append(Question(id, f"embedded {part} {seed}", context, question, (answer,)))
    return questions[:n]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of every word `generate` can write, in a fixed order: 360 with pad, bos, eos, unk."""
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    phrases = [
        *(word for words in WORDS.values() for word in words),
        *(str(number) for number in (*NUMBERS, *YEARS)),
        *TAILS,
        *(text.format(person="") for statement, question, _ in RELATIONS for text in (statement, question)),
        PREFIX.format(question=""),
        "of.",
    ]
    words = [word for phrase in phrases for word, _ in split.pre_tokenize_str(phrase)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(["<pad>", "<bos>", "<eos>", "<unk>", *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def build_model(n_layer: int, n_head: int, n_embd: int, seed: int) -> GPT2LMHeadModel:
    """A GPT-2 for `build_tokenizer`'s vocabulary and up to 128 positions, without dropout, randomly initialised.

    The weights depend only on `seed`. Torch's global random state is not changed. The initialisation is for a short training:
    each head's keys equal its queries, so a token attends to equal tokens from the start (in the spirit of "mimetic
    initialization", Trockman and Kolter 2023). So the names in the context attend to those in the question. With GPT-2's own
    initialisation, the model only guesses among the people during a whole two-minute training.

    Raises:
        ValueError: a size is not positive, or `n_head` does not divide `n_embd`.
    """
    whole(1, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    if n_embd % n_head:
        raise ValueError(f"n_embd is {n_embd}; allowed is a multiple of n_head, {n_head}")
    tokenizer = build_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        initializer_range=0.06,  # GPT-2's 0.02 is meant for widths near 1000
        activation_function="gelu_pytorch_tanh",  # the default gelu_new in one fused kernel
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(stream(seed, "weights of the embedded model"))
        model = GPT2LMHeadModel(config)
        model.transformer.wte.weight *= 3  # a token must match itself at any position, so it must outweigh the position
        for block in model.transformer.h:
            query, key, _ = block.attn.c_attn.weight.split(n_embd, dim=1)
            key.copy_(query)
    return model
