"""The paper's published traces, read for viewing, and every number that can be derived from them again.

20 traces of DeepSeek-R1-Distill-Qwen-14B on 10 MATH problems (2,885 sentences) with the published number of every
sentence; for three traces the sampled replacement sentences, for two both sentence-to-sentence matrices. See
``data/thought-anchors/SOURCE.md``.

What is there: the trace's text to the last character (white space between sentences included), the prompt, one
category a sentence and the sentences it was labelled to depend on. What is lost: token ids, the rollouts and their
answers (only shares are left, and for three traces the first sentences), so divergences and forced answers cannot
be computed again; the sampling seeds; and everything about text that the published split left out.

The published code writes 0 where it had nothing to compare with: for everything about the last sentence of a trace,
and for the counterfactual numbers where every rollout repeated the sentence. `PublishedTrace.view` shows
those as undefined. The recomputations keep them, because the published means do.
"""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import norm, pearsonr, spearmanr

from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.reasoning.embedding import Embed, cosine
from cutaway.reasoning.view import Alternative, Links, TraceView, Track
from cutaway.stats import Interval, benjamini_hochberg, mean_interval, newcombe, paired_difference, wilson
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
COLUMNS = {
    "resampling_importance_accuracy": "Change of P(right) when the sentence is kept: accuracy after minus before.",
    "resampling_importance_kl": "KL of the answers before the sentence from those after it; 1e-9 a missing answer.",
    "counterfactual_importance_accuracy": "P(right) of rollouts that say something else, minus P(right) with it.",
    "counterfactual_importance_kl": "KL of the answers of rollouts that say something else from all others.",
    "forced_importance_accuracy": "Change of P(right) when the answer is forced at once: after minus before.",
    "forced_importance_kl": "KL of the answers forced before the sentence from those forced after it.",
    "different_trajectories_fraction": "Share of rollouts whose first sentence says something else (cosine < 0.8).",
    "overdeterminedness": "Share of rollouts whose first sentence repeats another one's word for word.",
}
"""Published number of a sentence to how it is read."""
MOST = 100
"""Rollouts at a boundary, before those without an answer were dropped."""


@dataclass(frozen=True, eq=False)
class PublishedTrace:
    """One trace with what was published about each of its sentences."""

    name: str
    """``correct_problem_2236``: which base solution, which problem."""
    problem: str
    prompt: str
    sentences: tuple[str, ...]
    """Reasoning, cut where the published split cut; white space stays with the sentence it follows."""
    ending: str
    """What the model wrote after its reasoning; no number is about it."""
    answer: str
    right_answer: str
    correct: bool
    categories: tuple[str, ...]
    depends_on: tuple[tuple[int, ...], ...]
    """For each sentence the earlier ones it was labelled to build on."""
    accuracy: Float[np.ndarray, " sentence"]
    """Share right of the answered rollouts whose prefix stops before each sentence."""
    numbers: dict[str, Float[np.ndarray, " sentence"]]
    """`COLUMNS`, as published."""
    replacements: tuple[tuple[tuple[str, int], ...], ...] | None
    """For each sentence the rollouts' first sentences with their counts, most frequent first."""
    influence: Float[np.ndarray, "sentence sentence"] | None
    """[source, target] difference of match rates; nan where the source does not come first."""
    suppression: Float[np.ndarray, "sentence sentence"] | None
    """[source, target] log KL when attention to the source is cut, centred on each target."""

    @property
    def problem_id(self) -> str:
        return self.name.rsplit("_", 1)[-1]

    def __repr__(self) -> str:
        return f"PublishedTrace({self.name!r}, {len(self.sentences)} sentences, answer {self.answer!r})"

    def counts(self) -> Int[np.ndarray, "sentence 2"]:
        """Rollouts right and answered at each boundary: the largest n <= 100 that gives the published share."""
        return np.array([counts_of(float(share)) for share in self.accuracy])

    def view(self) -> TraceView:
        """The trace for browsing: curve with its band, a track for every published number, links, alternatives."""
        n, end = len(self.sentences), float(self.correct)
        bands = [wilson(int(k), int(total)) for k, total in self.counts()]
        curve = Track(
            "P(right answer)",
            "Share of answered rollouts that are right, with its Wilson interval; after the last sentence, the trace.",
            (*self.accuracy, end),
            (*(band.low for band in bands), end),
            (*(band.high for band in bands), end),
        )
        links = [Links("labelled dependencies", "Earlier sentences that the labelling model named.", self._named())]
        for name, what, matrix in (
            ("influence", "How much more often the target follows when the source is kept.", self.influence),
            ("suppression", "How much cutting attention to the source changes the target.", self.suppression),
        ):
            if matrix is not None:
                strengths = tuple((i, j, float(matrix[i, j])) for i in range(n) for j in range(i + 1, n))
                links.append(Links(name, what, strengths, unit="log KL" if name == "suppression" else "share"))
        return TraceView(
            title=f"Problem {self.problem_id}, {'right' if self.correct else 'wrong'} answer",
            prompt=self.prompt,
            sentences=self.sentences,
            answer=self.answer,
            curve=curve,
            categories=self.categories,
            tracks=tuple(self._track(name) for name in COLUMNS),
            links=tuple(links),
            alternatives=self._alternatives(),
            meta={
                "model": "DeepSeek-R1-Distill-Qwen-14B",
                "source": "published numbers of arXiv 2506.19143",
                "right answer": self.right_answer,
            },
        )

    def _named(self) -> tuple[tuple[int, int, float], ...]:
        return tuple((source, i, 1.0) for i, named in enumerate(self.depends_on) for source in sorted(set(named)))

    def _track(self, name: str) -> Track:
        values = self.numbers[name]
        last = len(values) - 1
        reasons = [""] * len(values)
        reasons[last] = "the published code leaves the last sentence out"
        if name.startswith("counterfactual"):
            for i in np.flatnonzero(self.numbers["different_trajectories_fraction"][:last] == 0):
                reasons[i] = "every rollout repeated the sentence"
        shown = tuple(None if reason else float(x) for x, reason in zip(values, reasons, strict=True))
        low, high = self._ends() if name == "resampling_importance_accuracy" else (None, None)
        return Track(
            name.replace("_", " "),
            COLUMNS[name],
            shown,
            low,
            high,
            unit="nats" if name.endswith("kl") else "share",
            undefined=tuple(reasons),
        )

    def _ends(self) -> tuple[tuple[float | None, ...], tuple[float | None, ...]]:
        k, n = self.counts().T
        found = [newcombe(int(k[i + 1]), int(n[i + 1]), int(k[i]), int(n[i])) for i in range(len(k) - 1)]
        return (*(each.low for each in found), None), (*(each.high for each in found), None)

    def _alternatives(self) -> tuple[tuple[Alternative, ...], ...] | None:
        if self.replacements is None:
            return None
        groups = []
        for sentence, said in zip(self.sentences, self.replacements, strict=True):
            total = sum(count for _, count in said)
            others = [(text, count) for text, count in said if text != " ".join(sentence.split())][:5]
            groups.append(tuple(Alternative(text, count, count / total, {}) for text, count in others))
        return tuple(groups)


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


def load_published(folder: Path | str | None = None) -> tuple[PublishedTrace, ...]:
    """Read the published traces from ``folder``, by default ``data/thought-anchors`` of a source checkout."""
    place = Path(folder) if folder is not None else Path(__file__).parents[4] / "data" / "thought-anchors"
    if not (place / "traces.jsonl.gz").is_file():
        raise CutawayError(f"no traces.jsonl.gz in {place}; give the folder data/thought-anchors of a source checkout")
    columns = json.loads((place / "accuracy.json").read_text(encoding="utf-8"))
    with gzip.open(place / "traces.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return tuple(_read(row, columns[row["name"]]) for row in rows)


def find_published(traces: Sequence[PublishedTrace], name: str) -> PublishedTrace:
    """The trace called ``name``; UsageError with the nearest name when there is none."""
    known = {trace.name: trace for trace in traces}
    if name not in known:
        raise UsageError(f"no published trace {name!r}{nearest(name, known)}")
    return known[name]


def counts_of(share: float) -> tuple[int, int]:
    """The (k, n) with the largest n <= 100 and k / n equal to ``share`` up to its rounding."""
    for n in range(MOST, 0, -1):
        k = round(share * n)
        if abs(k / n - share) < 1e-6:
            return k, n
    raise UsageError(f"share {share} is not k / n for any n <= {MOST}")


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
        control = _finding(f"{what}, active computation", rows[compute].means[name])
        items.append(_finding(f"{what}, plan generation", rows[plan].means[name], control))
        gap = category_contrast(traces, plan, compute, name)
        items.append(_finding(f"{what}, plan generation minus active computation", gap))
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


def _finding(name: str, mean: Interval, control: Finding | None = None) -> Finding:
    return Finding(name, mean.value, mean.low, mean.high, n=mean.n, control=control)


def _table_column(trace: PublishedTrace, name: str) -> Float[np.ndarray, " sentence"]:
    if name == "absolute_counterfactual_accuracy":
        return np.abs(trace.numbers["counterfactual_importance_accuracy"])
    return trace.numbers[name]


def _said(trace: PublishedTrace) -> tuple[tuple[tuple[str, int], ...], ...]:
    if trace.replacements is None:
        raise UsageError(f"{trace.name}: its replacement sentences were not published")
    return trace.replacements


def _read(row: dict[str, Any], columns: dict[str, list[Any]]) -> PublishedTrace:
    text, starts = row["text"], row["starts"]
    # White space before the first sentence, if any, belongs to it: the sentences cover the text from its start.
    edges = [0, *starts[1:], text.index("</think>", row["ends"][-1])]
    numbers = {name: np.array(columns[name] if name in columns else row[name], dtype=float) for name in COLUMNS}
    said = row.get("replacements")
    return PublishedTrace(
        name=row["name"],
        problem=row["problem"],
        prompt=row["prompt"],
        sentences=tuple(text[a:b] for a, b in pairwise(edges)),
        ending=text[edges[-1] :],
        answer=row["answer"],
        right_answer=row["right_answer"],
        correct=row["correct"],
        categories=tuple(columns["function_tag"]),
        depends_on=tuple(tuple(each) for each in row["depends_on"]),
        accuracy=np.array(columns["accuracy"], dtype=float),
        numbers=numbers,
        replacements=None if said is None else tuple(tuple((t, k) for t, k in each) for each in said),
        influence=_matrix(row.get("influence")),
        suppression=_matrix(row.get("suppression")),
    )


def _matrix(rows: list[list[float]] | None) -> Float[np.ndarray, "sentence sentence"] | None:
    if rows is None:
        return None
    matrix = np.full((len(rows), len(rows)), np.nan)
    for source, values in enumerate(rows):
        matrix[source, source + 1 :] = values
    return matrix
