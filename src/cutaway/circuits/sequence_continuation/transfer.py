"""Is it the same circuit: every circuit on every task, what they share, and what removing one does to other tasks.

1. Transfer: circuit A's score on task B, on prompts that neither was found on. Control: random node sets with as many
   heads and as many MLPs, scored on the same prompts; p = (1 + random sets that score at least as high) / (1 + sets).
2. Overlap: shared nodes, Jaccard, and the hypergeometric probability that random heads of these numbers share as many.
3. Side effects: a circuit's heads are replaced by their mean over positions and prompts, and other tasks are asked;
   an answer counts when greedy decoding writes it token for token. Control: as many random heads that share no more
   heads with the circuits than the circuits share with each other.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import hypergeom

from cutaway.circuits.nodes import Nodes, Reference
from cutaway.circuits.sequence_continuation.method import Bench, Report
from cutaway.circuits.sequence_continuation.result import Cell, Overlap, SideEffect, Transfer
from cutaway.errors import UsageError
from cutaway.model import Model, Replace
from cutaway.stats import wilson

if TYPE_CHECKING:
    from torch import Tensor


def random_nodes(nodes: Nodes, like: Sequence[str], n: int, rng: np.random.Generator) -> "Tensor":
    """``n`` random keep-sets [n nodes] with as many heads and as many MLPs as ``like``."""
    sets = torch.zeros(n, len(nodes), dtype=torch.bool)
    for row in sets:
        for pool in (nodes.heads, nodes.mlps):
            drawn = rng.choice(len(pool), sum(name in pool for name in like), replace=False)
            row[[nodes.index(pool[i]) for i in drawn]] = True
    return sets


def transfer(
    circuits: Mapping[str, Sequence[str]],
    benches: Mapping[str, Bench],
    *,
    controls: int = 50,
    seed: int = 0,
    report: Report | None = None,
) -> Transfer:
    """Score every circuit (task name to nodes) on every bench; on Ctrl-C return the cells that are done."""
    if controls < 1:
        raise UsageError(f"controls={controls}: at least one random circuit, or a score means nothing")
    cells: list[Cell] = []
    complete, total = True, len(circuits) * len(benches)
    try:
        for i, (name, circuit) in enumerate(circuits.items()):
            for task, bench in benches.items():
                # The same random circuits for every task.
                sets = random_nodes(bench.nodes, circuit, controls, np.random.default_rng([seed, i]))
                score, drawn = bench.score(circuit), bench.scores(sets)
                p = (1 + int((drawn >= score.value).sum())) / (1 + controls)
                cells.append(Cell(name, task, score, tuple(map(float, drawn)), p))
                if report is not None:
                    report(len(cells), total, f"circuit of {name} on {task}")
    except KeyboardInterrupt:
        complete = False
    return Transfer(tuple(cells), overlaps(next(iter(benches.values())).nodes, circuits), complete)


def overlaps(nodes: Nodes, circuits: Mapping[str, Sequence[str]]) -> tuple[Overlap, ...]:
    """What each pair of circuits shares."""
    found = []
    for i, (first, a) in enumerate(circuits.items()):
        for second, b in list(circuits.items())[i + 1 :]:
            shared = [name for name in a if name in set(b)]
            heads = [[name for name in names if name.startswith("z.")] for names in (shared, a, b)]
            p = hypergeom.sf(len(heads[0]) - 1, len(nodes.heads), len(heads[1]), len(heads[2]))
            found.append(Overlap(first, second, tuple(shared), len(shared) / max(len({*a, *b}), 1), float(p)))
    return tuple(found)


def side_effects(
    model: Model,
    circuits: Mapping[str, Sequence[str]],
    means: Reference,
    questions: Mapping[str, Sequence[tuple[str, str]]],
    *,
    controls: int = 20,
    seed: int = 0,
    report: Report | None = None,
) -> tuple[SideEffect, ...]:
    """Exact match on ``questions`` (task name to (prompt, answer)) without each circuit's heads.

    means: of `node_means`; a head is replaced by its mean over positions, so prompts may have any length.
    On Ctrl-C: nothing is returned, the interrupt passes on.
    """
    rng, nodes = np.random.default_rng(seed), Nodes.of(model)
    heads = {name: [node for node in circuit if node.startswith("z.")] for name, circuit in circuits.items()}
    shared = set.intersection(*map(set, heads.values()))
    untouched, found = _exact(model, means, (), questions), []
    for done, (name, removed) in enumerate(heads.items()):
        drawn = [_other_heads(nodes, len(removed), heads, len(shared), rng) for _ in range(controls)]
        left = _exact(model, means, removed, questions)
        random = [_exact(model, means, other, questions) for other in drawn]
        for task, given in questions.items():
            n, hits = len(given), [each[task] for each in random]
            p = (1 + sum(hit <= left[task] for hit in hits)) / (1 + controls)
            found.append(
                SideEffect(
                    name,
                    task,
                    wilson(untouched[task], n),
                    wilson(left[task], n),
                    tuple(hit / n for hit in hits),
                    p,
                )
            )
        if report is not None:
            report(done + 1, len(heads), f"other tasks without the heads of {name}")
    return tuple(found)


def _other_heads(
    nodes: Nodes, n: int, heads: Mapping[str, Sequence[str]], limit: int, rng: np.random.Generator
) -> list[str]:
    """Random heads, at most ``limit`` of them in any circuit; where there are too few others, as few as can be."""
    union = sorted({name for names in heads.values() for name in names})
    rest = [name for name in nodes.heads if name not in union]
    inside = max(n - len(rest), int(rng.integers(min(limit, n, len(union)) + 1)))
    chosen = [union[i] for i in rng.choice(len(union), inside, replace=False)] if inside else []
    return chosen + [rest[i] for i in rng.choice(len(rest), n - inside, replace=False)]


@torch.no_grad()
def _exact(
    model: Model, means: Reference, heads: Sequence[str], questions: Mapping[str, Sequence[tuple[str, str]]]
) -> dict[str, int]:
    """Answers that greedy decoding would write token for token: each token is the top one after those before it."""
    mean = means.z.mean((0, 2))
    edits = [Replace(name, mean[int(name.split(".")[1]), int(name.split(".")[2])]) for name in heads]
    found = {}
    with model.edited(*edits):
        for task, given in questions.items():
            starts = [len(_shared(model, prompt, answer)) for prompt, answer in given]
            whole = [model.encode(prompt + answer, special=True) for prompt, answer in given]
            logits = model.logits(model.batch(whole))
            hits = 0
            for row, (ids, start) in enumerate(zip(whole, starts, strict=True)):
                written = logits[row, start - 1 : len(ids) - 1].argmax(-1).tolist()
                hits += written == ids[start:]
            found[task] = hits
    return found


def _shared(model: Model, prompt: str, answer: str) -> list[int]:
    """The prompt's tokens that stay when the answer follows, and at least one."""
    alone, together = model.encode(prompt, special=True), model.encode(prompt + answer, special=True)
    same = 0
    while same < min(len(alone), len(together) - 1) and alone[same] == together[same]:
        same += 1
    return together[: max(same, 1)]
