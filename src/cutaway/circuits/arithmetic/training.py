"""Train an arithmetic model: fresh random questions every step, loss over the answer tokens only.

1. Batch t is drawn from ``(seed, t)``, so a resumed run sees the same questions as one that never stopped.
2. Loss: mean negative log-probability of the answer tokens, log-softmax in float64. AdamW on every parameter.
3. The loss of every digit is also split into three disjoint sets of questions: nothing arrives in the column, a
   carry (or borrow) arrives, one arrives and is passed on.
4. Every ``save_every`` steps, and on Ctrl-C, weights, optimizer and curves go into one safetensors file.

Limits: one machine, one device, no mixed precision.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from cutaway.circuits.arithmetic import models
from cutaway.circuits.arithmetic.questions import SETS, Questions, training_batch
from cutaway.circuits.arithmetic.recipes import Recipe
from cutaway.errors import CutawayError, UsageError
from cutaway.model import Model

BIN = 50
"""Steps whose losses are pooled into one point of the per-sub-task curves."""
ALPHA, LAMBDA = 0.98, 2.0
"""Grokfast: decay of the averaged gradient, and how much of it is added."""

Report = Callable[[int, int, float], None]
"""Called with steps done, steps in all, latest loss."""


@dataclass(frozen=True)
class Curves:
    """Loss while training."""

    loss: Float[np.ndarray, " step"]
    """Mean over all answer tokens of the batch, in nats."""
    total: Float[np.ndarray, "bin set digit"]
    """Summed loss of answer digit ``digit`` over the cells of each of `SETS`, `BIN` steps a bin."""
    count: Int[np.ndarray, "bin set digit"]
    """Cells; the three sets add up to steps * batch in every bin and digit."""

    @property
    def mean(self) -> Float[np.ndarray, "bin set digit"]:
        """Mean loss in nats; nan where a set was empty."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.count > 0, self.total / self.count, np.nan)


@dataclass(frozen=True)
class Trained:
    """A trained model with its recipe and curves."""

    model: Model
    recipe: Recipe
    curves: Curves
    seconds: float
    complete: bool = True
    """False when Ctrl-C ended the training early."""

    def __repr__(self) -> str:
        steps = len(self.curves.loss)
        last = float(self.curves.loss[-100:].mean()) if steps else math.nan
        return f"Trained({self.recipe.name!r}, {steps} of {self.recipe.steps} steps, last loss {last:.2g})"

    def to_dict(self) -> dict[str, Any]:
        """Recipe, curves and hashes as plain JSON types."""
        mean = self.curves.mean
        return {
            "recipe": self.recipe.to_dict(),
            "recipe_sha256": self.recipe.digest,
            "weights_sha256": self.model.fingerprint,
            "steps": len(self.curves.loss),
            "seconds": round(self.seconds, 1),
            "complete": self.complete,
            "loss": [float(x) for x in _pooled(self.curves.loss)],
            "sets": list(SETS),
            "set_loss": np.where(np.isnan(mean), -1.0, mean).round(6).tolist(),
        }

    def save(self, folder: Path) -> None:
        """Write the model's folder and ``training.json`` beside it."""
        models.save(self.model, folder)
        (folder / "training.json").write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")


@dataclass
class _Run:
    """Everything that changes while training."""

    model: Model
    optimizer: torch.optim.AdamW
    recipe: Recipe
    step: int = 0
    seconds: float = 0.0
    loss: list[float] = field(default_factory=list)
    total: list[np.ndarray] = field(default_factory=list)
    count: list[np.ndarray] = field(default_factory=list)
    slow: list[Tensor] | None = None
    """Averaged gradients (Grokfast)."""

    @property
    def parameters(self) -> list[Tensor]:
        return [parameter for _, parameter in sorted(self.model.hf.named_parameters())]


def train(
    recipe: Recipe,
    *,
    parent: Model | None = None,
    device: str = "auto",
    checkpoint: Path | None = None,
    save_every: int = 500,
    report: Report = lambda done, total, loss: None,
) -> Trained:
    """Train a model; ``checkpoint`` is a safetensors file to go on from (when it exists) and to write to.

    An inserted recipe needs its ``parent``, an addition model of the same width and heads. Ctrl-C returns what is
    trained so far with ``complete=False``. CutawayError for a checkpoint that is damaged or of another recipe.
    """
    if bool(recipe.insert) != (parent is not None):
        raise UsageError(f"{recipe.name}: insert={recipe.insert} {'needs' if recipe.insert else 'takes no'} parent")
    run = _start(recipe, device)
    if checkpoint is not None and checkpoint.is_file():
        _restore(run, checkpoint)
    elif parent is not None:
        _insert(run.model, parent, attention=True, mlps=True, ends=True)
    complete = True
    run.model.hf.train()
    try:
        while run.step < recipe.steps:
            _take(run, parent)
            if run.step % BIN == 0:
                report(run.step, recipe.steps, run.loss[-1])
            if checkpoint is not None and run.step % save_every == 0:
                _store(run, checkpoint)
    except KeyboardInterrupt:
        complete = False
    run.model.hf.eval()
    if checkpoint is not None:
        _store(run, checkpoint)
    return Trained(run.model, recipe, _curves(run), run.seconds, complete)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Learning rate of a step: linear warm-up, then constant or cosine to zero."""
    if step < recipe.warmup:
        share = recipe.warmup_from + (1 - recipe.warmup_from) * (step + 1) / recipe.warmup
        return recipe.lr * min(share, 1.0)
    if not recipe.cosine:
        return recipe.lr
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))


def batch_of(recipe: Recipe, step: int) -> Questions:
    """The questions of one step."""
    rng = np.random.default_rng((recipe.seed, step))
    minus: bool | float = recipe.operation == "sub"
    if recipe.operation == "mix":
        minus = recipe.subtractions if recipe.grokfast else bool(rng.random() < recipe.subtractions)
    return training_batch(
        recipe.format,
        recipe.batch,
        rng,
        minus=minus,
        batches=recipe.enriched_batches,
        cells=recipe.enriched_cells,
    )


def _start(recipe: Recipe, device: str) -> _Run:
    model = models.build(recipe, device)
    parameters = [parameter for _, parameter in sorted(model.hf.named_parameters())]
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, betas=recipe.betas, fused=True
    )
    return _Run(model, optimizer, recipe)


def _take(run: _Run, parent: Model | None) -> None:
    started, recipe, form = time.monotonic(), run.recipe, run.recipe.format
    questions = batch_of(recipe, run.step)
    ids = models.rows(run.model, questions)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(recipe, run.step)
    losses = models.token_loss(models.answer_logits(run.model.hf, ids, form), ids[:, form.equals + 1 :])
    loss = losses.mean()
    run.optimizer.zero_grad()
    loss.backward()
    if recipe.grokfast:
        _add_slow(run)
    run.optimizer.step()
    run.step += 1
    if parent is not None and recipe.insert > 1 and (recipe.insert == 4 or run.step % 100 == 0):
        _insert(run.model, parent, attention=True, mlps=recipe.insert > 2, ends=False)
    run.loss.append(float(loss.detach()))
    _split(run, questions, losses.detach().cpu().numpy())
    run.seconds += time.monotonic() - started


def _add_slow(run: _Run) -> None:
    gradients = [parameter.grad for parameter in run.parameters]
    if run.slow is None:
        run.slow = [gradient.clone() for gradient in gradients if gradient is not None]
    for gradient, slow in zip(gradients, run.slow, strict=True):
        if gradient is not None:
            slow.mul_(ALPHA).add_(gradient, alpha=1 - ALPHA)
            gradient.add_(slow, alpha=LAMBDA)


def _split(run: _Run, questions: Questions, losses: np.ndarray) -> None:
    """Add the batch's cells to the curve's last bin: answer digit i belongs to column i."""
    digits = questions.format.digits
    cells = losses[:, ::-1][:, :digits]
    which = questions.columns.sets
    if (run.step - 1) % BIN == 0:
        run.total.append(np.zeros((len(SETS), digits)))
        run.count.append(np.zeros((len(SETS), digits), dtype=np.int64))
    for place in range(len(SETS)):
        run.total[-1][place] += (cells * (which == place)).sum(axis=0)
        run.count[-1][place] += (which == place).sum(axis=0)


def _insert(model: Model, parent: Model, *, attention: bool, mlps: bool, ends: bool) -> None:
    """Copy a parent's blocks into the first blocks of ``model``, and with ``ends`` its embeddings and final norm."""
    if (parent.d_model, parent.n_heads, parent.vocab_size) != (model.d_model, model.n_heads, model.vocab_size):
        raise UsageError(
            f"parent {parent.name!r} has width {parent.d_model}, {parent.n_heads} heads, {parent.vocab_size} tokens;"
            f" the model {model.d_model}, {model.n_heads}, {model.vocab_size}: they must be equal"
        )
    if parent.n_layers > model.n_layers or parent.n_ctx != model.n_ctx:
        raise UsageError(f"parent {parent.name!r} is deeper than the model, or has another number of digits")
    own, other = model.hf.state_dict(), parent.hf.state_dict()
    for name, value in other.items():
        block = ".h." in name
        inside = ("attn" in name or "ln_1" in name) if attention else False
        inside = inside or (mlps and ("mlp" in name or "ln_2" in name))
        if (block and inside) or (ends and not block):
            own[name].copy_(value)


def _curves(run: _Run) -> Curves:
    digits = run.recipe.digits
    total = np.array(run.total).reshape(-1, len(SETS), digits)
    count = np.array(run.count, dtype=np.int64).reshape(-1, len(SETS), digits)
    return Curves(np.array(run.loss, dtype=np.float64), total, count)


def _pooled(loss: np.ndarray) -> np.ndarray:
    return np.array([loss[i : i + BIN].mean() for i in range(0, len(loss), BIN)])


def _store(run: _Run, path: Path) -> None:
    state = {f"weight.{i}": p.detach().cpu().numpy() for i, p in enumerate(run.parameters)}
    for i, parameter in enumerate(run.parameters):
        for key in ("exp_avg", "exp_avg_sq"):
            if parameter in run.optimizer.state:
                state[f"{key}.{i}"] = run.optimizer.state[parameter][key].cpu().numpy()
    for i, slow in enumerate(run.slow or ()):
        state[f"slow.{i}"] = slow.cpu().numpy()
    curves = _curves(run)
    state |= {"loss": curves.loss, "total": curves.total, "count": curves.count}
    meta = {"step": str(run.step), "seconds": str(run.seconds), "recipe": run.recipe.digest}
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, fresh, metadata=meta)
    fresh.replace(path)


def _restore(run: _Run, path: Path) -> None:
    try:
        with safe_open(path, framework="np") as file:
            meta = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no dict
    except SafetensorError as error:
        raise CutawayError(f"checkpoint {path.name} is damaged: {error}; delete it to start again") from error
    if meta.get("recipe") != run.recipe.digest:
        raise CutawayError(f"checkpoint {path.name} is of another recipe than {run.recipe.name!r}; give another file")
    run.step, run.seconds = int(meta["step"]), float(meta["seconds"])
    with torch.no_grad():
        for i, parameter in enumerate(run.parameters):
            parameter.copy_(torch.from_numpy(state[f"weight.{i}"]))
            if f"exp_avg.{i}" in state:
                moments = {
                    key: torch.from_numpy(state[f"{key}.{i}"]).to(parameter) for key in ("exp_avg", "exp_avg_sq")
                }
                count = torch.tensor(float(run.step), device=parameter.device)
                run.optimizer.state[parameter] = {"step": count, **moments}
    if "slow.0" in state:
        run.slow = [torch.from_numpy(state[f"slow.{i}"]).to(p) for i, p in enumerate(run.parameters)]
    run.loss, run.total, run.count = state["loss"].tolist(), list(state["total"]), list(state["count"])
