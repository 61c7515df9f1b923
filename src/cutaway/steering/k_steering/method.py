"""K-Steering: one classifier over activations whose gradient pushes towards wanted labels and away from unwanted ones.

1. `fit_classifier` on the last token's activation at one site, of questions under each style's instruction.
2. `Classifier.edits`: ``h <- h + scale * decay**s * grad(mean target logit - mean avoid logit)``, each position by its
   own gradient, at the site it was fitted at.
3. `find_strength`: the largest strength whose price stays within a limit; the weakest strength is checked too.
4. `success`, `interference`: a second classifier, of other data at a later site, scores activations that the model
   computed under the edit: singly, and for all pairs of targets (Holm over pairs).
5. `measure_arms`: answers to the same prompts plain, under K-Steering, under the linear baseline, under the instruction
   as text; program-checked measures, perplexity under the plain model, repetition; random directions of equal push.

Source: card k-steering (Oozeer et al. 2025, arXiv:2505.24535). Differences, on purpose: pushes do not depend on a
text's length or padding (the library averages logits over positions), the site of training is the site of steering,
strength is a share of the stream's length, no judge. Limit: the gradient of a classifier may leave the data; see the
perplexity and the controls before believing an effect.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.model import Add, Edit, Model
from cutaway.sampling import Rollout, Settings
from cutaway.stats import Interval, paired_difference, share_interval
from cutaway.steering.effects import (
    Effect,
    answer_nll,
    draw_answers,
    effect,
    fluency,
    holm,
    relative_change,
    repetition,
)
from cutaway.steering.k_steering.classifier import Classifier, signs
from cutaway.steering.k_steering.measures import MEASURES

Prompts = Sequence[Sequence[int]]
Report = Callable[[int, int, str], None]
"""Called with (done, planned, what is counted)."""


@dataclass(frozen=True, repr=False)
class Pair:
    """Two targets at once."""

    targets: tuple[str, str]
    changes: tuple[Interval, Interval]
    """Of each target's probability by the held-out classifier."""
    success: Interval
    """Share of prompts where both targets rank above every other label."""
    p: float
    """That not both rise; Holm-adjusted over all pairs."""

    def __repr__(self) -> str:
        return f"Pair({' + '.join(self.targets)}: {self.changes[0]}, {self.changes[1]}, p={self.p:.2g})"

    @property
    def both_rise(self) -> bool:
        return all(change.low > 0 for change in self.changes)


@dataclass(frozen=True, repr=False)
class Interference:
    """What steering to one label, or to two, does to every label."""

    labels: tuple[str, ...]
    singles: tuple[tuple[Interval, ...], ...]
    """Row: steered to; column: change of that label's probability."""
    success: tuple[Interval, ...]
    """By single target."""
    pairs: tuple[Pair, ...]

    def __repr__(self) -> str:
        rise = sum(pair.both_rise for pair in self.pairs)
        return f"Interference({len(self.labels)} labels; both rise in {rise} of {len(self.pairs)} pairs)"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, repr=False)
class Strength:
    """The outcome of `find_strength`."""

    value: float | None
    """None where even the weakest strength costs too much."""
    limit: float
    tried: tuple[tuple[float, float], ...]
    """(strength, price) in the order tried."""

    def __repr__(self) -> str:
        found = "none: the weakest costs too much" if self.value is None else f"{self.value:.3g}"
        return f"Strength({found}; price limit {self.limit:g}, {len(self.tried)} tried)"


@dataclass(frozen=True)
class Arm:
    """One way to steer: the prompts it takes and the edits it is sampled under."""

    name: str
    prompts: Prompts = field(repr=False)
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True, repr=False)
class Outcome:
    """One arm against the plain answers to the same questions."""

    arm: str
    effects: Mapping[str, Effect]
    """By measure, with the random directions as controls where the arm has some; ``repetition`` among them."""
    words: Interval
    """Relative change of mean words."""
    perplexity: Interval
    """Relative change under the plain model."""
    cut: float
    """Share of answers ended by the token limit."""

    def __repr__(self) -> str:
        return f"Outcome({self.arm}: words {self.words}, perplexity {self.perplexity})"


@dataclass(frozen=True, repr=False)
class Comparison:
    """All arms."""

    outcomes: tuple[Outcome, ...]
    plain_cut: float
    n: int
    complete: bool = True
    """False when Ctrl-C ended it early; the arms that were finished are there."""

    def __repr__(self) -> str:
        return f"Comparison({'; '.join(map(repr, self.outcomes)) or 'no arm finished'}; n={self.n})"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def steered_states(
    model: Model, prompts: Prompts, site: str, edits: Sequence[Edit] = (), rows: int = 16
) -> Float[Tensor, "prompt d"]:
    """Return the last token's activation at ``site`` while the model runs under ``edits``."""
    kept = []
    for at in range(0, len(prompts), rows):
        batch = model.batch([list(row) for row in prompts[at : at + rows]])
        with model.edited(*edits):
            kept.append(model.capture(batch, site, "last", special=True)[site][:, 0].float().cpu())
    return torch.cat(kept)


def success(
    held: Classifier,
    plain: Float[Tensor, "n d"],
    steered: Float[Tensor, "n d"],
    targets: Sequence[str],
    avoids: Sequence[str] = (),
) -> Bool[np.ndarray, " n"]:
    """Rows in which every target ranks above every non-target and every avoid fell below its unsteered value."""
    weight = signs(held.labels, targets, avoids)
    before, after = held.logits(plain), held.logits(steered)
    above = torch.ones(len(after), dtype=torch.bool)
    if bool((weight <= 0).any()):
        above = after[:, weight > 0].min(1).values > after[:, weight <= 0].max(1).values
    fell = (after < before)[:, weight < 0].all(1)
    return (above & fell).numpy()


def interference(
    held: Classifier,
    plain: Float[Tensor, "n d"],
    steer: Callable[[tuple[str, ...]], Float[Tensor, "n d"]],
    clusters: Sequence[int] | None = None,
    report: Report = lambda done, planned, note: None,
) -> Interference:
    """Steer to each label and to each pair, score with ``held``; intervals are clustered (by topic).

    ``steer`` returns the activations at ``held.site`` of the same prompts, steered to the labels it is given.
    """
    labels, owners = held.labels, None if clusters is None else np.asarray(clusters)
    before = held.probabilities(plain).double().numpy()
    asked: list[tuple[str, ...]] = [*((label,) for label in labels), *combinations(labels, 2)]
    changes, shares = [], []
    for done, targets in enumerate(asked):
        report(done, len(asked), "targets")
        after = steer(targets)
        moved = held.probabilities(after).double().numpy()
        changes.append([paired_difference(moved[:, j], before[:, j], clusters=owners) for j in range(len(labels))])
        shares.append(share_interval(success(held, plain, after, targets).astype(float), clusters=owners))
    k, pairs = len(labels), asked[len(labels) :]
    own = [[changes[k + i][labels.index(label)] for label in pair] for i, pair in enumerate(pairs)]
    adjusted = holm([max(map(_p_rise, both)) for both in own])
    found = [
        Pair((pair[0], pair[1]), (both[0], both[1]), shares[k + i], float(adjusted[i]))
        for i, (pair, both) in enumerate(zip(pairs, own, strict=True))
    ]
    return Interference(labels, tuple(tuple(row) for row in changes[:k]), tuple(shares[:k]), tuple(found))


def find_strength(
    price: Callable[[float], float],
    limit: float,
    *,
    low: float = 0.02,
    high: float = 1.0,
    halvings: int = 8,
    ratio: float = 1.05,
) -> Strength:
    """Return the largest strength between ``low`` and ``high`` whose price is within ``limit``, by halving in logs.

    Stops when the two ends are within ``ratio``. Prices that are NaN are too high. The lower end is tried first: where
    it is too high there is no strength. Assumes the price rises with strength; what was tried is in the result.
    """
    if not 0 < low < high or halvings < 0 or not ratio > 1:
        raise UsageError(f"low={low}, high={high}, halvings={halvings}, ratio={ratio}: 0 < low < high, ratio above 1")
    tried: list[tuple[float, float]] = []

    def fits(strength: float) -> bool:
        tried.append((strength, price(strength)))
        return tried[-1][1] <= limit

    if not fits(low):
        return Strength(None, limit, tuple(tried))
    if fits(high):
        return Strength(high, limit, tuple(tried))
    good, bad = low, high
    for _ in range(halvings):
        if bad / good <= ratio:
            break
        middle = float(np.sqrt(good * bad))
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return Strength(good, limit, tuple(tried))


def random_pushes(site: str, d: int, length: float, n: int = 20, seed: int = 0) -> list[tuple[Add, ...]]:
    """``n`` random directions, each pushing as far at every token as a unit step of ``length`` does."""
    drawn = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    unit = (drawn / drawn.norm(dim=-1, keepdim=True)).float()
    return [(Add(site, each, float(length)),) for each in unit]


def measure_arms(
    model: Model,
    prompts: Prompts,
    arms: Sequence[Arm],
    settings: Settings,
    *,
    controls: Mapping[str, Sequence[tuple[Edit, ...]]] | None = None,
    control_prompts: int = 8,
    clusters: Sequence[int] | None = None,
    seed: int = 0,
    folder: Path | None = None,
    report: Report = lambda done, planned, note: None,
) -> Comparison:
    """Answer every prompt plain and under each arm. ``controls`` are by arm; each is run on some prompts in turn.

    The i-th control is run on ``control_prompts`` prompts from number ``i * control_prompts`` on, around the end, so
    all controls together cover all prompts. Ctrl-C keeps the arms that are finished.
    """
    finished: list[Outcome] = []
    plain_cut, complete = 0.0, True
    draw = _Drawer(model, settings, seed, folder, report)
    try:
        plain = draw(prompts, (), "plain answers")
        plain_cut = _cut(plain)
        base = _Read(model, prompts, plain)
        for arm in arms:
            answers = draw(arm.prompts, arm.edits, f"answers, {arm.name}")
            read = _Read(model, prompts, answers)
            beside = [
                _control(draw, base, prompts, edits, i * control_prompts, control_prompts)
                for i, edits in enumerate((controls or {}).get(arm.name, ()))
            ]
            finished.append(_outcome(arm.name, base, read, beside, _cut(answers), clusters))
    except KeyboardInterrupt:
        complete = False
    return Comparison(tuple(finished), plain_cut, len(prompts), complete)


class _Read:
    """Measures of each answer to each prompt."""

    def __init__(self, model: Model, prompts: Prompts, answers: Sequence[Rollout], nll: bool = True) -> None:
        texts = [_text(model, answer) for answer in answers]
        self.values = {name: np.array([measure(text) for text in texts]) for name, measure in MEASURES.items()}
        self.values["repetition"] = np.array([repetition(answer.ids) for answer in answers])
        self.nll = answer_nll(model, prompts, answers) if nll else np.zeros(0)


class _Drawer:
    def __init__(self, model: Model, settings: Settings, seed: int, folder: Path | None, report: Report) -> None:
        self.model, self.settings, self.seed, self.folder, self.report = model, settings, seed, folder, report

    def __call__(self, prompts: Prompts, edits: Sequence[Edit], note: str) -> list[Rollout]:
        found = draw_answers(
            self.model,
            prompts,
            self.settings,
            edits=edits,
            seed=self.seed,
            folder=self.folder,
            report=lambda done, total: self.report(done, total, note),
        )
        return [one for (one,) in found]


def _control(
    draw: _Drawer, base: _Read, prompts: Prompts, edits: tuple[Edit, ...], start: int, count: int
) -> dict[str, np.ndarray]:
    places = sorted({(start + i) % len(prompts) for i in range(min(count, len(prompts)))})
    answers = draw([prompts[i] for i in places], edits, "answers, random directions")
    read = _Read(draw.model, prompts, answers, nll=False)
    found = {name: np.full(len(prompts), np.nan) for name in base.values}
    for name, values in read.values.items():
        found[name][places] = values
    return found


def _outcome(
    name: str,
    base: _Read,
    read: _Read,
    controls: Sequence[Mapping[str, np.ndarray]],
    cut: float,
    clusters: Sequence[int] | None,
) -> Outcome:
    effects = {
        measure: effect(measure, base.values[measure], values, [each[measure] for each in controls], clusters)
        for measure, values in read.values.items()
    }
    change = relative_change(base.values["words"], read.values["words"], clusters)
    return Outcome(name, effects, change, fluency(base.nll, read.nll, clusters), cut)


def _text(model: Model, answer: Rollout) -> str:
    return model.decode([token for token in answer.ids if token not in model.special_ids]).strip()


def _cut(answers: Sequence[Rollout]) -> float:
    return sum(answer.finish == "length" for answer in answers) / len(answers)


def _p_rise(change: Interval) -> float:
    """One-sided p-value of a t interval: that the true change is not above 0."""
    half = (change.high - change.low) / 2
    if not np.isfinite(half):
        return 1.0
    if half == 0:
        return 0.0 if change.value > 0 else 1.0
    error = half / float(stats.t.ppf((1 + change.level) / 2, change.n - 1))
    return float(stats.t.sf(change.value / error, change.n - 1))
