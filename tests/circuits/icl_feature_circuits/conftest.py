import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cutaway.circuits.icl_feature_circuits import Prompt, Prompts, Split, Task, few_shot, prepare, split, zero_shot
from cutaway.circuits.icl_feature_circuits.cleaning import clean
from cutaway.circuits.icl_feature_circuits.task_vectors import Bench, task_vector
from cutaway.features import SparseDictionary
from cutaway.model import Model
from cutaway.planted.build import word_tokenizer
from cutaway.planted.in_context import InContext, in_context


def planted_dictionary(planted: InContext) -> SparseDictionary:
    """Latents that read and write the planted atoms, silent below 0.02."""
    latents, width = planted.atoms.shape
    made = SparseDictionary(width, latents, "jumprelu", subtract_bias=False)
    with torch.no_grad():
        made.threshold.fill_(0.02)
        made.w_enc.copy_(planted.atoms)
        made.w_dec.copy_(planted.atoms)
    return made.requires_grad_(False)


@pytest.fixture(scope="session")
def planted() -> InContext:
    return in_context(n_tasks=4, n_symbols=15, decoys=20, seed=3)


@pytest.fixture(scope="session")
def parts(planted: InContext) -> Split:
    return split(Task("+2", planted.pairs(2)), 4, queries=5, seed=1)


@pytest.fixture(scope="session")
def shots(planted: InContext, parts: Split) -> Prompts:
    return prepare(planted.model, few_shot(parts.shots, 4, 6, seed=1))


@pytest.fixture(scope="session")
def dictionary(planted: InContext) -> SparseDictionary:
    return planted_dictionary(planted)


@pytest.fixture(scope="session")
def clean_one():
    """``(seed, null)`` to what cleaning finds, the model, the task's number and its held-out bench."""

    def run(seed: int, null: bool = False):
        model = in_context(seed=seed, null=null)
        task = seed % model.n_tasks
        parts = split(Task(f"+{task}", model.pairs(task)), 6, queries=8, seed=seed)
        vector = task_vector(model.model, prepare(model.model, few_shot(parts.shots, 6, 16, seed=seed)), 2)
        fit, held = (Bench(model.model, prepare(model.model, zero_shot(part)), 2) for part in (parts.fit, parts.held))
        return clean(fit, planted_dictionary(model), vector, rate=0.1, patience=40), model, task, held

    return run


@pytest.fixture(scope="session")
def tiny_words():
    """A random Llama with a word tokenizer, and prompts whose words have one to four tokens."""
    tokenizer = word_tokenizer(("Follow", " the", " pattern", ":", " ->", "red", " red"))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = LlamaForCausalLM(config).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8.0)
    rows = [Prompt((), ("red", "ab")), Prompt((), ("abcd", "red")), Prompt((), ("a b", "xyz"))]
    return Model(hf, tokenizer, "tiny-words"), rows
