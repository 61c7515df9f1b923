"""What monitors cost: reading activations, training, the cascade, detectors beside a prefill, screening of latents.

python benchmarks/probes.py [--quick] [--out FILE.json]
"""

import time
from dataclasses import replace

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from timing import claim, interleaved, options, ratios, report
from transformers import LlamaConfig

from cutaway.errors import CutawayError
from cutaway.features import Codes
from cutaway.model import Model, load_model
from cutaway.planted.build import quiet_llama, word_tokenizer
from cutaway.planted.polynomial import MIXED, polynomial_data
from cutaway.probes import LinearProbe, activations
from cutaway.probes.safetynet import fit_detector, fit_ensemble
from cutaway.probes.selection import screen
from cutaway.probes.tpc import Labelled, Polynomial, Recipe, Term, fit_polynomial, run_cascade, tune
from cutaway.probes.tpc.calibration import ladder_trial, reached
from cutaway.probes.tpc.method import f1, optimise
from cutaway.probes.tpc.polynomial import power

LONGEST, MEDIAN = 512, 40


def small_model() -> Model:
    """A random Llama of four blocks; the ratio of the two readings hardly depends on the width."""
    tokenizer = word_tokenizer(tuple(f" w{i}" for i in range(200)))
    shape = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 3}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, dtype="float32", **shape)
    return Model(quiet_llama(config), tokenizer, "random-4")


def corpus(model: Model, n: int) -> list[list[int]]:
    """Rows of token ids: median length ``MEDIAN``, one of ``LONGEST``."""
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(np.log(MEDIAN), 0.6, n)), 4, LONGEST).astype(int)
    lengths[0] = LONGEST
    return [rng.integers(3, model.vocab_size, size).tolist() for size in lengths]


@torch.no_grad()
def padded(model: Model, rows: list[list[int]]) -> torch.Tensor:
    """Every text padded to the longest, 16 at a time, and the mean taken over the mask."""
    out = []
    for start in range(0, len(rows), 16):
        ids = torch.full((len(rows[start : start + 16]), LONGEST), model.tokenizer.pad_token_id)
        for i, row in enumerate(rows[start : start + 16]):
            ids[i, : len(row)] = torch.tensor(row)
        lengths = torch.tensor([len(row) for row in rows[start : start + 16]])
        mask = torch.arange(LONGEST) < lengths[:, None]
        hidden = model.hf.model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, use_cache=False)
        states = hidden.hidden_states[-2]
        out.append((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    return torch.cat(out)


def plain_training(train: Labelled, validation: Labelled, recipe: Recipe, linear: Polynomial) -> int:
    """The 50-epochs-per-order loop that computes every lower term again at every step."""
    generator = torch.Generator().manual_seed(0)
    z, held = linear.standardised(train.x), linear.standardised(validation.x)
    y, held_y = train.y.float(), validation.y.float()
    loss, terms = torch.nn.functional.binary_cross_entropy_with_logits, []

    def score(rows: torch.Tensor) -> torch.Tensor:
        total = linear.term(1, rows)
        for order, term in enumerate(terms, 2):
            total = total + power(rows, term.factors, term.weights, order)
        return total

    for _ in range(2, recipe.order + 1):
        for term in terms:
            term.factors.requires_grad_(False), term.weights.requires_grad_(False)
        factors = (2 * torch.rand(recipe.rank, linear.d, generator=generator) - 1) / linear.d**0.5
        terms.append(Term(factors.requires_grad_(), (0.02 * torch.randn(recipe.rank)).requires_grad_()))
        optimise(
            [terms[-1].factors, terms[-1].weights],
            lambda rows: loss(score(z[rows]), y[rows]),
            lambda: loss(score(held), held_y),
            len(z),
            recipe,
            recipe.epochs,
            generator,
        )
    return len(terms)


def monitored(repeats: int) -> tuple[str, list[float], list[float]]:
    """Prefill of 512 tokens with an ensemble of four detectors, or a linear probe on all tokens, over the plain one."""
    try:
        model = load_model("smollm2-135m-instruct", dtype="float32")
    except CutawayError:
        model = small_model()
    layer = model.n_layers // 2
    site, ids = f"resid_post.{layer}", torch.randint(100, model.vocab_size, (1, 512)).tolist()
    normal = torch.randn(400, model.d_model)
    ensemble = fit_ensemble(normal, ("mahalanobis", "pca", "autoencoder", "vae"))
    probe = LinearProbe(torch.randn(model.d_model), 0.0, site, "mean")

    batch = model.batch(ids)

    @torch.no_grad()
    def plain(_: int) -> object:
        return model.logits(batch)

    @torch.no_grad()
    def watched(_: int) -> object:
        return ensemble.p_values(model.capture(batch, [site, "logits"], special=True)[site][:, -1])

    @torch.no_grad()
    def probed(_: int) -> object:
        return probe.running(model.capture(batch, [site, "logits"], special=True)[site][0])

    runs = interleaved(repeats, plain=plain, watched=watched, probed=probed)
    return model.name, ratios(runs, "watched", "plain", "cpu"), ratios(runs, "probed", "plain", "cpu")


def detectors(quick: bool) -> list[float]:
    """CPU seconds to fit the four detectors on 5,000 x 576."""
    x = torch.randn(500 if quick else 5000, 576) @ (torch.randn(576, 576) / 24)
    start = time.process_time()
    for name in ("mahalanobis", "pca", "autoencoder", "vae"):
        fit_detector(name, x)
    return [time.process_time() - start]


def screening(quick: bool) -> tuple[list[float], float]:
    """How many times faster one pass is than a latent at a time, 16,384 latents on 2,000 rows; largest difference."""
    rng, rows, latents, sampled = np.random.default_rng(0), 2000, 16_384, 100 if quick else 400
    indices = np.stack([rng.choice(latents, 32, replace=False) for _ in range(rows)])
    codes = Codes(torch.from_numpy(indices), torch.from_numpy(rng.gamma(1, 1, (rows, 32))).float(), latents)
    labels = rng.random(rows) < 0.5
    dense = codes.dense().numpy()
    start = time.process_time()
    naive = [roc_auc_score(labels, dense[:, i]) for i in range(sampled)]
    loop = (time.process_time() - start) / sampled * latents
    found, times = screen(codes, labels), []
    for _ in range(3):
        start = time.process_time()
        found = screen(codes, labels)
        times.append(loop / (time.process_time() - start))
    return times, float(np.abs(found[:sampled] - naive).max())


def word_reading(model: Model, repeats: int, quick: bool) -> list[float]:
    """Texts with a swapped word at five sites: length buckets and one forward against one text and site at a time."""
    rng, sites = np.random.default_rng(1), [f"resid_post.{i}" for i in range(4)]
    rows = [rng.integers(3, model.vocab_size, int(size)).tolist() for size in rng.integers(5, 20, 40 if quick else 200)]
    sides = {
        "ours": lambda _: activations(model, rows, sites, "last"),
        "one": lambda _: [activations(model, [row], site, "last") for row in rows for site in sites],
    }
    return ratios(interleaved(repeats, **sides), "one", "ours", "cpu")


def main() -> None:
    given = options(__doc__)
    repeats = 1 if given.quick else 3
    model = small_model()
    rows = corpus(model, 64 if given.quick else 256)
    both = {
        "buckets": lambda _: activations(model, rows, "resid_post.2")["resid_post.2", "mean"],
        "padding": lambda _: padded(model, rows),
    }
    reading = interleaved(repeats, **both)
    gap = float((reading["buckets"][0].value - reading["padding"][0].value).abs().max())

    data = polynomial_data(MIXED, n=12_000, d=576)
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    train, validation = Labelled(x[:10_000], y[:10_000]), Labelled(x[10_000:], y[10_000:])
    recipe = Recipe(order=5, rank=64, epochs=5 if given.quick else 50, rate=5e-4)
    linear = fit_polynomial(train, validation, replace(recipe, order=1))
    sides = {
        "ours": lambda _: fit_polynomial(train, validation, recipe, linear=linear).order,
        "loop": lambda _: plain_training(train, validation, recipe, linear),
    }
    training = interleaved(1 if given.quick else 2, **sides)

    shares, losses = [], []
    for seed in range(2 if given.quick else 8):
        monitor, split = ladder_trial(seed)
        held = monitor.logits(split.validation.x).numpy()
        exits = run_cascade(monitor, split.test.x, tune(held, split.validation.labels, monitor.multiplies))
        shares.append(float(exits.multiplies.mean() / sum(monitor.multiplies)))
        losses.append(reached(monitor, split)[-1] - f1(split.test.labels, exits.flagged))
    tokens = sum(map(len, rows))
    name, watched, probed = monitored(1 if given.quick else 5)
    faster, apart = screening(given.quick)
    claims = [
        claim("prefill of 512 tokens with four detectors", "no monitor", watched, bar=1.1),
        claim("prefill of 512 tokens, every token's probe score", "no monitor", probed, bar=1.1),
        claim("fit four detectors on 5,000 x 576", "-", detectors(given.quick), bar=60.0, unit="s"),
        claim("screen 16k latents on 2,000 rows", "scikit-learn, a latent at a time", faster, bar=50.0, at_least=True),
        claim("same areas", "scikit-learn", [apart], bar=1e-6, unit="largest difference"),
        claim("read a word in 200 texts at four sites", "one text and site at a time",
              word_reading(model, repeats, given.quick), bar=3.0, at_least=True),
        claim("read activations, length buckets", "all padded", ratios(reading, "padding", "buckets", "cpu"),
              bar=5.0, at_least=True),
        claim("same vectors", "padding to the longest", [gap], bar=1e-4, unit="largest difference"),
        claim("train five orders, 10k x 576", "-", [run.cpu for run in training["ours"]], bar=60.0, unit="s"),
        claim("train all orders", "loop that repeats lower terms", ratios(training, "ours", "loop", "cpu")),
        claim("multiplies of a tuned cascade", "full order", shares, bar=0.4, unit="share"),
        claim("F1 lost by a tuned cascade", "full order", losses, bar=0.01, unit="F1"),
    ]  # fmt: skip
    report(
        given, claims, monitored=name, tokens=tokens, longest=LONGEST, median=int(np.median([len(row) for row in rows]))
    )


if __name__ == "__main__":
    main()
