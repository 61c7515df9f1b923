"""The TPC study: prompts read by a model, monitors of every order, what each costs and finds."""

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cutaway.probes.tpc.data import Prompts, default_prompts, labels, read_prompts
from cutaway.study import Calibration, Finding, Findings, Lab, Progress, Study, StudyConfig, study

if TYPE_CHECKING:
    from cutaway.model import Model
    from cutaway.probes.tpc.method import Labelled, Recipe
    from cutaway.stats import Interval


class TpcConfig(StudyConfig):
    model: str = "smollm2-135m-instruct"
    """The model: a name of the catalogue or a directory."""
    dtype: str = "float32"
    """Of the forwards; monitors are always trained in float32."""
    prompts: str = ""
    """CSV with part, group, label and prompt; empty: the requests of the source tree."""
    site: str = "resid_post.15"
    """Where activations are read."""
    pooling: Literal["mean", "last", "max"] = "mean"
    """How the tokens of a prompt become one vector."""
    chat: bool = True
    """Put each prompt into the model's chat template."""
    longest: int = Field(2048, ge=1)
    """Tokens of a prompt that are read."""
    order: int = Field(5, ge=2)
    """Highest order."""
    rank: int = Field(64, ge=1)
    """Factors of each order."""
    epochs: int = Field(50, ge=1)
    """Of training, for each order."""
    rates: tuple[float, ...] = (1e-3, 1e-4)
    """Learning rates to choose among; the released grid adds 5e-4."""
    decays: tuple[float, ...] = (1.0, 0.1)
    """Weight decays to choose among; the released grid adds 0.01."""
    dropouts: tuple[float, ...] = (0.2,)
    """Shares of rows without the terms below; the released grid adds 0 and 0.5."""
    runs: int = Field(3, ge=1)
    """Trainings with the best setting, each with its own seed; published: 5."""
    false_alarms: float = Field(0.01, gt=0, lt=1)
    """Rate for which the alarm threshold is set on validation rows."""
    tolerance: float = Field(0.001, ge=0)
    """Validation F1 that the cascade may lose against full order."""
    validation: float = Field(0.4, gt=0, lt=1)
    """Share of the discovery groups kept for choices and thresholds."""
    seed: int = Field(0, ge=0)
    """Of the split and of training."""


@study
class Tpc(Study[TpcConfig]):
    id = "tpc"
    title = "A monitor with a dial: linear first, higher orders where it is unsure"
    paper = "Oldfield, Torr, Patras, Bibi, Barez 2025, arXiv:2509.26238"
    status = "strict and joint training, cascade (calibrated over draws), interactions, size-matched networks"
    Config = TpcConfig

    def run(self, config: TpcConfig, lab: Lab) -> Findings:
        """Read the prompts, choose settings, train and measure; activations are kept for the next run."""
        from cutaway.probes.tpc.comparison import compare
        from cutaway.probes.tpc.method import search
        from cutaway.probes.tpc.report import charts, findings, summarise

        prompts = read_prompts(config.prompts or default_prompts(), config.validation, config.seed)
        model = lab.model(config.model, config.dtype)
        try:
            train, validation, test = _activations(config, lab, model, prompts)
            recipe = search(
                train, validation, _recipe(config), config.rates, config.decays, config.dropouts, _tell(lab, "settings")
            )
        except KeyboardInterrupt:
            item = Finding("F1, order 1", None, undefined="stopped before training")
            return Findings((item,), "stopped before training; run again to go on", complete=False)
        found = compare(
            train,
            validation,
            test,
            recipe,
            runs=config.runs,
            false_alarms=config.false_alarms,
            tolerance=config.tolerance,
            report=lambda done, total, note: lab.progress(Progress(float(done), float(total), "steps", note)),
        )
        body = {"recipe": vars(recipe), "comparison": found.to_dict()}
        return Findings(
            items=findings(found, shortcuts(prompts), config.false_alarms),
            summary=summarise(found),
            artifacts={"comparison.json": (json.dumps(body, ensure_ascii=False) + "\n").encode()},
            charts=charts(found),
            inputs={f"weights:{model.name}": model.fingerprint, "data:prompts": prompts.sha256},
            complete=found.complete,
            result=found,
        )

    def inputs(self, config: TpcConfig, lab: Lab) -> dict[str, str]:
        """The weights and the prompts."""
        prompts = read_prompts(config.prompts or default_prompts(), config.validation, config.seed)
        model = lab.model(config.model, config.dtype)
        return {f"weights:{model.name}": model.fingerprint, "data:prompts": prompts.sha256}

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """Planted polynomials found at their degree, cascades that save, and silence on coins."""
        from cutaway.probes.tpc.calibration import all_rates

        started, trials = time.monotonic(), 8 if trials is None else trials
        rates = all_rates(trials, _tell(lab, "trials"))
        return Calibration(self.id, rates, time.monotonic() - started, {"trials": trials})


def shortcuts(prompts: Prompts) -> "dict[str, Interval]":
    """AUROC on test prompts of probes that see the text's length alone, or its words alone."""
    from cutaway.probes.scoring import auroc
    from cutaway.probes.shortcuts import length_scores, word_scores

    discovery, test = (*prompts.train, *prompts.validation), prompts.test
    texts, held = [each.text for each in discovery], [each.text for each in test]
    found = {"length alone": length_scores, "words alone": word_scores}
    return {name: auroc(labels(test), scores(texts, labels(discovery), held)) for name, scores in found.items()}


def _activations(
    config: TpcConfig, lab: Lab, model: "Model", prompts: Prompts
) -> "tuple[Labelled, Labelled, Labelled]":
    import torch

    from cutaway.probes.pooled import activations
    from cutaway.probes.tpc.method import Labelled

    pooled = activations(
        model,
        [each.text for each in prompts.all],
        config.site,
        config.pooling,
        chat=config.chat,
        longest=config.longest,
        folder=lab.activations,
        report=_tell(lab, "prompts"),
    )
    rows = torch.cat([pooled[key] for key in pooled.values])
    sizes = [len(prompts.train), len(prompts.validation), len(prompts.test)]
    parts = zip(rows.split(sizes), torch.from_numpy(labels(prompts.all)).split(sizes), strict=True)
    train, validation, test = (Labelled(x, y) for x, y in parts)
    return train, validation, test


def _recipe(config: TpcConfig) -> "Recipe":
    from cutaway.probes.tpc.method import Recipe

    return Recipe(config.order, config.rank, config.epochs, seed=config.seed)


def _tell(lab: Lab, unit: str) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        lab.progress(Progress(float(done), float(total), unit))

    return report
