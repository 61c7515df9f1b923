"""The erasure study: config, wiring, findings and calibration."""

import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from cutaway.study import Calibration, Findings, Lab, Progress, Rate, Study, StudyConfig, study

if TYPE_CHECKING:
    from cutaway.editing.pisces.erasing import Erased
    from cutaway.editing.pisces.method import Dictionaries
    from cutaway.model import Model

PLANTED = "planted"


class PiscesConfig(StudyConfig):
    model: str = "smollm2-135m-instruct"
    """The model: a name of the catalogue, a directory, or ``planted``: a small one that knows two invented worlds."""
    dictionaries: str = ""
    """Folder with a dictionary of MLP outputs in each subfolder; empty: directions of words, nothing trained."""
    layers: tuple[int, ...] = ()
    """Layers edited where no dictionaries are given; empty: the last fifth."""
    top: int = Field(1, ge=1)
    """How many of a feature's most favoured tokens may name the concept."""
    ends: Literal["top", "both"] = "top"
    """Whether features that disfavour the concept are taken too."""
    check: bool = False
    """Leave out features that, edited alone, do nothing or do harm; a pass over all questions for each."""
    taus: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6)
    """Which rows: those that read a feature by more than this share of the most; searched."""
    mus: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)
    """How strongly they write against it, in units of the strongest reading; searched. Dictionaries that were trained
    take more (the paper: 4 to 50)."""
    most_concept: float = Field(0.2, ge=0, le=1)
    """Share of the concept's accuracy that may be left."""
    least_general: float = Field(0.75, ge=0, le=1)
    """Share of other accuracy that has to be left."""
    least_fluency: float = Field(0.8, ge=0, le=1)
    """Perplexity on neutral text before, over after."""
    ascent: int = Field(8, ge=0)
    """Most steps of the baseline, gradient ascent; 0: none."""
    relearn: int = Field(6, ge=0)
    """Steps of relearning from facts that are not tested; 0: none."""
    last: int = Field(10, ge=0)
    """Layers, counted from the last, that training touches; 0: all."""
    rate: float = Field(5e-5, gt=0, lt=1)
    """Learning rate of the baseline and of relearning."""
    batch: int = Field(8, ge=1)
    """Facts in a step."""
    seed: int = Field(0, ge=0)
    """Of controls, orders and the search."""

    @model_validator(mode="after")
    def _agrees(self) -> "PiscesConfig":
        if self.dictionaries and self.layers:
            raise ValueError("layers: the dictionaries say which; leave one of the two empty")
        return self


@study
class Pisces(Study[PiscesConfig]):
    id = "pisces"
    title = "Erase a concept by rewriting the MLP rows that write it"
    paper = "Gur-Arieh, Suslik, Hong, Barez, Geva 2025, arXiv:2505.22586"
    status = (
        "search, controls of equal norm, gradient ascent and relearning beside it; calibrated on two invented worlds"
    )
    Config = PiscesConfig

    def run(self, config: PiscesConfig, lab: Lab) -> Findings:
        """Search an edit, judge it beside its controls, let every arm relearn; the edit is an artifact."""
        from cutaway.editing.concepts import months
        from cutaway.editing.pisces.erasing import erase, find_features, useful
        from cutaway.editing.pisces.method import word_features
        from cutaway.editing.pisces.report import charts, findings, summarise
        from cutaway.training import TrainConfig

        def tick(what: str, done: int, total: int) -> None:
            lab.progress(Progress(float(done), float(total), what))

        if config.model == PLANTED:
            from cutaway.editing.pisces.planted import two_worlds

            worlds = two_worlds(seed=config.seed)
            model, concept, dictionaries = worlds.model, worlds.concept, worlds.dictionaries
        else:
            model, concept = lab.model(config.model, "float32").copy(), months()
            model.hf.requires_grad_(False)
            dictionaries = _dictionaries(config, model, concept.words)
        if config.dictionaries or config.model == PLANTED:
            check = config.check or config.model == PLANTED
            which = partial(find_features, top=config.top, ends=config.ends, check=check)
            features = which(model, dictionaries, concept, taus=config.taus, mus=config.mus)
        else:
            features = word_features(dictionaries, concept.words)
            if config.check:
                features = useful(model, dictionaries, features, concept, taus=config.taus, mus=config.mus)
        last = range(model.n_layers - config.last, model.n_layers) if 0 < config.last < model.n_layers else None
        train = TrainConfig(
            config.rate, config.batch, steps=max(1, config.ascent), schedule="constant", probe_every=1, seed=config.seed
        )
        again = TrainConfig(
            config.rate,
            config.batch,
            steps=max(1, config.relearn),
            schedule="constant",
            probe_every=max(1, config.relearn // 4),
            seed=config.seed,
        )
        found = erase(
            model,
            dictionaries,
            concept,
            features,
            taus=config.taus,
            mus=config.mus,
            limits=(config.most_concept, config.least_general, config.least_fluency),
            baseline=train if config.ascent else None,
            relearn=again if config.relearn else None,
            layers=last,
            seed=config.seed,
            tick=tick,
        )
        body = {"config": config.model_dump(), "erased": found.to_dict()}
        artifacts = {"erased.json": (json.dumps(body) + "\n").encode()}
        if found.edit is not None:
            artifacts["edit.safetensors"] = _bytes(found)
        return Findings(
            items=tuple(findings(found)),
            summary=summarise(found),
            artifacts=artifacts,
            charts=charts(found),
            inputs=dict(self.inputs(config, lab)),
            complete=found.complete,
            result=found,
        )

    def inputs(self, config: PiscesConfig, lab: Lab) -> dict[str, str]:
        """The weights, unless they are made anew."""
        if config.model == PLANTED:
            return {}
        model = lab.model(config.model, "float32")
        return {f"weights:{model.name}": model.fingerprint}

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """World A gone and world B left; random features of equal norm leave A; relearning against gradient ascent."""
        from cutaway.editing.pisces.planted import erase_world, two_worlds

        started, trials = time.monotonic(), 3 if trials is None else trials
        hits: dict[str, int] = {}
        for seed in range(trials):
            lab.progress(Progress(float(seed), float(trials), "pairs of worlds"))
            for name, hit in verdicts(erase_world(two_worlds(seed=50 + seed), seed=50 + seed)).items():
                hits[name] = hits.get(name, 0) + hit
        asked = {
            "found": (1.0, "pairs of worlds with an acceptable setting"),
            "gone": (1.0, "known above 90% before, below 10% after"),
            "kept": (1.0, "the other world within 5 points"),
            "fluent": (1.0, "perplexity on neutral text up by at most 2%"),
            "random features": (1.0, "controls of equal norm with more than 60% left"),
            "slower": (None, "tested facts come back less, from facts with other answers, than after gradient ascent"),
        }
        rates = tuple(
            Rate(name, hits.get(name, 0), trials, at_least=least, what=what) for name, (least, what) in asked.items()
        )
        return Calibration(self.id, rates, time.monotonic() - started, {"trials": trials})


def verdicts(found: "Erased") -> dict[str, int]:
    """Return which of the planted experiment's demands an erasure met."""
    import numpy as np

    if found.edit is None:
        return {}
    before, after = found.arms["before"], found.arms["edited"]
    kept = [np.concatenate([arm.similar, arm.general]).mean() for arm in (before, after)]
    gained = {name: curve[-1][1] - curve[0][1] for name, curve in found.relearnt.items()}
    return {
        "found": 1,
        "gone": int(before.concept.mean() > 0.9 and after.concept.mean() < 0.1),
        "kept": int(abs(kept[0] - kept[1]) <= 0.05),
        "fluent": int(after.perplexity(before).value <= 1.02),
        "random features": int(found.arms["random features"].concept.mean() > 0.6),
        "slower": int("gradient ascent" in gained and gained["edited"] < gained["gradient ascent"]),
    }


def _dictionaries(config: PiscesConfig, model: "Model", words: tuple[str, ...]) -> "Dictionaries":
    from cutaway.editing.facts import single_tokens
    from cutaway.editing.pisces.method import word_dictionary
    from cutaway.errors import UsageError
    from cutaway.features import load_dictionary

    if not config.dictionaries:
        layers = config.layers or tuple(range(model.n_layers - max(1, model.n_layers // 5), model.n_layers))
        tokens = single_tokens(model, words)
        return {layer: word_dictionary(model, layer, tokens, seed=config.seed) for layer in layers}
    folders = sorted(path.parent for path in Path(config.dictionaries).glob("*/dictionary.json"))
    if not folders:
        raise UsageError(f"dictionaries={config.dictionaries}: no subfolder holds a dictionary")
    found = {}
    for folder in folders:
        dictionary = load_dictionary(folder, model)
        kind, _, layer = dictionary.provenance.site.partition(".")
        if kind != "mlp_out":
            raise UsageError(f"{folder.name}: a dictionary of {dictionary.provenance.site}; MLP outputs are needed")
        found[int(layer)] = dictionary
    return found


def _bytes(found: "Erased") -> bytes:
    assert found.edit is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edit.safetensors"
        found.edit.save(path)
        return path.read_bytes()
