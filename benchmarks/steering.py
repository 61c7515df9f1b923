"""What steering costs: decoding with one steered layer, and documents in packed rows against padded ones.

SmolLM2-135M-Instruct, fp32, 8 answers at once. A step of the classifier's gradient is written out in closed form; its
baseline is the same gradient by autograd in a hook of the block. The endpoint's own figures (a steered layer, every
token's probe scores, over HTTP) are in endpoint.py. `CUTAWAY_BENCH_MODEL` names another model.

    python benchmarks/steering.py [--quick] [--out FILE.json]
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timing import claim, interleaved, options, ratios, report

from cutaway.model import Add, Edit, Model, load_model
from cutaway.sampling import LocalEngine, Request, Settings
from cutaway.steering.eval_awareness import packed
from cutaway.steering.eval_awareness.data import default_world, read_world
from cutaway.steering.k_steering import Classifier, Recipe, fit_classifier
from cutaway.training import LoraSpec, TrainConfig, add_lora, text_data, train

ROWS, LABELS = 8, ("concise", "casual", "expert")


def decode(model: Model, tokens: int, edits: Sequence[Edit] = ()) -> Callable[[int], int]:
    """Draw ``ROWS`` answers of exactly ``tokens`` tokens, from prompts of one length."""
    prompt = tuple(model.chat_ids("Why do people like rivers?"))
    settings = Settings(temperature=1.0, top_p=1.0, max_tokens=tokens)

    def run(repeat: int) -> int:
        request = Request(prompt, tuple(range(1000 * (repeat + 1), 1000 * (repeat + 1) + ROWS)), settings)
        return sum(len(rollout.ids) for _, rollout in LocalEngine(model).stream([request], edits))

    return run


def by_autograd(
    model: Model, classifier: Classifier, length: float, plain: Callable[[int], int]
) -> Callable[[int], int]:
    """The same step, its gradient taken by autograd in a forward hook of the block."""
    block = model.layout.blocks[int(classifier.site.rpartition(".")[2])]

    def hook(module: torch.nn.Module, given: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        with torch.inference_mode(False), torch.enable_grad():
            h = hidden.detach().clone().requires_grad_()
            wish = classifier.logits(h.flatten(0, -2))[:, 0].sum()
            (gradient,) = torch.autograd.grad(wish, h)
        moved = hidden + length * torch.nn.functional.normalize(gradient, dim=-1)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    def run(repeat: int) -> int:
        handle = block.register_forward_hook(hook)
        try:
            return plain(repeat)
        finally:
            handle.remove()

    return run


def tokens_a_second(model: Model, data: Any) -> Callable[[int], float]:
    """Train on the whole of ``data`` once; tokens without padding a CPU second."""

    def run(repeat: int) -> float:
        done = train(model, data, TrainConfig(rate=1e-6, batch=8, precision="float32", bucket=1))
        return float(sum(step.tokens for step in done.history))

    return run


def documents(quick: bool) -> list[str]:
    """Texts of very different lengths, as written documents have: one to sixteen of the world's."""
    short = iter(read_world(default_world()).documents(400))
    sizes = (1, 1, 6, 1, 1, 1, 2, 1) if quick else (1, 1, 2, 1, 1, 16, 1, 1, 3, 1, 1, 1, 2, 1, 8, 1)
    return [" ".join(next(short) for _ in range(size)) for size in sizes]


def main() -> None:
    given = options(__doc__)
    torch.set_num_threads(1)
    repeats, tokens = (1, 16) if given.quick else (3, 48)
    model = load_model(os.environ.get("CUTAWAY_BENCH_MODEL", "smollm2-135m-instruct"), dtype="float32")
    layer, width = model.n_layers // 2, model.d_model
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, width, generator=generator) + torch.eye(3, width).repeat(30, 1) * 6
    y = torch.eye(3, dtype=torch.bool).repeat(30, 1)
    classifier = fit_classifier(x, y, LABELS, f"resid_post.{layer}", Recipe(epochs=2))
    vector = torch.randn(width, generator=generator)
    plain = decode(model, tokens)
    found = interleaved(
        repeats,
        plain=plain,
        vector=decode(model, tokens, [Add(f"resid_post.{layer}", vector, 0.01)]),
        gradient=decode(model, tokens, classifier.edits([LABELS[0]], strength=0.01)),
        autograd=by_autograd(model, classifier, 0.01 * float(classifier.stream), plain),
    )
    # Answers may end early, so seconds are taken a token.
    pace = {name: [run.cpu / run.value for run in runs] for name, runs in found.items()}

    def over(side: str) -> list[float]:
        return [a / b for a, b in zip(pace[side], pace["plain"], strict=True)]

    texts, adapted = documents(given.quick), add_lora(model, LoraSpec(("down_proj",), (layer,), rank=2))
    rows = {"packed": packed(texts, adapted, 64), "padded": text_data(texts, adapted.tokenizer, context=adapted.n_ctx)}
    taught = interleaved(
        1 if given.quick else 2, **{name: tokens_a_second(adapted, data) for name, data in rows.items()}
    )
    speed = {name: [run.value / run.cpu for run in runs] for name, runs in taught.items()}
    claims = [
        claim("a vector at one layer: CPU time a decoded token", "plain", over("vector"), bar=1.15),
        claim("a step of the gradient at one layer: CPU time a decoded token", "plain", over("gradient"), bar=1.15),
        claim("the same step by autograd", "plain", over("autograd")),
        claim("closed form: time a token", "autograd in a hook", ratios(found, "gradient", "autograd", "cpu")),
        claim("documents in packed rows: tokens a second", "one a row, padded",
              [a / b for a, b in zip(speed["packed"], speed["padded"], strict=True)], bar=2.0, at_least=True),
    ]  # fmt: skip
    report(given, claims, rows=ROWS, tokens=tokens, seconds_a_token=pace, trained_tokens_a_second=speed)


if __name__ == "__main__":
    main()
