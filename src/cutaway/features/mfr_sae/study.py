"""The MFR study: does the penalty find more of a planted truth, and what does it do to a model's activations."""

import json
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cutaway.charts import Chart, Series
from cutaway.errors import UsageError
from cutaway.study import Calibration, Finding, Findings, Lab, Progress, Study, StudyConfig, study

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.features.corpus import Corpus
    from cutaway.features.evaluate import Evaluation, Score
    from cutaway.features.mfr_sae.experiment import Comparison
    from cutaway.features.mfr_sae.method import MfrConfig, Peers
    from cutaway.model import Model

_finding = partial(Finding.of, undefined="it takes more than one dictionary, or nothing varied")


class MfrSaeConfig(StudyConfig):
    data: Literal["planted", "activations"] = "planted"
    """Planted features with a verdict on the penalty, or a model's activations."""
    peers: int = Field(2, ge=2)
    """Dictionaries that are trained side by side."""
    n_latents: int = Field(128, ge=2)
    """Latents of each."""
    k: int = Field(8, ge=1)
    """Latents active at a row."""
    weights: tuple[float, ...] = (0.01, 0.03, 0.1)
    """Of the penalty; of several the best on seeds of its own is taken (planted data), or the first (activations)."""
    matching: Literal["hungarian", "maximum"] = "hungarian"
    """How atoms of two peers are paired."""
    refresh: int = Field(10, ge=1)
    """Steps between two pairings; the released code pairs at every step."""
    steps: int = Field(250, ge=1)
    """Steps of training."""
    batch: int = Field(128, ge=2)
    """Rows in a step."""
    rate: float = Field(0.01, gt=0, lt=1)
    """Adam's learning rate."""
    redraw: float | None = None
    """Unevenness of firing rates above which a peer starts anew; 2.5 in the paper, and only for planted data."""
    seeds: int = Field(5, ge=2)
    """Planted data: repetitions, paired over arms."""
    d: int = Field(64, ge=2)
    """Planted data: dimensions."""
    n_features: int = Field(128, ge=2)
    """Planted data: true features."""
    active: float = Field(8.0, gt=0)
    """Planted data: features that fire in a row, on average."""
    together: float = Field(0.5, ge=0, le=1)
    """Planted data: 0 for independent features, 1 for groups whose first feature is the others' parent."""
    margin: float = Field(0.01, ge=0)
    """Planted data: smallest gain in recovery worth having; ruling it out means not supported."""
    model: str = "smollm2-135m-instruct"
    """Activations: a name of the catalogue or a directory."""
    dtype: str = "float32"
    """Activations: of the model's arithmetic."""
    site: str = "resid_post.15"
    """Activations: where to read."""
    corpus: str = "wikitext"
    """Activations: text."""
    tokens: int = Field(20_000, ge=100)
    """Activations: rows to train on, again and again until the steps are done."""
    measure: int = Field(3000, ge=100)
    """Activations: tokens to evaluate on, from other documents."""


@study
class MfrSae(Study[MfrSaeConfig]):
    id = "mfr-sae"
    title = "Sparse autoencoders trained to agree, and which latents are reproducible"
    paper = "Marks, Paren, Krueger, Barez 2024, arXiv:2411.01220"
    status = "planted verdict at equal compute with random and shuffled peers, reproducibility scores; calibrated"
    Config = MfrSaeConfig

    def run(self, config: MfrSaeConfig, lab: Lab) -> Findings:
        """Compare arms on planted features, or train peers with and without the penalty on a model's activations."""
        return _planted(config, lab) if config.data == "planted" else _activations(config, lab)

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """True latents come back in a peer and false ones do not; the verdict is rarely wrong."""
        from cutaway.features.mfr_sae.calibration import rates

        started, trials = time.monotonic(), 10 if trials is None else trials
        found = rates(trials, lambda done, total: lab.progress(Progress(done, total, "planted dictionaries")))
        return Calibration(self.id, found, time.monotonic() - started, {"trials": trials})

    def inputs(self, config: MfrSaeConfig, lab: Lab) -> dict[str, str]:
        """The model's weights, where one is read."""
        return dict(super().inputs(config, lab)) if config.data == "activations" else {}


def _method_config(config: MfrSaeConfig, **changes: object) -> "MfrConfig":
    from cutaway.features.mfr_sae.method import MfrConfig

    names = ("peers", "n_latents", "k", "matching", "refresh", "steps", "batch", "rate", "redraw")
    return MfrConfig(**{**{name: getattr(config, name) for name in names}, **changes})


# ---- planted features


def _planted(config: MfrSaeConfig, lab: Lab) -> Findings:
    from cutaway.features.mfr_sae.experiment import compare
    from cutaway.planted.superposition import superposition

    planted = superposition(config.d, config.n_features, config.active, together=config.together)
    found = compare(
        planted,
        _method_config(config, weight=0.0),
        seeds=config.seeds,
        weights=config.weights,
        margin=config.margin,
        tick=lambda done, total, note: lab.progress(Progress(done, total, "arms", note)),
    )
    items = [
        _finding(
            f"recovery gained over {rival}",
            gain,
            control=_finding(f"recovery, {rival}", found.interval(rival, "recovery")),
        )
        for rival, gain in found.gains.items()
    ]
    items += _arm_findings(found)
    items += [_predicts(found, how) for how in ("spearman", "pearson")]
    return Findings(
        items=tuple(items),
        summary=f"Mutual feature regularisation is {found.verdict} on planted features (weight {found.weight:g})",
        artifacts={"comparison.json": (json.dumps(_plain(found.to_dict())) + "\n").encode()},
        complete=found.complete,
        result=found,
        charts=(_bars(found),),
    )


def _arm_findings(found: "Comparison") -> list[Finding]:
    said = {
        "recovery": "mean best cosine of true atoms",
        "above": "true atoms found (cosine > .9)",
        "one_to_one": "mean cosine of true atoms, one to one",
        "fvu": "FVU on rows held out",
        "l0": "L0",
        "dead": "dead latents",
        "rank": "effective rank over dimensions",
        "duplicates": "latents with a duplicate",
        "seconds": "seconds to train",
    }
    items = []
    for what, name in said.items():
        base = _finding(f"{name}, alone", found.interval("alone", what))
        for arm in found.outcomes:
            own = found.interval(arm, what)
            items.append(_finding(f"{name}, {arm}", own, control=None if arm == "alone" else base))
    items += [
        _finding(f"likeness of peers, {arm}", found.interval(arm, "peers"))
        for arm in ("alone", "mfr", "random", "shuffled")
        if arm in found.outcomes
    ]
    return items


def _predicts(found: "Comparison", how: str) -> Finding:
    name = f"{how.capitalize()} of likeness to a peer and to the truth, without the penalty"
    own = found.interval("alone", how)
    return _finding(name, own, control=_finding(f"{name}, with random peers", found.interval("random", how)))


def _bars(found: "Comparison") -> Chart:
    intervals = [found.interval(arm, "recovery") for arm in found.outcomes]
    return Chart(
        "True atoms recovered, by arm",
        tuple(found.outcomes),
        (
            Series(
                "mean best cosine",
                tuple(each.value for each in intervals),
                tuple(each.low for each in intervals),
                tuple(each.high for each in intervals),
            ),
        ),
        y_label="mean best cosine",
        note="Intervals over seeds; arms share seeds, so their differences are surer than the bars.",
    )


# ---- a model's activations


def _activations(config: MfrSaeConfig, lab: Lab) -> Findings:
    import torch

    from cutaway.features.corpus import open_corpus
    from cutaway.features.harvest import provenance_of, stream
    from cutaway.features.mfr_sae.method import train_peers

    if config.redraw is not None:
        raise UsageError(
            f"redraw={config.redraw}: real latents fire at very uneven rates, so every peer would start anew;"
            " leave it out"
        )
    model, corpus = lab.model(config.model, config.dtype), open_corpus(config.corpus)
    kept, left = corpus.parts()
    lab.progress(Progress(0.0, 1.0, "harvest"))
    chunks = [part.values[config.site] for part in stream(model, kept, config.site, tokens=config.tokens)]
    rows, about = torch.cat(chunks).float(), provenance_of(model, kept, config.site)
    arms: dict[str, Peers] = {}
    seconds: dict[str, float] = {}
    for i, (arm, weight) in enumerate((("alone", 0.0), ("mfr", config.weights[0]))):
        started, total = time.monotonic(), float(2 * config.steps)
        arms[arm] = train_peers(
            _epochs(rows, config),
            _method_config(config, weight=weight),
            provenance=about,
            tick=lambda step, i=i, total=total: lab.progress(  # type: ignore[misc]
                Progress(float(i * config.steps + step.step), total, "steps")
            ),
        )
        seconds[arm] = time.monotonic() - started
        if not arms[arm].complete:
            break
    complete = len(arms) == 2 and all(each.complete for each in arms.values())
    items = _activation_findings(config, model, left, arms, seconds) if complete else []
    return Findings(
        items=tuple(items),
        summary=f"{config.peers} peers of {config.n_latents} latents at {config.site}, with and without the penalty",
        inputs={f"weights:{model.name}": model.fingerprint, f"data:{corpus.name}": corpus.digest},
        complete=complete,
        result=arms,
        charts=(_learning(arms),),
    )


def _activation_findings(
    config: MfrSaeConfig, model: "Model", left: "Corpus", arms: "dict[str, Peers]", seconds: dict[str, float]
) -> list[Finding]:
    """What the peers reach on other documents, and how far they agree."""
    import torch

    from cutaway.features.evaluate import evaluate
    from cutaway.features.harvest import stream
    from cutaway.features.mfr_sae.similarity import consensus, effective_rank, functional, reproducibility
    from cutaway.stats import mean_interval, paired_difference, wilson

    held = torch.cat([part.values[config.site] for part in stream(model, left, config.site, tokens=config.measure)])
    errors = {arm: [_error(each, held) for each in peers.dictionaries] for arm, peers in arms.items()}
    relative = [(a - b) / a for a, b in zip(errors["alone"], errors["mfr"], strict=True)]
    gain = paired_difference(relative, [0.0] * len(relative))
    items = [_finding("error saved by the penalty, relative", gain)]
    alone, mfr = (each.dictionaries[0] for each in arms.values())
    found = evaluate(model, alone, left, tokens=config.measure, fit=config.measure, beside={"mfr": mfr})
    first = dict(zip(arms, (found.score, *found.beside), strict=True))
    for arm, peers in arms.items():
        items += _scored(arm, first[arm], found, base=found.score if arm == "mfr" else None)
        fired = (peers.dictionaries[0].encode(held).dense() != 0).any(0)
        items.append(_finding(f"dead latents, {arm}", wilson(int((~fired).sum()), len(fired))))
        scores = reproducibility(peers.dictionaries)
        items.append(
            _finding(
                f"FVU over all peers, {arm}",
                mean_interval(errors[arm]),
                control=_finding("FVU over all peers, alone", mean_interval(errors["alone"])) if arm == "mfr" else None,
            )
        )
        items.append(_finding(f"likeness of peers, {arm}", mean_interval([float(score.mean()) for score in scores])))
        share = dict(consensus(peers.dictionaries))[len(peers.dictionaries)]
        items.append(Finding(f"latents found in every peer (cosine > .9), {arm}", share, n=config.n_latents))
        acts = functional(peers.dictionaries[0], peers.dictionaries[1], held)
        acts = acts[~acts.isnan()]
        items.append(_finding(f"correlation of like latents' values, {arm}", mean_interval(acts.tolist())))
        ranks = [effective_rank(each.atoms) for each in peers.dictionaries]
        items.append(_finding(f"effective rank, {arm}", mean_interval(ranks)))
        items.append(Finding(f"seconds to train, {arm}", seconds[arm], unit="s"))
    return items


def _scored(arm: str, score: "Score", found: "Evaluation", base: "Score | None") -> list[Finding]:
    """FVU, L0 and CE-loss score of the first peer beside the best baseline, and the FVU of the other arm."""
    best = min(found.baselines, key=lambda each: each.fvu.value)
    control = _finding(f"FVU, {best.name}", best.fvu) if base is None else _finding("FVU, alone", base.fvu)
    items = [_finding(f"FVU, {arm}", score.fvu, control=control), _finding(f"L0, {arm}", score.l0)]
    if score.ce_score is not None:
        spliced = max(
            (each.ce_score for each in found.baselines if each.ce_score is not None), key=lambda each: each.value
        )
        beside = _finding("CE-loss score, best baseline", spliced)
        items.append(_finding(f"CE-loss score, {arm}", score.ce_score, control=beside))
    return items


def _error(dictionary: object, held: "Tensor") -> float:
    from cutaway.features.sparse import SparseDictionary

    assert isinstance(dictionary, SparseDictionary)
    return float((dictionary(held) - held).square().sum() / (held - held.mean(0)).square().sum())


def _epochs(rows: "Tensor", config: MfrSaeConfig) -> "list[Tensor]":
    """Return the rows in new order again and again, as many as the steps take."""
    import torch

    generator = torch.Generator().manual_seed(0)
    turns = -(-config.steps * config.batch // len(rows))
    order = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(turns)])
    return [rows[part] for part in order.split(config.batch)]


def _learning(arms: "dict[str, Peers]") -> Chart:
    steps = max(len(peers.history) for peers in arms.values())
    series = []
    for arm, peers in arms.items():
        curve = [sum(step.fvu) / len(step.fvu) for step in peers.history]
        series.append(Series(arm, (*curve, *[None] * (steps - len(curve))), control=arm == "alone"))
    return Chart("Error while training", tuple(float(i) for i in range(steps)), tuple(series), "step", "FVU")


# ---- common


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
