"""Small models, trained once for the room."""

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cutaway.finetuning.caft.data import double_task
from cutaway.finetuning.caft.method import Task
from cutaway.model import Model
from cutaway.planted.build import word_tokenizer
from cutaway.planted.phrasing import PlantedPhrasing, planted_phrasing
from cutaway.planted.spurious import TwoRules, two_rules

WORDS = (*(f" w{i}" for i in range(40)), " yes", " no", " A", " B")


def random_llama(seed: int = 0, layers: int = 2) -> Model:
    """A Llama of width 16 with random weights that knows `WORDS`."""
    tokenizer = word_tokenizer(WORDS)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf = LlamaForCausalLM(config).requires_grad_(False).eval()
        with torch.no_grad():
            for weight in hf.parameters():
                if weight.ndim > 1:
                    weight.normal_(std=0.3)
    return Model(hf, tokenizer, "random")


@pytest.fixture
def make_llama() -> Callable[..., Model]:
    return random_llama


@pytest.fixture
def model() -> Model:
    return random_llama()


@pytest.fixture(scope="session")
def rules() -> TwoRules:
    """A small model that knows two rules, the unwanted one the louder."""
    return two_rules(steps=160)


@pytest.fixture(scope="session")
def phrased() -> PlantedPhrasing:
    """A small model that one direction of its embedding makes brittle."""
    return planted_phrasing(steps=160)


@pytest.fixture(scope="session")
def task(rules: TwoRules) -> Task:
    return double_task(rules.model, rules.wanted, rules.unwanted, train=300, probe=200, test=200)
