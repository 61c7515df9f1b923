"""Planted activations with known atoms, and tiny transformers that differ in their seed only."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import LlamaConfig

from cutaway.features.corpus import Corpus
from cutaway.features.harvest import contexts
from cutaway.model import Model
from cutaway.planted.build import quiet_llama, word_tokenizer


@dataclass(frozen=True)
class Planted:
    """Rows made of known unit atoms."""

    rows: Float[Tensor, "row d"]
    atoms: Float[Tensor, "latent d"]
    alone: Bool[Tensor, " row"]
    """Rows that are one atom times a positive number."""
    which: Tensor
    """The atom of those rows; -1 elsewhere."""


def planted_rows(
    n: int, *, atoms: int = 256, d: int = 64, k: int = 4, alone: float = 0.05, seed: int = 0, first: int = 0
) -> Planted:
    """Draw rows that are sums of ``k`` atoms with weights 1 to 2; a share ``alone`` is a single atom.

    ``first`` draws from the atoms after the first so many only, for what a dictionary has not seen.
    """
    generator = torch.Generator().manual_seed(seed)
    true = torch.nn.functional.normalize(torch.randn(atoms, d, generator=torch.Generator().manual_seed(77)), dim=-1)
    chosen = first + torch.rand(n, atoms - first, generator=generator).topk(k, dim=-1).indices
    weights = 1 + torch.rand(n, k, generator=generator)
    single = torch.rand(n, generator=generator) < alone
    weights[single, 1:] = 0.0
    rows = (true[chosen] * weights[:, :, None]).sum(1)
    return Planted(rows, true, single, torch.where(single, chosen[:, 0], -1))


def planted_layers(
    models: int, layers: int, *, n: int = 600, d: int = 24, noise: float = 0.15, null: bool = False, seed: int = 0
) -> list[list[Tensor]]:
    """Draw models whose layer l is the same cloud of rows [row d], turned and with noise of its own.

    Under ``null`` every layer of every model is a cloud of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    clouds = [torch.randn(n, d, generator=generator) ** 3 for _ in range(layers)]
    made = []
    for _ in range(models):
        own = [torch.randn(n, d, generator=generator) ** 3 for _ in range(layers)] if null else clouds
        turns = [torch.linalg.qr(torch.randn(d, d, generator=generator))[0] for _ in range(layers)]
        spread = [noise * cloud.std() * torch.randn(n, d, generator=generator) for cloud in own]
        made.append([cloud @ turn + more for cloud, turn, more in zip(own, turns, spread, strict=True)])
    return made


def tiny_models(
    corpus: Corpus,
    seeds: int = 5,
    *,
    layers: int = 4,
    d_model: int = 48,
    steps: int = 200,
    length: int = 48,
    batch: int = 24,
    tick: Callable[[int], None] = lambda step: None,
) -> list[Model]:
    """Train ``seeds`` character models on the same batches in the same order; only their first weights differ."""
    tokenizer = word_tokenizer(())
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=d_model,
        intermediate_size=2 * d_model,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=length,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    made: list[Model] = []
    rows: list[tuple[int, ...]] = []
    for number in range(seeds):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            hf = type(quiet_llama(config))(config)
        model = Model(hf, tokenizer, f"tiny-{number}")
        if not rows:
            rows = [window.ids for window in contexts(model, corpus, length) if len(window.ids) == length]
        _train(model, rows, steps, batch, lambda step, number=number: tick(number * steps + step))  # type: ignore[misc]
        made.append(model)
    return made


def _train(model: Model, rows: list[tuple[int, ...]], steps: int, batch: int, tick: Callable[[int], None]) -> None:
    adam = torch.optim.AdamW(model.hf.parameters(), lr=3e-3)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.enable_grad():
        for step in range(steps):
            picked = [rows[order[(step * batch + i) % len(rows)]] for i in range(batch)]
            ids = torch.tensor(picked)
            logits = model.hf(input_ids=ids, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
            tick(step)
    model.hf.requires_grad_(False)
