"""The thought-branches study: config, wiring and calibration."""

import hashlib
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from cutaway.errors import CutawayError
from cutaway.study import Calibration, Finding, Findings, Lab, Progress, Study, StudyConfig, study

if TYPE_CHECKING:
    from cutaway.model import Model
    from cutaway.reasoning.rollouts import Report
    from cutaway.reasoning.thought_branches.chain import Chain, Ids, Pool
    from cutaway.reasoning.thought_branches.method import BranchReport
    from cutaway.reasoning.thought_branches.scenario import Scenario

TRIES = 40
"""Chains drawn in search of one that can be examined."""


class ThoughtBranchesConfig(StudyConfig):
    scenario: str = ""
    """Name of a built-in decision scenario, or a scenario file; leave empty to give a prompt."""
    prompt: str = ""
    """What the model is asked, when there is no scenario."""
    hint: str = ""
    """Text put before the prompt whose hidden effect is traced; a scenario brings its own cause."""
    outcome: str = "auto"
    """number, letter[:A,B], choice:x,y, boxed, regex:PATTERN; auto reads it off the prompt; unused with a scenario."""
    target: str = ""
    """The answer whose rate is reported; empty: the scenario's, else the chain's own."""
    model: str = "smollm2-135m-instruct"
    """Catalogue name, Hugging Face id, local directory or GGUF file."""
    temperature: float = Field(0.7, gt=0)
    """Sampling temperature."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Nucleus mass."""
    max_tokens: int = Field(160, ge=16)
    """Longest continuation, in tokens."""
    end_mark: str = ""
    """Text that ends the reasoning, such as </think>; sentences after it are not examined."""
    seed: int = Field(0, ge=0)
    """Of every draw."""
    rollouts: int = Field(20, ge=2)
    """Rollouts of each boundary and of each inserted text."""
    sentences: int = Field(2, ge=0)
    """How many of the most important sentences are removed; those that state a scenario's reason come on top."""
    runs: int = Field(10, ge=1)
    """Removal runs of each of them."""
    cap: int = Field(8, ge=1)
    """Returns after which a removal run is given up and censored."""
    tries: int = Field(12, ge=1)
    """Draws in search of a replacement before a run is undefined."""
    threshold: float = Field(0.6, gt=0, le=1)
    """Cosine from which two sentences say the same."""
    rounds: int = Field(2, ge=1)
    """Rounds of the on-policy search, each of 12 wordings with 8 continuations."""
    insertions: bool = True
    """Whether texts are inserted after the most important sentence."""
    chains: int = Field(4, ge=1)
    """Chains written under the hint or the changed cause that are transplanted."""
    dtype: str = "auto"
    """Weights' precision: auto, float32 or bfloat16."""
    embedder: str = Field("all-minilm-l6-v2", min_length=1)
    """Sentence embedder that says which sentences mean the same."""

    @model_validator(mode="after")
    def _one_question(self) -> "ThoughtBranchesConfig":
        if bool(self.scenario) == bool(self.prompt.strip()):
            raise ValueError("give either scenario= or prompt=")
        if self.scenario and self.hint:
            raise ValueError("hint: a scenario brings its own cause; leave it empty")
        return self


@study
class ThoughtBranches(Study[ThoughtBranchesConfig]):
    id = "thought-branches"
    title = "Which stated reasons act, which come back, and where a hidden hint enters a chain of thought"
    paper = "Macar, Bogdan, Rajamanoharan, Nanda 2025, arXiv:2510.27484"
    status = "importance++, resilience, on-policy edits, transplants on one branch tree; calibrated"
    Config = ThoughtBranchesConfig

    def run(self, config: ThoughtBranchesConfig, lab: Lab) -> Findings:
        """Draw a chain for the question and answer all four questions about it."""
        from cutaway.reasoning.source import tree_key
        from cutaway.reasoning.thought_branches.chain import Pool
        from cutaway.reasoning.thought_branches.report import charts, findings, view_json
        from cutaway.sampling import BranchTree, LocalEngine, Settings

        model = lab.model(config.model, config.dtype)
        asked = _Question(config, model)
        settings = Settings(config.temperature, config.top_p, 0, config.max_tokens)
        with BranchTree.open(lab.tree_folder(tree_key(model, asked.prompt)), model.fingerprint) as tree:
            engine = LocalEngine(model)
            pool = Pool(engine, settings, seed=config.seed, tree=tree, report=_reporter(lab))
            chain = asked.chain(pool)
            report, extra = asked.examine(pool, chain)
            cost = engine.cost + tree.cost
        meta = {"model": model.name, "study": self.id, "target": report.target}
        items = (*extra, *findings(report))
        done = "" if report.complete else " (ended early)"
        return Findings(
            items=items,
            summary=_summary(report) + done,
            artifacts={
                "branches.json": (json.dumps(report.to_dict(), ensure_ascii=False) + "\n").encode(),
                "view.json": view_json(report, meta),
            },
            charts=charts(report),
            inputs=self.inputs(config, lab),
            cost=cost,
            complete=report.complete,
            result=report,
        )

    def inputs(self, config: ThoughtBranchesConfig, lab: Lab) -> Mapping[str, str]:
        """The model's weights and the scenario as it is written."""
        from cutaway.reasoning.thought_branches.scenario import load_scenario

        given = dict(super().inputs(config, lab))
        if config.scenario:
            scenario = load_scenario(config.scenario)
            given[f"data:{scenario.name}"] = hashlib.sha256(scenario.model_dump_json().encode()).hexdigest()
        return given

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """Planted driver, excuse, stubborn idea and hint, and the same without any effect."""
        from cutaway.reasoning.thought_branches.calibration import measure

        started, trials = time.monotonic(), 16 if trials is None else trials
        rates = measure(trials, lambda k: lab.progress(Progress(float(k), float(trials), "trials")))
        return Calibration(self.id, rates, time.monotonic() - started, {"trials": trials})


class _Question:
    """The plain prompt, the prompt with the hint or the changed cause, and what is asked about them."""

    def __init__(self, config: ThoughtBranchesConfig, model: "Model") -> None:
        from cutaway.grading import auto_outcome, parse_outcome
        from cutaway.reasoning.embedding import load_embedder
        from cutaway.reasoning.thought_branches.scenario import load_scenario

        self.config, self.model = config, model
        self.scenario: Scenario | None = load_scenario(config.scenario) if config.scenario else None
        self.embed = load_embedder(config.embedder)
        if self.scenario is not None:
            self.prompt = self.scenario.fill()[0]
            self.outcome = self.scenario.outcome
            self.plain, self.changed = self._filled({}), self._filled({self.scenario.true_cause.slot: 1})
        else:
            self.prompt = config.prompt
            self.outcome = auto_outcome(self.prompt) if config.outcome == "auto" else parse_outcome(config.outcome)
            self.plain = tuple(model.chat_ids(self.prompt))
            self.changed = tuple(model.chat_ids(f"{config.hint}\n{self.prompt}")) if config.hint else ()

    def _filled(self, values: dict[str, int]) -> "Ids":
        assert self.scenario is not None
        prompt, system = self.scenario.fill(values)
        return tuple(self.model.chat_ids(prompt, system))

    def chain(self, pool: "Pool") -> "Chain":
        """The first chain of the plain prompt that ends with an answer and gives a reason before it."""
        found = self.chains(pool, self.plain, 1)
        if not found:
            raise CutawayError(
                f"none of {TRIES} chains ends with an answer after at least one other sentence "
                f"(max_tokens={self.config.max_tokens}); ask for reasons, choose another outcome or raise max_tokens"
            )
        return found[0]

    def chains(self, pool: "Pool", prompt: "Ids", k: int) -> "tuple[Chain, ...]":
        """The first ``k`` such chains of a prompt; with the same settings the first is the trace of other studies."""
        from cutaway.reasoning.source import draw_candidates
        from cutaway.reasoning.thought_branches.chain import Chain
        from cutaway.sampling import make_trace

        config, decode = self.config, self.model.decode
        found: list[Chain] = []
        for tried in range(0, TRIES, 4):
            numbers = range(tried, tried + 4)
            for rollout in draw_candidates(pool.engine, prompt, pool.settings, numbers, config.seed, pool.tree):
                own = self.outcome(decode(rollout.ids))
                if rollout.finish == "stop" and own is not None and config.end_mark in decode(rollout.ids):
                    trace = make_trace(prompt, rollout, pool.settings, decode)
                    target = config.target or (self.scenario.target if self.scenario else own)
                    chain = Chain(trace, self.outcome, decode, self.embed, target, config.threshold, config.end_mark)
                    found += [chain] if chain.body > 0 else []
            if len(found) >= k:
                break
        return tuple(found[:k])

    def examine(self, pool: "Pool", chain: "Chain") -> "tuple[BranchReport, tuple[Finding, ...]]":
        """The report, and what a scenario's slots do to the decision."""
        from cutaway.reasoning.thought_branches.method import Plan, analyse
        from cutaway.reasoning.thought_branches.offpolicy import INSERTIONS

        config = self.config
        stated = [i for i, text in enumerate(chain.sentences[: chain.body]) if self._gives_reason(text)]
        hinted = self.chains(pool, self.changed, config.chains) if self.changed else ()
        plan = Plan(
            n=config.rollouts,
            sentences=config.sentences,
            also=tuple(stated[:1]),
            runs=config.runs,
            cap=config.cap,
            tries=config.tries,
            texts=INSERTIONS if config.insertions else {},
            rounds=config.rounds,
            n_inserted=config.rollouts,
            n_moved=config.rollouts,
        )
        report = analyse(pool, chain, self.model, plan, others=self._others(), hint=self.changed, hinted=hinted)
        extra = self._causes(pool, chain) if report.complete else ()
        if self.changed and not hinted:
            why = f"none of {TRIES} chains under the hint ends with an answer after at least one other sentence"
            extra = (*extra, Finding("hint, total effect", None, undefined=why))
        return report, extra

    def _gives_reason(self, sentence: str) -> bool:
        return self.scenario is not None and self.scenario.gives_reason(sentence)

    def _others(self) -> "tuple[Ids, ...]":
        """Prompts of other built-in scenarios."""
        from cutaway.reasoning.thought_branches.scenario import load_scenario, scenario_names

        mine = self.scenario.name if self.scenario else ""
        texts = [load_scenario(name).fill() for name in scenario_names() if name != mine][:2]
        return tuple(tuple(self.model.chat_ids(prompt, system)) for prompt, system in texts)

    def _causes(self, pool: "Pool", chain: "Chain") -> tuple[Finding, ...]:
        """What changing the planted cause does to the decision, with another slot as the control."""
        from cutaway.reasoning.thought_branches.chain import compare
        from cutaway.reasoning.thought_branches.report import finding

        if self.scenario is None:
            return ()
        n = max(self.config.rollouts, 30)
        plain = chain.answers(0, pool.first(self.plain, n))

        def effect(slot: str, control: Finding | None = None) -> Finding:
            changed = chain.answers(0, pool.first(self._filled({slot: 1}), n))
            return finding(f"slot {slot!r} changed", compare(changed, plain, chain.target), "change of rate", control)

        cause = self.scenario.true_cause.slot
        controls = [effect(slot) for slot in self.scenario.slots if slot != cause]
        return (effect(cause, controls[0] if controls else None),)


def _reporter(lab: Lab) -> "Report":
    return lambda done, planned, note: lab.progress(Progress(float(done), float(planned), "rollouts", note))


def _summary(report: "BranchReport") -> str:
    removed = [(each, each.plus.rate) for each in report.resilience]
    known = [(each, rate) for each, rate in removed if rate is not None]
    start = f"{len(report.sentences)} sentences, answer {report.answer}"
    if not known:
        return f"{start}: no importance++ could be measured"
    acting = sum(not rate.low <= 0 <= rate.high for _, rate in known)
    best, rate = max(known, key=lambda each: abs(each[1].value))
    said = best.text if len(best.text) <= 60 else f"{best.text[:59].rstrip()}…"
    return (
        f"{start}; {acting} of {len(known)} removed sentences change P({report.target}) beyond chance; most: "
        f"{rate!r} for sentence {best.sentence + 1}, “{said}”"
    )
