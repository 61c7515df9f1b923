"""Node pruning against the published loop: multiply-adds, token passes and seconds.

The loop tests one node at a time, and for each test takes the corrupted means again (two forwards over all layers and
positions, logits included) and runs the clean prompts once. Its work is counted from the tests that this very pruning
made, which are the same; its seconds are those of a few of its tests, times their number.

    python benchmarks/nodes.py [--quick] [--out FILE.json]
"""

import time

import torch
from timing import claim, options, report

from cutaway.circuits.nodes import Work, node_means
from cutaway.circuits.sequence_continuation.data import Rows, generate, prepare, whole_words
from cutaway.circuits.sequence_continuation.method import Bench, prune
from cutaway.model import Model, Replace, load_model

MINUTES = 10
SAMPLE = 4
"""Tests of the loop that are timed."""


def reference_work(model: Model, rows: Rows, tests: int) -> Work:
    """What ``tests`` tests of the published loop put through the model."""
    passes = 3 * rows.ids.numel() * tests
    return Work(3 * tests, passes * model.n_layers, passes * model.n_layers, passes)


@torch.inference_mode()
def reference_seconds(model: Model, rows: Rows, names: list[str]) -> float:
    """Seconds of one test of the loop, with ``names`` cut."""
    started = time.perf_counter()
    clean, corrupted = (model.batch(ids.tolist()) for ids in (rows.ids, rows.corrupted))
    model.logits(corrupted)
    means = node_means(model, rows.corrupted)
    layers = {name: int(name.split(".")[1]) for name in names}
    edits = [
        Replace(name, means.mlp[0, at] if name.startswith("mlp") else means.z[0, at, :, int(name.split(".")[2])])
        for name, at in layers.items()
    ]
    with model.edited(*edits):
        model.logits(clean)
    return time.perf_counter() - started


def main() -> None:
    given = options(__doc__)
    model = load_model("smollm2-135m-instruct", dtype="float32")
    n = 8 if given.quick else 64
    rows = prepare(model, generate(["numwords"], "done", 4 * n, words=whole_words(model, "done")), keep=n)[0][
        "numwords"
    ]
    bench = Bench(model, rows)
    before = time.process_time()
    circuit = prune(bench)
    cpu, tests, work = time.process_time() - before, len(circuit.steps), bench.runner.work
    theirs = reference_work(model, rows, tests)
    cut = [name for name in bench.nodes.names if name not in circuit.nodes]
    each = [reference_seconds(model, rows, cut[: i * len(cut) // SAMPLE + 1]) for i in range(SAMPLE)]
    ours = work.attention + work.mlp
    loop = f"published loop, {tests} tests"
    claims = [
        claim("seconds of node pruning", "-", [circuit.seconds], bar=60.0 * MINUTES, unit="s"),
        claim(
            "token passes through block halves", loop, [(theirs.attention + theirs.mlp) / ours], bar=5.0, at_least=True
        ),
        claim("multiply-adds", loop, [theirs.operations(model) / work.operations(model)], bar=5.0, at_least=True),
        claim("seconds", loop, [tests * each_ / circuit.seconds for each_ in each]),
    ]
    sizes = {"prompts": len(rows), "positions": rows.ids.shape[1], "tests": tests, "sweeps": circuit.sweeps}
    report(given, claims, **sizes, nodes=circuit.nodes, score=circuit.score.value, cpu_seconds=cpu)


if __name__ == "__main__":
    main()
