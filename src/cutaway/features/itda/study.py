"""The ITDA study: config, wiring, findings and calibration."""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from cutaway.charts import Chart, Series
from cutaway.errors import UsageError
from cutaway.study import Calibration, Finding, Findings, Lab, Progress, Rate, Study, StudyConfig, study

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.features.corpus import Corpus
    from cutaway.features.dictionary import Dictionary
    from cutaway.features.evaluate import Score
    from cutaway.features.itda.method import Built
    from cutaway.features.itda.similarity import Matching
    from cutaway.model import Model
    from cutaway.stats import Interval


RIVAL = "TopK trained for as long"


class ItdaConfig(StudyConfig):
    model: str = "smollm2-135m-instruct"
    """The model: a name of the catalogue or a directory."""
    dtype: str = "auto"
    """Of the model's arithmetic."""
    site: str = "resid_post.15"
    """Where to read."""
    corpus: str = "wikitext"
    """Text: wikitext, shakespeare, a file or a folder."""
    tokens: int = Field(50_000, ge=100)
    """How many to build from, at most."""
    k: int = Field(40, ge=1)
    """Steps of pursuit: the largest L0."""
    cosine: float = Field(0.846, gt=0, lt=1)
    """An activation whose reconstruction is less like it becomes an atom; 0.846 is the paper's tau at width 768."""
    max_atoms: int = Field(4096, ge=2)
    """The build ends there; 4,096 atoms need 70 MB for their products."""
    measure: int = Field(4000, ge=0)
    """Tokens to evaluate on; 0 measures nothing."""
    trained: bool = True
    """Also train a TopK dictionary of the same size for as many seconds as the build took."""
    seeds: int = Field(0, ge=0)
    """Tiny models to train for layer matching; 0 leaves it out, the paper has 5."""
    length: int = Field(128, ge=2)
    """Tokens in a window."""


@study
class Itda(Study[ItdaConfig]):
    id = "itda"
    title = "A sparse dictionary of real activations, without training"
    paper = "Leask, Nanda, Al Moubayed 2025, arXiv:2505.17769"
    status = "Gram pursuit, content labels, layer matching beside CKA, SVCCA, relative representations; calibrated"
    Config = ItdaConfig

    def run(self, config: ItdaConfig, lab: Lab) -> Findings:
        """Build on three quarters of the documents, evaluate on the rest, compare; match layers where asked to."""
        from cutaway.features.corpus import open_corpus
        from cutaway.features.evaluate import evaluate
        from cutaway.features.itda.method import build

        model, corpus = lab.model(config.model, config.dtype), open_corpus(config.corpus)
        kept, left = corpus.parts()
        started = time.monotonic()
        found = build(
            model,
            kept,
            config.site,
            k=config.k,
            cosine=config.cosine,
            max_atoms=config.max_atoms,
            tokens=config.tokens,
            length=config.length,
            tick=lambda rows, atoms: lab.progress(
                Progress(float(rows), float(config.tokens), "tokens", f"{atoms} atoms")
            ),
        )
        (built,) = found.values()
        seconds = time.monotonic() - started
        items = _build_findings(built, seconds)
        charts = [_growth(built)]
        artifacts = {"atoms.jsonl": _names(built)}
        complete = built.complete
        if config.measure and complete:
            rival: dict[str, Dictionary] = {}
            if config.trained:
                try:
                    rival[RIVAL] = _rival(config, model, kept, built, seconds)
                except UsageError as error:
                    items.append(Finding(f"FVU, {RIVAL}", None, undefined=str(error)))
            n = config.measure
            scored = evaluate(model, built.dictionary, left, tokens=n, fit=n, length=config.length, beside=rival)
            items += _scores("ITDA", scored.score, scored.baselines)
            for each in scored.beside:
                items += _scores(each.name, each, ())
            artifacts["evaluation.json"] = (json.dumps(scored.to_dict()) + "\n").encode()
        if config.seeds and complete:
            matchings = layer_matching(
                config.seeds, lambda done, total, note: lab.progress(Progress(done, total, note))
            )
            items += _matchings(matchings)
            charts.append(_bars(matchings))
        return Findings(
            items=tuple(items),
            summary=f"{built.dictionary.n_latents} atoms at {config.site}, {built.tokens:,} tokens, {seconds:.0f} s",
            artifacts=artifacts,
            inputs={f"weights:{model.name}": model.fingerprint, f"data:{corpus.name}": corpus.digest},
            complete=complete,
            result=built,
            charts=tuple(charts),
        )

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """Planted atoms found, new ones added and nothing else; layers of copies matched, unrelated ones not."""
        started, trials = time.monotonic(), 10 if trials is None else trials
        alone = found = near = new = added = familiar = seen = same = chance = 0
        for seed in range(trials):
            lab.progress(Progress(float(seed), float(trials), "planted dictionaries"))
            one = planted_trial(seed)
            alone, found, near = alone + one["alone"], found + one["found"], near + one["near"]
            new, added = new + one["new"], added + one["added"]
            familiar, seen = familiar + one["familiar"], seen + one["seen"]
            same, chance = same + matched_layers(seed), chance + matched_layers(seed, null=True)
        pairs = trials * 6 * LAYERS
        rates = (
            Rate("recall", found, alone, at_least=0.95, what="planted atoms seen alone that came back (cosine > .95)"),
            Rate(
                "near-duplicates", near, trials, at_most=0.0, what="dictionaries with two atoms of cosine .98 or more"
            ),
            Rate("new atoms", added, new, at_least=0.95, what="planted atoms new in the second text that were added"),
            Rate("false atoms", familiar, seen, at_most=0.05, what="rows of known atoms that were added all the same"),
            Rate("layers", same, pairs, at_least=0.9, what="layers of turned, noisy copies matched; chance 1 in 4"),
            Rate("unrelated layers", chance, pairs, at_most=0.4, what="the same where layers have nothing in common"),
        )
        return Calibration(self.id, rates, time.monotonic() - started, {"trials": trials, "layers": LAYERS})


LAYERS = 4
"""Of the tiny models, and of the planted ones."""


def planted_trial(seed: int) -> dict[str, int]:
    """Build on planted rows; then show the same dictionary rows of known atoms and rows of new ones."""
    import torch

    from cutaway.features.dictionary import Provenance
    from cutaway.features.itda.atoms import Atom
    from cutaway.features.itda.data import planted_rows
    from cutaway.features.itda.method import Builder

    def name(i: int) -> Atom:
        return Atom(str(i), 0, i, "", "")

    planted = planted_rows(6000, atoms=128, alone=0.5, seed=seed)
    builder = Builder(64, k=8, cosine=0.98, max_atoms=2048)
    builder.add(planted.rows, name)
    made = builder.built("", Provenance()).dictionary
    seen = planted.which[: builder.tokens].unique()
    seen = seen[seen >= 0]
    found = (planted.atoms[seen] @ made.atoms.T).amax(-1) > 0.95
    near = (made.gram - torch.eye(made.n_latents)).abs().max() >= 0.98
    # The null: single atoms that were seen, in other strengths. The truth: directions outside of all that was seen.
    before = builder.n
    scale = 0.5 + torch.rand(len(seen), 1, generator=torch.Generator().manual_seed(seed))
    builder.add(planted.atoms[seen] * scale, name)
    familiar = builder.n - before
    generator = torch.Generator().manual_seed(1000 + seed)
    fresh = Builder(96, k=8, cosine=0.98, max_atoms=2048)
    wide = torch.nn.functional.pad(planted.rows[:2000], (0, 32))
    fresh.add(wide, name)
    novel = torch.linalg.qr(torch.randn(32, 20, generator=generator))[0].T
    start = fresh.n
    shown = torch.nn.functional.pad(novel, (64, 0)).repeat(3, 1)
    fresh.add(shown, name)
    labels = {int(each.label) for each in fresh.names[start:]}
    return {
        "alone": len(seen),
        "found": int(found.sum()),
        "near": int(near),
        "new": 20,
        "added": len(labels & set(range(20))),
        "familiar": familiar + len(labels - set(range(20))),
        "seen": len(seen) + 40,
    }


def matched_layers(seed: int, *, null: bool = False) -> int:
    """Return how many layers of three planted models are matched, of 24: every ordered pair of two, every layer."""
    from cutaway.features.dictionary import Provenance
    from cutaway.features.itda.atoms import Atom
    from cutaway.features.itda.data import planted_layers
    from cutaway.features.itda.method import Builder
    from cutaway.features.itda.similarity import match_dictionaries

    models = []
    for layers in planted_layers(3, LAYERS, null=null, seed=seed):
        builders = [Builder(rows.shape[1], k=4, cosine=0.9, max_atoms=600) for rows in layers]
        for builder, rows in zip(builders, layers, strict=True):
            builder.add(rows, lambda i: Atom(str(i), 0, i, "", ""))
        models.append([builder.built("", Provenance()).dictionary for builder in builders])
    return round(match_dictionaries(models, seed)[0].accuracy.value * 6 * LAYERS)


def layer_matching(
    seeds: int, tick: Callable[[float, float, str], None], *, steps: int = 200, tokens: int = 6000
) -> "tuple[Matching, ...]":
    """Train tiny models that differ in their seed and match their layers by labels and by the comparators."""
    import torch

    from cutaway.features.corpus import Corpus, open_corpus
    from cutaway.features.harvest import stream
    from cutaway.features.itda.data import tiny_models
    from cutaway.features.itda.method import build
    from cutaway.features.itda.similarity import match_activations, match_dictionaries

    texts = list(open_corpus("shakespeare"))
    training, held = Corpus("training", texts=tuple(texts[:60])), Corpus("held out", texts=tuple(texts[60:]))
    total = float(seeds * steps)
    models = tiny_models(
        training, seeds, layers=LAYERS, steps=steps, tick=lambda step: tick(float(step), total, "steps")
    )
    dictionaries, values = [], []
    for model in models:
        with torch.no_grad():
            found = build(
                model, held, "resid_post.*", k=2, cosine=0.95, max_atoms=1500, tokens=tokens, length=model.n_ctx
            )
            parts = list(stream(model, held, "resid_post.*", tokens=2000, length=model.n_ctx))
        dictionaries.append([each.dictionary for each in found.values()])
        values.append([torch.cat([part.values[site] for part in parts]) for site in found])
    return (*match_dictionaries(dictionaries), *match_activations(values))


def _rival(config: ItdaConfig, model: "Model", kept: "Corpus", built: "Built", seconds: float) -> "Dictionary":
    """A TopK dictionary of the same size, trained for as long, on the same text; UsageError where that is no step."""
    from cutaway.features.harvest import mixed, provenance_of, stream
    from cutaway.features.train import TrainConfig, train

    n = built.dictionary.n_latents
    settings = TrainConfig(n_latents=n, k=min(config.k, n), batch=1024, warm_up=20)
    deadline = time.monotonic() + seconds
    source = stream(model, kept, config.site, length=config.length)
    rows = _until((part[config.site].float() for part in mixed(source, 8192)), deadline)
    return train(rows, settings, provenance=provenance_of(model, kept, config.site)).dictionary


def _until(rows: "Iterable[Tensor]", deadline: float) -> "Iterator[Tensor]":
    for chunk in rows:
        for part in chunk.split(1024):
            if time.monotonic() > deadline:
                return
            yield part


def _build_findings(built: "Built", seconds: float) -> list[Finding]:
    return [
        Finding("atoms", float(built.dictionary.n_latents), n=built.tokens),
        Finding("seconds to build", seconds, n=built.tokens, unit="s"),
        Finding("atoms never used after they were added", float(sum(not n for n in built.used)), n=len(built.used)),
        Finding("activations without a direction, left out", float(built.skipped), n=built.tokens),
    ]


def _scores(name: str, score: "Score", baselines: "Iterable[Score]") -> list[Finding]:
    """FVU, L0 and CE-loss score, the best baseline of the same budget beside each."""
    others = list(baselines)
    items = [_finding(f"L0, {name}", score.l0)]
    if others:
        best = min(others, key=lambda each: each.fvu.value)
        items.append(_finding(f"FVU, {name}", score.fvu, _finding(f"FVU, {best.name}", best.fvu)))
    else:
        items.append(_finding(f"FVU, {name}", score.fvu))
    if score.ce_score is not None:
        spliced = {each.name: each.ce_score for each in others if each.ce_score is not None}
        top = max(spliced, key=lambda each: spliced[each].value, default="")
        control = _finding(f"CE-loss score, {top}", spliced[top]) if top else None
        items.append(_finding(f"CE-loss score, {name}", score.ce_score, control))
    return items


def _finding(name: str, interval: "Interval | None", control: Finding | None = None) -> Finding:
    if interval is None or math.isnan(interval.value):
        return Finding(name, None, undefined="zeros in the activations' place do the model no harm", control=control)
    ends = [None if math.isnan(end) else end for end in (interval.low, interval.high)]
    return Finding(name, interval.value, ends[0], ends[1], n=interval.n, control=control)


def _matchings(matchings: "Iterable[Matching]") -> list[Finding]:
    by_name = {each.name: each for each in matchings}
    control = _finding("layers matched by random labels", by_name["random labels"].accuracy)
    items = [
        _finding(f"layers matched by {name}", each.accuracy, control if name == "labels" else None)
        for name, each in by_name.items()
        if name != "random labels"
    ]
    labels = by_name["labels"]
    items.append(
        Finding("layers matched by labels, pairs of a model with itself included (inflated)", labels.with_self)
    )
    items.append(Finding("layers between the match and the right one", labels.distance, n=labels.accuracy.n))
    return items


def _growth(built: "Built") -> Chart:
    picked = built.growth[:: max(1, len(built.growth) // 100)]
    return Chart(
        "Atoms as text goes by",
        tuple(float(rows) for rows, _ in picked),
        (Series("atoms", tuple(float(n) for _, n in picked)),),
        x_label="tokens",
        y_label="atoms",
    )


def _bars(matchings: "tuple[Matching, ...]") -> Chart:
    def column(what: str) -> tuple[float, ...]:
        return tuple(getattr(each.accuracy, what) for each in matchings)

    return Chart(
        "Layers matched between models that differ in their seed",
        tuple(each.name for each in matchings),
        (
            Series("accuracy", column("value"), column("low"), column("high")),
            Series("chance", tuple(each.chance for each in matchings), control=True),
        ),
        y_label="share of layers",
        note="Pairs of different models only.",
    )


def _names(built: "Built") -> bytes:
    lines = (
        json.dumps({"atom": i, "label": name.label, "before": name.before, "token": name.token, "used": used})
        for i, (name, used) in enumerate(zip(built.dictionary.names, built.used, strict=True))
    )
    return ("\n".join(lines) + "\n").encode()
