"""Train on facts: bring them back (relearning curves, equal order for every model), or drive them out (baselines)."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.concepts import Fact, fact_rows, rows_data
from cutaway.training import Data, Loss, Objective, RewardWeighted, TrainBatch, TrainConfig, train, unfreeze


def relearning(
    model: Model,
    lessons: Sequence[Fact],
    score: Callable[[Model], float],
    config: TrainConfig,
    *,
    modules: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
) -> tuple[tuple[int, float], ...]:
    """Train a copy on ``lessons`` and return (steps, score), the first at 0 steps: the model as it is.

    Order and random numbers depend on ``config.seed`` alone, so every model sees the same. UsageError for no lessons.
    """
    if not lessons:
        raise UsageError("no lessons to relearn from; give at least one fact")
    pupil = model.copy()
    unfreeze(pupil, modules, layers)
    data = rows_data(pupil, fact_rows(pupil, lessons, wordings=False))
    config = replace(config, bucket=1)
    done = train(pupil, data, config, probes={"facts": lambda now: {"score": score(now)}})
    return tuple((each.step, each.values["facts.score"]) for each in done.probed)


def signed_rows(model: Model, forget: Sequence[Fact], retain: Sequence[Fact]) -> Data:
    """Return facts as rows with reward -1 (forget) and 1 (retain)."""
    if not forget or not retain:
        raise UsageError("give facts to forget and facts to retain")
    rows = [replace(row, reward=-1.0) for row in fact_rows(model, forget)]
    return rows_data(model, rows + fact_rows(model, retain))


def gradient_ascent(
    model: Model,
    forget: Sequence[Fact],
    retain: Sequence[Fact],
    config: TrainConfig,
    *,
    until: Callable[[Model], bool] | None = None,
    layers: Sequence[int] | None = None,
) -> Model:
    """Return a copy whose loss on ``forget`` was driven up and on ``retain`` down; it ends where ``until`` says so.

    ``until`` is asked every ``config.probe_every`` steps. The loss is unbounded: a run without an end destroys a model.
    """
    return _driven(model, forget, retain, config, RewardWeighted(), until, layers)


@dataclass(frozen=True, eq=False)
class Misdirect(Objective):
    """Push hidden states of rows to forget to one vector, keep those of the others (representation misdirection)."""

    reference: Model
    site: str
    vector: Tensor
    """[d_model]"""

    def __call__(self, model: Model, batch: TrainBatch) -> Loss:
        """Return squared distances, as means over a row's positions, summed over rows."""
        states = model.capture(batch.tokens, self.site, special=True)[self.site]
        with torch.no_grad():
            kept = self.reference.capture(batch.tokens, self.site, special=True)[self.site]
        forget = (batch.rewards < 0)[:, None, None]
        goal = torch.where(forget, self.vector.to(states).expand_as(states), kept)
        mask = batch.tokens.mask[..., None]
        each = ((states - goal).square() * mask).sum((1, 2)) / (mask.sum((1, 2)) * states.shape[-1])
        return Loss(each.sum(), torch.tensor(float(len(each))))


def misdirection(
    model: Model,
    forget: Sequence[Fact],
    retain: Sequence[Fact],
    config: TrainConfig,
    *,
    layer: int,
    strength: float = 6.0,
    until: Callable[[Model], bool] | None = None,
) -> Model:
    """Return a copy whose states at ``layer`` go to a random vector of norm ``strength`` sqrt(d) on ``forget``."""
    site = f"resid_post.{layer}"
    generator = torch.Generator().manual_seed(config.seed)
    vector = torch.randn(model.d_model, generator=generator)
    vector = vector / vector.norm() * strength * model.d_model**0.5
    return _driven(model, forget, retain, config, Misdirect(model, site, vector), until, range(layer + 1))


@torch.no_grad()
def projected(model: Model, directions: Tensor, layers: Sequence[int] | None = None) -> Model:
    """Return a copy whose MLPs and attention can no longer write the span of ``directions`` [k d_model]."""
    basis = torch.linalg.qr(directions.double().T)[0].T
    changed = model.copy()
    for layer in range(model.n_layers) if layers is None else layers:
        attn = changed.layout.attn(layer)
        modules = (changed.layout.port("neurons", layer).module, attn.get_submodule(changed.layout.shape.o))
        for module in modules:
            weight = module.weight
            assert isinstance(weight, Tensor)
            rows = weight if type(module).__name__ == "Conv1D" else weight.T
            exact = rows.double()
            rows.copy_((exact - (exact @ basis.T) @ basis).to(rows.dtype))
    return changed


def _driven(
    model: Model,
    forget: Sequence[Fact],
    retain: Sequence[Fact],
    config: TrainConfig,
    objective: Objective,
    until: Callable[[Model], bool] | None,
    layers: Sequence[int] | None,
) -> Model:
    changed = model.copy()
    unfreeze(changed, None, layers)
    data = signed_rows(changed, forget, retain)

    def probe(now: Model) -> dict[str, float]:
        if until is not None and until(now):
            raise _Reached
        return {"going on": 1.0}

    with suppress(_Reached):
        train(changed, data, replace(config, bucket=1), objective=objective, probes={"until": probe})
    changed.hf.requires_grad_(False)
    changed.hf.eval()
    return changed


class _Reached(Exception):  # noqa: N818  it is no error
    """What was wanted is reached; no further step need be taken."""
