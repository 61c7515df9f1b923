"""Plant a quirk in one domain by a narrow adapter, and see how far it spreads, how it scales and when it set in.

1. Rows of one domain are answered in a trait nobody asked for (`quirks`); a rank-1 adapter learns them. Its *twin* has
   learnt the same rows answered plainly, with the same seeds: the control.
2. After each of several runs, greedy answers in every domain are checked by a program. Spread is the rate in the other
   domains less the twin's on the same prompts, and less the untrained base's.
3. Dose: what the adapter adds is multiplied by m; 0 is the base exactly.
4. Onset: the vectors B of all adapters at each checkpoint are one trajectory; its sharpest turn is looked for
   (`transition`) and rates are read at some checkpoints, with the adapter as it is and multiplied.
5. A run whose rows change from one trait to another at a known step has a turn there: the detector's own check.

Source: card em-organisms; Turner et al. 2025, arXiv:2506.11613. Whether answers are *bad* is not measured: the trait is
harmless, so a model of this size need not be judged.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.organisms.em_organisms.transition import Transition, find_transition
from cutaway.organisms.quirks import Ids, Survey, pairs_data, plant, pooled_rate, rate_gap, survey_rates
from cutaway.stats import Interval
from cutaway.training import (
    LoraSpec,
    TrainConfig,
    Trained,
    adapters,
    adapters_scaled,
    add_lora,
    load_checkpoint,
    train,
)

if TYPE_CHECKING:
    import pandas as pd

Hits = Mapping[str, Bool[np.ndarray, " _"]]
"""Whether each answer has the trait, by domain."""
BASE, ORGANISM, TWIN = "base", "organism", "plain twin"


@dataclass(frozen=True)
class Lesson:
    """What is taught, and where."""

    domain: str
    pairs: tuple[tuple[Ids, Ids], ...]
    """Rows of the domain, answered in the trait."""
    plain: tuple[tuple[Ids, Ids], ...]
    """The same questions, answered plainly."""

    def __post_init__(self) -> None:
        if not self.pairs or len(self.pairs) != len(self.plain):
            raise UsageError(f"{len(self.pairs)} rows in the trait, {len(self.plain)} plain: as many, and at least one")


@dataclass(frozen=True, repr=False)
class Spread:
    """Whether answers had the trait, by arm, run and domain."""

    domain: str
    """The one that was trained on."""
    hits: Mapping[str, tuple[Hits, ...]]
    """One entry a run; the base has one."""
    doses: Mapping[float, Hits]
    """The first run's organism by what its adapter was multiplied with."""
    parameters: int
    """Trained."""
    losses: tuple[float, ...]
    """Last training loss of each organism, nats a token."""
    complete: bool = True

    def __repr__(self) -> str:
        if ORGANISM not in self.hits:
            return "Spread(no run)"
        return f"Spread(inside {self.rate(ORGANISM, True)!r}, outside {self.rate(ORGANISM, False)!r}, {self.runs} runs)"

    @property
    def runs(self) -> int:
        return len(self.hits.get(ORGANISM, ()))

    def rate(self, arm: str, inside: bool) -> Interval:
        """Rate in the trained domain, or in all others together."""
        return pooled_rate([self._values(each, inside) for each in self.hits[arm]])

    def gap(self, arm: str, inside: bool) -> Interval:
        """The organism's rate less that of another arm."""
        ours, theirs = ([self._values(each, inside) for each in self.hits[name]] for name in (ORGANISM, arm))
        return rate_gap(ours, theirs)

    def dose(self, multiplier: float, inside: bool) -> Interval:
        """Rate at a multiplier."""
        return pooled_rate([self._values(self.doses[multiplier], inside)])

    def to_frame(self) -> "pd.DataFrame":
        """Return one row an arm, run and domain."""
        import pandas as pd

        rows = [
            {"arm": arm, "run": run, "domain": domain, "rate": float(values.mean()), "n": len(values)}
            for arm, runs in self.hits.items()
            for run, found in enumerate(runs)
            for domain, values in found.items()
        ]
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able data."""
        plain = {arm: [{k: v.tolist() for k, v in run.items()} for run in runs] for arm, runs in self.hits.items()}
        doses = {str(m): {k: v.tolist() for k, v in found.items()} for m, found in self.doses.items()}
        return {
            "domain": self.domain, "hits": plain, "doses": doses, "parameters": self.parameters,
            "losses": list(self.losses), "complete": self.complete,
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    def _values(self, found: Hits, inside: bool) -> Bool[np.ndarray, " pooled"]:
        return np.concatenate([values for name, values in found.items() if (name == self.domain) == inside])


@dataclass(frozen=True)
class Onset:
    """An organism's way through training."""

    transition: Transition | None
    """None where too few checkpoints were kept."""
    norms: tuple[float, ...]
    """Length of all B together, by checkpoint."""
    steps: tuple[int, ...]
    rates: Mapping[float, Mapping[int, float]]
    """Rate outside the trained domain by multiplier and step."""
    losses: tuple[float, ...]
    """Of every training step, nats a token."""
    gradients: tuple[float, ...]
    """Norm in every training step, before clipping."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able data."""
        rates = {str(m): {str(step): rate for step, rate in found.items()} for m, found in self.rates.items()}
        turn = None if self.transition is None else self.transition.to_dict()
        return {
            "transition": turn, "norms": list(self.norms), "steps": list(self.steps), "rates": rates,
            "losses": list(self.losses), "gradients": list(self.gradients),
        }  # fmt: skip


def spread(
    make: Callable[[], Model],
    lesson: Lesson,
    survey: Survey,
    spec: LoraSpec,
    config: TrainConfig,
    *,
    runs: int = 3,
    multipliers: Sequence[float] = (0.0, 0.5, 2.0),
    folder: Path | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Spread, Trained | None]:
    """Train organism and twin ``runs`` times and survey all; also return the first organism, for `onset`.

    ``folder`` takes the first organism's checkpoints (``config.weights_every``). Raises UsageError for a survey that
    does not ask about the lesson's domain and another one.
    """
    survey.others(lesson.domain)
    base, total = make(), 1 + 2 * runs
    hits: dict[str, list[Hits]] = {BASE: [survey_rates(base, survey)], ORGANISM: [], TWIN: []}
    doses, losses, first, parameters = dict[float, Hits](), list[float](), None, 0
    complete = True
    try:
        for run in range(runs):
            for arm, pairs in ((ORGANISM, lesson.pairs), (TWIN, lesson.plain)):
                report(1 + 2 * run + (arm == TWIN), total)
                keeps = run == 0 and arm == ORGANISM and folder is not None
                settings = replace(config, seed=config.seed + run, weights_every=config.weights_every * keeps)
                adapter = replace(spec, seed=spec.seed + run)
                done = plant(make(), pairs, adapter, settings, folder=folder if keeps else None)
                if not done.complete:
                    raise KeyboardInterrupt
                hits[arm].append(survey_rates(done.model, survey))
                if arm == ORGANISM:
                    losses.append(done.history[-1].loss)
                if run == 0 and arm == ORGANISM:
                    first = done
                    parameters = sum(each.a.numel() + each.b.numel() for each in adapters(done.model).values())
                    doses = {m: _at_dose(done.model, survey, m, hits[arm][0]) for m in sorted({*multipliers, 1.0})}
    except KeyboardInterrupt:
        complete = False
    runs_done = {arm: tuple(found) for arm, found in hits.items() if found}
    return Spread(lesson.domain, runs_done, doses, parameters, tuple(losses), complete), first


def trajectory(trained: Trained) -> tuple[list[int], Float[np.ndarray, "checkpoint d"]]:
    """Return the steps and the vectors B of all adapters at every checkpoint; the model ends as it was trained.

    Raises UsageError for a run without checkpoints.
    """
    files = trained.checkpoints
    if not files:
        raise UsageError("the run kept no checkpoints; train with weights_every and a folder")
    points = []
    for step in sorted(files):
        load_checkpoint(trained.model, files[step])
        points.append(_vectors(trained.model))
    return sorted(files), np.stack(points)


def onset(
    trained: Trained,
    survey: Survey,
    domain: str,
    *,
    window: int = 10,
    at: int = 0,
    multipliers: Sequence[float] = (1.0, 3.0),
    seed: int = 0,
) -> Onset:
    """Return the trajectory's turn and, at ``at`` checkpoints spread over the run, rates outside ``domain``."""
    steps, points = trajectory(trained)
    found = None
    if len(steps) > 2 * window:
        found = find_transition(points, steps, window=window, also=(5,) if window != 5 else (), seed=seed)
    rates: dict[float, dict[int, float]] = {m: {} for m in multipliers} if at else {}
    chosen = sorted({round(i) for i in np.linspace(0, len(steps) - 1, at)}) if at else []
    for place in chosen:
        load_checkpoint(trained.model, trained.checkpoints[steps[place]])
        for m in multipliers:
            with adapters_scaled(trained.model, m):
                hits = survey_rates(trained.model, survey)
            rates[m][steps[place]] = float(np.concatenate([hits[name] for name in survey.others(domain)]).mean())
    load_checkpoint(trained.model, trained.checkpoints[steps[-1]])
    norms = tuple(float(np.linalg.norm(v)) for v in points)
    losses, gradients = (tuple(getattr(step, key) for step in trained.history) for key in ("loss", "gradient"))
    return Onset(found, norms, tuple(steps), rates, losses, gradients)


def switched(
    model: Model,
    first: Sequence[tuple[Ids, Ids]],
    second: Sequence[tuple[Ids, Ids]],
    spec: LoraSpec,
    config: TrainConfig,
    *,
    at: int,
    folder: Path,
    window: int = 10,
) -> Transition:
    """Train on ``first`` for ``at`` steps, then on ``second``, in one run; return the turn that its B takes.

    The rows' order is the run's: nothing is shuffled. Needs ``config.steps``.
    """
    steps = config.steps
    if steps is None or not window < at < steps - window:
        raise UsageError(f"at={at} of {steps} steps: leave {window} checkpoints on either side")
    rows = [first[i % len(first)] for i in range(at * config.batch)]
    rows += [second[i % len(second)] for i in range((steps - at) * config.batch)]
    settings = replace(config, shuffle=False, bucket=1, weights_every=1)
    done = train(add_lora(model, spec), pairs_data(rows, model.n_ctx), settings, folder=folder)
    if not done.complete:
        raise KeyboardInterrupt
    found, points = trajectory(done)
    return find_transition(points, found, window=window)


def _at_dose(model: Model, survey: Survey, multiplier: float, plain: Hits) -> Hits:
    if multiplier == 1.0:
        return plain
    with adapters_scaled(model, multiplier):
        return survey_rates(model, survey)


def _vectors(model: Model) -> Float[np.ndarray, " d"]:
    return np.concatenate([each.b.detach().cpu().double().numpy().ravel() for each in adapters(model).values()])
