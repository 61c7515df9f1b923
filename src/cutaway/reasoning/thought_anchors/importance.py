"""Black-box importance of every sentence, from free rollouts at every boundary (thought-anchors card, section 1).

R_i are rollouts whose prefix stops before sentence i, so R_{i+1} keeps the sentence; A is a rollout's answer, T its
first sentence. After the last sentence the trace has ended: R_n is the trace's own answer.

 1. `boundaries.draw_boundaries` draws R_0 .. R_{n-1} from token prefixes; `read_rollouts` files given ones.
 2. *Resampling importance*: divergence of A over R_i from A over R_{i+1}; accuracy version acc_{i+1} - acc_i.
 3. *Counterfactual importance*: D_i are the rollouts of R_i with cos(T, S_i) < 0.8. Divergence of A over D_i from A
    over R_{i+1} and the similar rest of R_i; accuracy version acc(D_i) - acc_{i+1}: the paper's sign, **opposite** to
    the resampling one.
 4. *Identity*: counterfactual accuracy from the curve alone, (acc_i - acc_{i+1}) / d_i with d_i = |D_i| / |R_i|; left
    out as unidentified where d_i < 0.1, since it divides noise by d_i.
 5. *Forced-answer importance*: the prefix, a text that asks for the answer at once, then the same comparison. Where
    the answers are listed their probability is exact, else a few tokens are sampled (`forced.force_answers`).
 6. *Different-trajectories fraction* d_i, and *overdeterminedness*: share of first sentences that repeat another.

Divergences, by name: ``KL published`` (1e-9 per answer, unanswered rollouts dropped first), ``KL`` (Jeffreys: 1/2 per
answer) and ``JS`` (Jensen-Shannon); for the last two "no answer" is an answer of its own. In nats.

Traps. Plug-in divergences of small samples are biased upwards; ``KL published`` pays about 20 nats times the share of
an answer that one side never gave. So each number has a control: the same statistic with the rollouts' labels
shuffled between the two sets (mean; of the absolute value for accuracies), and the share p of shuffles that reach the
number. Accuracy differences have Newcombe intervals. The others' intervals come from resampling rollouts (d_i
included) and are moved by the bootstrap's own bias: they say how the estimate spreads at this n, not what an infinite
sample would give, and where all rollouts agree they have no width. Neighbouring numbers share rollouts.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool
from scipy.special import rel_entr

from cutaway.errors import UsageError
from cutaway.reasoning.embedding import Embed, cosine
from cutaway.reasoning.thought_anchors.boundaries import Draws
from cutaway.reasoning.thought_anchors.contrast import FORCED, FREE, How, Row, Sets, contrast, divergence
from cutaway.reasoning.thought_anchors.forced import Forced
from cutaway.reasoning.thought_anchors.result import NO_ANSWER
from cutaway.reasoning.view import Track
from cutaway.stats import wilson

if TYPE_CHECKING:
    import pandas as pd

SAME = 0.8
"""Cosine at or above which a first sentence counts as the trace's own."""
MAIN = "counterfactual importance, accuracy"
Column = tuple[float | None, ...]


@dataclass(frozen=True)
class Measure:
    """One number a sentence, with interval and control; None where it is undefined or there is none."""

    name: str
    what: str
    unit: str
    value: Column
    low: Column
    high: Column
    control: Column
    """The same with labels shuffled between the two sets: mean, of absolute values where the number has a sign."""
    p: Column
    """Share of shuffles at least as large."""
    undefined: tuple[str, ...]

    def track(self, study: str = "thought-anchors") -> Track:
        """The measure for browsing, with its control where it has one."""
        control, said = None, ""
        if any(x is not None for x in self.control):
            size = "; its size, without sign" if self.unit == "share" else ""
            control, said = self.control, f"The rollouts' labels shuffled between the two sets{size}."
        return Track(
            self.name, self.what, self.value, self.low, self.high, self.unit, self.undefined, study, control, said
        )


@dataclass(frozen=True)
class ImportanceTable:
    """Every black-box number about each sentence of a trace."""

    sentences: tuple[str, ...]
    answer: str
    """The answer whose probability the accuracies are about."""
    measures: tuple[Measure, ...]
    n: tuple[int, ...]
    """Rollouts from the boundary before each sentence."""
    unanswered: float
    """Share of rollouts without an answer."""
    truncated: float
    """Share of rollouts cut at max_tokens."""
    level: float
    published: bool
    """Conventions of the paper: unanswered rollouts dropped, 0 where a set is empty."""
    complete: bool
    """False when boundaries lack rollouts."""

    def __getitem__(self, name: str) -> Measure:
        found = {measure.name: measure for measure in self.measures}
        if name not in found:
            raise UsageError(f"no measure {name!r}; choose one of: {', '.join(found)}")
        return found[name]

    def __repr__(self) -> str:
        main, best = self[MAIN], self.largest()
        if best is None:
            return f"ImportanceTable({len(self.sentences)} sentences, {MAIN}: undefined everywhere)"
        return (
            f"ImportanceTable({len(self.sentences)} sentences, largest {MAIN}: sentence {best + 1} "
            f"{main.value[best]:+.2f} [{main.low[best]:.2f}, {main.high[best]:.2f}])"
        )

    def largest(self, name: str = MAIN) -> int | None:
        """The sentence whose interval of a measure keeps furthest from 0, then whose value does; None without any."""
        m = self[name]
        known = {i: x for i, x in enumerate(m.value) if x is not None}
        return max(known, key=lambda i: (_clear_of_zero(m.low[i], m.high[i]), abs(known[i]))) if known else None

    def tracks(self, study: str = "thought-anchors") -> tuple[Track, ...]:
        """Each measure as a track."""
        return tuple(measure.track(study) for measure in self.measures)

    def to_frame(self) -> "pd.DataFrame":
        """One row a sentence; five columns a measure."""
        import pandas as pd

        columns: dict[str, Any] = {"sentence": self.sentences, "rollouts": self.n}
        for m in self.measures:
            columns |= {m.name: m.value, f"{m.name} low": m.low, f"{m.name} high": m.high}
            columns |= {f"{m.name} control": m.control, f"{m.name} p": m.p}
        return pd.DataFrame(columns)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Write the table as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), ensure_ascii=False) + "\n", encoding="utf-8")


def measure_importance(
    sentences: Sequence[str],
    draws: Sequence[Draws | None],
    answer: str,
    *,
    end: str | None = None,
    embed: Embed | None = None,
    forced: Forced | None = None,
    published: bool = False,
    level: float = 0.95,
    resamples: int = 400,
    seed: int = 0,
) -> ImportanceTable:
    """All black-box measures of a trace from rollouts of the boundary before each sentence.

    ``answer`` counts as right; ``end`` is the trace's own (default: the same), known after the last sentence.
    Without an embedder a first sentence is similar when it is the same text. With ``published``, unanswered
    rollouts are dropped everywhere, nothing is known after the last sentence, and empty sets give 0; else these
    have no number, and a reason. Raises UsageError when the lists do not match or there is no sentence.
    """
    if not sentences or len(draws) != len(sentences):
        raise UsageError(f"{len(draws)} boundaries of rollouts for {len(sentences)} sentences; give one a sentence")
    if forced is not None and len(forced.weights) != len(sentences):
        raise UsageError(f"forced answers at {len(forced.weights)} boundaries for {len(sentences)} sentences")
    if not 0 < level < 1:
        raise UsageError(f"level={level}: must lie strictly between 0 and 1, such as 0.95")
    how = How(published, level, resamples, np.random.default_rng(seed))
    end = answer if end is None else end
    seen = dict.fromkeys(a for each in draws if each is not None for a in each.answers if a is not None)
    labels = (*dict.fromkeys((answer, end, *seen)), NO_ANSWER)
    before = [_count(sentence, each, labels, embed) for sentence, each in zip(sentences, draws, strict=True)]
    sets = _pair(before, labels.index(end), published)
    found = [
        (spec.name, spec.what, spec.sign, rows) for spec, rows in zip(FREE, contrast(FREE, sets, how), strict=True)
    ]
    measures = [_gather(name, what, "share" if sign else "nats", rows) for name, what, sign, rows in found]
    measures += [_different(before, level), _repeated(draws)]
    measures += [] if forced is None else _forced(forced, answer, end, how)
    known = [each for each in draws if each is not None]
    total = max(1, sum(len(each.answers) for each in known))
    return ImportanceTable(
        sentences=tuple(sentences),
        answer=answer,
        measures=tuple(measures),
        n=tuple(0 if each is None else len(each.answers) for each in draws),
        unanswered=sum(each.answers.count(None) for each in known) / total,
        truncated=sum(each.truncated for each in known) / total,
        level=level,
        published=published,
        complete=len(known) == len(draws) and (forced is None or forced.complete),
    )


def similar_to(
    sentence: str, texts: Sequence[str], embed: Embed | None, least: float = SAME
) -> Bool[np.ndarray, " text"]:
    """Which texts say what ``sentence`` says; without an embedder, which are the same text."""
    if embed is None:
        return np.array([text == sentence for text in texts], dtype=bool)
    wordings = list(dict.fromkeys(texts))
    close = cosine(embed([sentence]), embed(wordings))[0] >= least
    same = {text for text, near in zip(wordings, close, strict=True) if near}
    return np.array([text in same for text in texts], dtype=bool)


def _clear_of_zero(low: float | None, high: float | None) -> float:
    return 0.0 if low is None or high is None else max(low, -high, 0.0)


def _count(sentence: str, draws: Draws | None, labels: Sequence[str], embed: Embed | None) -> np.ndarray | None:
    """Counts [similar or different, answer] of one boundary; None without rollouts."""
    if draws is None or not draws.answers:
        return None
    counts = np.zeros((2, len(labels)))
    similar = similar_to(sentence.strip(), draws.firsts, embed)
    for given, same in zip(draws.answers, similar, strict=True):
        counts[0 if same else 1, labels.index(NO_ANSWER if given is None else given)] += 1
    return counts


def _pair(before: Sequence[np.ndarray | None], end: int, published: bool) -> list[Sets | str]:
    """The sets around each sentence, or the reason why there are none."""
    sets: list[Sets | str] = []
    for i, counts in enumerate(before):
        if counts is None:
            sets.append("no rollouts from the boundary before it")
        elif i + 1 < len(before):
            following = before[i + 1]
            sets.append(
                "no rollouts from the boundary after it" if following is None else Sets(counts, following.sum(0))
            )
        else:
            after = np.zeros(counts.shape[1])
            after[end] = 0.0 if published else counts.sum()
            sets.append(Sets(counts, after, known=True))
    return sets


def _gather(name: str, what: str, unit: str, rows: Sequence[Row]) -> Measure:
    return Measure(
        name,
        what,
        unit,
        value=tuple(row.value for row in rows),
        low=tuple(row.low for row in rows),
        high=tuple(row.high for row in rows),
        control=tuple(row.control for row in rows),
        p=tuple(row.p for row in rows),
        undefined=tuple(row.undefined for row in rows),
    )


def _different(before: Sequence[np.ndarray | None], level: float) -> Measure:
    rows = []
    for counts in before:
        if counts is None:
            rows.append(Row(undefined="no rollouts from the boundary before it"))
        else:
            found = wilson(counts[1].sum(), counts.sum(), level)
            rows.append(Row(found.value, found.low, found.high))
    what = "Share of rollouts whose first sentence says something else."
    return _gather("different-trajectories fraction", what, "share", rows)


def _repeated(draws: Sequence[Draws | None]) -> Measure:
    rows = [
        Row(1 - len(set(each.firsts)) / len(each.firsts))
        if each is not None and each.firsts
        else Row(undefined="no rollouts from the boundary before it")
        for each in draws
    ]
    what = "Share of first sentences that repeat another one word for word; falls with fewer rollouts."
    return _gather("overdeterminedness", what, "share", rows)


def _forced(forced: Forced, answer: str, end: str, how: How) -> list[Measure]:
    labels = (*dict.fromkeys((answer, end, *(label for label in forced.labels if label != NO_ANSWER))), NO_ANSWER)
    weights = np.zeros((len(forced.weights), len(labels)))
    weights[:, [labels.index(label) for label in forced.labels]] = forced.weights
    if not forced.exact:
        counted = [np.stack([np.zeros(len(labels)), row]) if np.isfinite(row).all() else None for row in weights]
        found = contrast(FORCED, _pair(counted, labels.index(end), how.published), how)
    else:
        last = np.zeros((1, len(labels)))
        last[0, labels.index(end)] = 0.0 if how.published else 1.0
        after = np.concatenate([weights[1:], last])
        found = [
            [_exact(spec.name, p[None], q[None], how) for p, q in zip(weights, after, strict=True)] for spec in FORCED
        ]
    return [
        _gather(spec.name, spec.what, "share" if spec.sign else "nats", rows)
        for spec, rows in zip(FORCED, found, strict=True)
    ]


def _exact(name: str, p: np.ndarray, q: np.ndarray, how: How) -> Row:
    """A number of known probabilities: no noise, hence no interval to speak of and no control."""
    if not np.isfinite(p).all() or not np.isfinite(q).all():
        return Row(undefined="the run was stopped before this boundary")
    if not p.sum() or not q.sum():
        return Row(0.0, 0.0, 0.0) if how.published else Row(undefined="no listed answer can follow the forced text")
    kind = name.rsplit(", ", 1)[1]
    if kind == "accuracy":
        value = float(q[0, 0] - p[0, 0])
    else:
        value = float(rel_entr(p, q).sum()) if kind == "KL" else float(divergence(kind, p, q)[0])
    if not np.isfinite(value):
        return Row(undefined="infinite: an answer that was possible before it is impossible after it")
    return Row(value, value, value)
