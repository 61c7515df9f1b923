"""Every boundary of a 60-sentence trace of SmolLM2 at a fifth of the uniform estimator's tokens, on this machine.

The trace is stored (the model was made to go on by a doubt whenever it ended), so every run examines the same 714
tokens. The full run spends the whole budget and so takes as long as it measures. ``--quick`` draws the first pass
alone, two rollouts from every boundary; a fifth of the uniform estimator is twenty, so its seconds count ten times.

    python benchmarks/anchors.py [--quick] [--out FILE.json]
"""

import json
from pathlib import Path

from timing import claim, interleaved, options, report

from cutaway.grading import parse_outcome
from cutaway.model import load_model
from cutaway.reasoning.thought_anchors import AnchorMap, find_anchors
from cutaway.sampling import LocalEngine, Settings, Trace

TRACE = Path(__file__).parent.parent / "data" / "thought-anchors" / "smollm2_sixty_sentences.json"
FIFTH, FIRST, MINUTES = 20, 2, 15
"""Rollouts a boundary: a fifth of the uniform estimator's, and those of the first pass."""


def the_trace() -> Trace:
    stored = json.loads(TRACE.read_text(encoding="utf-8"))
    ids, spans = tuple(stored["ids"]), tuple((a, b) for a, b in stored["spans"])
    return Trace(tuple(stored["prompt"]), ids, (), spans, Settings(0.8, 0.95, 0, len(ids) + 40))


def main() -> None:
    given = options(__doc__)
    trace, model = the_trace(), load_model("smollm2-135m-instruct")  # as users load it

    def side(repeat: int) -> AnchorMap | None:
        if repeat < 0:
            return None
        engine, outcome = LocalEngine(model), parse_outcome("number")
        return find_anchors(engine, trace, outcome, model.decode, budget=1 if given.quick else None)

    (run,) = interleaved(1, anchors=side)["anchors"]
    anchors = run.value
    drawn = int((anchors.draws > 0).sum())
    scale = FIFTH / FIRST * trace.n_sentences / drawn if given.quick else 1.0
    precision = str(model.dtype).removeprefix("torch.")
    what = f"60 sentences at a fifth of the tokens, {precision}" + (", from a tenth of it" if given.quick else "")
    claims = [
        claim(f"{what}, wall", "-", [run.wall * scale / 60], bar=MINUTES, unit="min"),
        claim(f"{what}, processor", "-", [run.cpu * scale / 60], unit="min"),
        claim("decoded", "-", [anchors.decoded / run.wall], unit="tokens/s"),
        claim("prefilled", "prompt and trace, once", [anchors.prefilled / (len(trace.prompt) + len(trace.ids))]),
    ]
    details = {"decoded": anchors.decoded, "rollouts": int(anchors.draws.sum()), "boundaries": drawn, "scale": scale}
    report(given, claims, **details, seconds=run[:2], certified=len(anchors.anchors))


if __name__ == "__main__":
    main()
