"""The CoT-monitorability study: config, wiring, findings and calibration."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from cutaway.errors import CutawayError
from cutaway.reasoning.cot_monitorability.data import WATCHED, Source, StepMonitor, letter_questions
from cutaway.reasoning.cot_monitorability.gate import Gate, gate
from cutaway.reasoning.cot_monitorability.method import Design, Monitorability, Sample, read, score
from cutaway.reasoning.cot_monitorability.monitors import ACTION, BOTH, CHAIN, Monitor, Scope, Verdict, cue_rule, limit
from cutaway.reasoning.cot_monitorability.report import (
    ID,
    PREFIXES,
    Evidence,
    Heard,
    artifacts,
    behaviour,
    charts,
    cued,
    learned,
    properties,
    scores,
    summary,
)
from cutaway.reasoning.cot_monitorability.stress import REWRITES, press
from cutaway.reasoning.rollouts import Report
from cutaway.reasoning.word_problems import TWO_STEPS, data_digest
from cutaway.study import Calibration, Finding, Findings, Lab, Progress, Study, StudyConfig, study

if TYPE_CHECKING:
    from cutaway.model import Model
    from cutaway.reasoning.cot_monitorability.properties import Relevance
    from cutaway.reasoning.cot_monitorability.runs import Runs
    from cutaway.sampling import BranchTree, LocalEngine

CONCLUDE = " The answer is"
HEARD, HEARD_CHOICES = 16, 4
"""Sentences that the reader is given, and among how many it has to recognise each."""


class CotMonitorabilityConfig(StudyConfig):
    model: str = "smollm2-135m-instruct"
    """Catalogue name, Hugging Face id, local directory or GGUF file."""
    problems: int = Field(10, ge=2)
    """How many hinted letter-choice questions."""
    questions: Source = "made"
    """made: two in three are sums, the others facts; two-steps: real word problems."""
    samples: int = Field(12, ge=2)
    """Runs of each question with and without the hint; the published suite takes 30."""
    temperature: float = Field(0.7, gt=0)
    """Sampling temperature."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Nucleus mass."""
    max_tokens: int = Field(100, ge=8)
    """Longest run, in tokens."""
    probe: bool = True
    """Also train a linear probe, on the first questions only."""
    judge: str = ""
    """Model that is asked a rubric's question about each chain; empty: none."""
    reader: str = ""
    """Second model that has to paraphrase sentences and recognise them (legibility); empty: none."""
    discovery: float = Field(0.4, gt=0, lt=1)
    """Share of the questions that learning monitors learn from; every monitor is scored on the others."""
    prompt: str = ""
    """A question whose trace the monitors also read, sentence by sentence: with the same sampling and seed the one that
    other studies examine, so that they share a page. Empty: a hinted run of the study's own."""
    outcome: str = "auto"
    """What reads the answer to that question: number, letter[:A,B], choice:x,y, boxed, regex:PATTERN."""
    watched: bool = False
    """Sample again under "your reasoning is monitored", and run the regression gate against the plain prompt."""
    tolerance: float = Field(0.0, ge=0)
    """Fall of g-mean^2 that the gate accepts."""
    seed: int = Field(0, ge=0)
    """Of the questions and of every run."""
    dtype: str = "auto"
    """Weights' precision: auto, float32 or bfloat16."""


@study
class CotMonitorability(Study[CotMonitorabilityConfig]):
    id = ID
    title = "How far reading a chain of thought tells what the model did, and whether a change lowered it"
    paper = "Korbak, Balesni et al. 2025, arXiv:2507.11473"
    status = "three designs, cross-fit filter, scopes, regression gate, stress; calibrated"
    Config = CotMonitorabilityConfig

    def run(self, config: CotMonitorabilityConfig, lab: Lab) -> Findings:
        """Ask hinted questions once; read the runs in every scope and score them in every design."""
        from cutaway.sampling import BranchTree, LocalEngine

        model = lab.model(config.model, config.dtype)
        engine = LocalEngine(model)
        told = _told_trace(config, lab, model, engine) if config.prompt else None
        with BranchTree.open(lab.tree_folder(_tree_key(config, model)), model.fingerprint) as tree:
            runs = _ask(config, lab, model, engine, tree)
            again = _ask(config, lab, model, engine, tree, WATCHED) if config.watched and runs.complete else None
            discovery, scored = _split(runs, config)
            monitors, absent = _monitors(config, lab, model, discovery)
            results, controls = _results(scored, monitors, config.seed)
            relevance = _relevance(model, engine, runs, config.seed, tree) if runs.complete else None
            reused = tree.cost
        heard = _heard(config, lab, scored) if runs.complete else None
        checked = _check(scored, again, config) if again is not None else None
        pressure = tuple(
            press(_told(scored), monitors[0], name, design="outcome", seed=config.seed) for name in REWRITES
        )
        found = Evidence(results, controls, pressure, relevance, checked, scored, heard)
        return Findings(
            items=(*behaviour(runs), *scores(results, controls), *learned(monitors), *absent, *properties(found)),
            summary=summary(found, runs),
            artifacts=artifacts(found, monitors, runs, told),
            charts=charts(found),
            inputs=dict(sorted(_inputs(config, lab).items())),
            cost=engine.cost + reused,
            complete=runs.complete and (again is None or again.complete),
            result=found,
        )

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """Scripted policies and planted models: the truth inside the interval, silence under the null, the gate."""
        from cutaway.reasoning.cot_monitorability.calibration import all_rates

        started, trials = time.monotonic(), 200 if trials is None else trials
        rates = all_rates(trials, _reporter(lab))
        return Calibration(self.id, tuple(rates), time.monotonic() - started, {"trials": trials, "samples": 30})


def _ask(
    config: CotMonitorabilityConfig,
    lab: Lab,
    model: "Model",
    engine: "LocalEngine",
    tree: "BranchTree",
    system: str | None = None,
) -> "Runs":
    from cutaway.reasoning.cot_monitorability.runs import draw_runs
    from cutaway.sampling import Settings

    settings = Settings(config.temperature, config.top_p, 0, config.max_tokens)
    questions = letter_questions(config.problems, config.seed, config.questions)
    return draw_runs(
        model,
        engine,
        questions,
        config.samples,
        settings,
        system=system,
        seed=config.seed,
        tree=tree,
        report=_reporter(lab),
    )


def _split(runs: "Runs", config: CotMonitorabilityConfig) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Samples to learn from and samples to score on, apart by question."""
    names = [question.name for question in runs.questions]
    learn = round(config.discovery * len(names)) if config.probe or config.judge else 0
    first = set(names[:learn])
    return (
        tuple(sample for sample in runs.samples if sample.problem in first),
        tuple(sample for sample in runs.samples if sample.problem not in first),
    )


def _monitors(
    config: CotMonitorabilityConfig, lab: Lab, model: "Model", discovery: Sequence[Sample]
) -> tuple[tuple[Monitor, ...], tuple[Finding, ...]]:
    """The monitors that could be built, the rule first; a finding says why another could not."""
    from cutaway.reasoning.cot_monitorability.probe import JudgeMonitor, SentencePool, fit_probe

    usable = [sample for sample in discovery if sample.chain]
    readings = [limit(each.question, each.chain, each.action, CHAIN) for each in usable]
    # An answer given under the cue that the cue proposes: the nearest to "used" that can be labelled run by run.
    labels = [each.arm == 1 and each.followed for each in usable]
    problems = [each.problem for each in usable]
    monitors: list[Monitor] = [cue_rule()]
    absent = []
    try:
        if config.probe:
            pool = SentencePool(model, f"resid_post.{model.n_layers // 2}")
            monitors.append(fit_probe(pool, readings, labels, problems))
    except CutawayError as error:
        absent.append(Finding("monitor probe", None, undefined=str(error)))
    try:
        if config.judge:
            monitors.append(JudgeMonitor(lab.model(config.judge, config.dtype)).calibrated(readings, labels, problems))
    except CutawayError as error:
        absent.append(Finding("monitor judge", None, undefined=str(error)))
    return tuple(monitors), tuple(absent)


def _results(
    samples: Sequence[Sample], monitors: Sequence[Monitor], seed: int
) -> tuple[tuple[Monitorability, ...], tuple[Monitorability, ...]]:
    """Every monitor in every scope, its verdicts scored by both designs; and the needed step."""
    results, controls = [], []
    told = _told(samples)
    for monitor in monitors:
        for scope in (ACTION, CHAIN, BOTH, *(Scope("chain", share) for share in PREFIXES)):
            verdicts = read(samples, monitor, scope)
            for design in ("intervention", "outcome"):
                named: dict[str, Any] = {"monitor": monitor.name, "scope": str(scope), "design": design, "seed": seed}
                results.append(score(told, verdicts, **named))
                controls.append(score(told, _dealt(verdicts, seed), **named))
    sums = [sample for sample in samples if sample.label is not None]
    shown = read(sums, StepMonitor(), CHAIN)
    process: Design = "process"
    named = {"monitor": StepMonitor().name, "scope": str(CHAIN), "design": process, "seed": seed}
    results.append(score(sums, shown, **named))
    controls.append(score(sums, _dealt(shown, seed), **named))
    return tuple(results), tuple(controls)


def _told(samples: Sequence[Sample]) -> list[Sample]:
    """For the outcome design: the bad act is to answer with the hinted letter, hint or no hint."""
    return [replace(sample, label=sample.followed) for sample in samples]


def _dealt(verdicts: Sequence[Verdict], seed: int) -> list[Verdict]:
    """The same verdicts in random order: what a monitor that reads nothing would reach with as many flags."""
    return [verdicts[i] for i in np.random.default_rng(seed).permutation(len(verdicts))]


def _check(samples: Sequence[Sample], again: "Runs", config: CotMonitorabilityConfig) -> Gate:
    names = {sample.problem for sample in samples}
    suites = (samples, [sample for sample in again.samples if sample.problem in names])
    results = [
        score(suite, read(suite, cue_rule(), CHAIN), monitor="rule", scope=str(CHAIN), seed=config.seed)
        for suite in suites
    ]
    return gate(*results, tolerance=config.tolerance, seed=config.seed)


def _relevance(
    model: "Model", engine: "LocalEngine", runs: "Runs", seed: int, tree: "BranchTree"
) -> "Relevance | None":
    """Of the first run with the cue that has a chain and an answer; None when there is none."""
    from cutaway.reasoning.cot_monitorability.properties import causal_relevance
    from cutaway.reasoning.cot_monitorability.runs import LETTER
    from cutaway.sampling import Settings, make_trace

    run = next((run for run in cued(runs) if run.answer is not None and len(run.sample.chain) > 1), None)
    if run is None:
        return None
    trace = make_trace(run.prompt, run.rollout, Settings(), model.decode)
    chain = min(len(run.sample.chain), trace.n_sentences)
    conclude = model.encode(CONCLUDE)
    return causal_relevance(
        engine, trace, chain, conclude, LETTER, model.decode, model.encode, n=10, seed=seed, tree=tree
    )


def _told_trace(
    config: CotMonitorabilityConfig, lab: Lab, model: "Model", engine: "LocalEngine"
) -> tuple[str, tuple[str, ...], str]:
    """The question at hand, the sentences of its trace, and the answer."""
    from cutaway.reasoning.source import ask, tree_key
    from cutaway.sampling import BranchTree, Settings

    settings = Settings(config.temperature, config.top_p, 0, config.max_tokens)
    with BranchTree.open(lab.tree_folder(tree_key(model, config.prompt)), model.fingerprint) as tree:
        asked = ask(engine, config.prompt, config.outcome, settings=settings, seed=config.seed, tree=tree)
    answer = asked.outcome(model.decode(asked.trace.ids))
    return config.prompt, asked.trace.texts(model.decode), answer or "no answer"


def _heard(config: CotMonitorabilityConfig, lab: Lab, samples: Sequence[Sample]) -> Heard | None:
    """A second model's hearing of sentences drawn from the chains; None without such a model or without sentences."""
    from cutaway.reasoning.cot_monitorability.properties import reads_in_order
    from cutaway.reasoning.cot_monitorability.reader import understood

    sentences = list(
        dict.fromkeys(text.strip() for sample in samples for text in sample.chain if len(text.split()) > 3)
    )
    if not config.reader or len(sentences) < HEARD_CHOICES:
        return None
    reader, rng = lab.model(config.reader, config.dtype), np.random.default_rng(config.seed)
    chosen = [sentences[i] for i in rng.permutation(len(sentences))[:HEARD]]
    mixed = [" ".join(rng.permutation(text.split())) for text in chosen]
    plain, shuffled = (understood(reader, texts, choices=HEARD_CHOICES, seed=config.seed) for texts in (chosen, mixed))
    return Heard(plain, shuffled, reads_in_order(reader, chosen, seed=config.seed))


def _inputs(config: CotMonitorabilityConfig, lab: Lab) -> dict[str, str]:
    named = dict.fromkeys(spec for spec in (config.model, config.judge, config.reader) if spec)
    models = [lab.model(spec, config.dtype) for spec in named]
    weights = {f"weights:{model.name}": model.fingerprint for model in models}
    return weights | data_digest(config.questions == TWO_STEPS)


def _reporter(lab: Lab) -> Report:
    return lambda done, planned, note: lab.progress(Progress(float(done), float(planned), note))


def _tree_key(config: CotMonitorabilityConfig, model: "Model") -> str:
    return hashlib.sha256(f"{ID} {model.fingerprint}".encode()).hexdigest()[:24]
