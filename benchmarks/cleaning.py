"""Task vector cleaning on SmolLM2: steps a second from the vector's layer on, against whole forwards.

Both sides run the same search, `clean`, over 24 prompts without examples and a dictionary of 2,304 latents; only what a
step computes differs. Losses agree to 1e-4, which is checked first.

    python benchmarks/cleaning.py [--quick] [--out FILE.json]
"""

from typing import Any

import torch
from timing import claim, interleaved, options, ratios, report
from torch import Tensor

from cutaway.circuits.icl_feature_circuits.cleaning import clean
from cutaway.circuits.icl_feature_circuits.data import few_shot, prepare, split, zero_shot
from cutaway.circuits.icl_feature_circuits.task_vectors import Bench, task_vector
from cutaway.circuits.icl_feature_circuits.words import task
from cutaway.features import SparseDictionary
from cutaway.model import load_model

LATENTS, K = 2304, 24
LAYERS = (10, 20)
"""A third and two thirds of the way up; the study took layer 20 on this model."""


class FromTheBottom(Bench):
    """Every loss by a forward through all layers and tokens."""

    def losses(self, vector: Tensor | None = None) -> Any:
        return self.losses_from_the_bottom(vector)


def main() -> None:
    given = options(__doc__)
    repeats, steps = (1, 5) if given.quick else (3, 5)
    model = load_model("smollm2-135m-instruct", dtype="float32")
    parts = split(task("plural"), 12)
    shown, asked = prepare(model, few_shot(parts.shots, 12, 12)), prepare(model, zero_shot(parts.fit))
    torch.manual_seed(0)
    dictionary = SparseDictionary(model.d_model, LATENTS, "topk", k=K)
    claims, lengths = [], {}
    for layer in LAYERS:
        vector = task_vector(model, shown, layer)
        benches = {"ours": Bench(model, asked, layer), "whole": FromTheBottom(model, asked, layer)}
        torch.testing.assert_close(*(bench.losses(vector) for bench in benches.values()), atol=1e-4, rtol=0)

        def search(bench: Bench, vector: Tensor = vector) -> int:
            return len(clean(bench, dictionary, vector, steps=steps).history)

        found = interleaved(repeats, **{name: lambda _, bench=bench: search(bench) for name, bench in benches.items()})
        lengths[layer] = {name: runs[0].value for name, runs in found.items()}
        assert lengths[layer]["ours"] == lengths[layer]["whole"], lengths
        for clock in ("wall", "cpu"):
            faster = ratios(found, "whole", "ours", clock)
            what = f"cleaning at layer {layer}, steps a second ({clock})"
            claims.append(claim(what, "whole forwards", faster, bar=1.5, at_least=True))
    report(given, claims, prompts=len(asked), steps=lengths, latents=LATENTS)


if __name__ == "__main__":
    main()
