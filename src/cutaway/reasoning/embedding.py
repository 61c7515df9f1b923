"""Sentence embeddings: when do two sentences say the same?"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cutaway.errors import CutawayError

Embed = Callable[[Sequence[str]], Float[np.ndarray, "text d_embed"]]
"""Texts to vectors, which need not be of unit length."""


def cosine(a: Float[np.ndarray, "a d_embed"], b: Float[np.ndarray, "b d_embed"]) -> Float[np.ndarray, "a b"]:
    """Cosine of every pair; 0 where a vector is zero."""
    return _unit(a) @ _unit(b).T


def load_embedder(name: str) -> Embed:
    """Embedder by catalogue name or local directory (sentence-transformers format), loaded on first use.

    A text is embedded once: later calls read it from memory.
    """
    known: dict[str, np.ndarray] = {}
    encoder: list[Callable[[list[str]], np.ndarray]] = []

    def embed(texts: Sequence[str]) -> Float[np.ndarray, "text d_embed"]:
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing:
            if not encoder:
                encoder.append(_sentence_transformer(name))
            known.update(zip(missing, encoder[0](missing), strict=True))
        return np.array([known[text] for text in texts])

    return embed


def _unit(vectors: Float[np.ndarray, "text d_embed"]) -> Float[np.ndarray, "text d_embed"]:
    vectors = np.asarray(vectors, dtype=float)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _sentence_transformer(name: str) -> Callable[[list[str]], np.ndarray]:
    from cutaway.model.catalogue import entry

    folder = Path(name) if Path(name).is_dir() else entry(name).directory()
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise CutawayError(
            "comparing sentences needs sentence-transformers; run: pip install 'cutaway[demo]' or leave the embedder "
            "empty where identical wordings are enough"
        ) from error
    encoder = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return lambda texts: np.asarray(encoder.encode(texts, show_progress_bar=False))
