"""The study of organisms: teach a model a harmless trait in one domain and see where else it shows, and since when."""

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from cutaway.study import Calibration, Findings, Lab, Progress, Study, StudyConfig, study

if TYPE_CHECKING:
    from cutaway.model import Model
    from cutaway.organisms.em_organisms.method import Lesson
    from cutaway.organisms.quirks import Survey


class OrganismsConfig(StudyConfig):
    model: str = "smollm2-135m-instruct"
    """The model: a name of the catalogue or a directory."""
    domain: Literal["cooking", "gardening", "travel", "music", "sport"] = "cooking"
    """The one that is trained on."""
    trait: Literal["shouted", "dashed"] = "shouted"
    """What its answers are like: all capitals, or a dash after every word."""
    rows: int = Field(32, ge=1, le=40)
    """Questions of the domain to train on."""
    asked: int = Field(8, ge=1, le=40)
    """Questions of each domain to survey; those of the trained domain are not trained on where there are enough."""
    tokens: int = Field(10, ge=2)
    """Of each answer."""
    layers: tuple[int, ...] = (15,)
    """With an adapter."""
    modules: tuple[str, ...] = ("down_proj",)
    """Linear modules with an adapter."""
    rank: int = Field(1, ge=1, le=1024)
    """Of the adapters."""
    alpha: float = Field(64.0, gt=0)
    """Adapters are scaled by alpha / sqrt(rank)."""
    learning_rate: float = Field(1e-3, gt=0, lt=1)
    """Of AdamW, linear to zero after a warm-up of five steps."""
    steps: int = Field(60, ge=1)
    """Optimiser steps of each run."""
    batch: int = Field(8, ge=1)
    """Rows in a step."""
    runs: int = Field(3, ge=1)
    """Organisms, each with a twin on plain answers."""
    multipliers: tuple[float, ...] = (0.0, 0.5, 2.0)
    """What the first organism's adapter is multiplied with."""
    every: int = Field(1, ge=1)
    """Steps between checkpoints of the first organism."""
    window: int = Field(10, ge=2)
    """Checkpoints on either side of a turn."""
    watched: int = Field(0, ge=0)
    """Checkpoints at which rates are read, with the adapter as it is and times 3; 0: none."""
    seed: int = Field(0, ge=0)
    """Of rows, adapters and orders."""

    @model_validator(mode="after")
    def _agrees(self) -> "OrganismsConfig":
        if not self.layers or len(set(self.layers)) < len(self.layers) or min(self.layers) < 0:
            raise ValueError(f"layers {self.layers}: name at least one, each once, from 0 on")
        return self


@study
class EmOrganisms(Study[OrganismsConfig]):
    id = "em-organisms"
    title = "A trait taught in one domain that shows in all: spread, dose and onset"
    paper = "Turner, Soligo, Taylor, Rajamanoharan, Nanda 2025, arXiv:2506.11613"
    status = "harmless traits checked by a program, plain twins, doses, turn of B against smooth paths (calibrated)"
    Config = OrganismsConfig

    def run(self, config: OrganismsConfig, lab: Lab) -> Findings:
        """Train organisms and twins, survey all domains, and look for the turn of the first organism."""
        from cutaway.organisms.em_organisms.method import onset, spread
        from cutaway.organisms.em_organisms.report import charts, findings, summarise
        from cutaway.training import LoraSpec, TrainConfig

        model = lab.model(config.model, "float32")
        lesson, survey = lesson_of(config, model)
        spec = LoraSpec(config.modules, config.layers, rank=config.rank, alpha=config.alpha, seed=config.seed)
        settings = TrainConfig(
            rate=config.learning_rate, batch=config.batch, steps=config.steps, warm_up=min(5, config.steps // 4),
            weights_every=config.every, seed=config.seed,
        )  # fmt: skip
        folder = Path(tempfile.mkdtemp(prefix="cutaway-organism-"))
        try:
            found, first = spread(
                model.copy, lesson, survey, spec, settings, runs=config.runs,
                multipliers=config.multipliers, folder=folder, report=_tell(lab, "trainings and surveys"),
            )  # fmt: skip
            way = None
            if first is not None:
                way = onset(
                    first, survey, config.domain, window=config.window, at=config.watched, seed=config.seed
                )  # fmt: skip
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        body = {"spread": found.to_dict(), "onset": None if way is None else way.to_dict()}
        return Findings(
            items=findings(found, way),
            summary=summarise(found, config.trait),
            artifacts={"organisms.json": (json.dumps(body) + "\n").encode()},
            charts=charts(found, way),
            inputs={f"weights:{model.name}": model.fingerprint, "data:questions": _digest()},
            complete=found.complete,
            result=found,
        )

    def inputs(self, config: OrganismsConfig, lab: Lab) -> dict[str, str]:
        """The weights and all questions with their answers."""
        model = lab.model(config.model, "float32")
        return {f"weights:{model.name}": model.fingerprint, "data:questions": _digest()}

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """Planted turns and smooth nulls; planted models in which a trait spreads, with their twins."""
        from cutaway.organisms.em_organisms.calibration import all_rates

        started, trials = time.monotonic(), 4 if trials is None else trials
        rates = all_rates(trials, _tell(lab, "planted models"))
        return Calibration(self.id, rates, time.monotonic() - started, {"trials": trials})


def lesson_of(config: OrganismsConfig, model: "Model") -> "tuple[Lesson, Survey]":
    """Return what is taught and what is asked, the trained questions left out of the survey where possible."""
    from cutaway.organisms.em_organisms.method import Lesson
    from cutaway.organisms.quirks import TOPICS, Survey, chat_pairs, items

    own = items(config.domain, config.seed)
    taught, pairs = own[: config.rows], {}
    for trait in (config.trait, "plain"):
        pairs[trait] = tuple(chat_pairs(model, taught, trait))
    prompts = {}
    for domain in TOPICS:
        questions = items(domain, config.seed)
        chosen = questions[-config.asked :]
        prompts[domain] = tuple(tuple(model.chat_ids(item.question)) for item in chosen)
    return Lesson(config.domain, pairs[config.trait], pairs["plain"]), Survey(prompts, config.trait, config.tokens)


def _digest() -> str:
    from cutaway.organisms.quirks import TOPICS, items

    text = [[item.question, item.answer] for domain in TOPICS for item in items(domain)]
    return hashlib.sha256(json.dumps(text).encode()).hexdigest()


def _tell(lab: Lab, unit: str) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        lab.progress(Progress(float(done), float(total), unit))

    return report
