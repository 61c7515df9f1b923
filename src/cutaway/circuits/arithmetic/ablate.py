"""Ablation maps: what breaks, and by how much, when one node's output is replaced by its mean or by zero.

1. One forward over reference questions gives every node's mean output, layer by layer; they are other questions
   than those tested.
2. Every node is replaced in turn, all nodes of a layer as one batch (`cutaway.circuits.arithmetic.nodes`).
3. Damage is the rise of the answer's loss and the share of answers that turn wrong, per class of questions, with
   paired bootstrap intervals over the questions.

Position ablation replaces the residual stream at one position after every layer. Interchange, in `interchange`,
puts in another question's value instead of a mean.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.charts import Heat
from cutaway.circuits.arithmetic.classes import class_names
from cutaway.circuits.arithmetic.models import score
from cutaway.circuits.arithmetic.nodes import Node, Record, answers_with, record
from cutaway.circuits.arithmetic.questions import Questions
from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.stats import Interval, clopper_pearson

if TYPE_CHECKING:
    import pandas as pd

FEWEST = 30
"""Questions of a class below which no figure is given."""
How = Literal["mean", "zero"]


@dataclass(frozen=True)
class AblationMap:
    """Loss and errors of every question with every node ablated."""

    nodes: tuple[Node, ...]
    questions: Questions
    classes: tuple[str, ...]
    """Class of each question."""
    how: How
    clean_loss: Float[np.ndarray, "question token"]
    clean_wrong: Bool[np.ndarray, "question token"]
    loss: Float[np.ndarray, "node question token"]
    wrong: Bool[np.ndarray, "node question token"]

    def __repr__(self) -> str:
        worst = int(self.broken.mean(axis=1).argmax())
        share = wrong_share(self.broken[worst])
        return f"AblationMap({len(self.nodes)} nodes, worst {self.nodes[worst]}: breaks {share} of answers)"

    @property
    def broken(self) -> Bool[np.ndarray, "node question"]:
        """Right before, wrong after."""
        return np.asarray(~self.clean_wrong.any(axis=1) & self.wrong.any(axis=2))

    @property
    def broken_tokens(self) -> Float[np.ndarray, "node token"]:
        """Share of questions in which an answer token turned wrong."""
        return np.asarray((self.wrong & ~self.clean_wrong).mean(axis=1))

    def rise(self, rows: Bool[np.ndarray, " question"] | None = None, seed: int = 0) -> "Damage":
        """Mean rise of an answer's loss (nats a token), every node; ``rows`` chooses questions."""
        chosen = np.ones(len(self.questions), dtype=bool) if rows is None else rows
        n = int(chosen.sum())
        if n < FEWEST:
            raise UsageError(f"{n} questions: a class needs at least {FEWEST}; draw more of it")
        gaps = (self.loss[:, chosen] - self.clean_loss[chosen]).mean(axis=2)
        return Damage(gaps.mean(axis=1), *bootstrap_means(gaps.T, seed=seed), n)

    def class_rise(self, name: str, seed: int = 0) -> "Damage":
        """`rise` on the questions of one class."""
        return self.rise(np.array(self.classes) == name, seed)

    def useful(self, floor: float = 0.005, level: float = 0.95) -> tuple[Node, ...]:
        """Nodes that break more than a share ``floor`` of answers, by the lower end of the exact interval.

        One failed question is not enough: that would make most nodes useful by chance.
        """
        n = len(self.questions)
        hits = self.broken.sum(axis=1)
        return tuple(
            node for node, k in zip(self.nodes, hits, strict=True) if clopper_pearson(int(k), n, level).low > floor
        )

    def impact(self, node: Node, floor: float = 0.02) -> tuple[str, ...]:
        """Answer tokens that the node breaks in more than a share ``floor`` of questions."""
        shares = self.broken_tokens[self.nodes.index(node)]
        names = self.questions.format.answer_names
        return tuple(name for name, share in zip(names, shares, strict=True) if share > floor)

    def breaks(self, node: Node, floor: float = 0.02) -> tuple[str, ...]:
        """Classes of which the node breaks more than a share ``floor``."""
        row, classes = self.broken[self.nodes.index(node)], np.array(self.classes)
        return tuple(name for name in sorted(set(self.classes)) if row[classes == name].mean() > floor)

    def to_frame(self) -> "pd.DataFrame":
        """One row a node: loss rise with interval, share broken, tokens and classes it breaks."""
        import pandas as pd

        rise, shares = self.rise(), self.broken.mean(axis=1)
        return pd.DataFrame(
            {
                "node": [str(node) for node in self.nodes],
                "rise": rise.value,
                "rise_low": rise.low,
                "rise_high": rise.high,
                "broken": shares,
                "impact": [" ".join(self.impact(node)) for node in self.nodes],
                "classes": [" ".join(self.breaks(node)) for node in self.nodes],
            }
        )

    def heat(self, title: str) -> Heat:
        """Share of answers broken, by position and node."""
        kinds = sorted({(node.layer, node.head) for node in self.nodes}, key=str)
        form = self.questions.format
        places = sorted({node.position for node in self.nodes if node.position is not None})
        shares = dict(zip(self.nodes, self.broken.mean(axis=1).tolist(), strict=True))
        values = tuple(tuple(shares.get(Node(p, layer, head)) for layer, head in kinds) for p in places)
        labels = tuple("stream" if layer is None else str(Node(None, layer, head)) for layer, head in kinds)
        return Heat(title, tuple(form.name(p) for p in places), labels, values, "share of answers broken")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: the table, the set's hash and the method."""
        table = {str(key): values for key, values in self.to_frame().to_dict(orient="list").items()}
        return {"how": self.how, "questions_sha256": self.questions.digest, "n": len(self.questions), **table}


@dataclass(frozen=True)
class Damage:
    """Mean rise of loss by node, with its interval over questions."""

    value: Float[np.ndarray, " node"]
    low: Float[np.ndarray, " node"]
    high: Float[np.ndarray, " node"]
    n: int

    def interval(self, place: int) -> Interval:
        """One node's figure."""
        return Interval(float(self.value[place]), float(self.low[place]), float(self.high[place]), self.n, 0.95)


def ablate(
    model: Model,
    questions: Questions,
    nodes: Sequence[Node],
    reference: Questions | Record,
    *,
    how: How = "mean",
) -> AblationMap:
    """Ablate every node in turn on every question; warns below 30 questions, whose map is mostly chance.

    ``reference`` is where means come from: other questions than those tested, or a record of them.
    """
    if how not in ("mean", "zero"):
        raise UsageError(f"how={how!r}: choose 'mean' or 'zero'")
    if len(questions) < FEWEST:
        warnings.warn(
            f"{len(questions)} questions: fewer than {FEWEST} tell little about a node", UserWarning, stacklevel=2
        )
    check_nodes(model, questions, nodes)
    base = reference if isinstance(reference, Record) else record(model, reference)
    source = base.mean() if how == "mean" else base.zero()

    def value(node: Node) -> Tensor:
        if node.layer is None:
            return torch.stack([post[:, node.position] for post in source.post])
        return source.value(node)

    clean = score(model, questions)
    kept = record(model, questions)
    found = answers_with(model, questions.format, kept, [(node,) for node in nodes], value)
    wrong = found.predicted != questions.answer_tokens
    classes = tuple(str(name) for name in class_names(questions))
    return AblationMap(tuple(nodes), questions, classes, how, clean.loss, clean.wrong, found.loss, wrong)


def check_nodes(model: Model, questions: Questions, nodes: Sequence[Node]) -> None:
    """UsageError for a node that the model or the format does not have."""
    if not nodes:
        raise UsageError("no node given; name at least one, for example Node(12, 0, 1)")
    for node in nodes:
        for value, limit, what in (
            (node.position, questions.format.n_ctx, "position"),
            (node.layer, model.n_layers, "layer"),
            (node.head, model.n_heads, "head"),
        ):
            if value is not None and not 0 <= value < limit:
                raise UsageError(f"node {node}: {what} {value}; 0 to {limit - 1}")


def bootstrap_means(
    values: Float[np.ndarray, "unit cell"], *, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[Float[np.ndarray, " cell"], Float[np.ndarray, " cell"]]:
    """Percentile bootstrap ends of every cell's mean over units; one set of resamples serves all cells."""
    n = len(values)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    means = counts @ values / n
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def wrong_share(broken: Bool[np.ndarray, " question"]) -> Interval:
    """Share of broken answers with its exact interval."""
    return clopper_pearson(int(broken.sum()), len(broken))
