"""Graphs of neurons and head attribution on SmolLM2, each against the plain way to the same numbers, in one process.

- Saliency of snippets: masked variants in batches on the keys and values of what stands before the mask, against one
  forward pass for each masked token (as the published code does, batch 1). Both stop at the neuron's layer.
- A whole graph by `fit`, with and without: neurons per minute.
- Attribution of 100 neurons at 20 prompts each: one pass over the windows that hold the prompts, against a forward
  pass and all head outputs for each neuron's prompt. The plain way is timed on a few pairs and scaled.

    python benchmarks/neuron_graph.py [--quick] [--out FILE.json]
"""

import time
from typing import Any

import torch
from timing import claim, interleaved, options, ratios, report

from cutaway.features.attention_mlp import attribute, reader
from cutaway.features.attention_mlp.reading import linear
from cutaway.features.corpus import open_corpus
from cutaway.features.neuron2graph import Settings, Snippet, fit, prune, read, saliency, speller, windows
from cutaway.features.unit import ModelUnit, neuron
from cutaway.model import Model, load_model

LAYER, INDEX = 12, 100
FILLER, START = 2000, 1
LATE = (24, 25, 26, 27, 28)
SAMPLED = 12
"""Neuron-prompt pairs on which the plain attribution is timed."""


@torch.no_grad()
def one_by_one(unit: ModelUnit, texts: list[tuple[int, ...]]) -> list[torch.Tensor]:
    """Importance [masked, target] by one forward for each masked token."""
    out = []
    for ids in texts:

        def value(row: tuple[int, ...]) -> torch.Tensor:
            tensor = torch.tensor([row])
            return unit.activations(tensor, torch.ones_like(tensor, dtype=torch.bool))[0]

        base = value(ids)
        masked = torch.stack([value((*ids[:i], FILLER, *ids[i + 1 :])) for i in range(1, len(ids))])
        out.append(1 - masked / torch.where(base > 0, base, torch.nan))
    return out


@torch.no_grad()
def plain_attribution(model: Model, layer: int, index: int, prompt: tuple[int, ...]) -> torch.Tensor:
    """All heads' outputs at all positions for one prompt, then the product with the neuron's input."""
    held = model.capture([list(prompt)], ["z.*", f"resid_mid.{layer}"], special=True)
    read_ = reader(model, layer)
    results = []
    for below in range(layer + 1):
        w_o = linear(model.layout.attn(below).get_submodule("o_proj"))[0].T.unflatten(0, (model.n_heads, -1))
        results.append(torch.einsum("bphe,hed->bphd", held[f"z.{below}"], w_o)[0, -1])
    x = held[f"resid_mid.{layer}"][0, -1]
    shares = torch.stack(results) @ read_.directions[:, index].T * read_.norm.scale(x)
    return shares @ read_.slopes(read_.pre(x, index)[:, None])[:, 0]


def graph_claims(model: Model, quick: bool) -> tuple[list[Any], dict[str, Any]]:
    unit, spell = neuron(model, LAYER, INDEX), speller(model)
    texts = windows(model, open_corpus("wikitext"), n=16 if quick else 48, length=40, judge=1)
    known = read([unit], texts.build, start=(START,))
    snippets = known.snippets(0, 4 if quick else 10)
    settings = Settings(fillers=(FILLER,), start=(START,), rounds=0, sufficient=False)
    # The longest windows tried: the usual case, and the one that costs.
    found = prune(unit, snippets, spell=spell, settings=Settings(fillers=(FILLER,), start=(START,), lengths=(30,)))
    pruned = [each.ids for each in found if each is not None]
    ours = saliency(unit, pruned, settings=settings)
    apart = max(
        float((a.importance[1:] - b).abs().nan_to_num().masked_fill(a.values <= 0.05 * a.values.max(), 0).max())
        for a, b in zip(ours, one_by_one(unit, pruned), strict=True)
    )
    runs = interleaved(
        1 if quick else 3,
        ours=lambda _: saliency(unit, pruned, settings=settings) is None,
        whole=lambda _: (
            saliency(unit, pruned, settings=Settings(fillers=(FILLER,), start=(START,), reuse=False)) is None
        ),
        loop=lambda _: one_by_one(unit, pruned) is None,
    )
    spent = time.perf_counter()
    largest = known.largest(0)
    fit(unit, snippets, largest=largest, spell=spell, settings=settings)
    minutes = (time.perf_counter() - spent) / 60
    masks = sum(len(ids) - 1 for ids in pruned)
    return [
        claim(
            f"saliency of {len(pruned)} snippets, {masks} masks",
            "one forward a mask",
            ratios(runs, "loop", "ours"),
            bar=4.0,
            at_least=True,
        ),
        claim("the same, CPU seconds", "one forward a mask", ratios(runs, "loop", "ours", "cpu")),
        claim("reuse of what comes before the mask", "batches read whole", ratios(runs, "whole", "ours")),
        claim(f"graph of a layer-{LAYER} neuron without refinement", "-", [1 / minutes], unit="neurons/minute"),
    ], {"largest_difference_of_importance": apart, "tokens": [len(ids) for ids in pruned]}


def attribution_claims(model: Model, quick: bool) -> tuple[list[Any], dict[str, Any]]:
    per_layer, each = (4, 5) if quick else (20, 20)
    texts = windows(model, open_corpus("wikitext"), n=16 if quick else 48, length=40, judge=1)
    places = [(layer, 61 * i % 1536) for layer in LATE for i in range(per_layer)]
    known = read([neuron(model, *place) for place in places], texts.build, start=(START,))
    prompts = []
    for at in range(len(places)):
        chosen: list[Snippet] = known.snippets(at, each)
        prompts.append([(START, *s.ids[: s.position + 1]) for s in chosen])
    pairs = [(place, prompt) for place, some in zip(places, prompts, strict=True) for prompt in some]
    sample = pairs[:: max(1, len(pairs) // SAMPLED)][:SAMPLED]
    runs = []
    for _ in range(1 if quick else 2):
        started = (time.perf_counter(), time.process_time())
        found = attribute(model, places, prompts, ablate=False)
        runs.append((time.perf_counter() - started[0], time.process_time() - started[1]))
    plain_attribution(model, *sample[0][0], sample[0][1])
    started = (time.perf_counter(), time.process_time())
    checks = [plain_attribution(model, *place, prompt) for place, prompt in sample]
    ended = (time.perf_counter(), time.process_time())
    wall, cpu = ((b - a) / len(sample) * len(pairs) for a, b in zip(started, ended, strict=True))
    apart = 0.0
    for (place, prompt), check in zip(sample, checks, strict=True):
        at = places.index(place)
        ours = found[at].heads[prompts[at].index(prompt), : place[0] + 1]
        apart = max(apart, float((ours - check).abs().max()))
    what = f"attribution, {len(places)} neurons x {each} prompts"
    alone = "each prompt by itself"
    return [
        claim(what, alone, [wall / one for one, _ in runs], bar=10.0, at_least=True),
        claim(f"{what}, CPU seconds", alone, [cpu / one for _, one in runs]),
        claim(what, "-", [one for one, _ in runs], bar=60.0, unit="s"),
    ], {"largest_difference_of_contribution": apart, "pairs": len(pairs)}


def main() -> None:
    given = options(__doc__)
    model = load_model("smollm2-135m-instruct", dtype="float32")
    graph, about_graph = graph_claims(model, given.quick)
    attribution, about = attribution_claims(model, given.quick)
    report(given, [*graph, *attribution], **about_graph, **about)


if __name__ == "__main__":
    main()
