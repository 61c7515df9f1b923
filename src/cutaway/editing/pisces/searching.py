"""Choose how hard to edit, and judge an edit: efficacy, specificity, coherence.

A setting is (tau, mu). A weaker one has tau no lower and mu no higher. Settings are visited in random order:

- the concept still answered too often: every weaker setting is dropped unseen
- general knowledge or fluency too low: every stronger setting is dropped unseen

Of those that pass, the best harmonic mean of efficacy, specificity and fluency wins; a mean with a zero in it is zero.
Where several are equal, the one that leaves the concept's answers least probable.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cutaway.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

TAUS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.5, 0.4, 0.3, 0.2)
MUS = (4.0, 7.0, 10.0, 13.0, 18.0, 24.0, 30.0, 36.0, 42.0, 50.0)
"""The published grid."""


@dataclass(frozen=True)
class Judged:
    """How an edited model did, each as a share of what the model did before."""

    concept: float
    """Accuracy on the concept after, over before."""
    similar: float
    general: float
    """Accuracy (or probability) on other knowledge after, over before; at most 1 counts."""
    fluency: float
    """Perplexity on neutral text before, over after."""
    logp: float = 0.0
    """Mean log-probability of the concept's answers after, in nats: a few questions soon agree on 0 or 1, this does
    not."""

    @property
    def score(self) -> float:
        """Harmonic mean of efficacy, specificity and fluency."""
        specific = harmonic([min(1.0, self.general), min(1.0, self.similar)])
        return harmonic([max(0.0, 1 - self.concept), specific, min(1.0, self.fluency)])


@dataclass(frozen=True)
class Tried:
    """One setting, judged; or dropped unseen, with the reason."""

    tau: float
    mu: float
    judged: Judged | None
    dropped: str = ""


@dataclass(frozen=True)
class Search:
    """Every setting of the grid, and the best that meets the limits."""

    tried: tuple[Tried, ...]
    best: Tried | None
    """None where no setting meets them."""
    complete: bool = True

    def __repr__(self) -> str:
        seen = sum(each.judged is not None for each in self.tried)
        found = "no acceptable setting" if self.best is None else f"tau {self.best.tau:g}, mu {self.best.mu:g}"
        return f"Search({found}; {seen} of {len(self.tried)} settings judged)"

    @property
    def judged(self) -> int:
        """Settings that were evaluated."""
        return sum(each.judged is not None for each in self.tried)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row a setting."""
        import pandas as pd

        return pd.DataFrame([self._row(each) for each in self.tried])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data."""
        best = None if self.best is None else self._row(self.best)
        return {"complete": self.complete, "best": best, "tried": [self._row(each) for each in self.tried]}

    def _row(self, each: Tried) -> dict[str, Any]:
        row = {"tau": each.tau, "mu": each.mu, "dropped": each.dropped}
        return row if each.judged is None else {**row, **asdict(each.judged), "score": each.judged.score}


def harmonic(values: Sequence[float]) -> float:
    """Return the harmonic mean; 0 where any value is 0 (none is left out). UsageError for negative values, or none."""
    if not values or min(values) < 0:
        raise UsageError(f"harmonic mean of {list(values)}: one or more values, none below 0")
    return 0.0 if min(values) == 0 else len(values) / sum(1 / value for value in values)


def search(
    judge: Callable[[float, float], Judged],
    taus: Sequence[float] = TAUS,
    mus: Sequence[float] = MUS,
    *,
    most_concept: float = 0.13,
    least_general: float = 0.8,
    least_fluency: float = 0.85,
    seed: int = 0,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Search:
    """Judge settings in random order, dropping what the limits rule out. Ctrl-C leaves the best so far."""
    if not taus or not mus:
        raise UsageError("an empty grid; give at least one tau and one mu")
    grid = [(float(tau), float(mu)) for tau in taus for mu in mus]
    order = np.random.default_rng(seed).permutation(len(grid))
    state: dict[tuple[float, float], Tried] = {}
    complete = True
    try:
        for done, place in enumerate(order):
            tau, mu = grid[place]
            if (tau, mu) in state:
                continue
            found = judge(tau, mu)
            state[tau, mu] = Tried(tau, mu, found)
            if found.concept > most_concept:
                weaker = [(t, m) for t, m in grid if t >= tau and m <= mu]
                _drop(state, weaker, "weaker than one that leaves the concept")
            if min(found.general, found.similar) < least_general or found.fluency < least_fluency:
                stronger = [(t, m) for t, m in grid if t <= tau and m >= mu]
                _drop(state, stronger, "stronger than one that does harm")
            tick(done + 1, len(grid))
    except KeyboardInterrupt:
        complete = False
    fit = [
        each
        for each in state.values()
        if each.judged is not None
        and each.judged.concept <= most_concept
        and min(each.judged.general, each.judged.similar) >= least_general
        and each.judged.fluency >= least_fluency
    ]
    best = max(fit, key=_rank, default=None)
    return Search(tuple(state[key] for key in grid if key in state), best, complete)


def _rank(each: Tried) -> tuple[float, float]:
    assert each.judged is not None
    return round(each.judged.score, 6), -each.judged.logp


def _drop(state: dict[tuple[float, float], Tried], settings: Sequence[tuple[float, float]], why: str) -> None:
    for tau, mu in settings:
        state.setdefault((tau, mu), Tried(tau, mu, None, why))


@dataclass(frozen=True)
class Ratings:
    """Marks read off a judge's answers."""

    marks: tuple[float | None, ...]
    """None where the answer was no mark."""
    errors: tuple[str, ...]
    """One line for each of those; they are no zeros."""

    @property
    def mean(self) -> float:
        """Mean of the marks that could be read; nan where there is none."""
        read = [mark for mark in self.marks if mark is not None]
        return sum(read) / len(read) if read else float("nan")


def read_ratings(replies: Sequence[str], highest: int = 2) -> Ratings:
    """Read a judge's replies, each a whole number from 0 to ``highest``; anything else is an error row."""
    marks: list[float | None] = []
    errors = []
    for place, reply in enumerate(replies):
        text = reply.strip()
        if text.isdecimal() and int(text) <= highest:
            marks.append(float(text))
        else:
            marks.append(None)
            errors.append(f"reply {place} is no mark from 0 to {highest}: {text[:40]!r}")
    return Ratings(tuple(marks), tuple(errors))
