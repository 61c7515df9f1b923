"""Receiver heads: the heads that keep coming back to a few sentences, and which sentences those are.

Section 2 of the card (Bogdan et al. 2025, arXiv 2506.19143):
 1. One forward a trace; attention is averaged over blocks of sentences (`reasoning.attention.span_attention`).
 2. Vertical score of sentence k in a head: mean attention of the sentences at least ``ignore`` later
    (`vertical_scores`). Rule ``published`` has ignore 4; ``later_20_depth_rank``, of the later public code, has 20 and
    first turns each row into ranks among the sentences it can see, divided by their number.
 3. Head score: Fisher kurtosis of its vertical scores over sentences, averaged over traces; layer 0 is left out.
 4. Receiver heads: the ``top`` by head score. A sentence's score is their mean vertical score.

Added: what a head with uniform attention would score on the same sentences (their lengths and places alone), and
which heads exceed it by ``margin`` over traces with false-discovery control; heads chosen on half of the traces and
measured on the other half against the other heads of their layers; reliability between halves with an interval.
`ablation.head_ablation` asks whether the heads matter.

Limits: a kurtosis over few sentences is coarse: n sentences cannot exceed about n - 3. High kurtosis shows that a head
returns to few sentences, not that the answer depends on them.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float
from scipy import stats as scipy_stats
from scipy.stats import rankdata

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.reasoning.attention import span_attention
from cutaway.reasoning.rollouts import Report
from cutaway.reasoning.view import Track
from cutaway.sampling import Trace
from cutaway.stats import Interval, benjamini_hochberg, bootstrap, mean_interval

if TYPE_CHECKING:
    import pandas as pd

Head = tuple[int, int]
Rule = Literal["published", "later_20_depth_rank"]
RULES: dict[Rule, tuple[int, bool]] = {"published": (4, False), "later_20_depth_rank": (20, True)}
RESAMPLES = 1000


@dataclass(frozen=True, repr=False)
class ReceiverResult:
    """Receiver heads of a model on some traces, and what they attend to."""

    heads: tuple[Head, ...]
    """(layer, head) by head score, strongest first."""
    certified: tuple[Head, ...]
    """Heads whose kurtosis exceeds that of uniform attention by the margin, false-discovery rate controlled."""
    kurtosis: Float[np.ndarray, "layer head"]
    """Head scores; NaN in layer 0, and where a head's vertical scores never varied."""
    per_trace: Float[np.ndarray, "trace layer head"]
    uniform: Float[np.ndarray, " trace"]
    """Kurtosis of a head with uniform attention on each trace's sentences."""
    by_head: tuple[Float[np.ndarray, "receiver _"], ...]
    """Vertical scores of each of ``heads``, trace by trace; NaN for the last sentences, which nothing follows."""
    others: tuple[Float[np.ndarray, " _"], ...]
    """Control: mean vertical score of the heads not chosen, layers weighted as in ``heads``."""
    undefined: tuple[str, ...]
    """Why a trace was left out; empty where it was not."""
    reliability: Interval
    """Pearson correlation over heads of kurtosis in even and odd traces; interval over traces."""
    selected: Interval
    """Kurtosis of heads chosen on the other half of the traces, minus their layers' other heads; over traces."""
    rule: Rule = "published"
    complete: bool = True
    """False when Ctrl-C ended the run before the last trace."""

    def __repr__(self) -> str:
        n = sum(not reason for reason in self.undefined)
        best = ", ".join(f"{layer}.{head}" for layer, head in self.heads[:3])
        return (
            f"ReceiverResult({len(self.heads)} heads from {n} traces, first {best}; chosen heads' kurtosis exceeds"
            f" their layers' by {self.selected!r}, {len(self.certified)} certified)"
        )

    @property
    def scores(self) -> tuple[Float[np.ndarray, " _"], ...]:
        """Mean vertical score of the receiver heads, for each sentence of each trace."""
        return tuple(each.mean(0) for each in self.by_head)

    def tracks(self, trace: int = 0, study: str = "") -> tuple[Track]:
        """Receiver attention of one trace's sentences, with its interval over heads and its control."""
        ignore = RULES[self.rule][0]
        heads, others = self.by_head[trace], self.others[trace]
        reason = self.undefined[trace] or f"fewer than {ignore} sentences follow"
        why = tuple("" if np.isfinite(x) else reason for x in others)
        bands = [mean_interval(column) if np.isfinite(column).all() else None for column in heads.T]
        return (
            Track(
                name="receiver attention",
                what="Mean attention that later sentences give this one in the receiver heads.",
                value=tuple(heads.mean(0)),
                low=tuple(None if band is None else band.low for band in bands),
                high=tuple(None if band is None else band.high for band in bands),
                undefined=why,
                study=study,
                control=tuple(others),
                control_is="The heads of those layers that were not chosen.",
            ),
        )

    def to_frame(self) -> "pd.DataFrame":
        """One row a head: layer, head, kurtosis, kurtosis above uniform attention, rank, certified."""
        import pandas as pd

        above = _mean(self.per_trace - self.uniform[:, None, None])
        rank = {head: i for i, head in enumerate(self.heads)}
        places = [(layer, head) for layer in range(1, len(self.kurtosis)) for head in range(self.kurtosis.shape[1])]
        rows = [
            (*place, self.kurtosis[place], above[place], rank.get(place), place in self.certified) for place in places
        ]
        return pd.DataFrame(rows, columns=["layer", "head", "kurtosis", "above_uniform", "rank", "certified"])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; NaN becomes None."""
        return {key: plain_json(value) for key, value in asdict(self).items()}

    def save(self, path: str | Path) -> None:
        """Write the result as JSON."""
        Path(path).write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")


def receiver_heads(
    model: Model,
    traces: Sequence[Trace],
    *,
    top: int = 20,
    rule: Rule = "published",
    margin: float = 0.5,
    fdr: float = 0.05,
    level: float = 0.95,
    seed: int = 0,
    report: Report = lambda done, planned, note: None,
) -> ReceiverResult:
    """Find the ``top`` receiver heads of ``model`` over ``traces``.

    Traces with too few sentences for the rule, or too long for the model, are left out with the reason; UsageError
    when none is left, or ``top`` exceeds the heads outside layer 0. Halves need four traces; with fewer, `reliability`
    and `selected` are NaN. Ctrl-C keeps the traces done so far.
    """
    available = (model.n_layers - 1) * model.n_heads
    if not 1 <= top < available:
        raise UsageError(f"top={top}: this model has {available} heads outside layer 0; choose fewer than that")
    ignore, depth_rank = RULES[rule]
    undefined = [_why_not(trace, model, ignore) for trace in traces]
    if not any(not reason for reason in undefined):
        raise UsageError(f"no usable trace: {undefined[0] if undefined else 'none was given'}")
    vertical: list[Float[np.ndarray, "layer head sentence"] | None] = []
    complete = True
    try:
        for done, (trace, reason) in enumerate(zip(traces, undefined, strict=True)):
            vertical.append(None if reason else vertical_scores(_matrix(model, trace), ignore, depth_rank))
            report(done + 1, len(traces), "traces")
    except KeyboardInterrupt:
        if not any(each is not None for each in vertical):
            raise
        complete = False
        undefined[len(vertical) :] = ["interrupted"] * (len(traces) - len(vertical))
        vertical += [None] * (len(traces) - len(vertical))
    shape = (model.n_layers, model.n_heads)
    blank = np.full(shape, np.nan)
    per_trace = np.stack([blank if each is None else _kurtosis(each) for each in vertical])
    per_trace[:, 0] = np.nan
    scored = zip(traces, vertical, strict=True)
    uniform = np.array([np.nan if each is None else _uniform(trace, ignore, depth_rank) for trace, each in scored])
    heads = _best(_mean(per_trace), top)
    reliability, selected = _halves(per_trace, top, level, seed)
    return ReceiverResult(
        heads=heads,
        certified=_certify(per_trace - uniform[:, None, None], margin, fdr),
        kurtosis=_mean(per_trace),
        per_trace=per_trace,
        uniform=uniform,
        by_head=tuple(_of(each, heads, trace) for each, trace in zip(vertical, traces, strict=True)),
        others=tuple(_of_others(each, heads, trace) for each, trace in zip(vertical, traces, strict=True)),
        undefined=tuple(undefined),
        reliability=reliability,
        selected=selected,
        rule=rule,
        complete=complete,
    )


def vertical_scores(
    matrix: Float[np.ndarray, "*head span_q span_k"], ignore: int = 4, depth_rank: bool = False
) -> Float[np.ndarray, "*head span_k"]:
    """Mean attention that each sentence gets from the sentences at least ``ignore`` later; NaN where none is.

    With ``depth_rank`` a row counts by the ranks of what it sees at that distance, divided by their number.
    """
    n = matrix.shape[-1]
    rows = matrix.astype(float)
    if depth_rank:
        rows = np.full(matrix.shape, np.nan)
        for q in range(ignore, n):
            seen = q - ignore + 1
            rows[..., q, :seen] = rankdata(matrix[..., q, :seen], axis=-1) / seen
    out = np.full((*matrix.shape[:-2], n), np.nan)
    for k in range(n - ignore):
        out[..., k] = rows[..., k + ignore :, k].mean(-1)
    return out


def _why_not(trace: Trace, model: Model, ignore: int) -> str:
    total = len(trace.prompt) + len(trace.ids)
    if trace.n_sentences < ignore + 2:
        return f"{trace.n_sentences} sentences; a kurtosis needs at least {ignore + 2}"
    return f"{total} tokens exceed the model's context of {model.n_ctx}" if total > model.n_ctx else ""


def _matrix(model: Model, trace: Trace) -> Float[np.ndarray, "layer head span_q span_k"]:
    start = len(trace.prompt)
    spans = [(start + a, start + b) for a, b in trace.spans]
    return span_attention(model, (*trace.prompt, *trace.ids), spans).numpy()


def _uniform(trace: Trace, ignore: int, depth_rank: bool) -> float:
    """Kurtosis of a head that gives every token it sees the same weight."""
    start = len(trace.prompt)
    share = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, start + len(trace.ids) + 1))])
    n = trace.n_sentences
    matrix = np.zeros((n, n))
    for q, (a, b) in enumerate(trace.spans):
        matrix[q, :q] = (share[start + b] - share[start + a]) / (b - a)
    return float(_kurtosis(vertical_scores(matrix, ignore, depth_rank)))


def _kurtosis(scores: Float[np.ndarray, "*head sentence"]) -> Float[np.ndarray, "*head"]:
    """Biased Fisher kurtosis over sentences, NaN omitted; NaN where nothing varies beyond rounding."""
    away = scores - np.nanmean(scores, -1, keepdims=True)
    second = np.nanmean(away**2, -1)
    varies = second > 1e-10 * np.nanmean(scores, -1) ** 2
    return np.where(varies, np.nanmean(away**4, -1) / np.where(varies, second, 1.0) ** 2 - 3, np.nan)


def _mean(per_trace: Float[np.ndarray, "trace layer head"]) -> Float[np.ndarray, "layer head"]:
    known = np.isfinite(per_trace)
    count = known.sum(0)
    return np.where(count > 0, np.where(known, per_trace, 0).sum(0) / np.maximum(count, 1), np.nan)


def _best(kurtosis: Float[np.ndarray, "layer head"], top: int) -> tuple[Head, ...]:
    order = np.argsort(-np.where(np.isfinite(kurtosis), kurtosis, -np.inf), axis=None, kind="stable")
    places = [divmod(int(i), kurtosis.shape[1]) for i in order[:top]]
    return tuple(place for place in places if np.isfinite(kurtosis[place]))


def other_heads(heads: Sequence[Head], layer: int, n_heads: int) -> list[int]:
    """The heads of ``layer`` that are not among ``heads``."""
    return [head for head in range(n_heads) if (layer, head) not in heads]


def _of(vertical: np.ndarray | None, heads: Sequence[Head], trace: Trace) -> Float[np.ndarray, "receiver sentence"]:
    if vertical is None:
        return np.full((len(heads), trace.n_sentences), np.nan)
    return np.stack([vertical[place] for place in heads])


def _of_others(vertical: np.ndarray | None, heads: Sequence[Head], trace: Trace) -> Float[np.ndarray, " sentence"]:
    """Mean over chosen heads of their layer's heads that were not chosen: what random heads give on average."""
    if vertical is None:
        return np.full(trace.n_sentences, np.nan)
    rest = [vertical[layer, other_heads(heads, layer, vertical.shape[1])] for layer, _ in heads]
    means = [each.mean(0) for each in rest if len(each)]
    return np.mean(means, axis=0) if means else np.full(trace.n_sentences, np.nan)


def _contrast(kurtosis: Float[np.ndarray, "layer head"], heads: Sequence[Head]) -> float:
    pairs = []
    for layer, head in heads:
        rest = kurtosis[layer, other_heads(heads, layer, kurtosis.shape[1])]
        if np.isfinite(rest).any() and np.isfinite(kurtosis[layer, head]):
            pairs.append(kurtosis[layer, head] - np.nanmean(rest))
    return float(np.mean(pairs)) if pairs else float("nan")


def _halves(
    per_trace: Float[np.ndarray, "trace layer head"], top: int, level: float, seed: int
) -> tuple[Interval, Interval]:
    usable = per_trace[np.isfinite(per_trace).any((1, 2))]
    halves = usable[::2], usable[1::2]
    if len(usable) < 4:
        nothing = Interval(np.nan, np.nan, np.nan, len(usable), level)
        return nothing, nothing
    values = []
    for here, there in (halves, halves[::-1]):
        heads = _best(_mean(here), top)
        values += [_contrast(each, heads) for each in there]
    found = [x for x in values if np.isfinite(x)]
    selected = bootstrap(found, np.mean, n=RESAMPLES, seed=seed, level=level)
    rng = np.random.default_rng(seed)
    again = [_pearson(*(half[rng.integers(0, len(half), len(half))] for half in halves)) for _ in range(RESAMPLES)]
    low, high = np.quantile(again, [(1 - level) / 2, (1 + level) / 2])
    return Interval(_pearson(*halves), float(low), float(high), len(usable), level), selected


def _pearson(even: Float[np.ndarray, "trace layer head"], odd: Float[np.ndarray, "trace2 layer head"]) -> float:
    a, b = _mean(even).ravel(), _mean(odd).ravel()
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known] - a[known].mean(), b[known] - b[known].mean()
    size = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / size) if size > 1e-6 else float("nan")


def _certify(excess: Float[np.ndarray, "trace layer head"], margin: float, fdr: float) -> tuple[Head, ...]:
    """Heads whose mean excess is above ``margin``: one-sided t-tests over traces, Benjamini-Hochberg over heads."""
    tests: list[tuple[Head, float]] = []
    for layer in range(1, excess.shape[1]):
        for head in range(excess.shape[2]):
            x = excess[np.isfinite(excess[:, layer, head]), layer, head] - margin
            if len(x) >= 2:
                spread = x.std(ddof=1) / len(x) ** 0.5
                t = x.mean() / max(spread, 1e-9)
                tests.append(((layer, head), float(scipy_stats.t.sf(t, len(x) - 1))))
    if not tests:
        return ()
    kept = benjamini_hochberg([p for _, p in tests], fdr).rejected
    return tuple(place for (place, _), keep in zip(tests, kept, strict=True) if keep)


def plain_json(value: Any) -> Any:
    """Arrays as lists, NaN as None."""
    if isinstance(value, np.ndarray):
        return plain_json(value.tolist())
    if isinstance(value, list | tuple):
        return [plain_json(each) for each in value]
    if isinstance(value, dict):
        return {key: plain_json(each) for key, each in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value
