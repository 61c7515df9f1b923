"""What reading attention and suppressing it costs, against plain forwards of the same model.

- Attention: each call runs in a fresh process, which gives its time and its peak memory above what was held before;
  a figure is the median over processes. The full attention output at 4,096 tokens is not run: its bytes alone
  (layers x heads x tokens squared x 4) stand for it, which favours it.
- Suppression: one whole eager forward a sentence, with the sentence's keys masked and logits everywhere, against ours
  with everything it does (the text's own forward, the masked runs, the divergences; the eager side compares nothing).
  An eager forward costs the same for every sentence, so one stands for all. Ours costs less the later the sentence:
  passes at the midpoints of equal parts of the trace stand for all of them. Measured on 60 sentences in 1,000 tokens
  and, in the full run, on the median of the published traces of this tokenizer: 136 sentences in 4,100 tokens. Both
  sides run in the precision that a user gets on this machine; the figure's name says which.

    python benchmarks/attention.py [--quick] [--out FILE.json]
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import Claim, Run, claim, interleaved, options, ratios, report

from cutaway.model import Model, load_model
from cutaway.reasoning.attention import last_row_attention
from cutaway.reasoning.thought_anchors.masked import MaskedRuns
from cutaway.reasoning.thought_anchors.nucleus import Nucleus
from cutaway.reasoning.thought_anchors.receivers import receiver_heads
from cutaway.sampling import Settings, Trace

PROMPT, LONG, ROWS = 100, 4096, 4


@dataclass(frozen=True)
class Shape:
    """A trace's size, and how many passes stand for all of suppression."""

    tokens: int
    sentences: int
    passes: int


SHORT, TWICE, PUBLISHED = Shape(1000, 60, 5), Shape(2000, 120, 0), Shape(4100, 136, 2)


def load(dtype: str) -> Model:
    return load_model("smollm2-135m-instruct", dtype=dtype)


def a_trace(model: Model, shape: Shape) -> Trace:
    """Random tokens in sentences of unequal length: flat predictions, so every nucleus is at its largest."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, model.vocab_size, PROMPT + shape.tokens).tolist()
    inner = rng.choice(np.arange(1, shape.tokens), shape.sentences - 1, replace=False)
    spans = tuple(pairwise([0, *sorted(inner.tolist()), shape.tokens]))
    return Trace(tuple(ids[:PROMPT]), tuple(ids[PROMPT:]), (), spans, Settings())


def reading(model: Model) -> dict[str, Callable[[], Any]]:
    """The calls whose time and memory are measured."""
    trace, twice = a_trace(model, SHORT), a_trace(model, TWICE)
    long = np.random.default_rng(1).integers(3, model.vocab_size, LONG).tolist()
    one, four = model.batch([[*trace.prompt, *trace.ids]]), model.batch([long])
    return {
        "forward": lambda: model.logits(one).shape,
        "decoder": lambda: model.hf.get_decoder()(one.ids, use_cache=False).last_hidden_state.shape,
        "receiver heads": lambda: receiver_heads(model, [trace]).heads,
        "receiver heads, twice the text": lambda: receiver_heads(model, [twice]).heads,
        "long forward": lambda: model.logits(four).shape,
        "last row": lambda: last_row_attention(model, long, [(100, 140), (140, LONG - 20)]).shape,
    }


@torch.inference_mode()
def in_fresh_process(name: str) -> tuple[float, float, float]:
    """Seconds, processor seconds and megabytes at the peak of one call, after a warm-up on a few tokens."""
    model = load("float32")
    call = reading(model)[name]
    model.logits(model.batch([list(range(5, 205))]))
    last_row_attention(model, list(range(5, 205)), [(10, 20)])
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS")
    (run,) = interleaved(1, side=lambda repeat: call() if repeat == 0 else None)["side"]
    return run.wall, run.cpu, (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def reading_claims(repeats: int) -> tuple[list[Claim], dict[str, Any]]:
    model = load("float32")
    names = list(reading(model))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        rows = list(pool.map(in_fresh_process, names * repeats))
    found = {name: np.array(rows[i :: len(names)]) for i, name in enumerate(names)}

    def ratio(ours: str, baseline: str, column: int) -> np.ndarray:
        return found[ours][:, column] / found[baseline][:, column]

    memory, heads, last = 2, "receiver heads", "last row at 4,096"
    full = model.n_layers * model.n_heads * LONG**2 * 4 / 2**20
    claims = [
        claim(f"{heads}, peak memory", "forward", ratio(heads, "forward", memory), bar=1.5),
        claim(f"{heads}, peak memory", "decoder", ratio(heads, "decoder", memory)),
        claim(f"{heads}, peak memory", "half the text", ratio(f"{heads}, twice the text", heads, memory), bar=2.2),
        claim(f"{last}, peak memory", "attention output's bytes", found["last row"][:, memory] / full, bar=1 / 20),
        claim(f"{last}, peak memory", "long forward", ratio("last row", "long forward", memory)),
    ]
    for column, clock in enumerate(("wall", "cpu")):
        claims.append(claim(f"{heads}, {clock}", "forward", ratio(heads, "forward", column)))
        claims.append(claim(f"{last}, {clock}", "forward", ratio("last row", "long forward", column), bar=1.2))
    return claims, {name: values.tolist() for name, values in found.items()}


def suppression_sides(model: Model, eager: Model, shape: Shape, passes: int) -> dict[str, Callable[[int], Any]]:
    """One eager forward with a sentence masked; the base of ours; passes that stand for all of ours."""
    trace = a_trace(model, shape)
    ids = (*trace.prompt, *trace.ids)
    spans = [(PROMPT + a, PROMPT + b) for a, b in trace.spans]
    groups = [spans[i : min(i + ROWS, len(spans) - 1)] for i in range(0, len(spans) - 1, ROWS)]
    chosen = [groups[int((k + 0.5) * len(groups) / passes)] for k in range(passes)]
    a, b = spans[7]
    least = torch.finfo(model.dtype).min
    mask = torch.full((1, 1, len(ids), len(ids)), least, dtype=model.dtype).triu(1)
    mask[:, :, b:, a:b] = least
    held: list[MaskedRuns] = []

    def base(repeat: int) -> None:
        if repeat < 0 and shape != SHORT:
            return
        held[:] = [MaskedRuns(model, ids, spans, Nucleus(), "union and rest", 1)]

    def masked(repeat: int) -> None:
        for group in chosen if repeat >= 0 else [spans[-5:-1]] * len(held):
            held[0].measure(group)

    def whole(repeat: int) -> None:
        short = 200 if repeat < 0 else len(ids)
        eager.hf(torch.tensor([ids[:short]]), attention_mask=mask[:, :, :short, :short], use_cache=False)

    return {"eager": whole, "base": base, "masked": masked}


def suppression_claims(shape: Shape, passes: int, repeats: int) -> tuple[list[Claim], dict[str, list[Run]]]:
    model, eager = load("auto"), load("auto")
    eager.hf.set_attn_implementation("eager")
    found = interleaved(repeats, **suppression_sides(model, eager, shape, passes))
    all_passes = -(-(shape.sentences - 1) // ROWS)
    precision = str(model.dtype).removeprefix("torch.")
    name = f"{shape.sentences} sentences, {shape.tokens:,} tokens, {ROWS} sources a pass, {precision}: suppression"
    claims = []
    for clock in ("wall", "cpu"):
        base, masked = (np.array(ratios(found, side, "eager", clock)) for side in ("base", "masked"))
        faster = shape.sentences / (base + masked * all_passes / passes)
        claims.append(claim(f"{name}, {clock}", "eager forwards", faster, bar=5, at_least=True, unit="x faster"))
    return claims, found


@torch.inference_mode()
def main() -> None:
    given = options(__doc__)
    repeats = 1 if given.quick else 2
    claims, rows = reading_claims(repeats)
    seconds = {}
    for shape in (SHORT,) if given.quick else (SHORT, PUBLISHED):
        passes = 3 if given.quick else shape.passes
        more, found = suppression_claims(shape, passes, repeats if shape == SHORT else 1)
        claims += more
        seconds[shape.tokens] = {name: [each[:2] for each in runs] for name, runs in found.items()}
    report(given, claims, rows=ROWS, fresh_processes=rows, suppression_seconds=seconds)


if __name__ == "__main__":
    main()
