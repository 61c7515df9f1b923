"""Geometry of a head's output: do the three cases of a column lie apart along few directions?

100 questions of each case; PCA of the head's output at one position; k-means with 2 and 3 groups on the scaled
components. Accepted when the first component explains over 30% of the variance, the silhouette is at least 0.20,
Calinski-Harabasz at least 50 and the agreement of groups and cases over 0.5 (adjusted Rand index). The control is
the agreement with the cases dealt at random.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from cutaway.circuits.arithmetic.classes import of_class
from cutaway.circuits.arithmetic.format import Format
from cutaway.circuits.arithmetic.nodes import Node, record
from cutaway.circuits.arithmetic.questions import Questions, uniform
from cutaway.errors import UsageError
from cutaway.model import Model

CASES = (-1, 0, 1)


@dataclass(frozen=True)
class Geometry:
    """Whether a node's output separates the three cases of a column."""

    node: Node
    column: int
    variance: float
    """Share of the first principal component."""
    silhouette: float
    """Of the better of 2 and 3 groups."""
    calinski: float
    agreement: float
    """Adjusted Rand index between groups and cases; 0 is chance, 1 is perfect."""
    control: float
    """The same with shuffled labels."""
    points: Float[np.ndarray, "question two"]
    """First two components, for drawing."""
    case: Int[np.ndarray, " question"]

    @property
    def accepted(self) -> bool:
        """All four published thresholds hold."""
        return self.variance > 0.3 and self.silhouette >= 0.2 and self.calinski >= 50 and self.agreement > 0.5


def tricase_questions(form: Format, column: int, n: int, seed: int) -> tuple[Questions, Int[np.ndarray, " question"]]:
    """``n`` additions of each case of a column, the rest uniform."""
    if not 0 <= column < form.digits:
        raise UsageError(f"column={column}: 0 to {form.digits - 1}")
    case = np.repeat(CASES, n)
    questions = uniform(form, len(case), seed)
    first, second = questions.first.copy(), questions.second.copy()
    one = of_class(Format(1), "S1", len(case), seed + 1)
    low = 9 - one.first[:, 0], 9 - one.second[:, 0]  # mirrors a sum of 10..18 onto 0..8
    first[:, column] = np.where(case == 1, one.first[:, 0], np.where(case == -1, low[0], first[:, column]))
    other = np.where(case == 1, one.second[:, 0], low[1])
    second[:, column] = np.where(case == 0, 9 - first[:, column], other)
    return Questions(form, first, second, questions.minus), case


def tricase(model: Model, form: Format, node: Node, column: int, *, n: int = 100, seed: int = 0) -> Geometry:
    """Measure one head at one position."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import adjusted_rand_score, calinski_harabasz_score, silhouette_score
    from sklearn.preprocessing import StandardScaler

    questions, case = tricase_questions(form, column, n, seed)
    output = record(model, questions).value(node).detach().cpu().double().numpy()
    pca = PCA(min(6, output.shape[1]), random_state=0).fit(output)
    scores = pca.transform(output)
    kept = scores[:, pca.explained_variance_ratio_ > 1e-3]
    if kept.shape[1] == 0 or not output.std() > 1e-9:
        raise UsageError(f"node {node} gives one output for every question; there is no geometry")
    scaled = StandardScaler().fit_transform(kept)
    found = []
    for groups in (2, 3):
        labels = KMeans(groups, n_init=5, random_state=0).fit_predict(scaled)
        truth = case if groups == 3 else case == 1
        fit = silhouette_score(scaled, labels), calinski_harabasz_score(scaled, labels)
        shuffled = np.random.default_rng(seed).permutation(truth)
        found.append((*map(float, fit), adjusted_rand_score(truth, labels), adjusted_rand_score(shuffled, labels)))
    best = max(found, key=lambda each: each[2])
    first = float(pca.explained_variance_ratio_[0])
    two = np.pad(scores, ((0, 0), (0, 2)))[:, :2]
    return Geometry(node, column, first, best[0], best[1], float(best[2]), float(best[3]), two, case)
