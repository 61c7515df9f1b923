"""Calibration: band coverage and recall on a planted reasoner, silence where nothing has an effect."""

import time

import numpy as np

from cutaway.planted import EXACT, Reasoner, reasoner
from cutaway.reasoning.thought_anchors.method import find_anchors
from cutaway.reasoning.thought_anchors.result import AnchorMap
from cutaway.sampling import LocalEngine, Settings, Trace, split_tokens
from cutaway.study import Calibration, Lab, Progress, Rate

ROUNDING = 1e-6
"""Token probabilities come from fp32 logits, so a band can end this far from an exact 0, 1 or planted odds."""


def calibrate(study: str, lab: Lab, trials: int) -> Calibration:
    """Planted traces with plans, facts and fillers, and as many without any effect."""
    started = time.monotonic()
    planted, silent = reasoner("ffpfsfsfa", p_one=(0.02, 0.98)), reasoner("ffpfsfsfa", no_effect=True)
    covered = first = recalled = anchors = 0
    quiet = false = 0
    for seed in range(trials):
        lab.progress(Progress(float(seed), float(trials), "traces"))
        found, truth = planted_run(planted, seed)
        inside = (found.low[:, 0] <= truth + ROUNDING) & (truth <= found.high[:, 0] + ROUNDING)
        covered += bool(inside.all())
        moved = np.abs(np.diff(truth))
        first += int(np.abs(found.effect).argmax()) == planted.truth.kinds.index("plan")
        real = np.flatnonzero(moved > 0.2)
        anchors += len(real)
        recalled += sum(found.status[i] == "anchor" for i in real)
        null, _ = planted_run(silent, seed)
        quiet += not null.anchors
        false += len(null.anchors)
    rates = (
        Rate(
            "band coverage",
            covered,
            trials,
            at_least=0.93,
            what="traces whose exact curve lies inside the 95% band everywhere",
        ),
        Rate(
            "plan first",
            first,
            trials,
            at_least=0.95,
            what="traces where the plan sentence has the largest effect",
        ),
        Rate(
            "recall",
            recalled,
            max(anchors, 1),
            at_least=0.9,
            what="sentences with an effect above 0.2 that were certified",
        ),
        Rate(
            "false anchors",
            trials - quiet,
            trials,
            at_most=0.05,
            what="traces without any effect where an anchor was certified",
        ),
    )
    seconds = time.monotonic() - started
    return Calibration(study, rates, seconds, {"trials": trials, "budget": "a fifth of uniform-100"})


def planted_run(planted: Reasoner, seed: int, **options: object) -> tuple[AnchorMap, np.ndarray]:
    """One run on a planted trace, and the exact probability of the trace's own answer at every boundary."""
    ids = planted.sample_trace(seed)
    decode = planted.model.decode
    settings = Settings(EXACT.temperature, EXACT.top_p, EXACT.top_k, len(ids) + 8)
    trace = Trace(planted.prompt_ids, ids, (), tuple(split_tokens(ids, decode)), settings)
    own = planted.outcome(decode(ids))
    truth = np.array([planted.outcome_probs(trace.prefix(i))[str(own)] for i in range(trace.n_sentences + 1)])
    anchors = find_anchors(
        LocalEngine(planted.model, 256),
        trace,
        planted.outcome,
        decode,
        seed=seed,
        **options,  # type: ignore[arg-type]
    )
    return anchors, truth
