"""The relearning study: config, wiring, findings and calibration."""

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cutaway.study import Calibration, Finding, Findings, Lab, Progress, Rate, Study, StudyConfig, study

if TYPE_CHECKING:
    from cutaway.editing.relearn_concepts.report import Repeat
    from cutaway.model import Model

TINY = "tiny"


class RelearnConfig(StudyConfig):
    model: str = "smollm2-135m-instruct"
    """The model: a name of the catalogue, a directory, or ``tiny`` for one trained from nothing in each repeat."""
    concept: Literal["CITY", "PERSON", "MONTH", "FOOD", "COMPANY"] = "CITY"
    """What is removed."""
    share: float = Field(0.4, gt=0, lt=1)
    """Of all MLP neurons, that are pruned."""
    mode: Literal["soft", "hard"] = "soft"
    """Whether pruned neurons may be used again."""
    last: int = Field(10, ge=0)
    """Layers, counted from the last, that are trained; 0 trains everything."""
    sentences: int = Field(400, ge=8)
    """To train on."""
    test: int = Field(60, ge=8)
    """Sentences with other fillers, to measure on."""
    teach: int = Field(50, ge=1)
    """Steps in which the tagger is made."""
    retrain: int = Field(40, ge=1)
    """Steps after pruning."""
    every: int = Field(10, ge=1)
    """Steps between checkpoints."""
    batch: int = Field(8, ge=1)
    """Sentences in a step."""
    rate: float = Field(3e-4, gt=0, lt=1)
    """Of learning."""
    repeats: int = Field(2, ge=1)
    """Taggers made and pruned, each with its own sentences and head."""
    seed: int = Field(0, ge=0)
    """Of everything drawn."""


@study
class Relearn(Study[RelearnConfig]):
    id = "relearn-concepts"
    title = "Where a pruned concept comes back"
    paper = "Lo, Cohen, Barez 2024, arXiv:2401.01814"
    status = "soft and hard pruning beside matched random neurons, takeover, half-life, primed neurons; calibrated"
    Config = RelearnConfig

    def run(self, config: RelearnConfig, lab: Lab) -> Findings:
        """Make taggers, prune them in both arms, retrain and track; a repeat that is cut short is left out."""
        from cutaway.editing.relearn_concepts.report import charts, findings, summarise

        repeats: list[Repeat] = []
        complete = True
        try:
            for number in range(config.repeats):
                repeats.append(_repeat(config, lab, number))
        except KeyboardInterrupt:
            complete = False
        if not repeats:
            item = Finding("F1 lost by pruning", None, undefined="stopped before the first repeat was done")
            return Findings((item,), "stopped before the first repeat was done", complete=False)
        body = {"config": config.model_dump(), "repeats": [each.to_dict() for each in repeats]}
        return Findings(
            items=tuple(findings(repeats)),
            summary=summarise(repeats),
            artifacts={"relearning.json": (json.dumps(body) + "\n").encode()},
            charts=charts(repeats),
            inputs=dict(self.inputs(config, lab)),
            complete=complete,
            result=tuple(repeats),
        )

    def inputs(self, config: RelearnConfig, lab: Lab) -> dict[str, str]:
        """The weights, unless they are made anew; sentences follow from the seed."""
        if config.model == TINY:
            return {}
        model = lab.model(config.model, "float32")
        return {f"weights:{model.name}": model.fingerprint}

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """The planted neuron that takes over named, and nothing where the concept is absent from retraining."""
        started, trials = time.monotonic(), 20 if trials is None else trials
        right = quiet = zero = silent = both = 0
        for seed in range(trials):
            lab.progress(Progress(float(seed), float(trials), "planted networks"))
            one = planted_trial(100 + seed)
            right, both, zero = right + one["named"], both + one["all"], zero + one["zero"]
            quiet, silent = quiet + one["quiet"], silent + one["silent"]
        rates = (
            Rate("takeover", right, trials, at_least=1.0, what="networks whose strongest takeover neuron is the one"),
            Rate("all takeovers", both, trials, at_least=0.9, what="networks in which exactly the two are named"),
            Rate("pruned", zero, trials, at_least=1.0, what="networks with saliency 0 at pruned neurons right after"),
            Rate("named in the null", trials - quiet, trials, at_most=0.0, what="takeovers without the concept"),
            Rate("F1 back in the null", trials - silent, trials, at_most=0.0, what="recoveries without the concept"),
        )
        return Calibration(self.id, rates, time.monotonic() - started, {"trials": trials})


def planted_trial(seed: int, steps: int = 60) -> dict[str, int]:
    """Prune a planted network's carriers and retrain with, then without, the concept."""
    from cutaway.editing.relearn_concepts.method import Tagger, relearn
    from cutaway.planted.takeover import LABELS, takeover
    from cutaway.training import TrainConfig

    planted = takeover(seed=seed)
    tagger = Tagger(planted.model, planted.head.requires_grad_(), LABELS)
    test = planted.data(40, seed=10_000 + seed)
    config = TrainConfig(0.05, 16, steps=steps, schedule="constant", eps=1e-3, precision="float32", probe_every=steps)
    found, null = (
        relearn(
            tagger,
            planted.data(200, concept=concept, seed=seed),
            test,
            "TOWN",
            planted.truth.carriers,
            config,
            prepare=planted.free_idle,
        )
        for concept in (True, False)
    )
    idle = set(planted.truth.idle.items())
    named = [(layer, index) for layer, index, _ in found.takeover()]
    cut = [found.curve[0].saliency[layer, list(own)] for layer, own in planted.truth.carriers.items()]
    return {
        "named": int(bool(named) and named[0] in idle),
        "all": int(set(named) == idle),
        "zero": int(all((each == 0).all() for each in cut)),
        "quiet": int(not null.takeover()),
        "silent": int(null.curve[-1].f1.value == 0),
    }


def _repeat(config: RelearnConfig, lab: Lab, number: int) -> "Repeat":
    from cutaway.editing.relearn_concepts.data import LABELS, sentences, tagged
    from cutaway.editing.relearn_concepts.method import (
        concept_neurons,
        make_tagger,
        measure,
        primed,
        random_neurons,
        relearn,
    )
    from cutaway.editing.relearn_concepts.report import Repeat
    from cutaway.editing.relearn_concepts.salience import tally
    from cutaway.training import TrainConfig

    seed = config.seed + number
    model = _fresh(config, lab, seed)
    data = tagged(model, sentences(config.sentences, seed=seed))
    test = tagged(model, sentences(config.test, "test", seed=seed))
    teach = TrainConfig(
        config.rate, config.batch, steps=config.teach, warm_up=min(20, config.teach // 5), bucket=1, seed=seed
    )
    tagger = make_tagger(model, LABELS, data, teach, seed=seed)
    before = measure(tagger, test, config.concept)
    # Neurons are chosen on training sentences; what is reported is measured on the test part.
    seen = tally(model, tagged(model, sentences(config.test, seed=10_000 + seed)), LABELS, peaks=True)
    width = model.layout.dims("neurons")[0]
    own = concept_neurons(seen, config.concept, max(1, round(config.share * model.n_layers * width)))
    arms = []
    retrain = replace(teach, steps=config.retrain, warm_up=0, schedule="constant", probe_every=config.every)
    for name, neurons in (("concept", own), ("random", random_neurons(own, width, seed=seed))):

        def tick(step: int, name: str = name) -> None:
            note = f"{name} neurons, repeat {number + 1} of {config.repeats}"
            lab.progress(Progress(float(step), float(config.retrain), "steps", note))

        one = relearn(tagger, data, test, config.concept, neurons, retrain, mode=config.mode, before=before, tick=tick)
        if not one.complete:
            raise KeyboardInterrupt
        arms.append(one)
    similar = seen.similarity(config.concept, model.hf.get_input_embeddings().weight)
    effect = primed(
        similar.numpy(), arms[0].curve[-1].saliency, before.saliency, seen.spread().float().numpy(), own, seed=seed
    )
    return Repeat(arms[0], arms[1], effect)


def _fresh(config: RelearnConfig, lab: Lab, seed: int) -> "Model":
    from cutaway.editing.relearn_concepts.data import vocabulary
    from cutaway.errors import UsageError
    from cutaway.planted.concepts import tiny_llama
    from cutaway.training import unfreeze

    if config.model == TINY:
        return tiny_llama(vocabulary(), "tiny-tagger", layers=3, d_model=48, seed=seed)
    model = lab.model(config.model, "float32").copy()
    if config.last > model.n_layers:
        raise UsageError(f"last={config.last}: the model has {model.n_layers} layers")
    unfreeze(model, layers=range(model.n_layers - config.last, model.n_layers) if config.last else None)
    return model
