"""Fine-tune while chosen directions are taken out of the residual stream, and measure what was learnt instead.

The user gets, on test items where the unwanted rule gives the wrong answer, the accuracy of a model tuned with the
concept removed (`Arms`), beside plain tuning, a random span of the same rank, and removal at test time alone; and how
far the concept came back (`Leak`).

1. A concept is an orthonormal basis Q at a site: found on the base model from a labelled probe set or from components
   of what plain tuning changes (`directions`). No test item is used.
2. Training runs with ``h <- h - Q (Q' h)`` in every forward (a `Project` edit of the core: fp32 basis, differentiable,
   removed again). With ``frozen`` only what lies above the site trains.
3. Evaluation is without the edit. Every arm starts from the same weights and sees the same rows in the same order.
4. Leak: how well a linear probe reads the concept at the site with the edit on, before and after training, and how
   much of the concept's direction, found again after training, lies in Q's span.

Traps: layers below the site re-encode the concept off the removed axis (see the frozen arm), blocks above may rebuild
it; removal at test time alone is a strong baseline. Source: card caft, arXiv:2507.16795.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.finetuning.arms import Arms, gather
from cutaway.finetuning.caft.directions import (
    UNWANTED,
    Concept,
    Selected,
    attributed_latents,
    change_components,
    change_latents,
    concept,
    labelled_direction,
    labels_of,
    last_states,
    random_concept,
    select,
)
from cutaway.finetuning.choice import Choice, accuracy, choice_data
from cutaway.model import Model
from cutaway.model.sites import parse
from cutaway.training import Data, LoraSpec, Step, TrainConfig, Trained, add_lora, train

CONTROLS = ("none", "random", "test only", "test only frozen")
KEPT = {"none": "test only", "ablation": "ablation kept", "re-estimated": "re-estimated kept"}
"""Arms whose model is also tested with the concept, as found in the tuned model, taken out."""
Find = Callable[[Model], Concept]
"""Finds the concept in a model as it is."""


@dataclass(frozen=True)
class Task:
    """Items of one pair of rules."""

    train: tuple[Choice, ...]
    """Both rules agree."""
    probe: tuple[Choice, ...]
    """Rules independent of each other; for finding directions."""
    held: tuple[Choice, ...]
    """As ``probe``; for measuring the leak."""
    tied: tuple[Choice, ...]
    """Test items on which both rules agree."""
    reversed: tuple[Choice, ...]
    """Test items on which they never do; ``right`` is by the wanted rule."""


@dataclass(frozen=True)
class Leak:
    """How far the concept came back."""

    before: float
    """Accuracy of a linear probe for the concept at the site, edit on, before training; 0.5 is chance."""
    after: float
    overlap: float
    """Share, in length, of the direction found again after training that lies in Q's span; 1: it has not moved."""

    def __repr__(self) -> str:
        return f"Leak(probe {self.before:.2f} -> {self.after:.2f}, overlap {self.overlap:.2f})"


@contextmanager
def ablated(model: Model, concepts: Sequence[Concept]) -> Iterator[Model]:
    """Take the concepts out of every forward inside the block; no hook remains after it, raised or not."""
    with model.edited(*[each.edit for each in concepts]):
        yield model


def tune(
    model: Model,
    data: Data,
    config: TrainConfig,
    concepts: Sequence[Concept] = (),
    *,
    above: int | None = None,
    lora: LoraSpec | None = None,
    find: Find | None = None,
    every: int = 0,
    tick: Callable[[Step], None] = lambda step: None,
) -> Trained:
    """Train ``model`` with the ``concepts`` removed; all of it, or what lies ``above`` a layer, or adapters.

    With ``find`` and ``every``, directions are found again every n steps in the model as it then is; each stretch is
    a training of its own, with a fresh optimiser and constant rate. UsageError for both or neither of the two.
    """
    if (find is None) != (every == 0):
        raise UsageError(f"every={every}: give find and every together, to look for directions again")
    model = _opened(model, above, lora)
    if find is None:
        return train(model, data, config, edits=[each.edit for each in concepts], tick=tick)
    steps, history = config.steps_of(data), []
    for start in range(0, steps, every):
        part = replace(
            config, steps=min(every, steps - start), seed=config.seed + start, warm_up=0, schedule="constant"
        )
        trained = train(model, data, part, edits=[(concepts[0] if not start else find(model)).edit], tick=tick)
        history += [replace(step, step=start + step.step) for step in trained.history]
        if not trained.complete:
            break
    return replace(trained, history=tuple(history))


def layer_of(model: Model, site: str) -> int:
    """Return the layer whose block writes a stream site; -1 for the embedding."""
    (found,) = parse(site, model.layout)
    if found.layer is None:
        return -1
    return found.layer - 1 if found.kind == "resid_pre" else found.layer


def readable(model: Model, concepts: Sequence[Concept], probe: Sequence[Choice], held: Sequence[Choice]) -> float:
    """Return how often a linear probe at the first concept's site, edits on, tells the unwanted label on ``held``."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    reader = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, C=0.1))
    with ablated(model, concepts):
        states = [last_states(model, part, concepts[0].site) for part in (probe, held)]
    reader.fit(states[0], labels_of(probe, UNWANTED))
    return float(np.mean(reader.predict(states[1]) == labels_of(held, UNWANTED)))


def overlap(tuned: Model, removed: Concept, probe: Sequence[Choice]) -> float:
    """Return the share, in length, of the concept's direction as it is now that lies in the removed span."""
    again = labelled_direction(tuned, probe, removed.site)
    return float((removed.basis @ again).norm() / again.norm())


def compare(
    make: Callable[[int], Model],
    task: Task,
    find: Find,
    config: TrainConfig,
    *,
    repeats: int = 5,
    every: int = 0,
    also: Mapping[str, Concept] | None = None,
    lora: LoraSpec | None = None,
    report: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> "Comparison":
    """Train every arm ``repeats`` times, each on a fresh model from ``make(repeat)``.

    Repeats differ in the order of rows, the random span and in what ``make`` gives. ``every`` adds the arm that finds
    the direction again every n steps, ``also`` arms that remove other spans. Ctrl-C keeps the repeats that are whole.
    """
    if repeats < 1:
        raise UsageError(f"repeats={repeats}: 1 or more")
    runs, leaks, curves, ranks = [], [], [], []
    complete = True
    try:
        for repeat in range(repeats):
            one = _Repeat(make, task, find, replace(config, seed=config.seed + repeat), lora, repeat)
            run = one.arms(every, also or {}, partial(report, repeat, repeats))
            runs.append(run)
            leaks.append(one.leaks)
            curves.append(one.curves)
            ranks.append(one.concept.rank)
    except KeyboardInterrupt:
        complete = False
    items = {"reversed": len(task.reversed), "tied": len(task.tied)}
    arms = Arms(gather(runs, (*CONTROLS, *(also or {}))), items, complete)
    return Comparison(arms, tuple(leaks), tuple(curves), tuple(ranks), len(task.held))


@dataclass(frozen=True)
class Comparison:
    """All arms of one task."""

    arms: Arms
    """Measures ``reversed`` and ``tied``: accuracy by the wanted rule."""
    leaks: tuple[Mapping[str, Leak], ...]
    """By arm, one a repeat."""
    curves: tuple[Mapping[str, tuple[float, ...]], ...]
    """Training loss by arm, one a repeat."""
    ranks: tuple[int, ...]
    """Effective rank of what was removed, one a repeat."""
    held: int
    """Items behind the leak's accuracies."""

    def __repr__(self) -> str:
        if not self.arms.arms:
            return "Comparison(no whole repeat)"
        return f"Comparison(gain {self.gain()!r} over none, {len(self.ranks)} repeats)"

    def gain(self, arm: str = "ablation") -> Any:
        """Return the difference in reversed accuracy to plain tuning, with its interval."""
        return self.arms.difference(arm, "none", "reversed")

    def to_frame(self) -> Any:
        """Return one row an arm, repeat and measure."""
        return self.arms.to_frame()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able data."""
        leaks = [{arm: asdict(each) for arm, each in run.items()} for run in self.leaks]
        return {
            **self.arms.to_dict(),
            "leaks": leaks,
            "curves": [dict(c) for c in self.curves],
            "ranks": list(self.ranks),
            "held": self.held,
        }


class _Repeat:
    """One repeat: fresh weights for every arm, the same rows in the same order."""

    def __init__(
        self,
        make: Callable[[int], Model],
        task: Task,
        find: Find,
        config: TrainConfig,
        lora: LoraSpec | None,
        repeat: int,
    ) -> None:
        self.make, self.task, self.find, self.config, self.lora, self.repeat = make, task, find, config, lora, repeat
        self.base = make(repeat)
        self.concept = find(self.base)
        self.above = layer_of(self.base, self.concept.site)
        self.data = choice_data(task.train, context=self.base.n_ctx)
        self.told = readable(self.base, [self.concept], task.probe, task.held)
        self.leaks: dict[str, Leak] = {}
        self.curves: dict[str, tuple[float, ...]] = {}

    def arms(self, every: int, also: Mapping[str, Concept], note: Callable[[str], None]) -> dict[str, dict[str, float]]:
        """Return the measures of every arm."""
        noise = random_concept(self.concept, self.config.seed + 1000)
        found = {"before": self._measured(self.base)}
        plan: dict[str, tuple[Concept | None, bool, int]] = {
            "none": (None, False, 0),
            "random": (noise, False, 0),
            "ablation": (self.concept, False, 0),
            "ablation frozen": (self.concept, True, 0),
        }
        plan |= {"re-estimated": (self.concept, False, every)} if every else {}
        plan |= {name: (other, False, 0) for name, other in also.items()}
        for name, (removed, frozen, again) in plan.items():
            note(name)
            tuned = self._tuned(name, removed, frozen, again)
            found[name] = self._measured(tuned)
            if name != "random" and name not in also:
                self._leak(name, tuned)
            if name in KEPT:
                with ablated(tuned, [self.find(tuned)]):
                    found[KEPT[name]] = self._measured(tuned)
        note("test only frozen")
        tuned = self._tuned("test only frozen", None, True, 0)
        with ablated(tuned, [self.concept]):
            found["test only frozen"] = self._measured(tuned)
        return found

    def _tuned(self, name: str, removed: Concept | None, frozen: bool, every: int) -> Model:
        trained = tune(
            self.make(self.repeat),
            self.data,
            self.config,
            [] if removed is None else [removed],
            above=self.above if frozen else None,
            lora=self.lora,
            find=self.find if every else None,
            every=every,
        )
        if not trained.complete:
            raise KeyboardInterrupt
        self.curves[name] = tuple(step.loss for step in trained.history)
        return trained.model

    def _measured(self, model: Model) -> dict[str, float]:
        return {"reversed": accuracy(model, self.task.reversed), "tied": accuracy(model, self.task.tied)}

    def _leak(self, name: str, tuned: Model) -> None:
        after = readable(tuned, [self.concept], self.task.probe, self.task.held)
        self.leaks[name] = Leak(self.told, after, overlap(tuned, self.concept, self.task.probe))


def labelled_concept(task: Task, site: str) -> Find:
    """Return a finder: the difference of class means of the unwanted label on the probe set."""

    def find(model: Model) -> Concept:
        return concept(model, site, labelled_direction(model, task.probe, site, UNWANTED))

    return find


def fixed(removed: Concept) -> Find:
    """Return a finder that gives the same concept for every model."""
    return lambda model: removed


def component_concept(
    base: Model, tuned: Model, task: Task, site: str, k: int = 20, *, at_least: float = 0.3, seed: int = 0
) -> Selected:
    """Return the principal components of what plain tuning changed that tell the unwanted label, with controls.

    Components come from the training prompts, their choice from the probe set.
    """
    candidates = change_components(base, tuned, [each.ids for each in task.train], site, k)
    return select(base, candidates, task.probe, site, at_least=at_least, seed=seed)


def latent_concept(
    model: Model,
    task: Task,
    site: str,
    encode: Callable[[Tensor], Tensor],
    decoder: Float[Tensor, "latent d_model"],
    *,
    tuned: Model | None = None,
    candidates: int = 100,
    at_least: float = 0.3,
    seed: int = 0,
) -> Selected:
    """Return the dictionary latents that tell the unwanted label, among those that matter most, with controls.

    With ``tuned``, candidates are the latents that plain tuning moves most; without, those that decide the answer most.
    """
    ranks = (
        attributed_latents(model, task.probe, site, encode, decoder)
        if tuned is None
        else change_latents(model, tuned, task.train, site, encode).abs()
    )
    best = ranks.topk(min(candidates, len(ranks))).indices
    return select(model, decoder[best], task.probe, site, at_least=at_least, seed=seed)


def _opened(model: Model, above: int | None, lora: LoraSpec | None) -> Model:
    """Make trainable what shall train: adapters, the blocks above a layer with the final norm and head, or all."""
    first = 0 if above is None else above + 1
    if lora is not None:
        wanted = [layer for layer in (lora.layers or range(model.n_layers)) if layer >= first]
        if not wanted:
            raise UsageError(f"no adapter above layer {above}: the site is too late for a frozen trunk with LoRA")
        return add_lora(model, replace(lora, layers=tuple(wanted)))
    model.hf.requires_grad_(True)
    if above is not None:
        model.hf.get_input_embeddings().requires_grad_(False)
        for block in model.layout.blocks[:first]:
            block.requires_grad_(False)
    return model
