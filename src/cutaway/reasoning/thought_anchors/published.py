"""The paper's published traces, read for viewing; `recomputed` derives every number from them again that it can.

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
from jaxtyping import Float, Int

from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.reasoning.view import Alternative, Links, TraceView, Track
from cutaway.stats import newcombe, wilson

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
