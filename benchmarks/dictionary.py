"""What dictionaries cost: matching pursuit by Gram matrix against k full products, TopK training against SAELens.

    python benchmarks/dictionary.py [--quick] [--out FILE.json]

Pursuit: random unit atoms, d = 576, k = 40, the same atoms chosen by both (checked). The Gram matrix is computed
before: it belongs to the dictionary. Training: d = 576, 4,608 latents, k = 32, batches of 4,096 rows, in float32;
run it with an interpreter that has sae-lens to measure SAELens itself.
"""

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import torch
from timing import claim, interleaved, options, ratios, report
from torch import Tensor

from cutaway.features.itda import pursue, pursue_directly
from cutaway.features.sparse import SparseDictionary
from cutaway.features.train import TrainConfig, Trainer

D, K = 576, 40
BARS = {4096: 3.0, 16384: 5.0}
N, ACTIVE, BATCH = 4608, 32, 4096


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


def training(repeats: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """How many times more rows a second than each rival, repeat by repeat; and rows a second of all."""
    batches = [torch.randn(BATCH, D, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    trainer = Trainer(batches[0], TrainConfig(n_latents=N, k=ACTIVE, batch=BATCH))
    sides: dict[str, Callable[[int], Any]] = {"ours": lambda i: trainer.step(batches[i % 3])}
    for name, step in rivals().items():
        sides[name] = lambda i, step=step: step(batches[i % 3])
    found = interleaved(repeats, **sides)
    speeds = {name: BATCH / min(run.wall for run in runs) for name, runs in found.items()}
    return {name: ratios(found, name, "ours") for name in found if name != "ours"}, speeds


def rivals() -> dict[str, Callable[[Tensor], None]]:
    """SAELens where it is installed, in its default and in its sparse mode; else its algorithm written plainly."""
    if importlib.util.find_spec("sae_lens") is None:
        return {"SAELens's dense TopK, written plainly": plain()}
    # Its sparse mode cannot be differentiated on a CPU together with its default of rescaling by norms.
    return {"SAELens": saelens(), "SAELens, sparse activations": saelens(sparse=True)}


def saelens(sparse: bool = False) -> Callable[[Tensor], None]:
    """One training step of SAELens as its trainer takes it, without logging."""
    from sae_lens.saes.sae import TrainStepInput
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    rest = {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False} if sparse else {}
    made = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=D, d_sae=N, k=ACTIVE, device="cpu", **rest))
    adam = torch.optim.Adam(made.parameters(), lr=3e-4)
    silent, fired = torch.zeros(N), torch.zeros(N)

    def step(rows: Tensor) -> None:
        found = made.training_forward_pass(TrainStepInput(rows, {}, silent > 1000, 0, False))
        with torch.no_grad():
            active = found.feature_acts.bool().float()
            total = active.sum(0)
            total = total.to_dense() if total.is_sparse else total
            silent.add_(1)
            silent[total > 0] = 0
            fired.add_(total)
        found.loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        adam.step()
        adam.zero_grad()

    return step


def plain() -> Callable[[Tensor], None]:
    """A dense TopK autoencoder by autograd."""
    made = SparseDictionary(D, N, k=ACTIVE)
    adam = torch.optim.Adam(made.parameters(), lr=3e-4)

    def step(rows: Tensor) -> None:
        top = made.pre(rows).topk(ACTIVE, dim=-1, sorted=False)
        values = torch.zeros(len(rows), N).scatter(1, top.indices, top.values.relu())
        loss = (values @ made.w_dec + made.b_dec - rows).square().sum(-1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        adam.step()
        adam.zero_grad()

    return step


def main() -> None:
    given = options(__doc__)
    claims, details = [], {"precision": "float32"}
    for n, bar in BARS.items():
        with torch.inference_mode():
            times, speeds = pursuit(2 if given.quick else 5, n, 32 if given.quick else 128)
        claims.append(claim(f"pursuit, n = {n}", "k full products", times, bar=bar, at_least=True))
        details[f"rows a second, n = {n}"] = speeds
    faster, speeds = training(2 if given.quick else 6)
    for name, times in faster.items():
        bar = None if "sparse" in name else 4.0
        claims.append(claim("TopK training, rows a second", name, times, bar=bar, at_least=True))
    details["rows a second in training"] = speeds
    report(given, claims, **details)


if __name__ == "__main__":
    main()
