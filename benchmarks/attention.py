"""What reading attention and suppressing it costs, against plain forwards of the same model.

Memory is the peak of one call above what the process held before it, each call in a process of its own. The full
attention output at 4,096 tokens is not run: its bytes alone (layers x heads x tokens squared x 4) stand for it, which
favours it. One whole eager forward a sentence costs the same for every sentence, so a few stand for all.

    python benchmarks/attention.py [--quick] [--out FILE.json]
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import claim, interleaved, options, ratios, report

from cutaway.model import AttentionMask, Model, load_model
from cutaway.reasoning.attention import last_row_attention, span_attention
from cutaway.reasoning.thought_anchors.suppression import SuppressionMatrix, suppression_matrix
from cutaway.sampling import Settings, Trace

PROMPT, TOKENS, SENTENCES, LONG, ROWS, EAGER_RUNS = 100, 1000, 60, 4096, 4, 2


def load() -> Model:
    return load_model("smollm2-135m-instruct", dtype="float32")


def a_trace(model: Model) -> Trace:
    """Random tokens in sentences of unequal length: flat predictions, so every nucleus is at its largest."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, model.vocab_size, PROMPT + TOKENS).tolist()
    cuts = [0, *sorted(rng.choice(np.arange(1, TOKENS), SENTENCES - 1, replace=False).tolist()), TOKENS]
    return Trace(tuple(ids[:PROMPT]), tuple(ids[PROMPT:]), (), tuple(pairwise(cuts)), Settings())


def calls(model: Model) -> dict[str, Callable[[int], Any]]:
    """Everything that is measured; each takes the number of the repeat, and the warm-up (-1) makes long ones short."""
    trace = a_trace(model)
    start = Trace(trace.prompt, trace.ids[: trace.spans[7][1]], (), trace.spans[:8], trace.settings)
    ids = [*trace.prompt, *trace.ids]
    long = np.random.default_rng(1).integers(3, model.vocab_size, LONG).tolist()
    spans = [(PROMPT + a, PROMPT + b) for a, b in trace.spans]
    two = [(100, 140), (140, LONG - 20)]
    one, four, few = (model.batch([row]) for row in (ids, long, long[:200]))

    def decoder(rows: torch.Tensor) -> torch.Tensor:
        return model.hf.get_decoder()(rows, use_cache=False).last_hidden_state

    def suppress(given: Trace, **rest: Any) -> SuppressionMatrix:
        return suppression_matrix(model, given, rows=ROWS, controls=0, **rest)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt  # the first pass, over the longest rest of the text, needs the most memory

    return {
        "forward": lambda _: model.logits(one).shape,
        "decoder": lambda _: decoder(one.ids).shape,
        "span attention": lambda _: span_attention(model, ids, spans).shape,
        "long forward": lambda repeat: model.logits(few if repeat < 0 else four).shape,
        "long decoder": lambda repeat: decoder((few if repeat < 0 else four).ids).shape,
        "last row": lambda repeat: last_row_attention(model, *((ids, spans) if repeat < 0 else (long, two))).shape,
        "suppression": lambda repeat: suppress(start if repeat < 0 else trace).log_kl.shape,
        "first pass of suppression": lambda _: suppress(trace, report=stop).log_kl.shape,
    }


def peak(name: str) -> float:
    """Megabytes that one call needed at its peak, in a fresh process."""
    model = load()
    side = calls(model)[name]
    with torch.inference_mode():
        model.logits(model.batch([[5, 6, 7]]))
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _status("VmRSS")
        side(0)
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def eager_runs(model: Model) -> Callable[[int], Any]:
    """A few whole eager forwards, each with one sentence's keys hidden; what all sentences would need, in part."""
    trace = a_trace(model)
    ids = torch.tensor([[*trace.prompt, *trace.ids]])

    def side(repeat: int) -> int:
        for i in range(EAGER_RUNS):
            a, b = trace.spans[(7 * (repeat + 1) + i) % (SENTENCES - 1)]
            with model.edited(AttentionMask(keys=range(PROMPT + a, PROMPT + b))):
                model.hf(ids, use_cache=False)
        return EAGER_RUNS

    return side


@torch.inference_mode()
def main() -> None:
    given = options(__doc__)
    repeats = 1 if given.quick else 3
    names = ["forward", "decoder", "span attention", "long forward", "last row", "first pass of suppression"]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        memory = dict(zip(names, pool.map(peak, names), strict=True))
    model, eager = load(), load()
    eager.hf.set_attn_implementation("eager")
    sides = calls(model)
    timed = [name for name in sides if "suppression" not in name]
    found = interleaved(repeats, **{name: sides[name] for name in timed})
    found |= interleaved(repeats, eager=eager_runs(eager), suppression=sides["suppression"])
    full = model.n_layers * model.n_heads * LONG**2 * 4 / 2**20
    claims = [
        claim("span attention, peak memory", "forward", [memory["span attention"] / memory["forward"]], bar=1.5),
        claim("span attention, peak memory", "decoder", [memory["span attention"] / memory["decoder"]]),
        claim("last row at 4,096, peak memory", "attention output's bytes", [memory["last row"] / full], bar=1 / 20),
        claim("last row at 4,096, peak memory", "long forward", [memory["last row"] / memory["long forward"]]),
        claim("suppression, peak memory", "forward", [memory["first pass of suppression"] / memory["forward"]]),
    ]
    for clock in ("wall", "cpu"):
        faster = 1 / (np.array(ratios(found, "suppression", "eager", clock)) * EAGER_RUNS / SENTENCES)
        claims += [
            claim(
                f"{SENTENCES} suppressions, {clock}", "eager forwards", faster, bar=5, at_least=True, unit="x faster"
            ),
            claim(f"span attention, {clock}", "forward", ratios(found, "span attention", "forward", clock)),
            claim(f"last row at 4,096, {clock}", "forward", ratios(found, "last row", "long forward", clock), bar=1.2),
            claim(f"last row at 4,096, {clock}", "decoder", ratios(found, "last row", "long decoder", clock)),
        ]
    seconds = {name: [each[:2] for each in runs] for name, runs in found.items()}
    report(given, claims, tokens=[PROMPT, TOKENS, LONG], rows=ROWS, megabytes=memory, seconds=seconds)


if __name__ == "__main__":
    main()
