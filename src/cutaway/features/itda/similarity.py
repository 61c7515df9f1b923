"""Which layer of one model corresponds to a layer of another: by atoms' labels, and by what others compare.

Jaccard of two dictionaries' labels needs no activation of both models at once; CKA, SVCCA and relative
representations compare activations at the same tokens. Matching takes, for a layer of model i, the most similar layer
of model j; it is right where both have the same number. A model compared with itself is always right, so pairs i = j
(in the published code's average) are left out of the headline and counted apart.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.features.itda.atoms import AtomDictionary
from cutaway.stats import Interval, bootstrap


@dataclass(frozen=True)
class Matching:
    """How often the most similar layer is the same layer."""

    name: str
    accuracy: Interval
    """Over pairs of different models; bootstrap over unordered pairs."""
    with_self: float
    """Pairs of a model with itself included: too good by construction."""
    distance: float
    """Mean absolute difference of layer numbers, different models only."""
    chance: float

    def __repr__(self) -> str:
        return f"{self.name}: {self.accuracy} of layers matched (chance {self.chance:.2f})"


def jaccard(a: AtomDictionary, b: AtomDictionary) -> float:
    """Return shared labels over all labels; UsageError for other tokenizers or text."""
    if a.tokenizer != b.tokenizer:
        raise UsageError("these dictionaries have different tokenizers; compare them with jaccard_by_text")
    if a.provenance.data != b.provenance.data:
        raise UsageError("these dictionaries were built on different text; their labels cannot be compared")
    return _overlap(a.labels, b.labels)


def jaccard_by_text(a: AtomDictionary, b: AtomDictionary, tolerance: int = 0) -> float:
    """Return the same for dictionaries of different tokenizers: atoms are one where their tokens end at the same place.

    ``tolerance`` in characters; each atom is matched once. UsageError for other text or unknown places.
    """
    if a.provenance.data != b.provenance.data:
        raise UsageError("these dictionaries were built on different text; their places cannot be compared")
    if tolerance < 0:
        raise UsageError(f"tolerance={tolerance}: 0 or more characters")
    places = []
    for each in (a, b):
        found: dict[int, list[int]] = defaultdict(list)
        for name in each.names:
            if name.end < 0:
                raise UsageError(f"{each!r} does not know where its tokens end; its tokenizer gives no offsets")
            found[name.document].append(name.end)
        places.append({document: sorted(ends) for document, ends in found.items()})
    one, two = places
    shared = sum(_matched(ends, two.get(document, []), tolerance) for document, ends in one.items())
    total = len(a.names) + len(b.names) - shared
    return shared / total if total else 1.0


def cka(x: Float[Tensor, "row d1"], y: Float[Tensor, "row d2"]) -> float:
    """Return linear CKA of two sets of columns, each centred and scaled to norm 1."""
    x, y = _columns(x), _columns(y)
    return float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()).clamp(min=1e-30))


def svcca(x: Float[Tensor, "row d1"], y: Float[Tensor, "row d2"], components: int = 20) -> float:
    """Return the mean canonical correlation of the first singular directions."""
    left = [torch.linalg.svd(each.double() - each.double().mean(0), full_matrices=False) for each in (x, y)]
    bases = [u[:, : min(components, int((s > 1e-9 * s[0]).sum()))] for u, s, _ in left]
    return float(torch.linalg.svdvals(bases[0].T @ bases[1]).mean())


def relative(x: Float[Tensor, "row d1"], y: Float[Tensor, "row d2"], anchors: int = 300, seed: int = 0) -> float:
    """Return the mean cosine of rows written as their cosines with the same random ``anchors`` rows."""
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:anchors]
    views = []
    for each in (x, y):
        unit = torch.nn.functional.normalize(each.double(), dim=-1)
        views.append(unit @ unit[chosen].T)
    return float(torch.nn.functional.cosine_similarity(views[0], views[1], dim=-1).mean())


def match_layers(
    name: str, similarity: Callable[[int, int, int, int], float], n_models: int, n_layers: int, seed: int = 0
) -> Matching:
    """Match every layer of every model with every other; ``similarity(i, layer, j, layer)`` is asked for all.

    Layers equally similar share the hit. UsageError for fewer than two models or layers.
    """
    if min(n_models, n_layers) < 2:
        raise UsageError(f"{n_models} models of {n_layers} layers: matching needs two or more of each")
    hits, far = np.zeros((n_models, n_models)), np.zeros((n_models, n_models))
    numbers = np.arange(n_layers)
    for i in range(n_models):
        for j in range(n_models):
            table = np.array([[similarity(i, a, j, b) for b in range(n_layers)] for a in range(n_layers)])
            best = table >= table.max(1, keepdims=True)
            share = best / best.sum(1, keepdims=True)
            hits[i, j] = np.diag(share).mean()
            far[i, j] = (share * np.abs(numbers[:, None] - numbers)).sum(1).mean()
    upper = np.triu_indices(n_models, 1)
    pairs = (hits + hits.T)[upper] / 2
    accuracy = bootstrap(pairs, lambda values: float(values.mean()), method="percentile", seed=seed)
    return Matching(name, accuracy, float(hits.mean()), float((far + far.T)[upper].mean() / 2), 1 / n_layers)


def match_dictionaries(dictionaries: Sequence[Sequence[AtomDictionary]], seed: int = 0) -> tuple[Matching, Matching]:
    """Match layers of several models by labels, and by as many random ones of all labels, the control."""
    labels = [[each.labels for each in layers] for layers in dictionaries]
    first = dictionaries[0][0]
    for each in (each for layers in dictionaries for each in layers):
        jaccard(first, each)  # refuses what cannot be compared
    pool = sorted({label for layers in labels for each in layers for label in each})
    rng = np.random.default_rng(seed)
    drawn = [[frozenset(rng.choice(pool, len(each), replace=False).tolist()) for each in layers] for layers in labels]
    size = len(dictionaries), len(dictionaries[0])
    return (
        match_layers("labels", lambda i, a, j, b: _overlap(labels[i][a], labels[j][b]), *size),
        match_layers("random labels", lambda i, a, j, b: _overlap(drawn[i][a], drawn[j][b]), *size),
    )


def match_activations(values: Sequence[Sequence[Float[Tensor, "row d"]]]) -> tuple[Matching, ...]:
    """Match layers of several models by CKA, SVCCA and relative representations of the same rows."""
    size = len(values), len(values[0])
    ways: dict[str, Callable[[Tensor, Tensor], float]] = {"CKA": cka, "SVCCA": svcca, "relative": relative}
    return tuple(
        match_layers(name, lambda i, a, j, b, way=way: way(values[i][a], values[j][b]), *size)  # type: ignore[misc]
        for name, way in ways.items()
    )


def _overlap(a: frozenset[str], b: frozenset[str]) -> float:
    union = len(a | b)
    return len(a & b) / union if union else 1.0


def _columns(x: Tensor) -> Tensor:
    x = x.double() - x.double().mean(0)
    return x / x.norm(dim=0).clamp(min=1e-12)


def _matched(one: list[int], two: list[int], tolerance: int) -> int:
    """Return how many of two sorted lists can be paired within ``tolerance``, each once."""
    at = shared = 0
    for place in one:
        while at < len(two) and two[at] < place - tolerance:
            at += 1
        if at < len(two) and two[at] <= place + tolerance:
            shared, at = shared + 1, at + 1
    return shared
