"""A tiny model with odd tokens, an index filled from it, and indexes written by hand."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig

from cutaway.features.corpus import Corpus, open_corpus
from cutaway.features.dictionary import Provenance
from cutaway.features.index import FeatureIndex, FillConfig, Source
from cutaway.features.index.collect import BARS, EDGES
from cutaway.features.index.effect import no_effects
from cutaway.features.index.notes import pack
from cutaway.features.index.store import make_postings, write_index
from cutaway.features.index.vocabulary import vocabulary_of
from cutaway.features.sparse import SparseDictionary
from cutaway.model import Model
from cutaway.planted.build import quiet_llama, scatter, word_tokenizer

SCRIPT = "<script>alert(1)</script>"
ODD = " a,b:c"
WORDS = (" the", " a", "the", ODD, SCRIPT, " Paris", " paris", "🙂", " 100%", "a/b", '"', "\u202eevil")
SMALL = FillConfig(tokens=1500, top=4, samples=2, window=12, before=8, length=32, batch=5)


def tiny(seed: int = 0, layers: int = 3) -> Model:
    """Random weights; every word is one token, and so is every ASCII character."""
    tokenizer = word_tokenizer(WORDS)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 3,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    hf = scatter(quiet_llama(config), 0.3, seed)
    with torch.no_grad():
        hf.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(ODD)] *= 5  # no other points as far its way
    return Model(hf, tokenizer, "tiny/model")


def texts(n: int = 40, seed: int = 0, words: Sequence[str] = WORDS) -> Corpus:
    """Documents of random words and letters."""
    draw = random.Random(seed)
    letters = "abcdef ,.\n"
    return open_corpus(["".join(draw.choice([*words, *letters]) for _ in range(draw.randint(5, 90))) for _ in range(n)])


def detector(model: Model, token: str, site: str = "embed") -> SparseDictionary:
    """Two latents: the first fires on ``token`` alone, the second never."""
    (wanted,) = model.encode(token)
    embedding = model.hf.get_input_embeddings().weight.detach()
    made = SparseDictionary(model.d_model, 2, "jumprelu", subtract_bias=False).requires_grad_(False)
    row = embedding[wanted]
    others = torch.cat([embedding[:wanted], embedding[wanted + 1 :]]) @ row
    with torch.no_grad():
        made.w_enc.copy_(torch.stack([row, torch.zeros_like(row)]))
        assert made.threshold is not None
        made.threshold.fill_(float(others.max().clamp(min=0)) + 1e-3)
    assert float(row @ row) > float(made.threshold[0])
    made.provenance = Provenance(model.name, model.fingerprint, site)
    return made


def by_hand(
    folder: Path,
    tokens: Sequence[bytes],
    *,
    units: int = 30,
    top: int = 3,
    width: int = 6,
    seed: int = 0,
    notes: dict[Any, Any] | None = None,
    name: str = "hand",
) -> FeatureIndex:
    """An index of random texts over ``tokens``; two sources."""
    rng = np.random.default_rng(seed)
    n_texts = 25
    ids = rng.integers(0, len(tokens), (n_texts, 10)).astype(np.int32)
    values = rng.normal(size=(units, top, width)).astype(np.float32)
    values[units - 1] = -1.0
    peak = values.max(-1)
    order = np.argsort(-peak, axis=1)
    values, peak = np.take_along_axis(values, order[..., None], 1), np.take_along_axis(peak, order, 1)
    context = rng.integers(0, n_texts, (units, top)).astype(np.int32)
    context[units - 1] = -1
    start = rng.integers(0, 10 - width + 1, (units, top)).astype(np.int32)
    parts: dict[str, Any] = {
        "units": {
            "peak": peak,
            "context": context,
            "position": (start + values.argmax(-1)).astype(np.int32),
            "start": start,
            "values": values,
            "density": rng.random(units),
            "bars": rng.integers(0, 9, (units, BARS)).astype(np.uint32),
        },
        "contexts": {
            "ids": ids.reshape(-1),
            "offset": np.arange(n_texts + 1, dtype=np.int64) * 10,
            "document": np.arange(n_texts, dtype=np.int64),
            "first": np.zeros(n_texts, np.int64),
        },
        "vocabulary": vocabulary_of(tokens).arrays(),
        "effects": no_effects(units, 2),
        "notes": pack(notes or {}),
    }
    parts["postings"] = make_postings(parts, top)
    about = {
        "model": {"name": name, "fingerprint": "f" * 64, "layers": 1, "d_model": 4},
        "corpus": {"name": "random", "digest": "d" * 64},
        **{"tokens": 250, "texts": n_texts, "top": top, "begin": 0, "edges": list(EDGES), "complete": True},
    }
    half = units // 2
    sources = [Source("0", "neurons", "neurons.0", half)]
    sources.append(Source("dict", "dictionary", "resid_post.0", units - half, half))
    return write_index(folder, about, sources, parts)
