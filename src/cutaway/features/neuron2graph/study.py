"""The neuron-to-graph study: config, wiring, findings and calibration."""

import json
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cutaway.charts import Chart, Series
from cutaway.study import Calibration, Finding, Findings, Lab, Progress, Study, StudyConfig, study

if TYPE_CHECKING:
    from cutaway.features.neuron2graph.scores import Score
    from cutaway.features.neuron2graph.steps import Propose, Settings
    from cutaway.features.neuron2graph.survey import Surveyed
    from cutaway.features.unit import Unit
    from cutaway.model import Model

LOOKUPS = ("token look-up, mean", "token look-up, largest", "pair look-up")


class NeuronToGraphConfig(StudyConfig):
    model: str = "smollm2-135m-instruct"
    """The model: a name of the catalogue or a directory."""
    dtype: str = "auto"
    """Of the model's arithmetic."""
    units: tuple[str, ...] = ()
    """What to describe: neurons.LAYER.INDEX (a minus in front for its negative side), z.LAYER.HEAD, latent.INDEX."""
    layers: tuple[int, ...] = (2, 12, 22)
    """Where no units are named: layers to draw neurons from."""
    per_layer: int = Field(1, ge=1)
    """Neurons drawn in each, both signs of each."""
    dictionary: str = ""
    """Folder of the dictionary that latents belong to; read at its own site."""
    corpus: str = "wikitext"
    """Text: wikitext, shakespeare, a file or a folder."""
    windows: int = Field(120, ge=8)
    """Windows of text to build on, and as many of other documents to judge by."""
    length: int = Field(48, ge=8)
    """Tokens in a window."""
    snippets: int = Field(20, ge=2)
    """Strongest windows of a unit; half build, half test."""
    start: str = "bos"
    """Token in front of every window: bos, eos, id:<number> or none."""
    fillers: str = "random"
    """Tokens to mask with: random words of the text, mask, pad, or id:<number>."""
    n_fillers: int = Field(2, ge=1)
    """How many, where they are random."""
    substitutes: Literal["next", "nearest", "none"] = "next"
    """Candidates in augmentation: what the model would write there, the nearest embeddings, or no augmentation."""
    paper: Literal["", "2304.12918", "2305.19911"] = ""
    """Settings of one of the papers in place of ours: greedy matching, merging, no refinement."""
    rounds: int = Field(1, ge=0)
    """Of refinement on the building text."""
    per_round: int = Field(8, ge=1)
    """Misses and false alarms looked at in a round."""
    seed: int = 0
    """Of the neurons drawn, the fillers and the halves."""


@study
class NeuronToGraph(Study[NeuronToGraphConfig]):
    id = "neuron2graph"
    title = "What makes a neuron fire, as patterns of tokens that predict it on new text"
    paper = "Foote et al. 2023, arXiv:2305.19911 and arXiv:2304.12918"
    status = "any unit, prefix reuse, exceptions, other text beside own snippets, look-up baselines; calibrated"
    Config = NeuronToGraphConfig

    def run(self, config: NeuronToGraphConfig, lab: Lab) -> Findings:
        """Read the text once for all units, make each one's graph, judge it on its own snippets and on other text."""
        from cutaway.features.corpus import open_corpus
        from cutaway.features.neuron2graph.snippets import read
        from cutaway.features.neuron2graph.survey import survey
        from cutaway.features.neuron2graph.tokens import speller
        from cutaway.features.windows import start_tokens, windows

        model, corpus = lab.model(config.model, config.dtype), open_corpus(config.corpus)
        units = _units(model, config)
        texts = windows(model, corpus, n=config.windows, length=config.length)
        start = start_tokens(model, config.start)
        total = float(len(texts.build) + len(texts.judge))

        def seen(before: int) -> Callable[[int], None]:
            return lambda rows: lab.progress(Progress(float(before + rows), total, "windows"))

        settings = _settings(model, config, texts.build, start)
        build = read(units, texts.build, start=start, tick=seen(0))
        other = read(units, texts.judge, start=start, tick=seen(len(texts.build)))
        started = time.monotonic()
        found, complete = survey(
            units,
            build,
            other,
            spell=speller(model),
            settings=settings,
            propose=_proposer(model, config.substitutes),
            n=config.snippets,
            seed=config.seed,
            tick=lambda done: lab.progress(Progress(float(done), float(len(units)), "units")),
        )
        minutes = (time.monotonic() - started) / 60
        return Findings(
            items=tuple(_items(found, minutes)),
            summary=_summary(found),
            artifacts=_artifacts(found),
            inputs={f"weights:{model.name}": model.fingerprint, f"data:{corpus.name}": corpus.digest},
            complete=complete,
            result=found,
            charts=_charts(found),
        )

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """Planted rules recovered exactly, their fire predicted on other text, noise and silence left alone."""
        from cutaway.features.neuron2graph.calibration import all_rates

        started, trials = time.monotonic(), 8 if trials is None else trials
        rates = all_rates(trials, lambda done, total: lab.progress(Progress(float(done), float(total), "trials")))
        return Calibration(self.id, rates, time.monotonic() - started, {"trials": trials})


def _units(model: "Model", config: NeuronToGraphConfig) -> "list[Unit]":
    import numpy as np

    from cutaway.features.neuron2graph.survey import unit_named
    from cutaway.features.sparse import load_dictionary

    dictionary = load_dictionary(Path(config.dictionary)) if config.dictionary else None
    if config.units:
        return [unit_named(model, name, dictionary) for name in dict.fromkeys(config.units)]
    rng = np.random.default_rng(config.seed)
    width = model.layout.dims("neurons")[0]
    names = [
        f"{sign}neurons.{layer}.{index}"
        for layer in config.layers
        for index in rng.choice(width, min(width, config.per_layer), replace=False)
        for sign in ("", "-")
    ]
    return [unit_named(model, name) for name in names]


def _settings(
    model: "Model", config: NeuronToGraphConfig, rows: Sequence[tuple[int, ...]], start: tuple[int, ...]
) -> "Settings":
    from cutaway.features.neuron2graph.snippets import mask_tokens
    from cutaway.features.neuron2graph.steps import Settings, published

    fillers = mask_tokens(model, config.fillers, rows, n=config.n_fillers, seed=config.seed)
    if config.paper:
        return published(config.paper, filler=fillers[0], start=start)
    return Settings(fillers=fillers, start=start, rounds=config.rounds, per_round=config.per_round)


def _proposer(model: "Model", which: str) -> "Propose | None":
    from cutaway.features.neuron2graph.snippets import nearest_tokens, next_tokens

    makers = {"next": next_tokens, "nearest": nearest_tokens}
    return makers[which](model) if which in makers else None


def _items(found: "Sequence[Surveyed]", minutes: float) -> list[Finding]:
    """Means over units with bootstrap intervals, the best look-up beside each; then every unit by itself."""
    silent = [each.name for each in found if each.fitted is None]
    items = [
        Finding("units that never fire", float(len(silent)), n=len(found)),
        Finding("units per minute", len(found) / max(minutes, 1e-9), n=len(found)),
    ]
    for where in ("own", "other"):
        label = "own snippets" if where == "own" else "other text"
        scored = [getattr(each, where) for each in found if getattr(each, where)]
        items.append(_mean(f"base rate, {label}", [each["graph"].base_rate for each in scored]))
        for measure in ("precision", "recall", "f1", "quiet_precision", "quiet_recall", "pr_auc", "correlation"):
            values = {name: [getattr(each[name], measure) for each in scored] for name in ("graph", *LOOKUPS)}
            best = max(LOOKUPS, key=lambda name: _average(values[name]))
            name = f"{measure.replace('_', ' ').replace('f1', 'F1').replace('pr auc', 'PR-AUC')}, {label}"
            items.append(_mean(name, values["graph"], _mean(f"{name}, {best}", values[best])))
            if measure == "f1":
                pairs = [(a, b) for a, b in zip(values["graph"], values[best], strict=True) if not math.isnan(a + b)]
                items.append(_mean(f"{name}, minus {best}", [a - b for a, b in pairs]))
    return items + [_own(each) for each in found]


def _own(each: "Surveyed") -> Finding:
    name = f"F1, other text, {each.name}"
    if each.fitted is None:
        return Finding(name, None, undefined="never above 0 on the text it was to be built from", n=0)
    score = each.other["graph"]
    best = max((each.other[key] for key in LOOKUPS), key=lambda one: -1.0 if math.isnan(one.f1) else one.f1)
    return Finding(
        name,
        score.f1,
        n=score.tokens,
        undefined=f"fires on none of {score.tokens} tokens of other text" if score.fires == 0 else "",
        control=_point(f"{name}, {best.name}", best),
    )


def _point(name: str, score: "Score") -> Finding:
    return Finding(name, score.f1, n=score.tokens, undefined="fires nowhere" if math.isnan(score.f1) else "")


def _average(values: Sequence[float]) -> float:
    real = [value for value in values if not math.isnan(value)]
    return sum(real) / len(real) if real else -math.inf


def _mean(name: str, values: Sequence[float], control: Finding | None = None) -> Finding:
    import numpy as np

    from cutaway.stats import bootstrap

    real = [value for value in values if not math.isnan(value)]
    if not real:
        return Finding(name, None, undefined=f"defined for none of {len(values)} units", n=0, control=control)
    found = bootstrap(real, lambda x: float(np.mean(x)))
    ends = [None if math.isnan(end) else end for end in (found.low, found.high)]
    return Finding(name, found.value, ends[0], ends[1], n=len(real), control=control)


def _summary(found: "Sequence[Surveyed]") -> str:
    scores = [each.other["graph"].f1 for each in found if each.other]
    real = [value for value in scores if not math.isnan(value)]
    if not real:
        return f"{len(found)} units, none of which fires on text of other documents"
    return (
        f"{len(found)} units; mean F1 {sum(real) / len(real):.2f} on text of other documents ({len(real)} fire there)"
    )


def _artifacts(found: "Sequence[Surveyed]") -> dict[str, bytes]:
    from cutaway.features.neuron2graph.svg import draw

    lines = "".join(json.dumps(each.to_dict(), ensure_ascii=False) + "\n" for each in found)
    artifacts = {"graphs.jsonl": lines.encode()}
    for each in found:
        if each.fitted is not None:
            file = re.sub(r"[^A-Za-z0-9._-]", "-", each.name.replace("-neurons", "minus-neurons"))
            artifacts[f"{file}.svg"] = draw(each.fitted.graph).encode()
    return artifacts


def _charts(found: "Sequence[Surveyed]") -> tuple[Chart, ...]:
    live = [each for each in found if each.other]
    if not live:
        return ()

    def column(where: str, name: str) -> tuple[float | None, ...]:
        scores = [getattr(each, where).get(name) for each in live]
        return tuple(None if each is None else each.f1 for each in scores)

    best = tuple(
        max((x for x in (each.other[name].f1 for name in LOOKUPS) if not math.isnan(x)), default=None) for each in live
    )
    sizes = tuple(sorted({float(n) for each in live for n, _ in each.curve}))
    curves = tuple(
        Series(each.name, tuple({float(n): f1 for n, f1 in each.curve}.get(size) for size in sizes)) for each in live
    )
    return (
        Chart(
            "How well graphs predict firing",
            tuple(each.name for each in live),
            (
                Series("graph, other text", column("other", "graph")),
                Series("graph, own snippets", column("own", "graph")),
                Series("best look-up, other text", best, control=True),
            ),
            y_label="F1 of firing",
            note="Own snippets are chosen because they fire; other text is what a reader meets.",
        ),
        Chart(
            "F1 on other text by number of patterns",
            sizes,
            curves,
            x_label="patterns, the most frequent first",
            y_label="F1",
            log_x=True,
            note="A curve that needs hundreds of patterns is a look-up, not an explanation.",
        ),
    )
