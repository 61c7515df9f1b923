"""Every number of the paper that its published traces still give, computed again, and how much of it is noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import norm, pearsonr, spearmanr

from cutaway.errors import UsageError
from cutaway.reasoning.embedding import Embed, cosine
from cutaway.reasoning.thought_anchors.published import PublishedTrace
from cutaway.stats import Interval, benjamini_hochberg, mean_interval, paired_difference, wilson
from cutaway.study import Finding

SAME = 0.8
"""Cosine at or above which the paper takes a replacement for the sentence itself."""
ARTEFACT = 10.0
"""Published suppression cells above this come from nucleus tokens missing on one side (0.6% of cells)."""
NEAR = 5
"""Sentences fewer than this apart are near."""
TABLE = (
    "counterfactual_importance_kl",
    "resampling_importance_kl",
    "forced_importance_kl",
    "absolute_counterfactual_accuracy",
)
"""Columns of the paper's category table."""


@dataclass(frozen=True)
class CategoryRow:
    """One line of the paper's category table: means over traces of per-trace means."""

    category: str
    n: int
    """Sentences."""
    share: float
    means: dict[str, Interval]
    """`TABLE` column to its mean; the interval is robust to the two traces of a problem being alike."""


@dataclass(frozen=True)
class Steps:
    """Two-proportion tests of all neighbouring boundaries, as if each pair were independent."""

    change: Float[np.ndarray, " step"]
    z: Float[np.ndarray, " step"]
    expected: float
    """Mean absolute change that sampling noise alone would give."""
    kept: Bool[np.ndarray, " step"]
    """Survive false-discovery control."""
    categories: tuple[str, ...]

    def __repr__(self) -> str:
        return (
            f"Steps({self.kept.sum()} of {len(self.z)} changes survive, {np.mean(np.abs(self.z) > 1.96):.1%} |z|>1.96)"
        )


def recompute_resampling(trace: PublishedTrace) -> Float[np.ndarray, " step"]:
    """Accuracy after each sentence but the last, minus accuracy before it."""
    return np.diff(trace.accuracy)


def recompute_overdeterminedness(trace: PublishedTrace) -> Float[np.ndarray, " sentence"]:
    """One minus the share of distinct first sentences; UsageError where replacements were not published."""
    return np.array([1 - len(said) / sum(count for _, count in said) for said in _said(trace)])


def recompute_different(trace: PublishedTrace, embed: Embed) -> Float[np.ndarray, " sentence"]:
    """Share of replacements with cosine < 0.8 to the sentence; UsageError where they were not published."""
    found = []
    for sentence, said in zip(trace.sentences, _said(trace), strict=True):
        own = embed([" ".join(sentence.split())])
        near = cosine(own, embed([text for text, _ in said]))[0]
        counts = np.array([count for _, count in said])
        found.append(float(counts[near < SAME].sum() / counts.sum()))
    return np.array(found)


def category_table(traces: Sequence[PublishedTrace]) -> tuple[CategoryRow, ...]:
    """The paper's contrast by category, most frequent category first."""
    total = sum(len(trace.sentences) for trace in traces)
    tags = [np.array(trace.categories) for trace in traces]
    names, sizes = np.unique(np.concatenate(tags), return_counts=True)
    rows = []
    for category, n in sorted(zip(names.tolist(), sizes.tolist(), strict=True), key=lambda item: -item[1]):
        at = [i for i, tag in enumerate(tags) if (tag == category).any()]
        problems = [traces[i].problem_id for i in at]
        means = {
            name: mean_interval(
                [_table_column(traces[i], name)[tags[i] == category].mean() for i in at], 0.95, problems
            )
            for name in TABLE
        }
        rows.append(CategoryRow(category, n, n / total, means))
    return tuple(rows)


def neighbour_tests(traces: Sequence[PublishedTrace], fdr: float = 0.05, rollouts: int | None = None) -> Steps:
    """Compare every neighbouring pair of accuracies (pooled variance), keep what survives at rate ``fdr``.

    ``rollouts`` takes every share as one of that many (the paper's nominal 100); None takes the number of answered
    rollouts that the share itself gives away.
    """
    change, z, noise = [], [], []
    tags: list[str] = []
    for trace in traces:
        n = trace.counts()[:, 1] if rollouts is None else np.full(len(trace.accuracy), rollouts)
        k = trace.accuracy * n
        pooled = (k[1:] + k[:-1]) / (n[1:] + n[:-1])
        error = np.sqrt(np.maximum(pooled * (1 - pooled), 0.0) * (1 / n[1:] + 1 / n[:-1]))
        step = np.diff(trace.accuracy)
        change.append(step)
        z.append(np.divide(step, error, out=np.zeros_like(step), where=error > 1e-9))
        noise.append(error * np.sqrt(2 / np.pi))
        tags += trace.categories[:-1]
    joined = np.concatenate(z)
    kept = benjamini_hochberg(2 * norm.sf(np.abs(joined)), fdr).rejected
    return Steps(np.concatenate(change), joined, float(np.concatenate(noise).mean()), kept, tuple(tags))


def identity_agreement(traces: Sequence[PublishedTrace], least: float = 0.4) -> tuple[float, int]:
    """Pearson correlation of (V_i - V_{i+1}) / d_i with the published counterfactual accuracy, and its n.

    Sentences with d below ``least`` are left out: there the quotient is noise.
    """
    estimates, published = [], []
    for trace in traces:
        d = trace.numbers["different_trajectories_fraction"][:-1]
        chosen = d >= least
        estimates.append(-np.diff(trace.accuracy)[chosen] / d[chosen])
        published.append(trace.numbers["counterfactual_importance_accuracy"][:-1][chosen])
    a, b = np.concatenate(estimates), np.concatenate(published)
    return float(pearsonr(a, b).statistic), len(a)


def matrix_agreement(trace: PublishedTrace, near: bool = False) -> tuple[float, float, int]:
    """Spearman and Pearson correlation of the influence and suppression matrices over pairs, and the pairs.

    ``near`` keeps pairs fewer than five sentences apart. Padding artefacts of the suppression matrix are left out.
    """
    if trace.influence is None or trace.suppression is None:
        raise UsageError(f"{trace.name}: its matrices were not published; choose correct_problem_2236 or _2238")
    source, target = np.triu_indices(len(trace.sentences), 1)
    a, b = trace.influence[source, target], trace.suppression[source, target]
    chosen = (b <= ARTEFACT) & ((target - source < NEAR) | (not near))
    a, b = a[chosen], b[chosen]
    return float(spearmanr(a, b).statistic), float(pearsonr(a, b).statistic), len(a)


def mean_number(traces: Sequence[PublishedTrace], name: str) -> Interval:
    """Mean of a column over all sentences; the interval takes the sentences of a problem as one cluster."""
    problems = [trace.problem_id for trace in traces for _ in trace.sentences]
    return mean_interval(np.concatenate([trace.numbers[name] for trace in traces]), 0.95, problems)


def category_contrast(traces: Sequence[PublishedTrace], a: str, b: str, name: str) -> Interval:
    """Mean over traces of category ``a`` minus category ``b`` in one `TABLE` column, paired within the trace.

    Traces that lack one of the two are left out; the interval is robust to the two traces of a problem being alike.
    """
    both = [trace for trace in traces if {a, b} <= set(trace.categories)]
    means = [
        [_table_column(trace, name)[np.array(trace.categories) == category].mean() for trace in both]
        for category in (a, b)
    ]
    return paired_difference(means[0], means[1], 0.95, [trace.problem_id for trace in both])


def published_findings(traces: Sequence[PublishedTrace]) -> tuple[Finding, ...]:
    """The paper's contrast, and how much of it is more than noise, with intervals and controls."""
    rows = {row.category: row for row in category_table(traces)}
    plan, compute = "plan_generation", "active_computation"
    items = []
    for name in TABLE:
        what = name.replace("_importance", "").replace("_", " ")
        control = Finding.of(f"{what}, active computation", rows[compute].means[name])
        items.append(Finding.of(f"{what}, plan generation", rows[plan].means[name], control=control))
        gap = category_contrast(traces, plan, compute, name)
        items.append(Finding.of(f"{what}, plan generation minus active computation", gap))
    steps = neighbour_tests(traces)
    above = np.abs(steps.z) > 1.96
    share = wilson(int(above.sum()), len(above))
    items += [
        Finding(
            "neighbouring accuracies that differ, |z| > 1.96",
            share.value,
            share.low,
            share.high,
            n=share.n,
            control=Finding("expected without any effect", 0.05),
        ),
        Finding("differences that survive at false-discovery rate 0.05", float(steps.kept.sum()), n=len(above)),
        Finding(
            "mean absolute difference",
            float(np.abs(steps.change).mean()),
            n=len(above),
            control=Finding("sampling noise alone", steps.expected),
        ),
    ]
    for least in (0.4, 0.1):
        pearson, n = identity_agreement(traces, least)
        items.append(Finding(f"identity against published, Pearson at d >= {least:g}", pearson, n=n))
    for trace in traces:
        if trace.influence is not None:
            for near in (False, True):
                spearman, _, n = matrix_agreement(trace, near)
                place = f"fewer than {NEAR} apart" if near else "all pairs"
                items.append(Finding(f"influence against suppression, {trace.name}, {place}, Spearman", spearman, n=n))
    return tuple(items)


def _table_column(trace: PublishedTrace, name: str) -> Float[np.ndarray, " sentence"]:
    if name == "absolute_counterfactual_accuracy":
        return np.abs(trace.numbers["counterfactual_importance_accuracy"])
    return trace.numbers[name]


def _said(trace: PublishedTrace) -> tuple[tuple[tuple[str, int], ...], ...]:
    if trace.replacements is None:
        raise UsageError(f"{trace.name}: its replacement sentences were not published")
    return trace.replacements
