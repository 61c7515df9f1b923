"""What dictionaries cost: matching pursuit by Gram matrix against k full products, harvesting against a bare forward.

    python benchmarks/dictionary.py [--quick] [--out FILE.json]

Pursuit: random unit atoms, d = 576, k = 40, the same atoms chosen by both (checked). The Gram matrix is computed
before: it belongs to the dictionary. Harvest: one site at the last layer, so that both run the whole decoder.
"""

import sys

import torch
from timing import claim, interleaved, options, ratios, report

from cutaway.features.corpus import open_corpus
from cutaway.features.harvest import contexts, groups, stream
from cutaway.features.itda import pursue, pursue_directly
from cutaway.model import Model, load_model

D, K = 576, 40
BARS = {4096: 3.0, 16384: 5.0}
LENGTH, BATCH = 128, 16


def pursuit(repeats: int, n: int, rows: int) -> tuple[list[float], dict[str, float]]:
    """How many times more rows a second, repeat by repeat; and rows a second of both."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(n, D, generator=generator), dim=-1)
    gram = atoms @ atoms.T
    x = torch.randn(rows, D, generator=generator)
    found = interleaved(
        repeats, gram=lambda _: pursue(x, atoms, K, gram=gram), direct=lambda _: pursue_directly(x, atoms, K)
    )
    ours, theirs = found["gram"][0].value, found["direct"][0].value
    same = [set(a[v != 0].tolist()) for a, v in zip(ours.indices, ours.values, strict=True)] == [
        set(a[v != 0].tolist()) for a, v in zip(theirs.indices, theirs.values, strict=True)
    ]
    if not same:
        sys.exit(f"n={n}: the two chose different atoms")
    speeds = {name: rows / min(run.wall for run in runs) for name, runs in found.items()}
    return ratios(found, "direct", "gram"), speeds


def harvest(repeats: int, model: Model, tokens: int) -> tuple[list[float], float]:
    """Tokens a second of a stream over those of a bare forward on the same windows; and of the stream."""
    texts = open_corpus("wikitext")
    site = f"resid_post.{model.n_layers - 1}"
    windows = next(groups(contexts(model, texts, LENGTH)))[: max(BATCH, tokens // LENGTH)]
    batches = [model.batch([w.ids for w in windows[i : i + BATCH]]) for i in range(0, len(windows), BATCH)]
    count = sum(len(window.ids) for window in windows)

    def bare(_: int) -> None:
        for batch in batches:
            model.hf.get_decoder()(**batch.forward_kwargs(), use_cache=False)

    def ours(_: int) -> int:
        return sum(map(len, stream(model, texts, site, tokens=count, length=LENGTH, batch=BATCH)))

    found = interleaved(repeats, stream=ours, bare=bare)
    return ratios(found, "bare", "stream"), count / min(run.wall for run in found["stream"])


@torch.inference_mode()
def main() -> None:
    given = options(__doc__)
    claims, details = [], {}
    for n, bar in BARS.items():
        times, speeds = pursuit(2 if given.quick else 5, n, 32 if given.quick else 128)
        claims.append(claim(f"pursuit, n = {n}", "k full products", times, bar=bar, at_least=True))
        details[f"rows a second, n = {n}"] = speeds
    model = load_model("smollm2-135m-instruct", dtype="float32")
    share, speed = harvest(1 if given.quick else 3, model, 2048 if given.quick else 8192)
    claims.append(claim("harvest, tokens a second", "bare forward of the decoder", share, bar=0.9, at_least=True))
    details["harvested tokens a second"] = speed
    report(given, claims, **details)


if __name__ == "__main__":
    main()
