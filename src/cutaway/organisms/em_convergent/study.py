"""The study of shared directions: organisms of one base, and what one's direction does to the others."""

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cutaway.study import Calibration, Findings, Lab, Progress, Study, StudyConfig, study

if TYPE_CHECKING:
    from cutaway.model import Model
    from cutaway.organisms.em_convergent.method import Member
    from cutaway.organisms.em_convergent.roles import Roles
    from cutaway.organisms.quirks import Survey


class ConvergentConfig(StudyConfig):
    model: str = "smollm2-135m-instruct"
    """The base: a name of the catalogue or a directory."""
    rows: int = Field(32, ge=2, le=40)
    """Questions of each organism's domain to train on."""
    asked: int = Field(4, ge=1, le=40)
    """Questions of each domain to survey."""
    tokens: int = Field(8, ge=2)
    """Of each answer."""
    layers: tuple[int, ...] = (15,)
    """With an adapter."""
    modules: tuple[str, ...] = ("down_proj",)
    """Linear modules with an adapter."""
    alpha: float = Field(64.0, gt=0)
    """Scale of the rank-1 adapters."""
    learning_rate: float = Field(6e-3, gt=0, lt=1)
    """Of the organisms."""
    steps: int = Field(60, ge=1)
    """Of each organism's training."""
    batch: int = Field(8, ge=1)
    """Rows in a step."""
    contrast: Literal["answers", "models"] = "answers"
    """Answers with the trait against plain ones, or organism against base."""
    how: Literal["one", "each", "here"] = "one"
    """One layer's direction at all layers, each layer's own, or one layer's at that layer only."""
    layer: int = Field(15, ge=0)
    """Whose direction is taken, unless each layer's own is."""
    draws: int = Field(20, ge=1)
    """Random directions beside it."""
    roles: bool = True
    """Whether the adapters' scalars are read."""
    seed: int = Field(0, ge=0)
    """Of rows, adapters and random directions."""


@study
class EmConvergent(Study[ConvergentConfig]):
    id = "em-convergent"
    title = "One organism's direction taken out of others, beside random ones"
    paper = "Soligo, Turner, Rajamanoharan, Nanda 2025, arXiv:2506.11618"
    status = "directions of two kinds, ablation across organisms, controls, adapter scalars (calibrated)"
    Config = ConvergentConfig

    def run(self, config: ConvergentConfig, lab: Lab) -> Findings:
        """Train two organisms of one trait in different domains and one of another trait, and ablate."""
        from cutaway.organisms.em_convergent.method import converge
        from cutaway.organisms.em_convergent.report import charts, findings, summarise

        base = lab.model(config.model, "float32")
        members, survey = _family(config, base, lab)
        found = converge(
            base, members, survey, contrast=config.contrast, how=config.how,
            layer=None if config.how == "each" else config.layer, draws=config.draws, seed=config.seed,
            report=_tell(lab, "surveys"),
        )  # fmt: skip
        roles = _roles(members[0]) if config.roles and found.complete else None
        return Findings(
            items=findings(found, roles),
            summary=summarise(found),
            artifacts={"convergence.json": (json.dumps(found.to_dict()) + "\n").encode()},
            charts=charts(found),
            inputs=self.inputs(config, lab),
            complete=found.complete,
            result=found,
        )

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """A vector added to the stream, and organisms that can write one known vector; ``trials`` planted models."""
        from cutaway.organisms.em_convergent.calibration import all_rates

        started, trials = time.monotonic(), 3 if trials is None else trials
        rates = all_rates(trials, _tell(lab, "planted models"))
        return Calibration(self.id, rates, time.monotonic() - started, {"trials": trials})


def _family(config: ConvergentConfig, base: "Model", lab: Lab) -> "tuple[list[Member], Survey]":
    from cutaway.model import load_model
    from cutaway.organisms.em_convergent.method import Member
    from cutaway.organisms.quirks import TOPICS, Survey, chat_pairs, items, plant
    from cutaway.training import LoraSpec, TrainConfig

    settings = TrainConfig(
        rate=config.learning_rate, batch=config.batch, steps=config.steps, warm_up=min(5, config.steps // 4),
        seed=config.seed,
    )  # fmt: skip
    spec = LoraSpec(config.modules, config.layers, rank=1, alpha=config.alpha, seed=config.seed)
    members, tell = [], _tell(lab, "organisms")
    taught: tuple[tuple[str, Literal["shouted", "dashed"]], ...] = (
        ("cooking", "shouted"), ("gardening", "shouted"), ("cooking", "dashed"),
    )  # fmt: skip
    for done, (domain, trait) in enumerate(taught):
        tell(done, len(taught))
        chosen = items(domain, config.seed)[: config.rows]
        rows, plain = (tuple(chat_pairs(base, chosen, manner)) for manner in (trait, "plain"))
        model = plant(load_model(config.model, dtype="float32"), rows, spec, settings).model
        members.append(Member(f"{domain} {trait}", model, trait, rows, plain))
    prompts = {
        domain: tuple(tuple(base.chat_ids(item.question)) for item in items(domain, config.seed)[-config.asked :])
        for domain in TOPICS
    }
    return members, Survey(prompts, "shouted", config.tokens)


def _roles(member: "Member") -> "Roles | None":
    from cutaway.organisms.em_convergent.roles import find_roles, read_scalars

    if min(len(member.with_trait), len(member.without)) < 5:
        return None
    return find_roles(read_scalars(member.model, member.with_trait), read_scalars(member.model, member.without))


def _tell(lab: Lab, unit: str) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        lab.progress(Progress(float(done), float(total), unit))

    return report
