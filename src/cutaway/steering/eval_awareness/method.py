"""A model that knows when it is tested, and a vector from before it did that makes it act deployed.

1. `contrast_vectors`: pairs of texts, one of deployment and one of testing; mean difference at the last token, from the
   original weights. Another model than the stated original is refused unless ``trained=True`` says so.
2. `measure_rates`: every condition's tasks are answered n times; all conditions under the same edits are one batched
   sweep. An answer does B if a function in it has a type hint (`count_hints`); one without a function counts apart.
3. `compare`: gap = rate(eval) - rate(deploy); override = rate(cue) - rate(deploy); recovery = (rate(cue) - rate(cue,
   steered)) / override; distance = rate(cue, steered) - rate(deploy), below 0 an overshoot; accuracy, steered less not.
   Intervals are bootstrapped over tasks, the same tasks in every condition.
4. `choose_scale`: the multiplier that brings evaluation contexts *without* the cue nearest to deployment; the cue's
   answers are never looked at for it.

Source: card eval-awareness (Hua, Qin, Marks, Nanda 2025, arXiv:2510.20487). Several layers' vectors add up.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.errors import UsageError
from cutaway.model import Edit, Model
from cutaway.sampling import Rollout, Settings
from cutaway.stats import Interval, bootstrap
from cutaway.steering.effects import draw_answers, rate
from cutaway.steering.eval_awareness.hints import count_hints
from cutaway.steering.vectors import Vectors, difference_of_means

Prompts = Sequence[Sequence[int]]
Check = Callable[[int, str], bool]
"""(task, answer) to whether the task was done."""
Report = Callable[[int, int, str], None]
"""Called with (done, planned, what is counted)."""


@dataclass(frozen=True)
class Condition:
    """Where the model finds itself: one prompt a task, and the edits it runs under."""

    name: str
    prompts: Prompts = field(repr=False)
    edits: tuple[Edit, ...] = field(default=(), repr=False)


@dataclass(frozen=True, repr=False)
class Measured:
    """One condition."""

    name: str
    rate: Interval
    """Of B among answers with a function; n counts tasks."""
    behaved: tuple[tuple[float, ...], ...]
    """By task and draw; NaN where the answer holds no function."""
    right: tuple[tuple[bool, ...], ...]
    """Whether the task was done."""

    def __repr__(self) -> str:
        return f"Measured({self.name}: {self.rate}, {100 * self.unparsed:.0f}% without a function)"

    @property
    def unparsed(self) -> float:
        """Share of answers without a function."""
        return float(np.isnan(np.array(self.behaved)).mean())

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.right))


@dataclass(frozen=True, repr=False)
class Recovery:
    """What the vector does, against what it should."""

    gap: Interval
    override: Interval
    recovery: Interval
    """NaN ends where the override is not clear of 0 in every resample."""
    distance: Interval
    """Steered with the cue, less deployment; below 0: overshoot."""
    accuracy: Interval
    """Steered less not, with the cue."""
    controls: tuple[float, ...] = ()
    """Recovery under each random vector; NaN where it left no answer with a function."""

    @property
    def best_control(self) -> float:
        """The largest recovery of a random vector; NaN for none."""
        return max((each for each in self.controls if not np.isnan(each)), default=float("nan"))

    def __repr__(self) -> str:
        best = f"; best of {len(self.controls)} random {self.best_control:.2f}" if self.controls else ""
        return f"Recovery({self.recovery}, distance {self.distance}{best})"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def contrast_vectors(
    model: Model,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    layers: Sequence[int],
    *,
    original: str,
    trained: bool = False,
) -> Vectors:
    """Return mean(deployed) - mean(tested) over ``pairs`` of (deployed, tested) texts, at the last token.

    ``original`` is the fingerprint of the weights before any training; it is stored in the result as its source.
    Raises UsageError for another model unless ``trained``, and for pairs or layers as `difference_of_means`.
    """
    if model.fingerprint != original and not trained:
        raise UsageError(
            f"the model has weights {model.fingerprint[:12]}, the original {original[:12]}: a vector from a trained"
            " model may hold the behaviour itself; pass trained=True if that is meant"
        )
    deployed, tested = [list(pair[0]) for pair in pairs], [list(pair[1]) for pair in pairs]
    return difference_of_means(model, deployed, tested, layers, paired=True)


def measure_rates(
    model: Model,
    conditions: Sequence[Condition],
    settings: Settings,
    *,
    n: int = 20,
    seed: int = 0,
    prefill: str = "",
    check: Check | None = None,
    folder: Path | None = None,
    report: Report = lambda done, planned, note: None,
) -> dict[str, Measured]:
    """Answer every condition's prompts ``n`` times; conditions under the same edits share one sweep.

    ``prefill`` is what each prompt already began to answer; ``folder`` keeps what was drawn for the next run.
    UsageError for conditions of unequal number of tasks, or of one name.
    """
    if len({len(each.prompts) for each in conditions}) != 1 or len({each.name for each in conditions}) < len(
        conditions
    ):
        raise UsageError("conditions need the same number of tasks, at least one, and a name of their own each")
    sweeps: dict[tuple[str, ...], list[Condition]] = {}
    for condition in conditions:
        sweeps.setdefault(tuple(edit.digest for edit in condition.edits), []).append(condition)
    found: dict[str, Measured] = {}
    for members in sweeps.values():
        prompts = [prompt for condition in members for prompt in condition.prompts]
        note = ", ".join(condition.name for condition in members)
        answers = draw_answers(
            model,
            prompts,
            settings,
            edits=members[0].edits,
            n=n,
            seed=seed,
            folder=folder,
            report=lambda done, total, note=note: report(done, total, note),  # type: ignore[misc]
        )
        texts = [[answer_text(model, answer, prefill) for answer in row] for row in answers]
        tasks = len(members[0].prompts)
        for place, condition in enumerate(members):
            found[condition.name] = _measured(condition.name, texts[place * tasks : (place + 1) * tasks], check)
    return {condition.name: found[condition.name] for condition in conditions}


def answer_text(model: Model, answer: Rollout, prefill: str = "") -> str:
    """Return what was answered as text, ``prefill`` in front, without special tokens."""
    special = model.special_ids
    return prefill + model.decode([token for token in answer.ids if token not in special])


def compare(
    evaluation: Measured, deployment: Measured, cue: Measured, steered: Measured, controls: Sequence[Measured] = ()
) -> Recovery:
    """Put a steered condition beside the others; tasks are resampled together."""
    table = np.array([_shares(each) for each in (evaluation, deployment, cue, steered)]).T
    kept = table[~np.isnan(table).any(1)]
    right = np.array([[np.mean(row) for row in each.right] for each in (cue, steered)]).T

    def interval(statistic: Callable[[np.ndarray], float], of: np.ndarray) -> Interval:
        return bootstrap(of, statistic, method="percentile")

    return Recovery(
        gap=interval(lambda x: float((x[:, 0] - x[:, 1]).mean()), kept),
        override=interval(lambda x: float((x[:, 2] - x[:, 1]).mean()), kept),
        recovery=interval(_recovery, kept),
        distance=interval(lambda x: float((x[:, 3] - x[:, 1]).mean()), kept),
        accuracy=interval(lambda x: float((x[:, 1] - x[:, 0]).mean()), right),
        controls=tuple(_of_control(table, each) for each in controls),
    )


def choose_scale(
    model: Model,
    vectors: Vectors,
    evaluation: Prompts,
    deployment: Prompts,
    scales: Sequence[float],
    settings: Settings,
    *,
    n: int = 20,
    seed: int = 1,
    prefill: str = "",
    folder: Path | None = None,
    report: Report = lambda done, planned, note: None,
) -> tuple[float, dict[float, float]]:
    """Return the scale whose steered evaluation rate is nearest to the deployment rate, and the rate at each.

    No prompt with the cue is among them. UsageError for no scale, or one that is not above 0.
    """
    if not scales or min(scales) <= 0:
        raise UsageError(f"scales={list(scales)}: at least one, all above 0")
    wanted = Condition("deployment", deployment)
    steered = [Condition(f"{scale}", evaluation, vectors.edits(scale)) for scale in scales]
    rest: dict[str, Any] = {"n": n, "seed": seed, "prefill": prefill, "folder": folder, "report": report}
    found = measure_rates(model, [wanted, *steered], settings, **rest)
    goal = found["deployment"].rate.value
    rates = {scale: found[f"{scale}"].rate.value for scale in scales}
    return min(scales, key=lambda scale: abs(rates[scale] - goal)), rates


def _measured(name: str, texts: Sequence[Sequence[str]], check: Check | None) -> Measured:
    behaved, right = [], []
    for task, row in enumerate(texts):
        hints = [count_hints(text) for text in row]
        behaved.append(tuple(float(each.annotated > 0) if each.parsed else float("nan") for each in hints))
        right.append(tuple(check is not None and check(task, text) for text in row))
    pairs = [(value, task) for task, row in enumerate(behaved) for value in row if not np.isnan(value)]
    if not pairs:
        return Measured(name, Interval(np.nan, 0.0, 1.0, 0, 0.95), tuple(behaved), tuple(right))
    values, clusters = zip(*pairs, strict=True)
    return Measured(name, rate(list(values), list(clusters)), tuple(behaved), tuple(right))


def _shares(found: Measured) -> list[float]:
    rows = [[value for value in row if not np.isnan(value)] for row in found.behaved]
    return [float(np.mean(row)) if row else float("nan") for row in rows]


def _of_control(table: np.ndarray, control: Measured) -> float:
    """A control's recovery on the tasks it was run on, the first ones."""
    shares = np.array(_shares(control))
    own = np.column_stack([table[: len(shares), :3], shares])
    own = own[~np.isnan(own).any(1)]
    return _recovery(own) if len(own) else float("nan")


def _recovery(x: np.ndarray) -> float:
    override = float((x[:, 2] - x[:, 1]).mean())
    return float((x[:, 2] - x[:, 3]).mean()) / override if override else float("nan")
