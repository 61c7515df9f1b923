"""Labels that are the sign of a known low-order polynomial, as plain vectors and inside a model.

    label = sum over terms of coefficient * product of coordinates  >  0

`polynomial_data` draws z ~ N(0, I). Up to symmetry the coordinates of one product term are independent of each other
given the label, so a probe of lower degree than the term knows nothing: the gain must appear at that degree and not
before. ``spread`` multiplies each row by its own random length, so that some rows are clear and others are not.

`polynomial_model` is a Llama whose blocks write nothing and whose words have random vectors. The mean residual of a
text is the mean of its words' vectors, at every site, so its label is an exact polynomial of a pooled activation.

The null draws labels by a coin that does not look at the vector. Source: card tpc (2509.26238), planted truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.build import blank_llama, word_tokenizer

LENGTH = 8
"""Words of a text."""
XOR = ((1.0, (0, 1)),)
CUBIC = ((1.0, (0, 1, 2)),)
MIXED = ((1.0, (0,)), (1.5, (1, 2)))
LADDER = ((2.0, (0,)), (2.0, (1, 2)), (1.0, (3, 4, 5)))
Terms = Sequence[tuple[float, tuple[int, ...]]]


@dataclass(frozen=True)
class PolynomialTruth:
    """What a probe should find."""

    terms: tuple[tuple[float, tuple[int, ...]], ...]
    """(coefficient, coordinates); a coordinate may come twice. Empty for the null."""
    degree: int
    """Of the largest term; 0 for the null."""


@dataclass(frozen=True)
class PolynomialData:
    """Vectors, their labels, and the rule."""

    x: Float[np.ndarray, "row d"]
    y: Bool[np.ndarray, " row"]
    truth: PolynomialTruth


@dataclass(frozen=True)
class PolynomialModel:
    """A model with a rule over the mean of ``resid_post`` (any layer), times the root of a text's words."""

    model: Model
    truth: PolynomialTruth
    site: str
    vectors: Float[np.ndarray, "word d"]
    words: tuple[str, ...]

    def texts(self, n: int, seed: int = 0) -> tuple[list[str], Bool[np.ndarray, " text"]]:
        """``n`` texts with their labels."""
        rng = np.random.default_rng(seed)
        picks = rng.integers(0, len(self.words), (n, LENGTH))
        means = self.vectors[picks].mean(1) * LENGTH**0.5
        labels = _labels(means, self.truth, rng)
        return ["".join(self.words[i] for i in row) for row in picks], labels


def polynomial_data(
    terms: Terms = XOR,
    *,
    n: int = 4800,
    d: int = 32,
    spread: float = 0.0,
    flip: float = 0.0,
    null: bool = False,
    seed: int = 0,
) -> PolynomialData:
    """Draw ``n`` rows; ``flip`` is the share of labels turned over, ``spread`` the log-scale of a row's length."""
    truth = _truth(terms, d, null)
    if n < 1 or not 0 <= flip < 0.5 or spread < 0:
        raise UsageError(f"n={n}, flip={flip}, spread={spread}: n from 1, flip in [0, 0.5), spread from 0")
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * np.exp(spread * rng.standard_normal((n, 1)))
    y = _labels(x, truth, rng) ^ (rng.random(n) < flip)
    return PolynomialData(x.astype(np.float32), y, truth)


def polynomial_model(
    terms: Terms = XOR, *, d: int = 16, words: int = 300, n_layers: int = 2, null: bool = False, seed: int = 0
) -> PolynomialModel:
    """Build the model; ``seed`` draws the words' vectors. UsageError for a coordinate that ``d`` has not."""
    truth = _truth(terms, d, null)
    if words < 2 or n_layers < 1 or d % 2:
        raise UsageError(f"words={words}, n_layers={n_layers}, d={d}: 2 words, a layer, and an even d")
    names = tuple(f" w{i}" for i in range(words))
    tokenizer = word_tokenizer(names)
    hf = blank_llama(tokenizer, d_model=d, n_layers=n_layers, n_heads=1, d_head=2, n_ctx=256)
    vectors = np.random.default_rng(seed).standard_normal((words, d)).astype(np.float32)
    ids = [tokenizer.get_vocab()[name] for name in names]
    with torch.no_grad():
        hf.model.embed_tokens.weight[ids] = torch.from_numpy(vectors)
    site = f"resid_post.{n_layers - 1}"
    return PolynomialModel(Model(hf, tokenizer, "planted-polynomial"), truth, site, vectors, names)


def value(x: Float[np.ndarray, "row d"], terms: Terms) -> Float[np.ndarray, " row"]:
    """The polynomial at each row."""
    total = np.zeros(len(x))
    for coefficient, coordinates in terms:
        total += coefficient * np.prod(x[:, list(coordinates)].astype(float), axis=1)
    return total


def _truth(terms: Terms, d: int, null: bool) -> PolynomialTruth:
    if not terms or any(not coordinates for _, coordinates in terms):
        raise UsageError("terms: at least one, each with a coordinate")
    if bad := [i for _, coordinates in terms for i in coordinates if not 0 <= i < d]:
        raise UsageError(f"terms name coordinate {bad[0]}: there are 0 to {d - 1}")
    if null:
        return PolynomialTruth((), 0)
    return PolynomialTruth(tuple(terms), max(len(coordinates) for _, coordinates in terms))


def _labels(x: np.ndarray, truth: PolynomialTruth, rng: np.random.Generator) -> Bool[np.ndarray, " row"]:
    return value(x, truth.terms) > 0 if truth.terms else rng.random(len(x)) < 0.5
