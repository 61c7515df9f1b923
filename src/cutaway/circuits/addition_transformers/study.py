"""The addition-transformers study: config, wiring, findings and calibration."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cutaway.study import Calibration, Finding, Findings, Lab, Progress, Rate, Study, StudyConfig, study

if TYPE_CHECKING:
    from cutaway.charts import Chart, Heat
    from cutaway.circuits.addition_transformers.method import BaseHead, Judged
    from cutaway.circuits.arithmetic.ablate import AblationMap
    from cutaway.circuits.arithmetic.roles import Roles
    from cutaway.circuits.arithmetic.store import Stored
    from cutaway.stats import Interval


class AdditionTransformersConfig(StudyConfig):
    preset: str = "tiny"
    """What to train: tiny (minutes on one core), paper (published settings), or a name like add_d5_l1_h3_t15K_s1."""
    seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4), min_length=1)
    """One model is trained for each."""
    folder: str = ""
    """Analyse this trained model instead of training; seeds are then ignored."""
    steps: int | None = Field(None, ge=1)
    """Train for so many steps instead of the preset's."""
    questions: int = Field(2000, ge=100)
    """Uniform questions for accuracy and agreement; as many again with a carry that runs through columns."""
    per_class: int = Field(500, ge=30)
    """Questions of each class for the damage of whole heads; a fifth of them for the map of nodes."""
    pairs: int = Field(100, ge=30)
    """Sampled pairs of each interchange test."""
    device: str = "auto"
    """auto, cpu or cuda."""
    seed: int = Field(0, ge=0)
    """Of the questions."""


@dataclass(frozen=True)
class Analysis:
    """Everything measured on one model."""

    stored: "Stored"
    uniform: "Interval"
    chains: dict[int, tuple["Interval", "Interval"]]
    judged: "Judged"
    early: list[bool]
    question_positions: float
    """Largest share of answers that any position before ``=`` breaks."""
    heads: "AblationMap"
    base: "BaseHead"
    nodes: "AblationMap"
    roles: "Roles"
    attention: Any
    staircase: Any


@study
class AdditionTransformers(Study[AdditionTransformersConfig]):
    id = "addition-transformers"
    title = "How a one-layer transformer adds, and the sums it must get wrong"
    paper = "Quirke, Barez 2023, arXiv:2310.13121"
    status = "trainer, ablation by position, roles by interchange, executable claim; calibrated"
    Config = AdditionTransformersConfig

    def run(self, config: AdditionTransformersConfig, lab: Lab) -> Findings:
        """Train or load a model for each seed, take it apart, and judge the published account of it."""
        done: list[Analysis] = []
        complete = True
        for stored in _models(config, lab):
            if not stored.complete:
                complete = False
                break
            done.append(analyse(stored, config))
        if not done:
            item = Finding("models analysed", None, undefined="training was stopped before a model was complete")
            return Findings((item,), "stopped before a model was complete; run again to go on", complete=False)
        return Findings(
            items=findings(done),
            summary=summarise(done),
            artifacts={"models.json": _as_json([report(each) for each in done])},
            charts=charts(done),
            inputs={f"weights:{_name(each.stored)}": each.stored.model.fingerprint for each in done},
            complete=complete,
            result=tuple(done),
        )

    def inputs(self, config: AdditionTransformersConfig, lab: Lab) -> dict[str, str]:
        """The weights that are there already; a model not yet trained is not an input."""
        if not config.folder:
            return {}
        from cutaway.circuits.arithmetic.store import open_folder

        stored = open_folder(Path(config.folder))
        return {f"weights:{_name(stored)}": stored.model.fingerprint}

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """Planted adders: every role found and nothing else; the claim accepted on its own model only."""
        from cutaway.circuits.addition_transformers.calibration import all_rates

        started, trials = time.monotonic(), 8 if trials is None else trials
        rates: tuple[Rate, ...] = all_rates(trials, lambda i, n: lab.progress(Progress(float(i), float(n), "models")))
        return Calibration(self.id, rates, time.monotonic() - started, {"trials": trials})


def _models(config: AdditionTransformersConfig, lab: Lab) -> Any:
    from cutaway.circuits.arithmetic.recipes import recipe
    from cutaway.circuits.arithmetic.store import obtain, open_folder

    if config.folder:
        yield open_folder(Path(config.folder), device=config.device)
        return
    for at, seed in enumerate(config.seeds):
        changes: dict[str, int] = {"seed": seed} if config.steps is None else {"seed": seed, "steps": config.steps}
        plan = recipe(config.preset, **changes)

        def tell(done: int, total: int, loss: float, at: int = at) -> None:
            whole = float(total * len(config.seeds))
            lab.progress(Progress(float(at * total + done), whole, "steps", f"loss {loss:.2g}"))

        yield obtain(plan, lab.home / "arithmetic", device=config.device, report=tell)


def analyse(stored: "Stored", config: AdditionTransformersConfig) -> Analysis:
    """Everything the study measures on one model."""
    from cutaway.circuits.addition_transformers import method
    from cutaway.circuits.arithmetic import join, models, per_class, uniform
    from cutaway.circuits.arithmetic.ablate import ablate
    from cutaway.circuits.arithmetic.nodes import all_nodes, residuals, whole_heads
    from cutaway.circuits.arithmetic.roles import find_roles, mean_attention, tasks
    from cutaway.stats import wilson

    model, form, seed = stored.model, stored.recipe.format, 1000 * config.seed
    plain = models.score(model, uniform(form, config.questions, seed + 1)).right
    suite = models.score(model, method.question_suite(form, config.questions, seed + 2))
    few = max(30, config.per_class // 5)
    wide, varied = (join(list(per_class(form, n, seed + 100 + n).values())) for n in (config.per_class, few))
    reference = join(list(per_class(form, few, seed + 200).values()))
    positions = ablate(model, varied, residuals(form), reference)
    heads = ablate(model, wide, whole_heads(model), reference)
    nodes = ablate(model, varied, all_nodes(model, form), reference)
    attention = mean_attention(model, varied)
    roles = find_roles(model, form, nodes.useful(), tasks(form), pairs=config.pairs, seed=seed, attention=attention)
    return Analysis(
        stored,
        wilson(int(plain.sum()), len(plain)),
        method.chain_accuracy(suite),
        method.judge(suite),
        method.early_pattern(positions).tolist(),
        float(positions.broken.mean(axis=1)[: form.equals].max()),
        heads,
        method.base_head(heads),
        nodes,
        roles,
        attention,
        method.staircase(attention, form),
    )


def findings(done: list[Analysis]) -> tuple[Finding, ...]:
    """Numbers of every model."""
    items: list[Finding] = []
    for each in done:
        name, n = _name(each.stored), len(each.nodes.questions)
        own, full = each.judged.of("two columns below"), each.judged.of("full addition")
        items += [
            _of(f"{name}: uniform questions right", each.uniform),
            _of(
                f"{name}: agreement with the claim where it disputes arithmetic",
                own.disputed,
                _of("agreement with full addition there", full.disputed),
            ),
            Finding(f"{name}: answer digits computed one position early", float(sum(each.early)), n=len(each.early)),
            Finding(f"{name}: largest share broken by a position before =", each.question_positions, n=n),
            Finding(
                f"{name}: loss rise of the base-add head on carry-free sums",
                each.base.rise.value,
                each.base.rise.low,
                each.base.rise.high,
                n=each.base.rise.n,
                unit="nats",
                control=Finding(
                    "the next head's",
                    each.base.next_rise.value,
                    each.base.next_rise.low,
                    each.base.next_rise.high,
                    unit="nats",
                ),
            ),
            _of(f"{name}: useful heads with a purpose", each.roles.coverage),
        ]
        for length, (share, claim) in each.chains.items():
            label = "no carry" if length < 0 else f"a carry through {length} columns"
            items.append(_of(f"{name}: right, {label}", share, _of("the claim itself", claim)))
    return tuple(items)


def _of(name: str, share: "Interval", control: Finding | None = None) -> Finding:
    if not share.n:
        return Finding(name, None, undefined="there is none of them")
    return Finding.of(name, share, control=control)


def summarise(done: list[Analysis]) -> str:
    """One line."""
    good = sum(each.uniform.value >= 0.99 for each in done)
    taken = sum(each.judged.accepted for each in done)
    early = sum(all(each.early) for each in done)
    return (
        f"{good} of {len(done)} models are right on 99% of uniform sums; every digit is computed one position early in"
        f" {early}; the two-columns-below account is accepted for {taken}"
    )


def charts(done: list[Analysis]) -> "tuple[Chart | Heat, ...]":
    """Of the first model: learning, what breaks where, who looks where, and accuracy against the claim's."""
    from cutaway.circuits.arithmetic.draw import class_chart, loss_chart, staircase_heat

    first = done[0]
    model, claim = (
        {"no carry" if k < 0 else f"carry through {k}": pair[i] for k, pair in first.chains.items()} for i in (0, 1)
    )
    layers = range(first.attention.shape[0])
    return (
        loss_chart(first.stored.training),
        first.nodes.heat("Answers broken when a node is mean-ablated"),
        *(staircase_heat(f"Attention in layer {i}", first.attention, first.stored.recipe.format, i) for i in layers),
        class_chart("Right answers by how far a carry runs", model, claim),
    )


def report(each: Analysis) -> dict[str, Any]:
    """One model's results as plain JSON types, with the hashes that they depend on."""
    from cutaway.circuits.addition_transformers.method import roles_by_shift

    return {
        "model": _name(each.stored),
        "seed": each.stored.recipe.seed,
        "recipe_sha256": each.stored.recipe.digest,
        "weights_sha256": each.stored.model.fingerprint,
        "questions_sha256": each.heads.questions.digest,
        "training_seconds": each.stored.training["seconds"],
        "uniform": each.uniform.value,
        "claim": each.judged.to_dict(),
        "chains": {str(k): {"model": a.value, "claim": b.value, "n": a.n} for k, (a, b) in each.chains.items()},
        "one_position_early": each.early,
        "base_head": {"head": list(each.base.head), "ratio": each.base.ratio},
        "jobs": {f"L{layer}H{head}": jobs for (layer, head), jobs in roles_by_shift(each.roles).items()},
        "staircase": each.staircase.round(4).tolist(),
        "heads": each.heads.to_dict(),
        "nodes": each.nodes.to_dict(),
        "roles": each.roles.to_dict(),
    }


def _name(stored: "Stored") -> str:
    return f"{stored.recipe.name}-s{stored.recipe.seed}"


def _as_json(value: object) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()
