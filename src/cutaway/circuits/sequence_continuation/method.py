"""Which heads and MLPs a model needs to continue a sequence (Lan, Torr, Barez 2023, arXiv 2311.04131, section 3).

1. `Bench`: prompts, the reference that cut nodes get (per-position means over the corrupted prompts, taken once), and
   the metric m = mean logit(answer) - logit(distractor). score(C) = 100 m(C) / m(full model). Where m(full) <= 0 a
   percentage means nothing, and the bench refuses.
2. `prune`: start from all nodes; sweep backward (last layer first, MLP before heads), then forward, and so on. A node
   goes when the score without it stays above 100 - threshold percent **of the full model**, not of the circuit so far.
   It ends when a sweep removes nothing: every kept node has then been tested against the same set.
3. `importance`: how far the score falls when one kept node goes.
4. `stability`: the same over resampled prompts, or over random orders; the greedy result depends on both.

Several tests run at once where a forward has room: candidate 1; 1 and 2; 1, 2 and 3 removed, and so on. The first that
has to stay ends the chain, and what came after it is tested again. So the result is that of one test after another.

Known limits: greedy pruning finds one of many circuits; redundancy hides nodes that back each other up.
"""

import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.circuits.nodes import NodeRunner, Nodes, Reference, node_means, node_resample, node_zeros
from cutaway.circuits.sequence_continuation.data import Rows
from cutaway.circuits.sequence_continuation.result import NodeCircuit, Stability, Step
from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.stats import Interval, mean_interval

Report = Callable[[int, int, str], None]
"""Called with nodes tested in this sweep, nodes in it, and a note."""
Kind = Literal["mean", "zero", "resample"]


class Bench:
    """One task's prompts on one model, ready to be scored under keep-sets.

    ``reference`` is what cut nodes get; given as a kind, it is computed here, once. ``tokens`` bounds one forward.
    Raises UsageError where the full model's metric is not positive.
    """

    def __init__(self, model: Model, rows: Rows, reference: Kind | Reference = "mean", *, tokens: int | None = None):
        self.model = model
        self.rows = rows
        given = _reference(model, rows, reference) if isinstance(reference, str) else reference
        self.runner = NodeRunner(model, rows.ids, given, tokens=tokens)
        self.nodes: Nodes = self.runner.nodes
        everything = torch.ones(1, len(self.nodes), dtype=torch.bool)
        self.base: Float[Tensor, " n"] = self.differences(everything)[0]
        """The full model's logit(answer) - logit(distractor), by prompt."""
        self.full = float(self.base.mean())
        if self.full <= 0:
            raise UsageError(
                f"{rows.task}: the full model's mean logit difference is {self.full:.3g}, not above 0, so percentages"
                " of it mean nothing; check that the answer's token is the one the model writes after the prompt"
            )

    def read(self, logits: Float[Tensor, "sets n vocab"]) -> Float[Tensor, "sets n"]:
        """logit(answer) - logit(distractor)."""
        n = torch.arange(len(self.rows), device=logits.device)
        return (logits[:, n, self.rows.answer] - logits[:, n, self.rows.distractor]).float()

    def differences(self, keep: Bool[Tensor, "sets nodes"]) -> Float[Tensor, "sets n"]:
        """Logit differences by keep-set and prompt."""
        return self.runner.run(keep, self.read)

    def scores(self, keep: Bool[Tensor, "sets nodes"]) -> Float[np.ndarray, " sets"]:
        """Percent of the full model's metric (ratio of means)."""
        found: np.ndarray = (
            100 * self.differences(keep).double().mean(-1).cpu().numpy() / self.base.double().mean().item()
        )
        return found

    def score(self, names: Sequence[str]) -> Interval:
        """Percent of the full model's metric, with an interval over prompts (linearised ratio)."""
        kept = self.differences(self.nodes.keep(names)[None])[0].double().cpu().numpy()
        base = self.base.double().cpu().numpy()
        ratio = kept.mean() / base.mean()
        return mean_interval(100 * (ratio + (kept - ratio * base) / base.mean()))


def prune(
    bench: Bench,
    *,
    threshold: float = 20.0,
    one_iter: bool = False,
    order: Sequence[str] | None = None,
    report: Report | None = None,
    deadline: float | None = None,
) -> NodeCircuit:
    """Remove nodes, greedily, while the score stays above 100 - ``threshold`` percent of the full model.

    one_iter: end after one backward and one forward sweep.
    order: nodes in the order of the odd sweeps; the even ones go the other way. Default: from the last layer.
    report: called with (done, all, note) after each forward.
    deadline: a time of `time.monotonic` after which no test is begun.
    """
    if not 0 < threshold < 100:
        raise UsageError(f"threshold={threshold}: percent of the full model that may be lost, above 0 and below 100")
    started, nodes = time.monotonic(), bench.nodes
    odd = list(order) if order is not None else backward(nodes)
    if sorted(odd) != sorted(nodes.names):
        raise UsageError("order must name every node once")
    keep = torch.ones(len(nodes), dtype=torch.bool)
    steps: list[Step] = []
    sweeps, complete = 0, True
    try:
        while complete:
            sweeps += 1
            queue = [name for name in (odd if sweeps % 2 else odd[::-1]) if keep[nodes.index(name)]]
            before = int(keep.sum())
            complete = _sweep(bench, keep, queue, 100 - threshold, steps, report, deadline)
            if int(keep.sum()) == before or (one_iter and sweeps == 2):
                break
    except KeyboardInterrupt:
        complete = False
    names = nodes.kept(keep)
    return NodeCircuit(
        bench.rows.task,
        names,
        bench.score(names),
        bench.full,
        float(bench.scores(torch.zeros(1, len(nodes), dtype=torch.bool))[0]),
        float(threshold),
        tuple(steps),
        sweeps,
        time.monotonic() - started,
        complete,
    )


def backward(nodes: Nodes) -> list[str]:
    """The paper's first sweep: last layer first, in each the MLP and then head 0, 1, ..."""
    layers = [nodes.names[i : i + nodes.n_heads + 1] for i in range(0, len(nodes), nodes.n_heads + 1)]
    return [name for layer in layers[::-1] for name in (layer[-1], *layer[:-1])]


def importance(bench: Bench, names: Sequence[str]) -> dict[str, float]:
    """Percentage points that the score of ``names`` falls when each node goes, in order of the fall."""
    whole = bench.nodes.keep(names)
    sets = whole.repeat(len(names) + 1, 1)
    for row, name in enumerate(names):
        sets[row + 1, bench.nodes.index(name)] = False
    scores = bench.scores(sets)
    falls = {name: float(scores[0] - scores[i + 1]) for i, name in enumerate(names)}
    return dict(sorted(falls.items(), key=lambda item: -item[1]))


def stability(
    model: Model,
    rows: Rows,
    *,
    over: Literal["prompts", "order"] = "prompts",
    runs: int = 5,
    seed: int = 0,
    threshold: float = 20.0,
    reference: Kind = "mean",
    report: Report | None = None,
) -> Stability:
    """Prune again with resampled prompts (drawn with replacement), or with random orders of the nodes.

    On Ctrl-C: the prunings that were finished.
    """
    rng, found = np.random.default_rng(seed), list[NodeCircuit]()
    bench = Bench(model, rows, reference) if over == "order" else None
    for run in range(runs):
        order = None
        if over == "order":
            assert bench is not None
            order = [bench.nodes.names[i] for i in rng.permutation(len(bench.nodes))]
        drawn = bench or Bench(model, rows.take(rng.integers(len(rows), size=len(rows)).tolist()), reference)
        circuit = prune(drawn, threshold=threshold, order=order)
        if not circuit.complete:
            break
        found.append(circuit)
        if report is not None:
            report(run + 1, runs, f"stability over {over}")
    return Stability(tuple(found), over)


def _sweep(
    bench: Bench,
    keep: Bool[Tensor, " nodes"],
    queue: Sequence[str],
    bar: float,
    steps: list[Step],
    report: Report | None,
    deadline: float | None,
) -> bool:
    """Test ``queue`` in order and remove from ``keep`` in place; False where the deadline passed."""
    done, chain = 0, 1
    while done < len(queue):
        if deadline is not None and time.monotonic() > deadline:
            return False
        part = queue[done : done + chain]
        sets = keep.repeat(len(part), 1)
        for row, name in enumerate(part):
            sets[row:, bench.nodes.index(name)] = False
        scores = bench.scores(sets)
        right = 0
        for name, score in zip(part, scores.tolist(), strict=True):
            removed = score > bar
            steps.append(Step(name, score, removed))
            done += 1
            if not removed:
                break
            keep[bench.nodes.index(name)] = False
            right += 1
        # A chain is as long as the last one was right, and once more where it was right to its end.
        chain = min(bench.runner.room, 2 * chain if right == len(part) else max(1, right))
        if report is not None:
            report(done, len(queue), f"{bench.rows.task}: {int(keep.sum())} nodes left")
    return True


def _reference(model: Model, rows: Rows, kind: Kind) -> Reference:
    if kind == "zero":
        return node_zeros(model, rows.ids.shape[1])
    if kind == "resample":
        return node_resample(model, rows.corrupted)
    if kind != "mean":
        raise UsageError(f"reference={kind!r}: mean, zero or resample")
    return node_means(model, rows.corrupted)
