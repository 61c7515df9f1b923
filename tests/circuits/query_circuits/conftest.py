"""A tiny random model that has every word of the tasks as one token."""

import re

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cutaway.circuits.query_circuits import choices, data
from cutaway.model import Model
from cutaway.planted.build import word_tokenizer

QUESTION = "In which year, roughly, was tea first sold?"


@pytest.fixture(scope="session")
def speaker() -> Model:
    filled = [frame.format(first="", second="", giver="", place="", thing="") for frame in data.FRAMES]
    plain = {word for text in filled for word in re.findall(r"\w+", text)}
    neutral = {word for text in (*choices.NEUTRAL, QUESTION) for word in re.findall(r"\w+", text)}
    # Sorted: the order of a set differs between runs, and the vocabulary decides what a random model answers.
    names = [*data.NAMES.split(), *data.PLACES.split(), *data.THINGS.split(), *sorted(plain), *sorted(neutral)]
    first = [word.capitalize() for word in sorted(neutral) if len(word) > 1]
    tokenizer = word_tokenizer(tuple(dict.fromkeys([*(f" {name}" for name in names), *first])))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.3,
        eos_token_id=0,
        pad_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(LlamaForCausalLM(config).eval(), tokenizer, "speaker")
