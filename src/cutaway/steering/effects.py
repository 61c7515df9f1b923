"""What steering did: the same prompts plain and steered, paired, beside controls of equal push, and what it cost.

1. `draw_answers` samples the same prompts with the same seeds under any edits; with a folder, what was drawn is kept.
2. `effect` pairs a measure by prompt: change with an interval clustered over prompts, the changes under each control,
   and the difference to the controls on the prompts they were run on. An effect is shown when its interval excludes 0
   and no control moved the measure as far.
3. `answer_nll` and `fluency` tell the cost: nats a token of the answers under the plain model, as a ratio of
   perplexities. Lower is not better: text that repeats itself has a low perplexity too; see `repetition` beside it.

Sources: cards k-steering and eval-awareness, sections Metrics.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from cutaway.errors import UsageError
from cutaway.model import Edit, Model
from cutaway.sampling import BranchTree, LocalEngine, Request, Rollout, Settings, sample
from cutaway.stats import Interval, bootstrap, clopper_pearson, mean_interval, paired_difference, share_difference

_ROWS = 8
"""Answers whose likelihood is read in one forward."""
Numbers = Sequence[float] | Float[np.ndarray, " prompt"]


@dataclass(frozen=True, repr=False)
class Effect:
    """A measure on the same prompts, plain and steered."""

    name: str
    plain: float
    steered: float
    change: Interval
    """Steered less plain, clustered over prompts."""
    controls: tuple[float, ...] = ()
    """Mean change under each control, on the prompts it was run on."""
    over_controls: Interval | None = None
    """Steered less control on the same prompts, clustered over prompts."""

    def __repr__(self) -> str:
        beside = f", controls {min(self.controls):.2g} to {max(self.controls):.2g}" if self.controls else ""
        return f"Effect({self.name}: {self.plain:.3g} -> {self.steered:.3g}, change {self.change}{beside})"

    @property
    def excludes_zero(self) -> bool:
        return self.change.low > 0 or self.change.high < 0

    @property
    def rank(self) -> float | None:
        """Share of {this, controls} that moved the measure at least as far: a p-value; None without controls."""
        if not self.controls:
            return None
        as_far = sum(abs(each) >= abs(self.change.value) for each in self.controls)
        return (1 + as_far) / (1 + len(self.controls))

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0 and no control moved the measure as far."""
        return self.excludes_zero and all(abs(each) < abs(self.change.value) for each in self.controls)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "rank": self.rank, "shown": self.shown}


def draw_answers(
    model: Model,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    *,
    edits: Sequence[Edit] = (),
    n: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    folder: Path | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[Rollout]]:
    """Return ``n`` answers to each prompt; seeds depend on prompt and draw alone, so conditions are paired.

    A prompt's edits are what it is sampled under, all prompts in one batched sweep. ``folder`` keeps what was drawn.
    """
    if settings.temperature == 0 and n > 1:
        raise UsageError("temperature=0 leaves nothing to resample; use a temperature above 0 or n=1")
    engine = LocalEngine(model, batch_size)
    requests = [Request(tuple(prompt), _seeds(prompt, n, seed), settings) for prompt in prompts]
    found: list[dict[int, Rollout]] = [{} for _ in requests]
    tree = None if folder is None else BranchTree.open(folder / _name(engine, edits), engine.identity, edits)
    try:
        stream = engine.stream(requests, edits) if tree is None else sample(tree, engine, requests, edits)
        for done, (index, rollout) in enumerate(stream, 1):
            found[index][rollout.seed] = rollout
            report(done, n * len(requests))
    finally:
        if tree is not None:
            tree.close()
    return [[rollouts[s] for s in request.seeds] for rollouts, request in zip(found, requests, strict=True)]


def effect(
    name: str,
    plain: Numbers,
    steered: Numbers,
    controls: Sequence[Numbers] = (),
    clusters: Sequence[int] | None = None,
) -> Effect:
    """Pair a measure by prompt. A control has NaN at prompts it was not run on.

    Where both sides are all 0 or 1, the change is one of shares (`share_difference`).

    Raises UsageError where the sides are of unequal number, or a control was run nowhere.
    """
    before, after = np.asarray(plain, float), np.asarray(steered, float)
    labels = np.arange(len(before)) if clusters is None else np.asarray(clusters)
    shares = all(np.isin(side, (0, 1)).all() for side in (before, after))
    change = (share_difference if shares else paired_difference)(after, before, clusters=labels)
    moved, gaps, owners = [], list[np.ndarray](), list[np.ndarray]()
    for control in controls:
        values = np.asarray(control, float)
        if values.shape != before.shape or np.isnan(values).all():
            raise UsageError(f"{name}: a control has {values.size} values for {before.size} prompts, or none at all")
        run = ~np.isnan(values)
        moved.append(float((values - before)[run].mean()))
        gaps.append((after - values)[run])
        owners.append(labels[run])
    over = mean_interval(np.concatenate(gaps), clusters=np.concatenate(owners)) if gaps else None
    return Effect(name, float(before.mean()), float(after.mean()), change, tuple(moved), over)


def rate(values: Sequence[bool] | Sequence[float], clusters: Sequence[int]) -> Interval:
    """Share of answers, bootstrapped over whole clusters (tasks), whose number is the interval's n.

    Where every answer is alike the bootstrap knows no interval; then the exact interval of one answer a cluster.
    Where all clusters have the same share of some, both ends are NaN.
    """
    x = np.asarray(values, float)
    found = bootstrap(x, lambda each: float(each.mean()), clusters=np.asarray(clusters), method="percentile")
    if np.isfinite(found.low) or 0 < found.value < 1:
        return found
    groups = len(set(clusters))
    return clopper_pearson(groups * int(x[0]), groups)


def relative_change(plain: Numbers, steered: Numbers, clusters: Sequence[int] | None = None) -> Interval:
    """mean(steered) / mean(plain) - 1, bootstrapped over prompts; UsageError where the plain mean is 0."""
    pairs = np.stack([np.asarray(plain, float), np.asarray(steered, float)], 1)
    if pairs[:, 0].mean() == 0:
        raise UsageError("the plain mean is 0; a relative change is undefined")
    labels = None if clusters is None else np.asarray(clusters)
    return bootstrap(pairs, lambda x: float(x[:, 1].mean() / x[:, 0].mean() - 1), clusters=labels, method="percentile")


def fluency(plain_nll: Numbers, steered_nll: Numbers, clusters: Sequence[int] | None = None) -> Interval:
    """Ratio of perplexities less 1, from the paired difference of each answer's nats a token."""
    gap = paired_difference(steered_nll, plain_nll, clusters=None if clusters is None else np.asarray(clusters))
    value, low, high = (float(np.expm1(end)) for end in (gap.value, gap.low, gap.high))
    return Interval(value, low, high, gap.n, gap.level)


@torch.no_grad()
def answer_nll(
    model: Model, prompts: Sequence[Sequence[int]], answers: Sequence[Rollout]
) -> Float[np.ndarray, " answer"]:
    """Mean nats a token of each answer after its prompt, under the model as it stands."""
    found = np.zeros(len(answers))
    order = sorted(range(len(answers)), key=lambda i: len(prompts[i]) + len(answers[i].ids))
    for at in range(0, len(order), _ROWS):
        places = order[at : at + _ROWS]
        batch = model.batch([[*prompts[i], *answers[i].ids] for i in places])
        logits = model.logits(batch)
        for row, i in enumerate(places):
            start, end = len(prompts[i]) - 1, len(prompts[i]) + len(answers[i].ids) - 1
            scores = logits[row, start:end].float().log_softmax(-1)
            targets = torch.tensor(answers[i].ids, device=scores.device)
            found[i] = -float(scores.gather(-1, targets[:, None]).mean())
    return found


def repetition(ids: Sequence[int], gram: int = 4) -> float:
    """Share of an answer's ``gram``-token windows that occurred in it before; 0 for an answer too short to tell."""
    windows = [tuple(ids[i : i + gram]) for i in range(len(ids) - gram + 1)]
    return 1 - len(set(windows)) / len(windows) if windows else 0.0


def holm(p: Sequence[float]) -> Float[np.ndarray, " test"]:
    """Holm's adjusted p-values (1979), in the order given: valid under any dependence."""
    values = np.asarray(p, float)
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def _seeds(prompt: Sequence[int], n: int, seed: int) -> tuple[int, ...]:
    digest = hashlib.blake2b(repr((seed, tuple(prompt))).encode(), digest_size=8).digest()
    first = int.from_bytes(digest) >> 1
    return tuple(first + k for k in range(n))


def _name(engine: LocalEngine, edits: Sequence[Edit]) -> str:
    text = " ".join([engine.identity, *(edit.digest for edit in edits)])
    return hashlib.sha256(text.encode()).hexdigest()[:24]
