"""In-context learning as features (Kharlapenko, Shabalin, Barez, Conmy, Nanda 2025, arXiv 2504.13756).

1. `data`: few-shot prompts; a role for every token; pairs apart for examples, fitting and evaluation.
2. `task_vectors`: mean of the stream entering layer l over the arrows; added at the arrow of a prompt without examples.
3. `cleaning`: the few atoms that do the same (`explain_task` compares them with the raw vector, its reconstruction,
   gradient pursuit and random atoms, all on queries that nothing was fitted on).
4. `steering`: one feature a task, on every task.
5. `feature_graph`, `circuit`, `classes`: node and edge effects over all arrows of few-shot prompts, faithfulness and
   necessity on other prompts, executors, detectors and the link between them (`explain_circuit`).

Known limits: effects are first order at a zero baseline (`circuit.verify` removes the largest for real); a TopK code is
not what the encoder would give for a vector far from its data, such as a mean; learned atoms may fit the answers of the
fitted queries, which is why every number is from others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cutaway.circuits.icl_feature_circuits.circuit import curve, verify
from cutaway.circuits.icl_feature_circuits.classes import detectors, executors, link
from cutaway.circuits.icl_feature_circuits.cleaning import Cleaned, clean, pursuit, random_atoms, reconstruction
from cutaway.circuits.icl_feature_circuits.data import Prompts, Split, few_shot, prepare, zero_shot
from cutaway.circuits.icl_feature_circuits.feature_graph import (
    Node,
    NodeEffects,
    Place,
    edge_effects,
    node_effects,
)
from cutaway.circuits.icl_feature_circuits.result import Row, TaskGraph, TaskResult
from cutaway.circuits.icl_feature_circuits.task_vectors import Bench, Score, task_vector
from cutaway.errors import UsageError
from cutaway.features import Dictionary
from cutaway.model import Model
from cutaway.stats import paired_difference

Report = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How tasks are explained."""

    shots: int = 16
    prompts: int = 16
    """Few-shot prompts behind a task vector."""
    penalties: tuple[float, ...] = (0.02, 0.05)
    """lambda of the cleaning."""
    rate: float = 0.05
    steps: int = 1000
    patience: int = 150
    pursuits: tuple[int, ...] = (5, 10, 20, 40)
    """Atoms of the gradient pursuits."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.penalties:
            raise UsageError("penalties: give at least one lambda")


def layer_losses(model: Model, splits: Sequence[Split], layers: Sequence[int], settings: Settings) -> dict[int, float]:
    """Mean zero-shot loss with the raw task vector over tasks, by layer, on the fitted queries."""
    losses: dict[int, list[float]] = {layer: [] for layer in layers}
    for parts in splits:
        shown, fit = _shown(model, parts, settings), prepare(model, zero_shot(parts.fit))
        for layer in layers:
            vector = task_vector(model, shown, layer)
            losses[layer].append(Bench(model, fit, layer).score(vector).loss.value)
    return {layer: float(np.mean(found)) for layer, found in losses.items()}


def with_examples(model: Model, parts: Split, settings: Settings) -> Score:
    """How well the model answers held-out queries after examples."""
    rows = few_shot(parts.shots, settings.shots, len(parts.held), queries=parts.held, seed=settings.seed)
    return Bench(model, prepare(model, rows), 0).score()


def explain_task(
    model: Model,
    parts: Split,
    layer: int,
    dictionary: Dictionary,
    settings: Settings,
    *,
    few: Score | None = None,
    report: Report = lambda note: None,
) -> TaskResult:
    """Clean a task's vector and compare it with the others on held-out queries. Ctrl-C ends the cleaning early."""
    vector = task_vector(model, _shown(model, parts, settings), layer)
    fit, held = (Bench(model, prepare(model, zero_shot(part)), layer) for part in (parts.fit, parts.held))
    found: list[Cleaned] = []
    for penalty in settings.penalties:
        report(f"{parts.task}: cleaning at lambda {penalty:g}")
        found.append(
            clean(
                fit,
                dictionary,
                vector,
                penalty=penalty,
                rate=settings.rate,
                steps=settings.steps,
                patience=settings.patience,
            )
        )
        if not found[-1].complete:
            break
    chosen = _chosen(fit, vector, found)
    rows = _rows(held, dictionary, vector, found, chosen, settings)
    few = with_examples(model, parts, settings) if few is None else few
    return TaskResult(parts.task, few, rows, tuple(found), chosen, float(vector.norm()), found[-1].complete)


def explain_circuit(
    model: Model,
    splits: Mapping[str, Split],
    task: str,
    at: Sequence[Place],
    settings: Settings,
    *,
    norm: float,
    levels: int = 10,
    controls: int = 3,
    top: int = 8,
) -> TaskGraph:
    """A task's feature circuit: effects on one set of prompts, everything measured on another.

    at: places in the order of the model; the last is the stream where tasks are executed, the first where detected.
    norm: length of the task vector, the scale at which single features are added.
    """
    found, tested = (_arrows(model, splits[task], settings, turn) for turn in (1, 2))
    effects = node_effects(model, found, at)
    late, early = at[-1], at[0]
    measured, why = None, ""
    try:
        measured = curve(model, tested, at, effects, levels=levels, controls=controls, seed=settings.seed)
    except UsageError as error:
        why = str(error)
    ranked = _ranked(effects)
    wired = [node for node, effect, _ in ranked if effect > 0 and node.latent >= 0 and node.site != early.site][:top]
    bench = Bench(model, prepare(model, zero_shot(splits[task].held)), late.layer)
    execute = executors(effects[late.site], bench, late, scale=norm)
    others = [_arrows(model, parts, settings, 2) for name, parts in splits.items() if name != task]
    detect = detectors(model, effects[early.site], early, tested, others)
    latents = [each.latent for each in detect], [each.latent for each in execute]
    joined = link(model, tested, early, late, *latents, seed=settings.seed) if all(latents) else None
    return TaskGraph(
        task,
        tuple(ranked[:50]),
        measured,
        why,
        tuple(verify(model, tested, at, effects, top=top)),
        tuple(edge_effects(model, found, at, wired)),
        execute,
        detect,
        joined,
    )


def _shown(model: Model, parts: Split, settings: Settings) -> Prompts:
    return prepare(model, few_shot(parts.shots, settings.shots, settings.prompts, seed=settings.seed))


def _arrows(model: Model, parts: Split, settings: Settings, turn: int) -> Prompts:
    """Few-shot prompts whose every arrow but the first counts. Each turn draws others."""
    seed = 1000 * settings.seed + turn
    return prepare(model, few_shot(parts.shots, settings.shots, settings.prompts, seed=seed))


def _chosen(fit: Bench, vector: torch.Tensor, found: Sequence[Cleaned]) -> int:
    raw = fit.score(vector).loss.value
    losses = [fit.score(each.vector).loss.value for each in found]
    fine = [i for i, loss in enumerate(losses) if loss <= raw]
    if fine:
        return min(fine, key=lambda i: found[i].l0)
    return int(np.argmin(losses))


def _rows(
    held: Bench,
    dictionary: Dictionary,
    vector: torch.Tensor,
    found: Sequence[Cleaned],
    chosen: int,
    settings: Settings,
) -> tuple[Row, ...]:
    rebuilt, used = reconstruction(dictionary, vector)
    vectors: list[tuple[str, int | None, torch.Tensor | None]] = [
        ("no vector", None, None),
        ("task vector", None, vector),
        ("reconstruction", len(used), rebuilt),
    ]
    for k in sorted({*settings.pursuits, max(1, found[chosen].l0)}):
        pursued, atoms = pursuit(dictionary, vector, k)
        vectors.append((f"pursuit {k}", len(atoms), pursued))
    vectors += [(f"cleaned {each.penalty:g}", each.l0, each.vector) for each in found]
    vectors.append(("random atoms", found[chosen].l0, random_atoms(dictionary, found[chosen], vector, settings.seed)))
    scores = [(name, l0, held.score(each)) for name, l0, each in vectors]
    none, raw = scores[0][2].losses, scores[1][2].losses
    return tuple(
        Row(name, l0, score, paired_difference(none, score.losses), paired_difference(score.losses, raw))
        for name, l0, score in scores
    )


def _ranked(effects: Mapping[str, NodeEffects]) -> list[tuple[Node, float, float]]:
    """Features and error nodes by size of effect: (node, effect, standard error)."""
    rows: list[tuple[Node, float, float]] = []
    for site, found in effects.items():
        spread = found.error_of_mean
        mean, width = found.mean, found.mean.shape[1]
        for index in mean.abs().flatten().topk(min(60, mean.numel())).indices.tolist():
            role, latent = divmod(index, width)
            if mean[role, latent] != 0:
                rows.append(
                    (Node(site, found.roles[role], latent), float(mean[role, latent]), float(spread[role, latent]))
                )
        n = len(found.error)
        for role, name in enumerate(found.roles):
            column = found.error[:, role]
            error = float(column.std() / n**0.5) if n > 1 else float("nan")
            rows.append((Node(site, name, -1), float(column.mean()), error))
    return sorted(rows, key=lambda row: -abs(row[1]))
