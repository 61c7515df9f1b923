"""Prune the neurons that carry a concept, retrain, and watch where the concept comes back.

1. A tagger: a language model with a linear head on its last layer, trained on words labelled after they are read.
2. Concept neurons: MLP neurons ranked by the probeless score over all layers (`salience`); the top ones are pruned.
   *Soft*: what drives them is zeroed, retraining may use them again. *Hard*: they are held at 0 throughout.
3. Control: as many neurons in each layer, drawn at random from the others.
4. Retrain on the original task. At each checkpoint: F1 of the concept on held-out words, saliency of every neuron.
5. Read off: recovery and half-life; the layers' shares of saliency p_l and their centre sum_l l p_l / (L - 1); neurons
   that took over; whether neurons of similar meaning were primed to (`primed`).

Source: Lo, Cohen, Barez 2024, arXiv:2401.01814; card relearn-concepts. The paper takes coordinates of a layer's output
for neurons. In a residual stream such a coordinate also carries what earlier layers wrote, so it has no incoming
weights of its own to zero; MLP neurons do, and they are what is pruned here. Coordinates can be tallied, and masked
with `masks`. Known limit: a neuron basis may hide a concept that comes back as a direction.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.editing.relearn_concepts.salience import Tally, tally
from cutaway.editing.weights import Neurons, masks, prune
from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.stats import Interval, bootstrap
from cutaway.training import Data, Tagging, TrainConfig, collate, train
from cutaway.training.data import UNLABELLED

if TYPE_CHECKING:
    import pandas as pd

Mode = Literal["soft", "hard"]


@dataclass(frozen=True, eq=False)
class Tagger:
    """A language model with a linear head on its last layer."""

    model: Model
    head: Float[Tensor, "label d_model"]
    labels: tuple[str, ...]

    @property
    def site(self) -> str:
        return f"resid_post.{self.model.n_layers - 1}"

    def copy(self) -> "Tagger":
        """Return a tagger with weights of its own."""
        return Tagger(self.model.copy(), self.head.detach().clone().requires_grad_(), self.labels)


@dataclass(frozen=True)
class Checkpoint:
    """What was measured after ``step`` steps of retraining."""

    step: int
    f1: Interval
    """Of the concept, over test sentences."""
    overall: Interval
    """Micro F1 of all labels but the first (outside)."""
    saliency: Float[np.ndarray, "layer d"]

    @property
    def profile(self) -> Float[np.ndarray, " layer"]:
        """Each layer's share of the saliency."""
        mass = self.saliency.sum(1)
        return mass / mass.sum() if mass.sum() > 0 else np.full(len(mass), np.nan)

    @property
    def centre(self) -> float:
        """Centre of mass over layers: 0 is the first, 1 the last; nan where nothing is salient."""
        return float(self.profile @ np.linspace(0, 1, len(self.profile)))


@dataclass(frozen=True)
class Relearnt:
    """One recovery: before pruning, right after, and along retraining."""

    concept: str
    mode: str
    neurons: Mapping[int, tuple[int, ...]]
    before: Checkpoint
    curve: tuple[Checkpoint, ...]
    """The first is right after pruning, at step 0."""
    complete: bool = True

    def __repr__(self) -> str:
        return (
            f"Relearnt({self.concept}, {self.mode}: F1 {self.before.f1.value:.2f} -> {self.curve[0].f1.value:.2f}"
            f" -> {self.curve[-1].f1!r} after {self.curve[-1].step} steps)"
        )

    @property
    def drop(self) -> float:
        """F1 lost by pruning."""
        return self.before.f1.value - self.curve[0].f1.value

    @property
    def recovered(self) -> float:
        """Share of the drop that is back at the end; nan where pruning cost nothing."""
        return (self.curve[-1].f1.value - self.curve[0].f1.value) / self.drop if self.drop > 0 else float("nan")

    def steps_to(self, share: float) -> float:
        """Return the steps until ``share`` of the drop is back, between checkpoints linearly; nan where never."""
        if not self.drop > 0:
            return float("nan")
        goal = self.curve[0].f1.value + share * self.drop
        for one, other in zip(self.curve, self.curve[1:], strict=False):
            if other.f1.value >= goal:
                way = (goal - one.f1.value) / (other.f1.value - one.f1.value)
                return one.step + way * (other.step - one.step)
        return float("nan")

    @property
    def half_life(self) -> float:
        """Steps until half of the drop is back."""
        return self.steps_to(0.5)

    @property
    def shift(self) -> float:
        """Centre of mass at the end less before pruning; below 0 is towards the first layer."""
        return self.curve[-1].centre - self.before.centre

    def takeover(self, gain: float = 0.5) -> tuple[tuple[int, int, float], ...]:
        """Return (layer, neuron, gain of saliency since pruning) of those not pruned that gained most, above ``gain``.

        The strongest first. A neuron that merely reads what another one writes gains as well.
        """
        gains = self.curve[-1].saliency - self.curve[0].saliency
        for layer, chosen in self.neurons.items():
            gains[layer, list(chosen)] = 0.0
        found = [(int(layer), int(i), float(gains[layer, i])) for layer, i in np.argwhere(gains > gain)]
        return tuple(sorted(found, key=lambda each: -each[2]))

    def to_frame(self) -> "pd.DataFrame":
        """Return one row a checkpoint."""
        import pandas as pd

        return pd.DataFrame([_row(each) for each in self.curve])

    def to_dict(self) -> dict[str, Any]:
        """Return everything but single neurons' saliency as JSON-able data."""
        return {
            "concept": self.concept,
            "mode": self.mode,
            "complete": self.complete,
            "neurons": {str(layer): list(chosen) for layer, chosen in self.neurons.items()},
            "before": _row(self.before),
            "curve": [_row(each) for each in self.curve],
        }

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


def make_tagger(model: Model, labels: Sequence[str], data: Data, config: TrainConfig, *, seed: int = 0) -> Tagger:
    """Train the model's trainable weights and a fresh head to tag; the model is changed in place."""
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(len(labels), model.d_model, generator=generator) * model.d_model**-0.5
    tagger = Tagger(model, head.to(model.device).requires_grad_(), tuple(labels))
    _train(tagger, data, config)
    return tagger


def concept_neurons(found: Tally, concept: str, n: int) -> dict[int, tuple[int, ...]]:
    """Return the ``n`` neurons of highest probeless score over all layers; UsageError for more than there are."""
    scores = found.probeless(concept)
    if not 1 <= n <= scores.numel():
        raise UsageError(f"n={n} neurons to prune: the model has {scores.numel()}")
    best = scores.flatten().topk(n).indices.sort().values
    return _by_layer(best, scores.shape[1])


def random_neurons(like: Neurons, width: int, *, seed: int = 0) -> dict[int, tuple[int, ...]]:
    """Return as many neurons in each layer, from those that ``like`` leaves out where these suffice, else from all."""
    rng = np.random.default_rng(seed)
    found = {}
    for layer, chosen in like.items():
        others = np.setdiff1d(np.arange(width), np.array(chosen, dtype=int))
        pool = others if len(others) >= len(chosen) else np.arange(width)
        found[layer] = tuple(sorted(int(i) for i in rng.choice(pool, len(chosen), replace=False)))
    return found


def relearn(
    tagger: Tagger,
    data: Data,
    test: Data,
    concept: str,
    neurons: Neurons,
    config: TrainConfig,
    *,
    mode: Mode | str = "soft",
    before: Checkpoint | None = None,
    prepare: Callable[[Model], None] | None = None,
    tick: Callable[[int], None] = lambda step: None,
) -> Relearnt:
    """Prune a copy of the tagger, retrain it on ``data`` and measure on ``test`` every ``config.probe_every`` steps.

    ``before`` is `measure` of the tagger as it is, where that is known already; ``prepare`` may choose which weights of
    the pruned copy train (default: those of the tagger). Ctrl-C leaves the curve so far.
    UsageError for a concept without tokens in ``test``, an unknown mode, neurons that are not there.
    """
    if mode not in ("soft", "hard"):
        raise UsageError(f"mode={mode!r}: soft or hard")
    before = before or measure(tagger, test, concept)
    pupil = tagger.copy()
    # A mask over neurons that nothing drives would never change anything, and training refuses such an edit.
    if mode == "soft":
        prune(pupil.model, neurons)
    if prepare is not None:
        prepare(pupil.model)
    held = masks(neurons) if mode == "hard" else ()
    curve: list[Checkpoint] = []

    def probe(_: Model) -> dict[str, float]:
        step = 0 if not curve else min(curve[-1].step + (config.probe_every or 10**9), config.steps_of(data))
        curve.append(replace(measure(pupil, test, concept), step=step))
        return {"f1": curve[-1].f1.value}

    complete = _train(pupil, data, config, held, probe, tick)
    kept = {layer: tuple(chosen) for layer, chosen in neurons.items()}
    return Relearnt(concept, mode, kept, before, tuple(curve), complete)


def measure(tagger: Tagger, test: Data, concept: str) -> Checkpoint:
    """Return F1 and saliency on ``test``, as of step 0."""
    found = tally(tagger.model, test, tagger.labels)
    hits = errors(tagger, test)
    place = found.place(concept)
    inside = list(range(1, len(tagger.labels)))
    return Checkpoint(0, f1(hits, [place]), f1(hits, inside), found.saliency(concept).numpy())


@torch.no_grad()
def errors(tagger: Tagger, data: Data, batch: int = 32) -> Float[np.ndarray, "sentence label 3"]:
    """Return true positives, false positives and false negatives of each label in each sentence."""
    n = len(tagger.labels)
    found = np.zeros((len(data), n, 3))
    for start in range(0, len(data), batch):
        places = list(range(start, min(start + batch, len(data))))
        rows = collate(data, places, tagger.model)
        assert rows.labels is not None
        states = tagger.model.capture(rows.tokens, tagger.site, special=True)[tagger.site].float()
        guesses = (states @ tagger.head.detach().T).argmax(-1).cpu().numpy()
        for row, truth, guess in zip(places, rows.labels.cpu().numpy(), guesses, strict=True):
            marked = truth != UNLABELLED
            table = np.zeros((n, n))
            np.add.at(table, (truth[marked], guess[marked]), 1)
            right = np.diag(table)
            found[row] = np.stack([right, table.sum(0) - right, table.sum(1) - right], 1)
    return found


def f1(counts: Float[np.ndarray, "sentence label 3"], labels: Sequence[int]) -> Interval:
    """Return the micro F1 of some labels, with a bootstrap over sentences; 0 where nothing is said and nothing right.

    UsageError where none of the labels stands in the data.
    """
    chosen = counts[:, list(labels)].sum(1)
    if not chosen[:, (0, 2)].any():
        raise UsageError("no token of these labels stands in the test data")

    def score(rows: np.ndarray) -> float:
        right, wrong, missed = rows.sum(0)
        return float(2 * right / (2 * right + wrong + missed)) if right else 0.0

    return bootstrap(chosen, score, method="percentile", n=400)


@dataclass(frozen=True)
class Primed:
    """Whether neurons whose meaning was near the concept before pruning carry it after retraining."""

    rho: float
    """Spearman's, over ranks within layers."""
    p: float
    """Share of permutations within layers (of the first kind, plus one) with |rho| at least as large."""
    partial: float
    """The same correlation with saliency before and spread of activation taken off the ranks."""
    partial_p: float
    auc: float
    """Similarity before, as a predictor of the tenth of neurons that is most salient after."""
    n: int
    permutations: int

    def __repr__(self) -> str:
        return f"Primed(rho {self.rho:.2f}, p {self.p:.3f}; partial {self.partial:.2f}, p {self.partial_p:.3f})"


def primed(
    similarity: Float[np.ndarray, "layer d"],
    after: Float[np.ndarray, "layer d"],
    before: Float[np.ndarray, "layer d"],
    spread: Float[np.ndarray, "layer d"],
    neurons: Neurons,
    *,
    permutations: int = 999,
    seed: int = 0,
) -> Primed:
    """Correlate similarity before pruning with saliency after retraining, over the neurons not pruned.

    Ranks are taken within layers, and so are the permutations of the null. UsageError where all neurons are pruned.
    """
    left = np.ones(similarity.shape, dtype=bool)
    for layer, chosen in neurons.items():
        left[layer, list(chosen)] = False
    layers = np.nonzero(left)[0]
    if len(layers) < 3:
        raise UsageError("fewer than three neurons are left; prune fewer")
    x, y, *others = (_ranks(values[left], layers) for values in (similarity, after, before, spread))
    rest = np.stack([np.ones_like(x), *others], 1)
    pairs = ((x, y), (_residual(x, rest), _residual(y, rest)))
    rng = np.random.default_rng(seed)
    null = np.zeros((2, permutations))
    for draw in range(permutations):
        order = np.lexsort((rng.random(len(layers)), layers))
        back = np.argsort(layers, kind="stable")
        mixed = np.empty(len(layers), dtype=int)
        mixed[back] = order
        null[:, draw] = [_correlation(a[mixed], b) for a, b in pairs]
    rho, partial = (_correlation(a, b) for a, b in pairs)
    p, partial_p = (
        float((1 + np.sum(np.abs(null[i]) >= abs(value) - 1e-12)) / (1 + permutations))
        for i, value in enumerate((rho, partial))
    )
    return Primed(rho, p, partial, partial_p, _auc(similarity[left], after[left]), len(layers), permutations)


def _train(
    tagger: Tagger,
    data: Data,
    config: TrainConfig,
    held: Sequence[Any] = (),
    probe: Callable[[Model], Mapping[str, float]] | None = None,
    tick: Callable[[int], None] = lambda step: None,
) -> bool:
    """Train model and head in place; return whether it ran to its end."""
    done = train(
        tagger.model,
        data,
        config,
        objective=Tagging(tagger.head, tagger.site),
        edits=held,
        keep_edits=True,
        tensors={"head": tagger.head},
        probes=None if probe is None else {"tagger": probe},
        tick=lambda step: tick(step.step),
    )
    return done.complete


def _row(point: Checkpoint) -> dict[str, Any]:
    return {
        "step": point.step,
        "f1": asdict(point.f1),
        "overall": asdict(point.overall),
        "profile": [float(share) for share in point.profile],
        "centre": point.centre,
    }


def _by_layer(flat: Tensor, width: int) -> dict[int, tuple[int, ...]]:
    found: dict[int, tuple[int, ...]] = {}
    for place in flat.tolist():
        found[place // width] = (*found.get(place // width, ()), place % width)
    return found


def _ranks(values: np.ndarray, layers: np.ndarray) -> np.ndarray:
    """Ranks within each layer, from 0 to 1, centred."""
    from scipy.stats import rankdata

    out = np.zeros(len(values))
    for layer in np.unique(layers):
        at = layers == layer
        out[at] = (rankdata(values[at]) - 0.5) / at.sum() - 0.5
    return out


def _residual(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return y - x @ np.linalg.lstsq(x, y, rcond=None)[0]


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else 0.0


def _auc(scores: np.ndarray, target: np.ndarray) -> float:
    from scipy.stats import rankdata

    top = np.zeros(len(target), dtype=bool)
    top[np.argsort(-target, kind="stable")[: max(1, len(target) // 10)]] = True
    ranks = rankdata(scores)
    return float((ranks[top].mean() - (top.sum() + 1) / 2) / (~top).sum())
