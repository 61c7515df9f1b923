"""Planted sequence models: what the method must find on them, and where it must stay silent."""

import numpy as np

from cutaway.circuits.counts import Counts
from cutaway.circuits.sequence_continuation.data import Prompt, generate, prepare
from cutaway.circuits.sequence_continuation.edges import prune_edges
from cutaway.circuits.sequence_continuation.method import Bench, prune
from cutaway.circuits.sequence_continuation.transfer import random_nodes, transfer
from cutaway.errors import UsageError
from cutaway.planted.sequence import VERBS, Composition, Sequence, sequence

PROMPTS, CONTROLS, RANDOM = 12, 19, 6
COMPOSITIONS: tuple[Composition, ...] = ("v", "k", "q")


ASKED = (
    ("circuit", "tasks whose planted nodes, and no others, were left by pruning in a random order", 0.95, None),
    (
        "connections",
        "tasks whose planted connections were found with their input (q, k or v), and no others",
        0.95,
        None,
    ),
    ("transfer kept", "circuits that keep 80% of the task that shares their table, on a held-out template", 0.95, None),
    ("transfer lost", "circuits that keep less than 20% of a task with another table", 0.95, None),
    ("refused", "models without any circuit that were refused", 1.0, None),
    ("false transfer", "random circuits that beat the others of their size at p <= 0.05", None, 0.15),
)


def trial(seed: int, counts: Counts) -> None:
    """One planted model: the composition goes round, one in three v models has a pair of cancelling heads."""
    rng = np.random.default_rng([seed, 7])
    composition = COMPOSITIONS[seed % 3]
    planted = sequence(composition, compensate=composition == "v" and seed % 2 == 0, seed=seed)
    shown, unseen = (_drawn(planted, verb, seed) for verb in VERBS)
    rows, held = prepare(planted.model, shown)[0], prepare(planted.model, unseen)[0]
    circuits = {}
    for task, given in rows.items():
        bench = Bench(planted.model, given)
        order = [bench.nodes.names[i] for i in rng.permutation(len(bench.nodes))]
        circuits[task] = prune(bench, order=order).nodes
        counts.add("circuit", circuits[task] == planted.truth.nodes[task])
    task = tuple(rows)[seed % len(rows)]
    edges = prune_edges(Bench(planted.model, rows[task]), circuits[task])
    found = {(edge.sender, edge.receiver, edge.by) for edge in edges.kept}
    counts.add("connections", found == {*planted.truth.edges[task]})
    benches = {task: Bench(planted.model, held[task]) for task in held}
    for cell in transfer(circuits, benches, controls=1, seed=seed).cells:
        if cell.circuit != cell.task:
            alone = "months backwards" in (cell.circuit, cell.task)
            hit = cell.score.value < 20 if alone else cell.score.value >= 80
            counts.add("transfer lost" if alone else "transfer kept", hit)
    bench = benches[task]
    scores = bench.scores(random_nodes(bench.nodes, circuits[task], RANDOM + CONTROLS, rng))
    for score in scores[:RANDOM]:
        counts.add("false transfer", bool((scores[RANDOM:] < score).all()))  # p = 1 / (1 + CONTROLS)
    counts.add("refused", _refused(seed, composition))


def _drawn(planted: Sequence, verb: str, seed: int) -> dict[str, tuple[Prompt, ...]]:
    """Prompts whose corrupted twins have their largest mean rank before the last member.

    A cut node gives its mean over the corrupted prompts. Where that rank happens to be largest at the last member, the
    detector's mean alone sends the key-composed head there, and pruning rightly leaves the detector out: what was
    planted would not be what is needed.
    """
    for attempt in range(100):
        found = generate(planted.tasks, verb, PROMPTS, seed=seed + 1000 * attempt, words=planted.words)
        task, members = next(iter(planted.tasks.items()))
        ranks = np.mean([[members.index(each) for each in prompt.corrupted] for prompt in found[task]], axis=0)
        if ranks.argmax() < len(ranks) - 1:
            return found
    raise AssertionError("a hundred draws with the largest mean rank last")


def _refused(seed: int, composition: Composition) -> bool:
    null = sequence(composition, null=True, seed=seed)
    try:
        prepare(null.model, generate(null.tasks, VERBS[0], PROMPTS, seed=seed, words=null.words))
    except UsageError:
        return True
    return False
