"""The CAFT study: one task, every arm, what the trunk re-encodes; calibrated on vectors and a small planted model."""

import json
import time
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from cutaway.finetuning.arms import share
from cutaway.stats import mean_interval
from cutaway.study import Calibration, Finding, Findings, Lab, Progress, Study, StudyConfig, study

if TYPE_CHECKING:
    from cutaway.charts import Chart
    from cutaway.finetuning.caft.directions import Concept
    from cutaway.finetuning.caft.method import Comparison, Find, Task
    from cutaway.model import Model
    from cutaway.training import LoraSpec, TrainConfig


class CaftConfig(StudyConfig):
    model: str = "smollm2-135m-instruct"
    """The model: a name of the catalogue or a directory."""
    dtype: str = "float32"
    """Of the weights; trained weights stay fp32."""
    task: Literal["pronouns", "double"] = "pronouns"
    """Pronouns in a gap, or two questions in one prompt."""
    wanted: str = "agreement"
    """Family of the wanted question, for ``double``."""
    unwanted: str = "sentiment"
    """Family of the unwanted question, for ``double``."""
    site: str = ""
    """Where the concept is removed; empty: after the block at half depth."""
    directions: Literal["labelled", "components"] = "labelled"
    """Difference of class means, or those components of what plain tuning changes that tell the unwanted label."""
    components: int = Field(20, ge=1)
    """Candidates, for ``components``."""
    train: int = Field(240, ge=4)
    """Items to tune on; both rules agree on all of them."""
    probe: int = Field(120, ge=20)
    """Items, rules independent, to find directions; as many again measure the leak."""
    test: int = Field(160, ge=10)
    """Test items with the cue reversed, and as many on which both rules agree."""
    steps: int = Field(60, ge=1)
    """Optimiser steps of each arm."""
    batch: int = Field(8, ge=1)
    """Items in a step."""
    rate: float = Field(5e-4, gt=0, lt=1)
    """Learning rate."""
    rank: int = Field(8, ge=0)
    """Of LoRA on all linear modules; 0: every weight."""
    every: int = Field(0, ge=0)
    """Steps after which an arm looks for the direction again; 0: no such arm."""
    repeats: int = Field(3, ge=1)
    """Times every arm is trained, in another order of rows and with another random span."""
    seed: int = Field(0, ge=0)
    """Of items, orders and random spans."""

    @model_validator(mode="after")
    def _agrees(self) -> "CaftConfig":
        if self.every and self.directions == "components":
            raise ValueError("every: components are found once, against the base model; leave it at 0, or use labelled")
        if self.task == "double" and self.wanted == self.unwanted:
            raise ValueError(f"wanted and unwanted are both {self.wanted!r}; name two families")
        return self


@study
class Caft(Study[CaftConfig]):
    id = "caft"
    title = "Fine-tune with a concept's directions removed, and see which rule was learnt"
    paper = "Casademunt, Juang, Karvonen, Marks, Rajamanoharan, Nanda 2025, arXiv:2507.16795"
    status = "all arms with controls and leakage; calibrated on vectors and a small two-rule model"
    Config = CaftConfig

    def run(self, config: CaftConfig, lab: Lab) -> Findings:
        """Train every arm on fresh weights and report accuracy where the unwanted rule is wrong."""
        from cutaway.finetuning.caft.method import compare
        from cutaway.training import TrainConfig

        model = lab.model(config.model, config.dtype)
        task = _task(config, model)
        settings = TrainConfig(
            rate=config.rate,
            batch=config.batch,
            steps=config.steps,
            warm_up=min(5, config.steps // 4),
            seed=config.seed,
        )
        lab.progress(Progress(0.0, float(config.repeats), "repeats", "looking for the concept"))
        find, also = _finder(config, model, task, settings)
        found = compare(
            lambda repeat: model.copy(),
            task,
            find,
            settings,
            repeats=config.repeats,
            every=config.every,
            also=also,
            lora=_lora(config.rank),
            report=lambda done, total, note: lab.progress(Progress(float(done), float(total), "repeats", note)),
        )
        return Findings(
            items=findings(found),
            summary=summary(found, config.task),
            artifacts={"comparison.json": (json.dumps(found.to_dict()) + "\n").encode()},
            charts=charts(found),
            inputs={f"weights:{model.name}": model.fingerprint},
            complete=found.arms.complete,
            result=found,
        )

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """Vectors and small models with a louder unwanted rule; null: a random span of the same rank."""
        from cutaway.finetuning.caft.calibration import all_rates

        started, trials = time.monotonic(), 4 if trials is None else trials
        rates = all_rates(trials, lambda done, total: lab.progress(Progress(float(done), float(total), "trials")))
        return Calibration(self.id, rates, time.monotonic() - started, {"trials": trials})


LEAKS = ("before", "after", "overlap")


def findings(found: "Comparison") -> tuple[Finding, ...]:
    """Return the numbers of a comparison, each beside plain tuning."""
    if not found.arms.arms:
        return (Finding("reversed accuracy, ablation", None, undefined="stopped before one repeat was whole"),)
    items = []
    for measure in ("reversed", "tied"):
        none = Finding.of(f"{measure} accuracy, none", found.arms.interval("none", measure))
        for each in found.arms.arms:
            name = f"{measure} accuracy, {each.name}"
            beside = None if each.name == "none" else none
            items.append(Finding.of(name, found.arms.interval(each.name, measure), control=beside))
    random = Finding.of("gain over none, random", found.arms.difference("random", "none", "reversed"))
    items.append(random)
    for arm in ("ablation", "ablation frozen"):
        items.append(Finding.of(f"gain over none, {arm}", found.gain(arm), control=random))
        items.append(Finding.of(f"on-task change, {arm}", found.arms.difference(arm, "none", "tied")))
    for arm in found.leaks[0]:
        before, after, overlap = ([getattr(run[arm], key) for run in found.leaks] for key in LEAKS)
        start = share(f"leak before, {arm}", before, found.held)
        items += [start, share(f"leak after, {arm}", after, found.held, start)]
        items.append(Finding.of(f"leak overlap, {arm}", mean_interval(overlap)))
    items.append(Finding("rank removed", sum(found.ranks) / len(found.ranks), n=len(found.ranks)))
    return tuple(items)


def summary(found: "Comparison", task: str) -> str:
    """One line to quote."""
    if not found.arms.arms:
        return "stopped before one repeat was whole"
    mean = {arm.name: found.arms.mean(arm.name, "reversed") for arm in found.arms.arms}
    return (
        f"{task}: accuracy with the cue reversed {mean['none']:.2f} plain, {mean['ablation']:.2f} with the concept"
        f" removed in training ({mean['ablation frozen']:.2f} with a frozen trunk), {mean['random']:.2f} with a random"
        f" span, {mean['test only']:.2f} removed at test time only"
    )


def charts(found: "Comparison") -> "tuple[Chart, ...]":
    """Bars of every arm, training curves, and the leak before and after."""
    from cutaway.charts import Chart, Series

    if not found.arms.arms:
        return ()
    bars = found.arms.chart(
        ["reversed", "tied"],
        "Accuracy by the wanted rule",
        label="share right",
        note="Reversed: the unwanted rule is always wrong. Test only: removed from the plainly tuned model.",
    )
    curves = {name: [run[name] for run in found.curves] for name in found.curves[0]}
    length = min(len(run) for runs in curves.values() for run in runs)
    lines = tuple(
        Series(
            name,
            tuple(sum(run[i] for run in runs) / len(runs) for i in range(length)),
            control=name in ("none", "random"),
        )
        for name, runs in curves.items()
    )
    training = Chart("Training loss", tuple(float(i + 1) for i in range(length)), lines, "step", "nats")
    arms = tuple(found.leaks[0])
    told = [
        Series(key, tuple(sum(getattr(run[arm], key) for run in found.leaks) / len(found.leaks) for arm in arms))
        for key in LEAKS
    ]
    note = (
        "Probe accuracy for the concept where it is removed (0.5: chance); overlap: share of its direction in the span."
    )
    return bars, training, Chart("What comes back", arms, tuple(told), "", "share", note)


def _task(config: CaftConfig, model: "Model") -> "Task":
    from cutaway.finetuning.caft.data import double_task, pronoun_task

    sizes = {"train": config.train, "probe": config.probe, "test": config.test, "seed": config.seed}
    if config.task == "double":
        return double_task(model, config.wanted, config.unwanted, **sizes)
    return pronoun_task(model, **sizes)


def _finder(
    config: CaftConfig, model: "Model", task: "Task", settings: "TrainConfig"
) -> "tuple[Find, dict[str, Concept]]":
    """Return what finds the concept, and spans to remove beside it."""
    from cutaway.finetuning.caft.method import component_concept, fixed, labelled_concept, tune
    from cutaway.finetuning.choice import choice_data

    site = config.site or f"resid_post.{model.n_layers // 2}"
    if config.directions == "labelled":
        return labelled_concept(task, site), {}
    plain = tune(model.copy(), choice_data(task.train, model.n_ctx), settings, lora=_lora(config.rank))
    if not plain.complete:
        raise KeyboardInterrupt
    found = component_concept(model, plain.model, task, site, config.components, seed=config.seed)
    return fixed(found.concept), found.controls


def _lora(rank: int) -> "LoraSpec | None":
    from cutaway.training import PROJECTIONS, LoraSpec

    if not rank:
        return None
    return LoraSpec(PROJECTIONS, rank=rank, alpha=2.0 * rank)
