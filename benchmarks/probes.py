"""What monitors cost: reading activations, training all orders, and the cascade's share of the multiplies.

python benchmarks/probes.py [--quick] [--out FILE.json]
"""

from dataclasses import replace

import numpy as np
import torch
from timing import claim, interleaved, options, ratios, report
from transformers import LlamaConfig

from cutaway.model import Model
from cutaway.planted.build import quiet_llama, word_tokenizer
from cutaway.planted.polynomial import MIXED, polynomial_data
from cutaway.probes import activations
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
    training = interleaved(repeats, **sides)

    shares, losses = [], []
    for seed in range(2 if given.quick else 8):
        monitor, split = ladder_trial(seed)
        held = monitor.logits(split.validation.x).numpy()
        exits = run_cascade(monitor, split.test.x, tune(held, split.validation.labels, monitor.multiplies))
        shares.append(float(exits.multiplies.mean() / sum(monitor.multiplies)))
        losses.append(reached(monitor, split)[-1] - f1(split.test.labels, exits.flagged))
    tokens = sum(map(len, rows))
    claims = [
        claim("read activations, length buckets", "all padded", ratios(reading, "padding", "buckets", "cpu"),
              bar=5.0, at_least=True),
        claim("same vectors", "padding to the longest", [gap], bar=1e-4, unit="largest difference"),
        claim("train five orders, 10k x 576", "-", [run.cpu for run in training["ours"]], bar=60.0, unit="s"),
        claim("train all orders", "loop that repeats lower terms", ratios(training, "ours", "loop", "cpu")),
        claim("multiplies of a tuned cascade", "full order", shares, bar=0.4, unit="share"),
        claim("F1 lost by a tuned cascade", "full order", losses, bar=0.01, unit="F1"),
    ]  # fmt: skip
    report(given, claims, tokens=tokens, longest=LONGEST, median=int(np.median([len(row) for row in rows])))


if __name__ == "__main__":
    main()
