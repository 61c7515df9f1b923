"""What fine-tuning with something held fixed costs a step: ablated concepts, averages, the paraphrase's inner loop.

A Llama of random weights trains fully on rows of random tokens, in fp32. Sides:

    plain      no edit, no average
    ablated    20 directions out of the stream at three sites
    average    one passive moving average of all weights; averages: four, beside adapters alone (adapters: none)
    found      the latent paraphrase, K = 3, at half depth; whole: with every inner forward from the first block on

    python benchmarks/finetuning.py [--quick] [--out FILE.json]
"""

import torch
from timing import claim, interleaved, options, ratios, report
from transformers import LlamaConfig, LlamaForCausalLM

from cutaway.finetuning.caft import concept
from cutaway.finetuning.latent_adversarial_paraphrasing import Paraphrase
from cutaway.model import Model
from cutaway.training import Average, Data, LoraSpec, NextToken, Row, TrainConfig, add_lora, collate, data_of, train

WIDTH, LAYERS, STEPS, BATCH, LENGTH, INNER = 256, 8, 12, 8, 48, 3
CONFIG = TrainConfig(rate=1e-4, batch=BATCH, steps=STEPS, shuffle=False, bucket=1, precision="float32")


def random_model() -> Model:
    """A Llama of normal weights, all of them trainable."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return Model(LlamaForCausalLM(config).requires_grad_(True), None, "random")


def rows() -> Data:
    """Rows of one length; the last eighth carries loss."""
    draw = torch.Generator().manual_seed(0)
    weights = (0.0,) * (LENGTH - LENGTH // 8) + (1.0,) * (LENGTH // 8)
    ids = torch.randint(3, 1000, (STEPS * BATCH, LENGTH), generator=draw).tolist()
    return data_of([(Row(tuple(each), weights),) for each in ids], context=LENGTH)


def main() -> None:
    """Measure and report."""
    given = options(__doc__)
    torch.set_num_threads(1)
    model, data = random_model(), rows()
    adapted = add_lora(random_model(), LoraSpec(("down_proj",), rank=1))
    drawn = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(1))
    edits = [concept(model, f"resid_post.{layer}", drawn).edit for layer in (2, 4, 6)]
    batch = collate(data, list(range(BATCH)), model)

    def side(on: Model = model, **rest: object) -> float:
        return train(on, data, CONFIG, **rest).history[-1].loss  # type: ignore[arg-type]

    def inner(cached: bool) -> float:
        found = Paraphrase(LAYERS // 2, 0.3, steps=INNER, cached=cached).shift(model, batch)
        return float(found.norm())

    four = [Average(eta) for eta in (0.5, 0.9, 0.99, 0.999)]
    found = interleaved(
        2 if given.quick else 5,
        plain=lambda _: side(objective=NextToken()),
        ablated=lambda _: side(edits=edits),
        average=lambda _: side(averages=four[1:2]),
        adapters=lambda _: side(adapted),
        averages=lambda _: side(adapted, averages=four),
        found=lambda _: side(objective=Paraphrase(LAYERS // 2, 0.3, steps=INNER)),
        cached=lambda _: inner(True),
        whole=lambda _: inner(False),
    )
    claims = []
    for clock in ("wall", "cpu"):
        for name, beside, what, bar in (
            ("ablated", "plain", "20 directions at three sites", 1.05),
            ("average", "plain", "one moving average of all weights", 1.03),
            ("averages", "adapters", "four moving averages of adapters", 1.04),
            ("found", "plain", f"latent paraphrase, K = {INNER}", INNER + 1.3),
        ):
            claims.append(claim(f"{what}, {clock}", "the same without", ratios(found, name, beside, clock), bar=bar))
        speed = ratios(found, "whole", "cached", clock)
        claims.append(
            claim(f"inner loop from half depth, {clock}", "from the first block", speed, bar=1.5, at_least=True)
        )
    seconds = {name: [each[:2] for each in runs] for name, runs in found.items()}
    report(given, claims, width=WIDTH, layers=LAYERS, steps=STEPS, batch=BATCH, length=LENGTH, seconds=seconds)


if __name__ == "__main__":
    main()
