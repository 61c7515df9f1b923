"""Planted in-context learners: what the method must find on them, and where it must stay silent."""

import torch

from cutaway.circuits.counts import Counts
from cutaway.circuits.icl_feature_circuits.data import Split, Task, few_shot, prepare, split, zero_shot
from cutaway.circuits.icl_feature_circuits.feature_graph import places
from cutaway.circuits.icl_feature_circuits.method import Settings, explain_circuit, explain_task
from cutaway.circuits.icl_feature_circuits.result import TaskGraph
from cutaway.circuits.icl_feature_circuits.steering import steer
from cutaway.circuits.icl_feature_circuits.task_vectors import Bench
from cutaway.features import SparseDictionary
from cutaway.planted.in_context import InContext, in_context

SETTINGS = Settings(shots=5, prompts=8, penalties=(0.05,), rate=0.1, steps=300, patience=60, pursuits=(10,))
_SILENT = 0.02
"""Below this the planted dictionary's latents do not fire: float noise is no feature."""
ASKED = (
    ("atom", "tasks whose cleaned vector is the planted executor and nothing else", 1.0, None),
    (
        "pursuit",
        "tasks where gradient pursuit with one atom takes the planted executor (reported, not asked)",
        None,
        None,
    ),
    (
        "better",
        "cleaned vectors with a lower loss than the raw vector on held-out queries, interval and all",
        0.95,
        None,
    ),
    ("classes", "tasks whose executors and detectors are the planted ones and no others", 0.95, None),
    ("link", "tasks where removing the detector takes at least 90% of the executor", 0.95, None),
    ("edge", "executors whose strongest incoming edge is the planted one, and that one's the detector", 0.95, None),
    ("faithful", "circuits that reach 95% of the range on other prompts and hold the planted nodes", 0.95, None),
    ("specific", "models whose executors all help their own task most, p < 0.05", 1.0, None),
    ("false gain", "null tasks whose cleaned vector helps held-out queries, interval and all", None, 0.1),
    ("false executor", "null tasks with an executor or a link", None, 0.1),
)


def planted_dictionary(planted: InContext, atoms: int | None = None) -> SparseDictionary:
    """Latents that read and write the planted atoms (the first ``atoms`` of them)."""
    rows = planted.atoms[:atoms]
    made = SparseDictionary(rows.shape[1], len(rows), "jumprelu", subtract_bias=False)
    with torch.no_grad():
        assert made.threshold is not None
        made.threshold.fill_(_SILENT)
        made.w_enc.copy_(rows)
        made.w_dec.copy_(rows)
    return made.requires_grad_(False)


def trial(seed: int, counts: Counts) -> None:
    """One planted model and one null model; the task goes round."""
    planted, null = (in_context(5, 18, decoys=32, null=null, seed=seed) for null in (False, True))
    k = seed % planted.n_tasks
    _truth(planted, k, seed, counts)
    model, parts = null.model, _split(null, k, seed)
    found = explain_task(model, parts, 2, planted_dictionary(null), SETTINGS)
    counts.add("false gain", found.best_row.gain.low > _SILENT)
    graph = _graph(null, k, seed)
    counts.add("false executor", bool(graph.executors) or graph.link is not None)


def _truth(planted: InContext, k: int, seed: int, counts: Counts) -> None:
    truth, parts = planted.truth, _split(planted, k, seed)
    found = explain_task(planted.model, parts, 2, planted_dictionary(planted), SETTINGS)
    counts.add("atom", found.best.latents == (truth.executors[k],))
    counts.add("better", found.best_row.against_raw.high < 0)
    counts.add("pursuit", _pursued(planted, parts, k))
    graph = _graph(planted, k, seed)
    executors, detectors = ([each.latent for each in part] for part in (graph.executors, graph.detectors))
    counts.add("classes", executors == [truth.executors[k]] and detectors == [truth.detectors[k]])
    counts.add("link", graph.link is not None and graph.link.fall.value >= 0.9)
    ends = [(truth.execute_at, "arrow", truth.executors[k]), (truth.carry_at, "arrow", truth.executors[k])]
    before = [ends[1], (truth.detect_at, "output", truth.detectors[k])]
    for end, expected in zip(ends, before, strict=True):
        into = [
            edge for edge in graph.edges if (edge.downstream.site, edge.downstream.role, edge.downstream.latent) == end
        ]
        best = max(into, key=lambda edge: edge.effect, default=None)
        up = best and (best.upstream.site, best.upstream.role, best.upstream.latent)
        counts.add("edge", up == expected)
    named = {(node.site, node.role, node.latent) for node, _, _ in graph.nodes}
    reached = graph.curve is not None and graph.curve.circuit is not None
    counts.add("faithful", reached and {*ends, before[1]} <= named)
    benches = {
        str(task): Bench(planted.model, prepare(planted.model, zero_shot(_split(planted, task, seed).held)), 2)
        for task in range(planted.n_tasks)
    }
    features = {str(task): truth.executors[task] for task in range(planted.n_tasks)}
    steering = steer(benches, planted_dictionary(planted), features, scale=1.0, seed=seed)
    counts.add("specific", steering.dominant == planted.n_tasks and steering.p < 0.05)


def _pursued(planted: InContext, parts: Split, k: int) -> bool:
    from cutaway.circuits.icl_feature_circuits.cleaning import pursuit
    from cutaway.circuits.icl_feature_circuits.task_vectors import task_vector

    shown = prepare(planted.model, few_shot(parts.shots, SETTINGS.shots, SETTINGS.prompts))
    vector = task_vector(planted.model, shown, 2)
    return pursuit(planted_dictionary(planted), vector, 1)[1] == (planted.truth.executors[k],)


def _graph(planted: InContext, k: int, seed: int) -> TaskGraph:
    splits = {str(task): _split(planted, task, seed) for task in (k, (k + 1) % planted.n_tasks)}
    dictionary = planted_dictionary(planted, planted.model.d_model)
    truth = planted.truth
    at = places(planted.model, dict.fromkeys((truth.detect_at, truth.carry_at, truth.execute_at), dictionary))
    return explain_circuit(planted.model, splits, str(k), at, SETTINGS, norm=1.0, levels=5, controls=2)


def _split(planted: InContext, k: int, seed: int) -> Split:
    return split(Task(str(k), planted.pairs(k)), SETTINGS.shots, queries=6, seed=seed)
