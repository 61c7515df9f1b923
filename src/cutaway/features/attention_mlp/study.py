"""The attention-MLP study: config, wiring, findings and calibration."""

import json
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from cutaway.charts import Chart, Series
from cutaway.study import Calibration, Finding, Findings, Lab, Progress, Study, StudyConfig, study

if TYPE_CHECKING:
    from cutaway.features.attention_mlp.method import NextToken
    from cutaway.features.attention_mlp.surveys import NeuronFinding, Prompts
    from cutaway.model import Model


class AttentionMlpConfig(StudyConfig):
    model: str = "smollm2-135m-instruct"
    """The model: a name of the catalogue or a directory."""
    dtype: str = "auto"
    """Of the model's arithmetic."""
    layers: tuple[int, ...] = (24, 26, 28)
    """Where to look for neurons that write one next token."""
    per_layer: int = Field(2, ge=1)
    """Most congruent neurons of each layer; as many random ones are the control."""
    corpus: str = "wikitext"
    """Text: wikitext, shakespeare, a file or a folder."""
    windows: int = Field(120, ge=8)
    """Windows of text to find prompts in, and as many of other documents to score on."""
    length: int = Field(48, ge=8)
    """Tokens in a window."""
    prompts: int = Field(16, ge=4)
    """Prompts of a neuron on either side."""
    keep: float = Field(0.8, gt=0, le=1)
    """Share of the activation that a shortened prompt keeps."""
    shortened: bool = True
    """Cut prompts to the shortest suffix that keeps it."""
    start: str = "bos"
    """Token in front of every prompt: bos, eos, id:<number> or none."""
    seed: int = 0
    """Of the random neurons and heads."""


@study
class AttentionMlp(Study[AttentionMlpConfig]):
    id = "attention-mlp"
    title = "Which heads, in which contexts, switch on a neuron that writes one next token"
    paper = "Neo, Cohen, Barez 2024, arXiv:2402.15055"
    status = "exact shares for every norm and MLP, rules scored on other documents, clustered test; calibrated"
    Config = AttentionMlpConfig

    def run(self, config: AttentionMlpConfig, lab: Lab) -> Findings:
        """Find the neurons, the prompts that fire them, their heads, and what rules and heads are worth."""
        from cutaway.features.attention_mlp.surveys import survey
        from cutaway.features.corpus import open_corpus
        from cutaway.features.windows import start_tokens, windows

        model, corpus = lab.model(config.model, config.dtype), open_corpus(config.corpus)
        targets, controls = _targets(model, config)
        start = start_tokens(model, config.start)
        texts = windows(model, corpus, n=config.windows, length=config.length)
        build, other = texts.build, texts.judge
        total = float(len(build) + len(other))

        def seen(before: int) -> Callable[[int], None]:
            return lambda rows: lab.progress(Progress(float(before + rows), total, "windows"))

        everyone = [*targets, *controls]
        sides = [
            _prompts(model, everyone, rows, config, start, seen(before))
            for rows, before in ((build, 0), (other, len(build)))
        ]
        found, complete = survey(
            model,
            everyone,
            *sides,
            start=start,
            seed=config.seed,
            tick=lambda done: lab.progress(Progress(float(done), float(len(everyone)), "neurons")),
        )
        chosen = {(each.layer, each.neuron) for each in targets}
        next_token = [each for each in found if (each.target.layer, each.target.neuron) in chosen]
        random = [each for each in found if (each.target.layer, each.target.neuron) not in chosen]
        lines = "".join(json.dumps(_line(model, each), ensure_ascii=False) + "\n" for each in found)
        return Findings(
            items=tuple(_items(next_token, random, config.seed)),
            summary=_summary(next_token, random),
            artifacts={"lookups.jsonl": lines.encode(), "graph.json": _graph(model, next_token)},
            inputs={f"weights:{model.name}": model.fingerprint, f"data:{corpus.name}": corpus.digest},
            complete=complete,
            result=found,
            charts=_charts(model, next_token, random),
        )

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        """Planted circuits recovered in full; nothing where no head drives the neuron; the test keeps its level."""
        from cutaway.features.attention_mlp.calibration import all_rates

        started, trials = time.monotonic(), 10 if trials is None else trials
        rates = all_rates(trials, lambda done, total: lab.progress(Progress(float(done), float(total), "models")))
        return Calibration(self.id, rates, time.monotonic() - started, {"trials": trials})


def _targets(model: "Model", config: AttentionMlpConfig) -> "tuple[list[NextToken], list[NextToken]]":
    from cutaway.features.attention_mlp.method import congruence, word_like
    from cutaway.features.attention_mlp.surveys import random_neurons

    allowed = word_like(model)
    targets, pool = [], []
    for layer in dict.fromkeys(config.layers):
        ranked = congruence(model, layer, allowed=allowed)
        firsts = {each.neuron: each for each in reversed(ranked)}
        best = sorted(firsts.values(), key=lambda each: -each.congruence)[: config.per_layer]
        targets += best
        pool += ranked
    return targets, random_neurons(model, config.layers, len(targets), targets, pool, config.seed)


def _prompts(
    model: "Model",
    targets: "Sequence[NextToken]",
    rows: Sequence[tuple[int, ...]],
    config: AttentionMlpConfig,
    start: tuple[int, ...],
    tick: Callable[[int], None],
) -> "Prompts":
    from cutaway.features.attention_mlp.surveys import firing_prompts

    return firing_prompts(
        model,
        targets,
        rows,
        n=config.prompts,
        keep=config.keep,
        start=start,
        shortened=config.shortened,
        tick=tick,
    )


def _items(next_token: "Sequence[NeuronFinding]", random: "Sequence[NeuronFinding]", seed: int) -> list[Finding]:
    from cutaway.features.attention_mlp.report import correlation, distances, scores

    silent = sum(bool(each.undefined) for each in next_token)
    control = Finding(
        "neurons that fire too rarely, random", float(sum(bool(e.undefined) for e in random)), n=len(random)
    )
    return [
        Finding("neurons that fire too rarely", float(silent), n=len(next_token), control=control),
        *scores(next_token, random, seed),
        *distances(next_token, random, seed),
        correlation([*next_token, *random]),
    ]


def _summary(next_token: "Sequence[NeuronFinding]", random: "Sequence[NeuronFinding]") -> str:
    def mean(found: "Sequence[NeuronFinding]") -> str:
        real = [h.score for each in found for h in each.heads if not math.isnan(h.score)]
        return f"{sum(real) / len(real):.2f} ({len(real)} heads)" if real else "undefined"

    heads = sum(len(each.heads) for each in next_token)
    return f"{len(next_token)} neurons, {heads} heads; rules score {mean(next_token)}, random neurons' {mean(random)}"


def _name(model: "Model", target: "NextToken") -> str:
    return f"{target.layer}.{target.neuron}{'' if target.sign > 0 else '-'}{model.decode([target.token])}"


def _line(model: "Model", found: "NeuronFinding") -> dict[str, object]:
    data = found.to_dict()
    for head in data["heads"]:
        head["rule"] = f"{head['decision']['how']} {[model.decode([t]) for t in head['decision']['tokens']]}"
    return {**data, "writes": model.decode([found.target.token]), "prompts": [model.decode(p) for p in found.prompts]}


def _graph(model: "Model", found: "Sequence[NeuronFinding]") -> bytes:
    """Head to neuron to token, as nodes and weighted edges."""
    nodes, edges = set(), []
    for each in found:
        neuron = f"neuron {each.target.layer}.{each.target.neuron}"
        token = f"token {model.decode([each.target.token])}"
        nodes |= {neuron, token}
        edges.append([neuron, token, each.target.congruence])
        for head in each.heads:
            name = f"head {head.layer}.{head.head}"
            nodes.add(name)
            edges.append([name, neuron, head.contribution])
    return (json.dumps({"nodes": sorted(nodes), "edges": edges}, ensure_ascii=False) + "\n").encode()


def _charts(
    model: "Model", next_token: "Sequence[NeuronFinding]", random: "Sequence[NeuronFinding]"
) -> tuple[Chart, ...]:
    rows = [(each, head) for each in next_token for head in each.heads]
    if not rows:
        return ()
    names = tuple(f"{_name(model, each.target)} \u2190 {head.layer}.{head.head}" for each, head in rows)

    def column(key: str) -> tuple[float, ...]:
        return tuple(getattr(head, key) for _, head in rows)

    return (
        Chart(
            "Rules on prompts of other documents",
            names,
            (Series("balanced accuracy", column("score")), Series("chance", (0.5,) * len(names), control=True)),
            y_label="balanced accuracy",
            note="Gaps: the head is active on all or on none of those prompts.",
        ),
        Chart(
            "Fall of P(token) without the head",
            names,
            (
                Series("active", column("drop_active")),
                Series("inactive", column("drop_inactive")),
                Series("random head, active", column("random_active"), control=True),
            ),
            y_label="probability",
        ),
    )
