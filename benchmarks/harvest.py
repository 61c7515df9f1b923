"""What activations cost: a stream against a bare forward, and N peers on one stream against N runs of their own.

    python benchmarks/harvest.py [--quick] [--out FILE.json]

Harvest: one site at the last layer, so that both run the whole decoder. Peers: four TopK dictionaries of 2,304 latents,
batches of 2,048 rows from the middle of the model, capture included; and what the penalty adds to a step, with the
one-to-one pairing found anew every 200 steps, and at every step as published. All in float32.
"""

import torch
from timing import claim, interleaved, options, ratios, report

from cutaway.features.corpus import open_corpus
from cutaway.features.harvest import contexts, groups, stream
from cutaway.features.mfr_sae import MfrConfig, PeerTrainer, train_peers
from cutaway.model import Model, load_model

LENGTH, BATCH = 128, 16
PEERS, LATENTS, ACTIVE, ROWS, D = 4, 2304, 32, 2048, 576
REFRESH, STEPS = 200, 4


@torch.inference_mode()
def harvest(repeats: int, model: Model, tokens: int) -> tuple[list[float], list[float], float]:
    """Tokens a second of a stream over those of a bare forward, by both clocks; and of the stream."""
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
    speed = count / min(run.wall for run in found["stream"])
    return ratios(found, "bare", "stream"), ratios(found, "bare", "stream", "cpu"), speed


def peers(repeats: int, model: Model, steps: int) -> list[float]:
    """Tokens a second of peers trained together over those of runs of their own, repeat by repeat."""
    texts, site = open_corpus("wikitext"), f"resid_post.{model.n_layers // 2}"

    def run(number: int, weight: float) -> None:
        config = MfrConfig(
            peers=number, n_latents=LATENTS, k=ACTIVE, weight=weight, refresh=REFRESH, batch=ROWS, matching="maximum"
        )
        rows = stream(model, texts, site, tokens=steps * ROWS, length=LENGTH, batch=BATCH)
        train_peers((part.values[site] for part in rows), config)

    found = interleaved(
        repeats,
        together=lambda _: run(PEERS, 0.01),
        apart=lambda _: [run(1, 0.0) for _ in range(PEERS)],
    )
    return ratios(found, "apart", "together")


def matching(repeats: int) -> tuple[list[float], list[float]]:
    """Share of a step's processor time that the penalty adds: pairing every `REFRESH` steps, and at every step."""
    rows = torch.randn(ROWS, D, generator=torch.Generator().manual_seed(0))

    def trainer(weight: float, refresh: int) -> PeerTrainer:
        config = MfrConfig(peers=PEERS, n_latents=LATENTS, k=ACTIVE, weight=weight, refresh=refresh, batch=ROWS)
        return PeerTrainer(rows, config)

    free, pulled, paired = trainer(0.0, 1), trainer(0.01, 10**6), trainer(0.01, 1)
    pulled.step(rows)  # which pairs, once for all
    # The penalty by itself is a small part of a step: several steps a timing, or the difference drowns.
    found = interleaved(
        repeats,
        free=lambda _: [free.step(rows) for _ in range(STEPS)],
        pulled=lambda _: [pulled.step(rows) for _ in range(STEPS)],
        paired=lambda _: paired.step(rows),
    )
    never = ratios(found, "pulled", "free", "cpu")
    always = [STEPS * each for each in ratios(found, "paired", "free", "cpu")]
    return [a - 1 + (b - a) / REFRESH for a, b in zip(never, always, strict=True)], [each - 1 for each in always]


def main() -> None:
    given = options(__doc__)
    model = load_model("smollm2-135m-instruct", dtype="float32")
    share, of_processor, speed = harvest(1 if given.quick else 5, model, 2048 if given.quick else 8192)
    claims = [
        claim("harvest, tokens a second", "bare forward of the decoder", share, bar=0.9, at_least=True),
        claim("the same, processor time", "bare forward of the decoder", of_processor),
    ]
    spread, whole = matching(2 if given.quick else 5)
    claims.append(
        claim(f"penalty, pairing every {REFRESH} steps", "step without it", spread, bar=0.1, unit="of a step")
    )
    claims.append(claim("penalty, pairing at every step", "step without it", whole, unit="of a step"))
    faster = peers(1 if given.quick else 3, model, 2)
    claims.append(claim(f"{PEERS} peers on one stream", f"{PEERS} runs", faster, bar=2.0, at_least=True))
    report(given, claims, **{"harvested tokens a second": speed, "precision": "float32"})


if __name__ == "__main__":
    main()
