"""One training loop for Hugging Face and PEFT models.

A step:
1. Random numbers are seeded by (seed, step): a run that resumes, and a twin that draws more of them, see the same.
2. Each of ``accumulate`` micro-batches goes forward, edits in place, and its loss *sum* backward.
3. Gradients are divided by the weight of all micro-batches together, measured and clipped.
4. The optimiser steps; moving averages follow; every n-th step weights or the whole state are written.

Processes of one Accelerate launch share the micro-batches of each step and sum their gradients; the main one writes.
Between steps probes look at the model, in eval mode, with edits taken off unless ``keep_edits``. Ctrl-C ends the run
with what was learnt. Source: note on the training core.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import CutawayError, UsageError
from cutaway.model import Edit, Model
from cutaway.model.load import native_bf16
from cutaway.training.checkpoint import (
    STATE,
    Provenance,
    check_form,
    check_same,
    checkpoints,
    read,
    versions,
    write,
)
from cutaway.training.config import TrainConfig
from cutaway.training.data import Data, collate, order
from cutaway.training.lora import base_fingerprint
from cutaway.training.objectives import NextToken, Objective
from cutaway.training.trained import Probed, Step, Trained
from cutaway.training.weights import Average, put, trainable

if TYPE_CHECKING:
    from accelerate import Accelerator

Probe = Callable[[Model], Mapping[str, float]]
"""Looks at the model between steps; what it draws or differentiates leaves no trace."""


def train(
    model: Model,
    data: Data,
    config: TrainConfig | None = None,
    *,
    objective: Objective | None = None,
    edits: Sequence[Edit] = (),
    keep_edits: bool = False,
    tensors: Mapping[str, Tensor] | None = None,
    averages: Sequence[Average] = (),
    probes: Mapping[str, Probe] | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    accelerator: "Accelerator | None" = None,
    tick: Callable[[Step], None] = lambda step: None,
) -> Trained:
    """Train the model's trainable weights, in place, and ``tensors`` (a head, an edit's vector) with them.

    ``edits`` are in every forward of a step; with ``keep_edits`` in the probes' too. ``folder`` receives checkpoints;
    ``resume`` goes on from its state, if it has one, bit for bit on a CPU. ``accelerator``: this process's, in a launch
    of several, each with the same model; ``accumulate`` counts the micro-batches of all together.

    >>> train(add_lora(model, LoraSpec(layers=(15,))), data, TrainConfig(steps=100))  # doctest: +SKIP
    Trained(100 steps, loss 2.310 -> 0.842, 24,110 tokens, 61 s)

    Raises UsageError for nothing to train, rows beyond the model's context, edits that do not fit, a folder in use,
    settings that are not the resumed run's; CutawayError for a state of other weights (before any step is taken) and
    for a loss that is not finite.
    """
    config, objective = config or TrainConfig(), objective or NextToken()
    if (config.weights_every or config.state_every or resume) and folder is None:
        raise UsageError("checkpoints and resume need a folder")
    run = _Run(model, data, config, objective, edits, keep_edits, trainable(model, tensors), averages)
    run.folder = None if folder is None else Path(folder)
    run.own = frozenset(tensors or ())
    run.accelerator = accelerator
    if accelerator is not None and accelerator.num_processes > config.accumulate:
        raise UsageError(f"accumulate={config.accumulate}: {accelerator.num_processes} processes need as many or more")
    if run.folder is not None:
        run.folder.mkdir(parents=True, exist_ok=True)
        if resume and (run.folder / STATE).exists():
            run.restore(run.folder / STATE)
        elif (run.folder / STATE).exists() or checkpoints(run.folder):
            raise UsageError(f"{run.folder.name} holds a run already; resume it where it has a state, or give another")
    complete = True
    try:
        with _training(model):
            run.go(probes or {}, tick)
    except KeyboardInterrupt:
        complete = False
    if run.folder is not None and run.writes:
        with _undisturbed():
            run.store()
    return run.result(complete)


class _Run:
    """A run as it stands after ``done`` steps."""

    def __init__(
        self,
        model: Model,
        data: Data,
        config: TrainConfig,
        objective: Objective,
        edits: Sequence[Edit],
        keep_edits: bool,
        weights: dict[str, Tensor],
        averages: Sequence[Average],
    ) -> None:
        _check(model, data, averages)
        self.model, self.data, self.config, self.objective = model, data, config, objective
        self.edits, self.keep_edits, self.weights = tuple(edits), keep_edits, weights
        self.averages = {average.name: average for average in averages}
        self.shadows = {name: _copies(weights) for name in self.averages}
        self.steps = config.steps_of(data)
        self.optimizer = _optimizer(weights, config)
        self.done, self.seconds = 0, 0.0
        self.history: list[Step] = []
        self.probed: list[Probed] = []
        self.folder: Path | None = None
        self.own: frozenset[str] = frozenset()
        self.accelerator: Accelerator | None = None
        self.bf16 = config.precision == "bfloat16" or (config.precision == "auto" and native_bf16(model.device))
        self._epoch: tuple[int, list[list[int]]] = (-1, [])
        self.provenance = self._provenance()

    def go(self, probes: Mapping[str, Probe], tick: Callable[[Step], None]) -> None:
        """Take all steps that are left, with probes between them."""
        every = self.config.probe_every or self.steps
        if self.done >= self.steps and (not probes or self._has_probed()):
            return
        edited = self.model.edited(*self.edits) if self.edits else nullcontext()
        with edited if self.keep_edits else nullcontext():
            if self.done % every == 0 or self.done == self.steps:
                self._probe(probes)
            while self.done < self.steps:
                stop = min(self.steps, (self.done // every + 1) * every)
                with self._edits_between_probes():
                    while self.done < stop:
                        self._step(tick)
                self._probe(probes)

    def _edits_between_probes(self) -> Any:
        return self.model.edited(*self.edits) if self.edits and not self.keep_edits else nullcontext()

    def _step(self, tick: Callable[[Step], None]) -> None:
        started, config = time.perf_counter(), self.config
        torch.manual_seed(int(np.random.SeedSequence((config.seed, self.done)).generate_state(1)[0]))
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {"total": 0.0, "weight": 0.0, "tokens": 0.0}
        for place in self._own_share():
            batch = collate(self.data, self._places(self.done * config.accumulate + place), self.model)
            with torch.autocast(self.model.device.type, torch.bfloat16) if self.bf16 else nullcontext():
                loss = self.objective(self.model, batch)
            loss.total.backward()
            seen = {
                "total": loss.total.detach(),
                "weight": loss.weight,
                "tokens": batch.tokens.mask.sum(),
                **loss.terms,
            }
            for name, value in seen.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        total, weight, tokens, *_ = self._together(sums).values()
        rate = config.rate_at(self.done, self.steps)
        if not (math.isfinite(total) and weight > 0):
            raise CutawayError(f"step {self.done}: the loss is {total} over weight {weight}; lower the rate ({rate:g})")
        norm = self._clipped(weight)
        with _undisturbed():
            self._update(rate)
            self.seconds += time.perf_counter() - started
            left = self.seconds / self.done * (self.steps - self.done)
            means = {name: value / weight for name, value in list(sums.items())[3:]}
            self.history.append(Step(self.done, total / weight, means, int(tokens), norm, rate, self.seconds, left))
        self._write()
        tick(self.history[-1])

    @property
    def writes(self) -> bool:
        """Whether this process writes checkpoints."""
        return self.accelerator is None or self.accelerator.is_main_process

    def _own_share(self) -> range:
        """Return which of a step's micro-batches this process takes."""
        if self.accelerator is None:
            return range(self.config.accumulate)
        return range(self.accelerator.process_index, self.config.accumulate, self.accelerator.num_processes)

    def _together(self, sums: dict[str, float]) -> dict[str, float]:
        """Sum this step's gradients and ``sums`` over all processes."""
        if self.accelerator is None:
            return sums
        for tensor in self.weights.values():
            if tensor.grad is not None:
                tensor.grad = self.accelerator.reduce(tensor.grad, "sum")
        pooled = self.accelerator.reduce(torch.tensor(list(sums.values()), device=self.model.device), "sum")
        sums.update(zip(sums, pooled.tolist(), strict=True))
        return sums

    def _clipped(self, weight: float) -> float:
        """Turn gradients of the sum into those of the mean, clip them; return their norm before clipping."""
        gradients = [tensor.grad for tensor in self.weights.values() if tensor.grad is not None]
        if not gradients:
            raise UsageError("the loss does not depend on any trained weight")
        torch._foreach_div_(gradients, weight)
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if self.config.clip is not None and norm > self.config.clip:
            torch._foreach_mul_(gradients, self.config.clip / (norm + 1e-6))
        return norm

    def _update(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.done += 1
        for name, average in self.averages.items():
            average.update(self.shadows[name], self.weights, self.done)

    def _places(self, number: int) -> list[int]:
        """Return the examples of a micro-batch, counted from the run's start: epochs follow one another."""
        config, each = self.config, math.ceil(len(self.data) / self.config.batch)
        epoch = number // each
        if self._epoch[0] != epoch:
            rest: Any = {"seed": config.seed, "bucket": config.bucket, "shuffle": config.shuffle}
            self._epoch = epoch, order(self.data, size=config.batch, epoch=epoch, **rest)
        return self._epoch[1][number % each]

    def _probe(self, probes: Mapping[str, Probe]) -> None:
        if not probes or self._has_probed():
            return
        self.model.hf.eval()
        values = {
            f"{name}.{key}": float(value) for name, probe in probes.items() for key, value in probe(self.model).items()
        }
        self.probed.append(Probed(self.done, values))
        self.optimizer.zero_grad(set_to_none=True)
        self.model.hf.train()

    def _has_probed(self) -> bool:
        return any(each.step == self.done for each in self.probed)

    def _write(self) -> None:
        config = self.config
        if not self.writes:
            return
        if config.weights_every and self.done % config.weights_every == 0:
            assert self.folder is not None
            header = {"step": self.done, "provenance": self.provenance.to_dict(), "tensors": sorted(self.own)}
            write(self.folder / f"step-{self.done:06d}.safetensors", _named("weight", self.weights), header)
        if config.state_every and self.done % config.state_every == 0:
            self.store()

    def store(self) -> None:
        """Write all that is needed to go on."""
        assert self.folder is not None
        held = _named("weight", self.weights)
        for name, shadow in self.shadows.items():
            held |= _named(f"average.{name}", shadow)
        for name, tensor in self.weights.items():
            for key, value in self.optimizer.state.get(tensor, {}).items():
                held[f"optimizer.{key}.{name}"] = value
        header = {
            "step": self.done,
            "seconds": self.seconds,
            "provenance": self.provenance.to_dict(),
            "tensors": sorted(self.own),
            "history": [asdict(step) for step in self.history],
            "probed": [asdict(probed) for probed in self.probed],
        }
        write(self.folder / STATE, held, header)

    def restore(self, path: Path) -> None:
        """Go back to a stored state; nothing is changed where it is of other weights or another run."""
        held, header = read(path)
        check_same(header["provenance"], self.provenance)
        parts = {name: _under(f"average.{name}.", held) for name in self.averages}
        weights = _under("weight.", held)
        for what, found in {"weights": weights, **parts}.items():
            check_form(self.weights, found, f"{path.name} ({what})")
        put(self.weights, weights)
        for name, shadow in self.shadows.items():
            put(shadow, parts[name])
        for name, tensor in self.weights.items():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if (value := held.get(f"optimizer.{key}.{name}")) is not None:
                    self.optimizer.state[tensor][key] = value.to(tensor.device)
        self.done, self.seconds = int(header["step"]), float(header["seconds"])
        self.history = [Step(**step) for step in header["history"]]
        self.probed = [Probed(**probed) for probed in header["probed"]]

    def result(self, complete: bool) -> Trained:
        """Return the run as a result."""
        return Trained(
            self.model, tuple(self.history), tuple(self.probed), self.shadows, self.provenance, self.folder, complete
        )

    def _provenance(self) -> Provenance:
        adapter = getattr(self.model.hf, "peft_config", {}).get("default")
        fields = ("r", "lora_alpha", "use_rslora", "target_modules")
        return Provenance(
            base=base_fingerprint(self.model),
            data=self.data.digest,
            config=asdict(self.config),
            objective=self.objective.to_dict(),
            edits=tuple(edit.to_dict() for edit in self.edits),
            averages=tuple(self.averages),
            adapter=None if adapter is None else {name: _sorted(getattr(adapter, name)) for name in fields},
            trained={name: list(weight.shape) for name, weight in self.weights.items()},
            versions=versions(),
        )


@contextmanager
def _training(model: Model) -> Iterator[None]:
    """Train mode and a random state of its own inside the block."""
    devices = [model.device] if model.device.type == "cuda" else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.enable_grad())
        stack.callback(model.hf.eval)
        model.hf.train()
        yield


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends, so that no update is left half done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def _optimizer(weights: Mapping[str, Tensor], config: TrainConfig) -> torch.optim.Optimizer:
    groups = [
        {"params": [w for w in weights.values() if w.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [w for w in weights.values() if w.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.rate)
    return torch.optim.AdamW(groups, lr=config.rate, betas=config.betas, eps=config.eps, fused=True)


def _check(model: Model, data: Data, averages: Sequence[Average]) -> None:
    longest = max(len(row.ids) for example in data.examples for row in example)
    if longest > model.n_ctx:
        raise UsageError(
            f"a row of {longest} tokens: {model.name!r} reads {model.n_ctx}; make the data with that context"
        )
    names = [average.name for average in averages]
    if len(set(names)) < len(names) or sum(average.mode == "feedback" for average in averages) > 1:
        raise UsageError("averages: each once, and one with feedback at most")


def _copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach().float().clone() for name, weight in weights.items()}


def _named(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": weight for name, weight in weights.items()}


def _under(prefix: str, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}


def _sorted(value: object) -> object:
    return sorted(value) if isinstance(value, set | list) else value
