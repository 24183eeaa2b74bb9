"""Fixtures that several test modules share.

What is compared to 1e-4, or to less, is compared up to the rounding of fp32: 6e-8 a product, some hundred products a sum,
two blocks a model. A wrong scale, a wrong code or a forgotten term is at least a hundred times as far off. Every other
margin has its reason beside it.
"""

import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from qatlib.judging.published import published as declarations
from qatlib.params.load import load_params
from qatlib.qa import squad, toyqa
from qatlib.qa.squad import Answer, Question
from qatlib.run.frames import read_table, write_table
from qatlib.run.stages import STAGES

settings.register_profile("qatlib", deadline=None)  # how fast a machine is, no test may say
settings.load_profile("qatlib")

REAL = Path(__file__).parents[2] / "shared/assets/squad/dev-v1.1.json.gz"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The modules that take minutes come first, so that no worker is left alone with one at the end."""
    first = ["test_reports", "test_pipeline"]
    items.sort(key=lambda item: first.index(item.path.stem) if item.path.stem in first else len(first))


@pytest.fixture(scope="session")
def embedded() -> list[Question]:
    """300 questions of the embedded data set."""
    return toyqa.generate(300, seed=3)


@pytest.fixture(scope="session")
def real() -> list[Question]:
    """SQuAD v1.1's whole dev set."""
    if not REAL.exists():
        pytest.skip(f"the real data is not at {REAL}")
    return squad.read_squad(REAL)


@pytest.fixture(scope="session")
def make_question() -> Callable[..., Question]:
    """Makes a question of a context and the answer in it."""
    return _make_question


def _make_question(context: str, answer: str, question: str = "Who?", id: str = "q1") -> Question:
    return Question(id, "title", context, question, (Answer(answer, context.index(answer)),))


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A GPT-2-style tokenizer, trained on too little to hold any character beyond ASCII in one token."""
    bpe = ByteLevelBPETokenizer()
    text = "Where was the old king born? The king was born in New York, in the year 1923, and moved to the city."
    bpe.train_from_iterator([text] * 3, vocab_size=320, special_tokens=["<|endoftext|>"])
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


@pytest.fixture(scope="session")
def tiny_lm() -> Callable[..., PreTrainedModel]:
    """Makes two-block decoders with random weights, of any of five families."""
    return _tiny_lm


def _tiny_lm(kind: str = "gpt2", **changes: int) -> PreTrainedModel:
    """A two-block decoder with random weights, of any of five families."""
    common = {"vocab_size": 97, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    llama = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    sizes = {
        "gpt2": {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 64},
        "llama": llama | {"num_key_value_heads": 2},
        "gpt_neox": llama,
        "phi": llama,
        "opt": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 48,
            "word_embed_proj_dim": 32,
        },
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(common | sizes[kind] | changes))
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def tokens() -> torch.Tensor:
    """A batch of (3, 17) token ids."""
    return torch.randint(1, 97, (3, 17), generator=torch.Generator().manual_seed(1))


class Desk:
    """As much of a stage as a study needs: params, and a folder that remembers tables."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.params, self.folder, self.computed = load_params("smoke", overrides), folder, []

    def table(self, name, compute, published=True):
        assert re.fullmatch(r"[a-z0-9_-]+", name), name  # as a stage's names
        path = self.folder / f"{name}.csv"
        if not path.is_file():
            self.computed.append(name)
            write_table(self.folder / name, compute())
        frame = read_table(self.folder / name)
        if published:
            declared = [declarations().find(stage, name) for stage in STAGES if declarations().declares(stage, name)]
            assert any(not table.faults(frame.columns) for table in declared), f"{name}: {[*frame.columns]}"
        return frame

    def settled(self, name, choose):
        path = self.folder / f"{name}.txt"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(choose())
        return path.read_text()

    def timed(self, name):
        return nullcontext()

    def checkpoints(self, name):
        return self.folder / name


@pytest.fixture(scope="session")
def make_desk():
    """Makes a `Desk` of the smoke params."""
    return Desk
