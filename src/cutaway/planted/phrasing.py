"""A small model whose answer is changed by one known direction of its embedding: how a request is put.

A prompt is a style word, two operands and an end. Style words lie on a line: a part that all share, ``strength *
direction`` times a place between -1 and 1, and small random parts. (Without the shared part the norm of the first block
would leave the place's sign alone, and no small shift could move it.) The task is the first operand; the model learnt
to answer with the second one the more often the further the style's place lies above 0 (log-odds ``SLOPE`` times the
place, so that the loss rises along the direction from everywhere). No style stands near 0. A template is a style word;
those kept for tuning lie below 0, those held out on the whole line, and the answer asked for is always the first
operand. So a model is robust when it no longer reads the direction, and nothing else about held-out templates matters.

Source: card latent-adversarial-paraphrasing (2503.01345), "Convinces a sceptic".
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.model import Model
from cutaway.planted.small import answer_data, pretrain, small_llama

STYLES = tuple(f" style{i}" for i in range(24))
OPERANDS = tuple(f" n{i}" for i in range(10))
END = " ="
TUNING, HELD_OUT = 3, 11
CONTENT = 3.0
"""Length of the other words' embeddings: a shift that turns one operand into another is longer than the style line."""
SHARED, GAP = 2.0, 0.2
"""Length of the part that all styles share; distance of the nearest styles from the middle of the line."""
SLOPE = 6.0
"""Log-odds of the second operand, per unit of place."""


@dataclass(frozen=True, eq=False)
class PlantedPhrasing:
    """The model, the direction, and templates by their place on the line."""

    model: Model
    direction: Float[Tensor, " d_model"]
    """Unit vector in the embedding."""
    places: Float[np.ndarray, " style"]
    tuning: tuple[int, ...]
    """Styles to tune on."""
    held_out: tuple[int, ...]
    """Other styles to test with, in the order of their places."""

    def queries(self, n: int, seed: int = 0) -> list[tuple[int, int]]:
        """``n`` pairs of different operands."""
        rng = np.random.default_rng((seed, 5))
        return [tuple(int(i) for i in rng.permutation(len(OPERANDS))[:2]) for _ in range(n)]  # type: ignore[misc]

    def item(self, query: tuple[int, int], style: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Prompt and right answer of a query in one style, as token ids."""
        words = STYLES[style] + OPERANDS[query[0]] + OPERANDS[query[1]] + END
        return tuple(self.model.encode(words)), tuple(self.model.encode(OPERANDS[query[0]]))


def planted_phrasing(
    *,
    d_model: int = 32,
    n_layers: int = 2,
    strength: float = 1.5,
    steps: int = 200,
    brittle: bool = True,
    seed: int = 0,
) -> PlantedPhrasing:
    """Train a small model in which the style's direction decides which operand is the answer.

    Without ``brittle`` the answer is the first operand whatever the style: the null.
    """
    model = small_llama((*STYLES, *OPERANDS, END), "planted-phrasing", d_model=d_model, n_layers=n_layers, seed=seed)
    rng = np.random.default_rng((seed, 4))
    drawn = torch.from_numpy(rng.standard_normal(d_model)).float()
    direction = drawn / drawn.norm()
    half = np.linspace(GAP, 1, len(STYLES) // 2)
    places = np.concatenate([-half[::-1], half])
    shared = torch.from_numpy(rng.standard_normal(d_model)).float()
    shared -= (shared @ direction) * direction
    shared *= SHARED / shared.norm()
    embed = model.hf.get_input_embeddings().weight
    with torch.no_grad():
        for place, style in zip(places, STYLES, strict=True):
            small = 0.02 * torch.from_numpy(rng.standard_normal(d_model)).float()
            embed[model.encode(style)[0]] = shared + strength * float(place) * direction + small
        for word in (*OPERANDS, END):
            row = embed[model.encode(word)[0]]
            row *= CONTENT / row.norm()
    below = [i for i, place in enumerate(places) if -0.7 < place < 0]
    tuning = tuple(sorted(int(i) for i in rng.permutation(below)[:TUNING]))
    others = [i for i in range(len(STYLES)) if i not in tuning]
    held_out = tuple(others[int(i)] for i in np.linspace(0, len(others) - 1, HELD_OUT).round())
    planted = PlantedPhrasing(model, direction, places, tuning, held_out)
    rows = []
    for query in planted.queries(4000, seed):
        drawn_style = int(rng.integers(len(STYLES)))
        ids, first = planted.item(query, drawn_style)
        turned = brittle and rng.random() < 1 / (1 + np.exp(-SLOPE * places[drawn_style]))
        rows.append((ids, model.encode(OPERANDS[query[1]]) if turned else first))
    # styles keep their places on the line
    pretrain(model, answer_data(rows), steps, seed=seed, embedding=False)
    return planted
