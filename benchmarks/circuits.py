"""Query circuits on SmolLM2 and one pair of about 20 tokens, against the published algorithm written plainly.

Run with an interpreter that has transformer-lens, EAP-IG by its hooks stands beside it.

- EAP-IG with 20 steps, against 20 plain forward-backward passes (from the embedding, one pair) and the reference.
- 10 candidates at 8 sizes, 80 circuits of one query: seconds, and passes through the model against one circuit at a
  time (two each). The reference is timed on a few circuits and scaled.
- Memory: the largest number of bytes of tensors alive at once that the call made (weights are not counted), minus
  the same for one plain forward-backward pass. Once with steps one at a time, once as planned by default.

    python benchmarks/circuits.py [--quick] [--out FILE.json]
"""

import importlib.util
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from circuits_reference import Reference
from timing import Claim, claim, interleaved, options, ratios, report
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cutaway.circuits.attribution import Settings, edge_scores, header
from cutaway.circuits.graph import CircuitGraph
from cutaway.circuits.pairs import Pairs
from cutaway.circuits.parts import anatomy
from cutaway.circuits.query_circuits import Search, candidate_sets, indirect_objects, place, score_matrices
from cutaway.circuits.select import prune
from cutaway.circuits.wiring import Wiring
from cutaway.model import Model, load_model

STEPS = 20
SAMPLED = 4
"""Circuits on which the reference is timed."""


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors made inside that are alive; ``peak`` is their largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if torch.is_tensor(leaf) and leaf.untyped_storage()._cdata not in given:
                self._made(leaf.untyped_storage())
        return out

    def _made(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known[key] = weakref.finalize(storage, self._gone, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int) -> None:
        self.known.pop(key, None)
        self.now -= size


def peak(call: Callable[[], Any]) -> int:
    with Alive() as alive:
        call()
    return alive.peak


def passes(model: Model, call: Callable[[], Any]) -> int:
    """Count how often the last layer runs."""
    count = [0]
    last = model.layout.blocks[-1]
    handle = last.register_forward_pre_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    try:
        call()
    finally:
        handle.remove()
    return count[0]


def plain(model: Model, pairs: Pairs, times: int) -> None:
    """Forward and backward, from the embedding to the answer, ``times`` times."""
    embed = model.hf.get_input_embeddings()(pairs.clean).detach()
    for _ in range(times):
        with torch.enable_grad():
            start = embed.clone().requires_grad_()
            logits = model.hf(inputs_embeds=start, use_cache=False, logits_to_keep=1).logits[:, -1]
            torch.autograd.grad(pairs.value(logits).sum(), start)


def main() -> None:
    given = options(__doc__)
    model = load_model("smollm2-135m-instruct", dtype="float32")
    for parameter in model.hf.parameters():
        parameter.requires_grad_(False)
    query = indirect_objects(model, 1, seed=0).items[0]
    pairs = Pairs((query.pair,))
    body, wiring, expanded = anatomy(model), Wiring.of(model), Wiring.of(model, "expanded")
    reference, settings = Reference(model.hf), Settings("eap-ig", steps=STEPS)
    ids, other = pairs.clean, pairs.corrupted
    one_step = 40_000_000
    sides: dict[str, Callable[[], Any]] = {
        "plain": lambda: plain(model, pairs, STEPS),
        "one at a time": lambda: edge_scores(body, expanded, pairs, settings, memory=one_step),
        "planned": lambda: edge_scores(body, expanded, pairs, settings),
        "shared": lambda: edge_scores(body, wiring, pairs, settings),
        "reference": lambda: reference.attribute(ids, other, pairs.value, STEPS),
    }
    if importlib.util.find_spec("transformer_lens") is not None:
        from circuits_lens import Lens

        lens = Lens(model.hf)
        sides["transformer-lens"] = lambda: lens.attribute(ids, other, pairs.value, STEPS)
    timed = {name: (lambda _, call=call: call() is None) for name, call in sides.items()}
    rivals = [name for name in ("reference", "transformer-lens") if name in sides]
    found = interleaved(1 if given.quick else 5, **timed)
    planned = sides["planned"]()[0]
    agree = {name: float((planned - sides[name]()).abs().max()) for name in rivals}
    claims = [
        claim(
            "EAP-IG, 20 steps, planned", "20 plain forward-backward passes", ratios(found, "planned", "plain"), bar=1.3
        ),
        claim(
            "EAP-IG, 20 steps, one at a time",
            "20 plain forward-backward passes",
            ratios(found, "one at a time", "plain"),
            bar=1.3,
        ),
        claim(
            "EAP-IG, 20 steps, shared keys and values",
            "20 plain forward-backward passes",
            ratios(found, "shared", "plain"),
            bar=1.3,
        ),
        *(
            claim(f"EAP-IG, {ours}", name, ratios(found, name, ours), bar=5.0, at_least=True)
            for name in rivals
            for ours in ("planned", "one at a time")
        ),
        *memory_claims(sides, model, pairs),
        *circuit_claims(model, wiring, query, reference, given.quick),
    ]
    seconds = {name: [run.wall for run in runs] for name, runs in found.items()}
    report(given, claims, tokens=pairs.n_pos, largest_difference=agree, seconds=seconds)


def memory_claims(sides: dict[str, Callable[[], Any]], model: Model, pairs: Pairs) -> list[Claim]:
    least = peak(lambda: plain(model, pairs, 1))
    names = [name for name in ("one at a time", "planned", "reference", "transformer-lens") if name in sides]
    extra = {name: (peak(sides[name]) - least) / 1e6 for name in names}
    times = {name: extra["reference"] / max(extra[name], 0.01 * least / 1e6) for name in ("one at a time", "planned")}
    what = "memory beyond one plain forward-backward pass"
    return [
        *(claim(f"{what}, {name}", "reference", [value], bar=5.0, at_least=True) for name, value in times.items()),
        *(claim(f"{what}: {name}", f"{least / 1e6:.0f} MB", [value], unit="MB") for name, value in extra.items()),
    ]


def circuit_claims(model: Model, wiring: Wiring, query: Any, reference: Reference, quick: bool) -> list[Claim]:
    """Ten candidates at eight sizes, from scores to NDF; matrices are made before."""
    body, search = anatomy(model), Search(steps=2 if quick else STEPS)
    matrices = score_matrices(body, wiring, query, search.settings)
    graph = CircuitGraph.whole(header(body, wiring, Pairs((query.pair,)), search.settings), matrices[0])
    ways = candidate_sets(graph, matrices, query, search)

    def ours() -> Any:
        masks = ways["wordings"].reshape(-1, *wiring.legal.shape)
        return place(body, wiring, query.pair).ndf({"all": np.stack([prune(wiring, mask) for mask in masks])})

    repeats = 1 if quick else 3
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        ours()
        spent.append(time.perf_counter() - start)
    circuits = ways["wordings"].shape[0] * ways["wordings"].shape[1]
    forwards = passes(model, ours)
    pair = Pairs((query.pair,))
    keep = torch.ones(
        len(reference.layers) * (reference.heads + 1) + 1, len(reference.layers) * (3 * reference.heads + 1) + 1
    )
    start = time.perf_counter()
    for _ in range(SAMPLED):
        reference.circuit(pair.clean, pair.corrupted, keep)
    slow = (time.perf_counter() - start) / SAMPLED * circuits
    return [
        claim(f"{circuits} circuits of one query, pruning included", "-", spent, bar=60.0, unit="s"),
        claim(f"{circuits} circuits of one query", "reference, one circuit at a time", [slow / each for each in spent]),
        claim("forward passes saved", f"{2 * circuits} passes", [2 * circuits / forwards], bar=5.0, at_least=True),
    ]


if __name__ == "__main__":
    main()
