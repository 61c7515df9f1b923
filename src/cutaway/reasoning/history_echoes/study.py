"""The history-echoes study: config, wiring, findings and calibration."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, model_validator

from cutaway.charts import Chart, Heat, Series
from cutaway.errors import UsageError
from cutaway.reasoning.embedding import load_embedder
from cutaway.reasoning.history_echoes.calibration import calibrate
from cutaway.reasoning.history_echoes.data import ALL_TOPICS, TOPICS, Order, plan_dialogues, select_items
from cutaway.reasoning.history_echoes.dialogue import Asked, Chat, Dialogues, capture_answers, run_dialogues
from cutaway.reasoning.history_echoes.forced import ForcedResult, contrasts, make_targets, run_forced
from cutaway.reasoning.history_echoes.geometry import Geometry, measure_geometry
from cutaway.reasoning.history_echoes.markov import Outcomes, Stickiness, measure_stickiness
from cutaway.reasoning.history_echoes.phenomena import Phenomenon, get_phenomenon
from cutaway.reasoning.history_echoes.separation import trapped_signal
from cutaway.reasoning.word_problems import TWO_STEPS, data_digest
from cutaway.sampling.tree import BranchTree
from cutaway.sampling.types import Settings
from cutaway.study import Calibration, Finding, Findings, Lab, Progress, Study, StudyConfig, study

if TYPE_CHECKING:
    from cutaway.model import Model

DEPTH = 0.85
"""The paper reads the states at this depth."""


class HistoryEchoesConfig(StudyConfig):
    model: str = "smollm2-135m-instruct"
    """Catalogue name, Hugging Face id, local directory or GGUF file of a chat model."""
    phenomenon: str = "hallucination"
    """hallucination, refusal (of harmless questions), sycophancy-pos or sycophancy-neg."""
    topics: tuple[str, ...] = TOPICS
    """Topics of the questions: capital, city, element, arithmetic; two-steps are real word problems."""
    system: str = "Answer the question in one short sentence."
    """System text; empty for none."""
    targets: int = Field(32, ge=2)
    """Questions asked under every forced history."""
    doses: tuple[int, ...] = (1, 2, 4, 7)
    """Numbers of forced earlier turns."""
    distances: tuple[int, ...] = (2, 4)
    """How many turns ago the only + answer stands."""
    dialogues: int = Field(16, ge=0)
    """Natural dialogues, for the transition matrix and the angle; 0 leaves both out."""
    turns: int = Field(8, ge=3)
    """Turns of a natural dialogue, the demonstration included."""
    order: Order = "consistent"
    """How a natural dialogue orders its questions: consistent, shuffled or alternating."""
    embedder: str = ""
    """Sentence embedder for the consistent order; empty: topic and ease."""
    max_tokens: int = Field(24, ge=1)
    """Longest answer, in tokens."""
    slots: int = Field(16, ge=1)
    """Dialogues that advance together."""
    seed: int = Field(0, ge=0)
    """Of the choice of questions."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Weights' precision."""

    @model_validator(mode="after")
    def _sensible(self) -> "HistoryEchoesConfig":
        if not self.doses or min(self.doses) < 1 or any(d < 2 for d in self.distances):
            raise ValueError(f"doses={self.doses}, distances={self.distances}: doses from 1, distances from 2 on")
        try:
            get_phenomenon(self.phenomenon)
            select_items(self.topics)
        except UsageError as error:
            raise ValueError(str(error)) from None
        return self


@dataclass(frozen=True)
class HistoryEchoesResult:
    """Everything one run measured."""

    forced: ForcedResult
    dialogues: Dialogues | None
    stickiness: Stickiness | None
    layers: tuple[Geometry, ...]
    """One a layer, of the residual stream after it; empty without natural dialogues."""
    trapped: Finding | None


@study
class HistoryEchoes(Study[HistoryEchoesConfig]):
    id = "history-echoes"
    title = "Does one wrong, refusing or flattering answer make the next one likelier"
    paper = "Simhi, Barez, Tutek, Belinkov, Cohen 2026, arXiv:2603.03308"
    status = "forced histories, transitions, angles with floors; calibrated"
    Config = HistoryEchoesConfig

    def run(self, config: HistoryEchoesConfig, lab: Lab) -> Findings:
        """Ask the same questions after forced histories; then watch natural dialogues."""
        from cutaway.reasoning.history_echoes.engine import DialogueEngine

        model = lab.model(config.model, config.dtype)
        engine = DialogueEngine(model, config.slots)
        settings = Settings(temperature=0.0, top_p=1.0, max_tokens=config.max_tokens)
        key = hashlib.sha256(f"{self.id} {model.fingerprint}".encode()).hexdigest()[:24]
        with BranchTree.open(lab.tree_folder(key), model.fingerprint) as tree:
            chat = Chat(model, engine, settings, config.system or None, config.seed, tree)
            result = measure(config, chat, reporter(lab))
        return Findings(
            items=findings(config, result),
            summary=summarise(config, result),
            artifacts=artifacts(result),
            charts=charts(result),
            inputs=self.inputs(config, lab),
            cost=engine.cost + tree.cost,
            complete=result.forced.complete and (result.dialogues is None or result.dialogues.complete),
            result=result,
        )

    def inputs(self, config: HistoryEchoesConfig, lab: Lab) -> dict[str, str]:
        """The weights, the table of facts, and the word problems where they are asked."""
        facts = (files(__package__) / "facts.json").read_bytes()
        given = {**super().inputs(config, lab), "data:facts.json": hashlib.sha256(facts).hexdigest()}
        return given | data_digest(TWO_STEPS in config.topics)

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """Simulators with known transitions and effects, planted angles, and a planted model that copies its style."""
        return calibrate(self.id, 200 if trials is None else trials, reporter(lab))


def measure(
    config: HistoryEchoesConfig, chat: Chat, report: Callable[[int, int, str], None] = lambda done, planned, note: None
) -> HistoryEchoesResult:
    """Forced histories first: they are the primary estimand. Natural dialogues follow."""
    items, phenomenon = select_items(config.topics), get_phenomenon(config.phenomenon)
    plan = contrasts(config.doses, config.distances)
    longest = max((*config.doses, *config.distances))
    targets = make_targets(items, config.targets, longest, seed=config.seed)
    forced = run_forced(chat, targets, phenomenon, plan, width=config.slots, report=report)
    if not config.dialogues or not forced.complete:
        return HistoryEchoesResult(forced, None, None, (), None)
    embed = load_embedder(config.embedder) if config.embedder else None
    order = plan_dialogues(items, config.dialogues, config.turns, config.order, seed=config.seed, embed=embed)
    natural = run_dialogues(chat, order, phenomenon, width=config.slots, report=report)
    stickiness = _stickiness(chat, natural, phenomenon) if natural.complete else None
    layers, trapped = _geometry(chat.model, natural)
    return HistoryEchoesResult(forced, natural, stickiness, layers, trapped)


def _stickiness(chat: Chat, natural: Dialogues, phenomenon: Phenomenon) -> Stickiness:
    """Transitions, beside the same questions without history and beside what topic and ease alone give."""
    items = [item for dialogue in natural.dialogues for item in dialogue.items[1:]]
    once = list(dict.fromkeys(items))
    replies = chat.replies([Asked((), phenomenon.ask(item)) for item in once])
    alone = {item: reply.outcome(phenomenon, item) for item, reply in zip(once, replies, strict=True)}
    shape = natural.outcomes.shape
    strata = np.array([3 * ALL_TOPICS.index(item.topic) + min(int(3 * item.ease), 2) for item in items]).reshape(shape)
    free = np.array([alone[item] for item in items]).reshape(shape)
    return measure_stickiness(natural.outcomes, strata=strata, history_free=_where_known(free, natural.outcomes))


def _where_known(free: Outcomes, outcomes: Outcomes) -> Outcomes:
    return np.where(outcomes >= 0, free, -1)


def _geometry(model: "Model", natural: Dialogues) -> tuple[tuple[Geometry, ...], Finding | None]:
    sites = [f"resid_post.{layer}" for layer in range(model.n_layers)]
    seen = capture_answers(model, natural, sites)
    place = seen.dialogue, seen.turn
    layers = tuple(measure_geometry(seen.states[site], seen.labels, *place) for site in sites)
    trapped = trapped_signal(seen.states[sites[main_layer(len(sites))]], seen.labels, *place, seen.ease)
    return layers, trapped


def main_layer(n_layers: int) -> int:
    """Index of the layer whose states the paper reads."""
    return max(int(DEPTH * n_layers) - 1, 0)


def reporter(lab: Lab) -> Callable[[int, int, str], None]:
    """Hand a method's progress to the lab."""
    return lambda done, planned, note: lab.progress(Progress(float(done), float(planned), note))


_IN_WORDS = {
    "other topic": "after such turns on another topic",
    "placebo": "placebo: other turns without it",
    "history of - against none": "after turns without it, against no history",
    "delete": "repair: such turns deleted",
    "correct": "repair: such turns corrected",
    "apologise": "repair: such turns apologised for",
}


def readable(effect: str) -> str:
    """The name of a standard contrast in words.

    >>> readable("dose 4"), readable("distance 2")
    ('after 4 such turns', 'after one such turn, 2 turns back')
    """
    kind, _, size = effect.partition(" ")
    if kind == "dose":
        return f"after {size} such turn{'' if size == '1' else 's'}"
    if kind == "distance":
        return f"after one such turn, {size} turns back"
    return _IN_WORDS.get(effect, effect)


def findings(config: HistoryEchoesConfig, result: HistoryEchoesResult) -> tuple[Finding, ...]:
    """Effects with the placebo as control; transitions with the history-free ones; the angle with its null."""
    unit = f"change of P({config.phenomenon})"
    placebo = replace(result.forced["placebo"].difference, name=readable("placebo"), unit=unit)
    items = []
    for effect in result.forced.effects:
        control = None if effect.name == "placebo" else placebo
        items.append(replace(effect.difference, name=readable(effect.name), unit=unit, control=control))
    if result.stickiness is not None:
        s = result.stickiness
        items += [
            replace(s.base_rate, name=f"P({config.phenomenon})"),
            s.trace,
            s.lambda2,
            *s.deltas,
            s.permuted,
            s.history_free,
            s.excess,
        ]
    if result.layers:
        layer = main_layer(len(result.layers))
        main = result.layers[layer]
        items += [
            replace(each, name=f"{each.name} at resid_post.{layer}") for each in (main.theta, main.auc, main.d_prime)
        ]
    if result.trapped is not None:
        items.append(result.trapped)
    if result.dialogues is not None:
        ended = sum(bool(dialogue.ended) for dialogue in result.dialogues.dialogues)
        n = len(result.dialogues.dialogues)
        items.append(Finding("dialogues that ended early", float(ended), n=n))
    return tuple(items)


def summarise(config: HistoryEchoesConfig, result: HistoryEchoesResult) -> str:
    """One line: the causal effect first, the transitions after it with their warning."""
    main = result.forced.effects[0]
    turns = f"{config.phenomenon} after {max(config.doses)} such turns"
    if main.difference.value is None:
        return f"{turns}: undefined ({main.difference.undefined})"
    ends = ", ".join("open" if end is None else f"{end:+.2f}" for end in (main.difference.low, main.difference.high))
    line = f"{turns}: {main.difference.value:+.2f} [{ends}] against turns without it, same questions"
    if result.stickiness is None or result.stickiness.trace.value is None:
        return line
    free = result.stickiness.history_free.value
    beside = "" if free is None else f" ({free:.2f} for the same questions without any history)"
    return f"{line}; natural dialogues: Tr {result.stickiness.trace.value:.2f}{beside}, which is not causal"


def artifacts(result: HistoryEchoesResult) -> dict[str, bytes]:
    """Arms and effects, transitions, every layer's geometry, and the dialogues as they were answered."""
    kept: dict[str, object] = {"forced.json": result.forced.to_dict()}
    if result.stickiness is not None:
        kept["stickiness.json"] = result.stickiness.to_dict()
    if result.layers:
        kept["geometry.json"] = [layer.to_dict() for layer in result.layers]
    if result.dialogues is not None:
        kept["dialogues.json"] = [
            {
                "questions": [item.question for item in dialogue.items],
                "answers": [None if reply is None else reply.text for reply in dialogue.replies],
                "outcomes": dialogue.outcomes,
                "ended": dialogue.ended,
            }
            for dialogue in result.dialogues.dialogues
        ]
    return {name: (json.dumps(value, ensure_ascii=False) + "\n").encode() for name, value in kept.items()}


def charts(result: HistoryEchoesResult) -> tuple[Chart | Heat, ...]:
    """Risk and risk difference by dose, the transition matrix, the angle by layer."""
    drawn: list[Chart | Heat] = [*_dose_charts(result.forced)]
    if result.stickiness is not None:
        drawn.append(
            Heat(
                "Transitions in natural dialogues",
                ("after -", "after +"),
                ("next -", "next +"),
                result.stickiness.matrix,
                "probability",
                result.stickiness.reading,
            )
        )
    if result.layers:
        drawn.append(_layer_chart(result.layers))
    return tuple(drawn)


def _dose_charts(forced: ForcedResult) -> tuple[Chart, Chart]:
    doses = sorted((int(e.name.split()[1]), e) for e in forced.effects if e.name.startswith("dose "))
    x = tuple(float(k) for k, _ in doses)
    free = forced["history of - against none"].control
    placebo = forced["placebo"].difference
    risks = Chart(
        "P(+) after k forced turns, same questions",
        x,
        (
            _series("after + answers", [e.treated for _, e in doses]),
            _series("after - answers", [e.control for _, e in doses]),
            _series("no history", [free] * len(x), control=True),
        ),
        "forced turns k",
        "P(+)",
    )
    difference = Chart(
        "Effect of k forced + turns against k - turns",
        x,
        (
            _series("risk difference", [e.difference for _, e in doses]),
            _series("placebo: - turns with other questions", [placebo] * len(x), control=True),
        ),
        "forced turns k",
        "change of P(+)",
        "Paired over the same questions with the same earlier questions: the effect of the answers alone.",
    )
    return risks, difference


def _layer_chart(layers: tuple[Geometry, ...]) -> Chart:
    return Chart(
        "Angle between the class means, by layer",
        tuple(float(i) for i in range(len(layers))),
        (
            _series("theta", [layer.theta for layer in layers]),
            Series("95% of permuted labels lie below", tuple(layer.null_high for layer in layers), control=True),
            Series("expected from noise alone", tuple(layer.noise_floor for layer in layers), control=True),
        ),
        "layer",
        "degrees",
        "An angle at its floors says nothing.",
    )


def _series(name: str, found: list[Finding], control: bool = False) -> Series:
    ends = ([each.low for each in found], [each.high for each in found])
    return Series(name, tuple(each.value for each in found), tuple(ends[0]), tuple(ends[1]), control)


__all__ = ["HistoryEchoes", "HistoryEchoesConfig", "HistoryEchoesResult", "measure"]
