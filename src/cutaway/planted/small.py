"""A small Llama of random weights over a vocabulary of words: what planted models that must be trained start from."""

from collections.abc import Sequence

from transformers import LlamaConfig

from cutaway.model import Model
from cutaway.planted.build import quiet_llama, scatter, word_tokenizer
from cutaway.training import Data, Row, TrainConfig, data_of, train


def small_llama(
    words: Sequence[str], name: str, *, d_model: int = 64, n_layers: int = 3, n_heads: int = 4, seed: int = 0
) -> Model:
    """Return a model of normal weights (standard deviation 0.08; norms one) that knows ``words``, each as one token."""
    tokenizer = word_tokenizer(tuple(dict.fromkeys(words)))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=d_model,
        intermediate_size=2 * d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        dtype="float32",
    )
    hf = scatter(quiet_llama(config), 0.08, seed)
    return Model(hf, tokenizer, name)


def answer_row(ids: Sequence[int], answer: Sequence[int]) -> Row:
    """Return a prompt with its answer; the answer alone carries loss."""
    return Row((*ids, *answer), (0.0,) * len(ids) + (1.0,) * len(answer))


def answer_data(rows: Sequence[tuple[Sequence[int], Sequence[int]]], context: int = 128) -> Data:
    """Return prompts with their answers as data."""
    return data_of([(answer_row(ids, answer),) for ids, answer in rows], context=context)


def pretrain(
    model: Model, data: Data, steps: int, *, rate: float = 3e-3, batch: int = 64, seed: int = 0, embedding: bool = True
) -> float:
    """Train every weight (not the embedding where so asked) and freeze all again; return the loss at the end.

    That is the mean of the last twenty steps, in nats.
    """
    model.hf.requires_grad_(True)
    model.hf.get_input_embeddings().requires_grad_(embedding)
    config = TrainConfig(rate=rate, batch=batch, steps=steps, warm_up=20, bucket=1, precision="float32", seed=seed)
    history = train(model, data, config).history
    model.hf.requires_grad_(False)
    return sum(step.loss for step in history[-20:]) / len(history[-20:])
