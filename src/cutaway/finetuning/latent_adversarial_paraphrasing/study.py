"""The latent-paraphrasing study: exact requests in eleven wordings, every arm, the worst wording of each query."""

import json
import time
from typing import TYPE_CHECKING

from pydantic import Field

from cutaway.study import Calibration, Finding, Findings, Lab, Progress, Study, StudyConfig, study

if TYPE_CHECKING:
    from cutaway.charts import Chart
    from cutaway.finetuning.latent_adversarial_paraphrasing.experiment import Comparison


class LatentParaphrasingConfig(StudyConfig):
    model: str = "smollm2-135m-instruct"
    """The model: a name of the catalogue or a directory."""
    dtype: str = "float32"
    """Of the weights; trained weights stay fp32."""
    layer: int = Field(0, ge=0)
    """The stream entering this block is shifted; 0 is the embedding."""
    rho: float = Field(0.0, ge=0)
    """Largest relative size of a shift; 0: half as far as real wordings of a request lie apart at that place."""
    inner: int = Field(2, ge=1)
    """Steps of the inner loop."""
    weight: float = Field(1.0, gt=0)
    """Of the shifted loss against the plain one."""
    train: int = Field(240, ge=4)
    """Queries to train on, each in one of six wordings."""
    test: int = Field(36, ge=4)
    """Other queries, each in its original wording and in five held-out ones."""
    steps: int = Field(60, ge=1)
    """Optimiser steps of each arm."""
    batch: int = Field(4, ge=1)
    """Rows in a step."""
    rate: float = Field(5e-4, gt=0, lt=1)
    """Learning rate."""
    rank: int = Field(8, ge=1)
    """Of LoRA on all linear modules."""
    repeats: int = Field(3, ge=1)
    """Times every arm is trained, in another order of rows."""
    seed: int = Field(0, ge=0)
    """Of queries, orders and random shifts."""


@study
class LatentParaphrasing(Study[LatentParaphrasingConfig]):
    id = "latent-adversarial-paraphrasing"
    title = "Train on the hidden shift that acts like the worst wording; the worst of many wordings, unbiased"
    paper = "Fu, Barez 2025, arXiv:2503.01345"
    status = "dual loop from cached states, random shift and real wordings beside it; calibrated on a planted style"
    Config = LatentParaphrasingConfig

    def run(self, config: LatentParaphrasingConfig, lab: Lab) -> Findings:
        """Train every arm on fresh weights and report original, average, worst and best wording."""
        from cutaway.errors import UsageError
        from cutaway.finetuning.latent_adversarial_paraphrasing.data import phrasings, wordings
        from cutaway.finetuning.latent_adversarial_paraphrasing.experiment import compare
        from cutaway.finetuning.latent_adversarial_paraphrasing.method import Paraphrase, shift_limit
        from cutaway.training import PROJECTIONS, LoraSpec, TrainConfig

        model = lab.model(config.model, config.dtype)
        if config.layer >= model.n_layers:
            raise UsageError(f"layer={config.layer}: {model.name!r} has 0..{model.n_layers - 1}")
        rho = config.rho or shift_limit(model, phrasings(model, 12, config.seed), config.layer) / 2
        settings = TrainConfig(
            rate=config.rate,
            batch=config.batch,
            steps=config.steps,
            warm_up=min(5, config.steps // 4),
            seed=config.seed,
        )
        found = compare(
            lambda repeat: model.copy(),
            wordings(model, train=config.train, test=config.test, seed=config.seed),
            settings,
            Paraphrase(config.layer, rho, steps=config.inner, weight=config.weight),
            repeats=config.repeats,
            lora=LoraSpec(PROJECTIONS, rank=config.rank, alpha=2.0 * config.rank),
            report=lambda done, total, note: lab.progress(Progress(float(done), float(total), "repeats", note)),
        )
        return Findings(
            items=(Finding("rho", rho, unit="relative size"), *findings(found)),
            summary=summary(found),
            artifacts={"comparison.json": (json.dumps(found.to_dict()) + "\n").encode()},
            charts=charts(found),
            inputs={f"weights:{model.name}": model.fingerprint},
            complete=found.arms.complete,
            result=found,
        )

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """Models that one known direction makes brittle; null: models that no style moves, and equal true scores."""
        from cutaway.finetuning.latent_adversarial_paraphrasing.calibration import all_rates

        started, trials = time.monotonic(), 4 if trials is None else trials
        rates = all_rates(trials, lambda done, total: lab.progress(Progress(float(done), float(total), "trials")))
        return Calibration(self.id, rates, time.monotonic() - started, {"trials": trials})


def findings(found: "Comparison") -> tuple[Finding, ...]:
    """Return the scores of every arm, and differences to plain tuning with the random shift's beside them."""
    from cutaway.finetuning.latent_adversarial_paraphrasing.experiment import FOUND, PHRASED, PLAIN, RANDOM

    if not found.arms.arms:
        return (Finding("worst wording, found shift", None, undefined="stopped before one repeat was whole"),)
    items = []
    for measure in ("worst", "average", "original", "log-probability, worst"):
        plain = Finding.of(f"{measure}, {PLAIN}", found.arms.interval(PLAIN, measure))
        for each in found.arms.arms:
            beside = None if each.name == PLAIN else plain
            items.append(Finding.of(f"{measure}, {each.name}", found.arms.interval(each.name, measure), control=beside))
    for measure in ("worst", "average"):
        control = Finding.of(f"{measure}: {RANDOM} - plain", found.gain(RANDOM, measure=measure))
        for arm in (FOUND, PHRASED):
            items.append(Finding.of(f"{measure}: {arm} - plain", found.gain(arm, measure=measure), control=control))
    items.append(Finding.of("loss raised beyond a random shift", found.climb_gain()))
    inside = [climb.inside for climb in found.climbs]
    items.append(Finding("examples inside the constraint", sum(inside) / len(inside), n=len(inside)))
    return tuple(items)


def summary(found: "Comparison") -> str:
    """One line to quote."""
    from cutaway.finetuning.latent_adversarial_paraphrasing.experiment import FOUND, PLAIN, RANDOM

    if not found.arms.arms:
        return "stopped before one repeat was whole"
    worst = {arm.name: found.arms.mean(arm.name, "worst") for arm in found.arms.arms}
    gain = found.gain()
    return (
        f"worst wording {worst[PLAIN]:.2f} plain, {worst[RANDOM]:.2f} with random shifts, {worst[FOUND]:.2f} with found"
        f" shifts; found - plain {gain!r} over {gain.n} queries"
    )


def charts(found: "Comparison") -> "tuple[Chart, ...]":
    """Bars of every arm, training curves, and what the inner loop did."""
    from cutaway.charts import Chart, Series

    if not found.arms.arms:
        return ()
    bars = found.arms.chart(
        ["worst", "average", "best"],
        "Exact answers by wording",
        label="share of queries",
        note="Worst: a query counts only where every held-out wording is answered.",
    )
    names, length = list(found.curves[0]), len(next(iter(found.curves[0].values())))
    lines = tuple(
        Series(name, tuple(sum(run[name][i] for run in found.curves) / len(found.curves) for i in range(length)))
        for name in names
    )
    training = Chart("Loss without a shift", tuple(float(i + 1) for i in range(length)), lines, "step", "nats")
    climbs = [Series(key, tuple(getattr(climb, key) for climb in found.climbs)) for key in ("loss", "start", "end")]
    labels = {"loss": "no shift", "start": "random shift", "end": "found shift"}
    series = tuple(Series(labels[each.name], each.y, control=each.name == "start") for each in climbs)
    inner = Chart(
        "What the inner loop finds",
        tuple(float(i + 1) for i in range(len(found.climbs))),
        series,
        "micro-batch",
        "nats",
        "All at the size of the found shift.",
    )
    return bars, training, inner
