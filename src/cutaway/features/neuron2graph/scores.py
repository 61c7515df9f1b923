"""How well a graph predicts where a feature fires, beside look-ups that know nothing of context.

Scores are per token: precision, recall and F1 of firing and of not firing, at half of the largest known value; area
under the precision-recall curve and correlation of the predicted values; the base rate of firing. On snippets chosen
because they fire the base rate is high, and precision flatters; on other text it is what a user meets.

Baselines are fitted on the same rows as the graph: the mean and the largest value of each token there, and of each
pair of neighbours (the mean of the token alone where the pair is new).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from cutaway.features.neuron2graph.tokens import Spell, normalise

Predict = Callable[[Sequence[str]], Sequence[float]]
"""Tokens of a row to predicted values."""


@dataclass(frozen=True)
class Score:
    """One predictor on one kind of text."""

    name: str
    tokens: int
    fires: int
    """Tokens where the feature fires."""
    predicted: int
    precision: float
    """nan where nothing is predicted to fire."""
    recall: float
    """nan where nothing fires."""
    f1: float
    """nan where nothing fires; 0 where something does and none of it is predicted."""
    quiet_precision: float
    """Of "does not fire"."""
    quiet_recall: float
    pr_auc: float
    """Average precision of the predicted values; nan where nothing fires."""
    correlation: float
    """Of predicted and true values; nan where one of them never varies."""

    @property
    def base_rate(self) -> float:
        """Share of tokens where the feature fires."""
        return self.fires / self.tokens if self.tokens else math.nan

    def __repr__(self) -> str:
        return (
            f"{self.name}: precision {self.precision:.2f}, recall {self.recall:.2f}, F1 {self.f1:.2f}"
            f" (base rate {self.base_rate:.4f}, {self.tokens} tokens)"
        )

    def to_dict(self) -> dict[str, Any]:
        plain = {key: None if isinstance(x, float) and math.isnan(x) else x for key, x in asdict(self).items()}
        return {**plain, "base_rate": self.base_rate if self.tokens else None}


def score(name: str, predicted: Sequence[float], true: Sequence[float], at: float = 0.5) -> Score:
    """Compare predicted with true values, in units of the largest known value."""
    guess, value = np.asarray(predicted, dtype=float), np.asarray(true, dtype=float)
    p, t = guess >= at, value >= at
    hits, n, m = int((p & t).sum()), int(t.sum()), int(p.sum())
    quiet = int((~p & ~t).sum())
    size = len(value)
    f1 = math.nan if n == 0 else 2 * hits / (n + m)
    varies = size > 1 and guess.std() > 0 and value.std() > 0
    return Score(
        name=name,
        tokens=size,
        fires=n,
        predicted=m,
        precision=_share(hits, m),
        recall=_share(hits, n),
        f1=f1,
        quiet_precision=_share(quiet, size - m),
        quiet_recall=_share(quiet, size - n),
        pr_auc=average_precision(guess, t),
        correlation=float(np.corrcoef(guess, value)[0, 1]) if varies else math.nan,
    )


def average_precision(guess: np.ndarray, fires: np.ndarray) -> float:
    """Return the mean precision over the tokens that fire, ties counted together; nan where none does."""
    if not fires.any():
        return math.nan
    order = np.argsort(-guess, kind="stable")
    hits, seen = np.cumsum(fires[order]), np.arange(1, len(order) + 1)
    last = np.append(np.diff(guess[order]) != 0, True)
    hits, seen = hits[last], seen[last]
    gained = np.diff(np.concatenate([[0], hits]))
    return float((gained * hits / seen).sum() / fires.sum())


def lookups(rows: Iterable[tuple[Sequence[int], Sequence[float]]], spell: Spell) -> dict[str, Predict]:
    """Return the baselines fitted on ``(ids, values)`` rows, by name."""
    one: dict[str, list[float]] = {}
    two: dict[tuple[str, str], list[float]] = {}
    for ids, values in rows:
        tokens = [normalise(spell(token)) for token in ids]
        for i, value in enumerate(values):
            one.setdefault(tokens[i], []).append(float(value))
            if i:
                two.setdefault((tokens[i - 1], tokens[i]), []).append(float(value))
    mean = {token: sum(found) / len(found) for token, found in one.items()}
    most = {token: max(found) for token, found in one.items()}
    pairs = {pair: sum(found) / len(found) for pair, found in two.items()}

    def by(table: dict[str, float]) -> Predict:
        return lambda tokens: [table.get(normalise(token), 0.0) for token in tokens]

    def by_pair(tokens: Sequence[str]) -> list[float]:
        plain = [normalise(token) for token in tokens]
        alone = [mean.get(token, 0.0) for token in plain]
        return alone[:1] + [pairs.get(pair, alone[i + 1]) for i, pair in enumerate(pairwise(plain))]

    return {"token look-up, mean": by(mean), "token look-up, largest": by(most), "pair look-up": by_pair}


def judge(
    predictors: dict[str, Predict],
    rows: Sequence[tuple[Sequence[int], Sequence[float]]],
    spell: Spell,
    at: float = 0.5,
) -> dict[str, Score]:
    """Score every predictor on the same ``(ids, true values)`` rows."""
    true = [float(value) for _, values in rows for value in values]
    texts = [[spell(token) for token in ids] for ids, _ in rows]
    return {
        name: score(name, [float(x) for text in texts for x in predict(text)], true, at)
        for name, predict in predictors.items()
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
