"""Resampling a reasoning trace from every sentence boundary: the local engine against a loop over `generate`.

The loop is what one writes first: one `generate` call a boundary with ``num_return_sequences``. Both sides draw
with the same settings; rows end where the model ends them, so lengths differ a little and seconds a decoded token
are reported too.

    python benchmarks/resample.py [--quick] [--out FILE.json]
"""

import torch
from timing import PROMPT, claim, interleaved, options, ratios, report

from cutaway.model import Model, load_model
from cutaway.model.load import native_bf16
from cutaway.sampling import LocalEngine, Request, Settings, Trace, make_trace

N = 10
SETTINGS = Settings(max_tokens=40)


def trace_of(model: Model) -> Trace:
    """The first sampled trace with at least five sentences that ends by itself, else the one with most."""
    prompt, settings = tuple(model.chat_ids(PROMPT)), Settings(max_tokens=120)
    drawn = LocalEngine(model).stream([Request(prompt, tuple(range(8)), settings)])
    found = sorted((rollout for _, rollout in drawn), key=lambda rollout: rollout.seed)
    traces = [(make_trace(prompt, rollout, settings, model.decode), rollout.finish) for rollout in found]
    whole = [trace for trace, finish in traces if finish == "stop" and trace.n_sentences >= 5]
    return whole[0] if whole else max((trace for trace, _ in traces), key=lambda trace: trace.n_sentences)


def boundaries(trace: Trace, repeat: int) -> range:
    """All of them; the last one alone in the warm-up, which is repeat -1."""
    return range(trace.n_sentences) if repeat >= 0 else range(trace.n_sentences - 1, trace.n_sentences)


def loop(model: Model, trace: Trace, seed: int) -> int:
    """Decoded tokens of one `generate` call a boundary."""
    torch.manual_seed(seed + 1)
    decoded, pad = 0, model.tokenizer.pad_token_id
    ends = sorted(model.eos_ids)
    for boundary in boundaries(trace, seed):
        prefix = torch.tensor([trace.prefix(boundary)])
        out = model.hf.generate(
            prefix,
            attention_mask=torch.ones_like(prefix),
            do_sample=True,
            temperature=SETTINGS.temperature,
            top_p=SETTINGS.top_p,
            top_k=SETTINGS.top_k,
            max_new_tokens=SETTINGS.max_tokens,
            num_return_sequences=N,
            eos_token_id=ends,
            pad_token_id=ends[0] if pad is None else pad,
        )[:, prefix.shape[1] :]
        # A row counts up to and with its first end token; what follows is padding.
        ended = torch.isin(out, torch.tensor(ends)).long().cumsum(1)
        decoded += int((ended - torch.isin(out, torch.tensor(ends)).long() == 0).sum())
    return decoded


def engine(model: Model, trace: Trace, seed: int) -> tuple[int, int]:
    """(decoded, prefilled) tokens of the same rollouts from a fresh engine."""
    local = LocalEngine(model)
    seeds = tuple(range((seed + 1) * N, (seed + 2) * N))
    drawn = list(local.stream([Request(trace.prefix(i), seeds, SETTINGS) for i in boundaries(trace, seed)]))
    assert len(drawn) == N * len(boundaries(trace, seed))
    return local.cost.decoded, local.cost.prefilled


def measure(model: Model, repeats: int) -> tuple[list[object], dict[str, object]]:
    trace = trace_of(model)
    found = interleaved(
        repeats,
        engine=lambda repeat: engine(model, trace, repeat),
        loop=lambda repeat: loop(model, trace, repeat),
    )
    text = len(trace.prompt) + len(trace.ids)
    speed = {
        "engine": [run.value[0] / run.wall for run in found["engine"]],
        "loop": [run.value / run.wall for run in found["loop"]],
    }
    lengths = [a.value[0] / b.value for a, b in zip(found["engine"], found["loop"], strict=True)]
    prefilled = [run.value[1] / text for run in found["engine"]]
    precision = str(model.dtype).removeprefix("torch.")
    generate = "HF generate, one call a boundary"
    claims = []
    for clock in ("wall", "cpu"):
        gain = ratios(found, "loop", "engine", clock)
        per_token = [each * length for each, length in zip(gain, lengths, strict=True)]
        what = f"speed-up, {clock} seconds"
        claims.append(claim(f"{what}, {precision}", generate, gain, bar=3, at_least=True))
        claims.append(claim(f"{what} a decoded token, {precision}", generate, per_token, bar=3, at_least=True))
    claims += [
        claim(f"prefilled tokens, {precision}", "prompt and trace, once", prefilled, bar=1.05),
        claim(f"engine, {precision}", "-", speed["engine"], unit="tokens/s"),
        claim(f"loop, {precision}", "-", speed["loop"], unit="tokens/s"),
    ]
    shape = {"sentences": trace.n_sentences, "prompt": len(trace.prompt), "trace": len(trace.ids), "rollouts": N}
    return claims, {**shape, "found": found}


def main() -> None:
    given = options(__doc__)
    repeats = 2 if given.quick else 5
    claims, details = measure(load_model("smollm2-135m-instruct", dtype="float32"), repeats)
    parts: dict[str, object] = {"float32": details}
    if native_bf16(torch.device("cpu")):
        more, parts["bfloat16"] = measure(load_model("smollm2-135m-instruct", dtype="bfloat16", device="cpu"), repeats)
        claims += more
    else:
        parts["bfloat16"] = "skipped: this processor has no bf16 multiplication (AMX-BF16 or AVX512-BF16)"
        print("bfloat16", parts["bfloat16"])
    report(given, claims, **parts)


if __name__ == "__main__":
    main()
