"""Which sentences moved the answer: sequential tests of "stay or leave makes no difference", sentence by sentence.

Sentence i moves the probability of the trace's answer by

    effect_i = V_{i+1} - V_i = (1 - stay_i) (V_{i+1} - W_i).

Two streams of 0/1 outcomes meet in blocks of one draw each: x from W_i (rollouts that leave in sentence i), y from
V_{i+1} (a stratum picked by the known mixture, then that stratum's next unused draw). An e-process per sentence
tests that both have one distribution; it may be stopped at any time, and e-values of different sentences may
share draws, because the e-BH procedure that controls the false-discovery rate holds under any dependence.
A confidence sequence on the block differences certifies the opposite: that an effect is smaller than ``delta``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from cutaway.reasoning.thought_anchors.result import Status
from cutaway.reasoning.thought_anchors.strata import Strata
from cutaway.stats import bounded_mean_cs, e_benjamini_hochberg, two_sample_log_e

Outcomes = Sequence[Sequence[bool]]
"""For each stratum, in the order drawn: did the rollout end with the trace's own answer?"""


@dataclass(frozen=True)
class Blocks:
    """Paired streams of one sentence, and the stratum whose next draw the y stream waits for (None: none)."""

    x: tuple[bool, ...]
    y: tuple[bool, ...]
    waits_for: int | None


@dataclass(frozen=True)
class Verdicts:
    """One entry a sentence."""

    log_e: Float[np.ndarray, " sentence"]
    status: tuple[Status, ...]
    wanted: tuple[int, ...]
    """Stratum that an undecided sentence's next block needs first."""


def pair_blocks(strata: Strata, sentence: int, outcomes: Outcomes, seed: int) -> Blocks:
    """The blocks of one sentence's test that the draws so far complete."""
    ahead = strata.weights[sentence + 1]
    edges = np.cumsum(np.append(ahead, strata.terminal[sentence + 1]))
    picks = np.random.default_rng((seed, sentence)).random(len(outcomes[sentence])) * edges[-1]
    used = [0] * strata.n
    y: list[bool] = []
    for pick in np.searchsorted(edges, picks, side="right"):
        if pick >= strata.n:
            y.append(True)  # staying to the end gives the trace's own answer
            continue
        if used[pick] == len(outcomes[pick]):
            return Blocks(tuple(outcomes[sentence][: len(y)]), tuple(y), int(pick))
        y.append(outcomes[pick][used[pick]])
        used[pick] += 1
    return Blocks(tuple(outcomes[sentence]), tuple(y), None)


def judge(strata: Strata, outcomes: Outcomes, seed: int, delta: float, fdr: float, level: float) -> Verdicts:
    """Certify anchors at false-discovery rate ``fdr`` and sentences whose effect is within ``delta``.

    An effect that is certainly there and certainly within ``delta`` counts as none: it decided nothing.
    """
    log_e = np.zeros(strata.n)
    small: Bool[np.ndarray, " sentence"] = 1 - strata.stay <= delta
    wanted: list[int] = []
    for i in range(strata.n):
        blocks = pair_blocks(strata, i, outcomes, seed)
        wanted.append(i if blocks.waits_for is None else blocks.waits_for)
        if not blocks.x or strata.stay[i] >= 1:
            continue
        log_e[i] = two_sample_log_e([int(a) for a in blocks.x], [int(b) for b in blocks.y], 2)[-1]
        leave = float(1 - strata.stay[i])
        steps = leave * (np.asarray(blocks.y, dtype=float) - np.asarray(blocks.x, dtype=float))
        low, high = bounded_mean_cs(steps, level, lower=-leave, upper=leave)
        small[i] |= low[-1] > -delta and high[-1] < delta
    certified = e_benjamini_hochberg(log_e, fdr).rejected
    status: tuple[Status, ...] = tuple(
        "no effect" if small[i] else "anchor" if certified[i] else "undecided" for i in range(strata.n)
    )
    return Verdicts(log_e, status, tuple(wanted))


def self_comparison(strata: Strata, outcomes: Outcomes, fdr: float) -> int:
    """Control: sentences "certified" when each one's draws are compared with themselves, first half v. second."""
    log_e = np.zeros(strata.n)
    for i, draws in enumerate(outcomes):
        half = len(draws) // 2
        if half:
            log_e[i] = two_sample_log_e([int(d) for d in draws[:half]], [int(d) for d in draws[half : 2 * half]], 2)[-1]
    return int(e_benjamini_hochberg(log_e, fdr).rejected.sum())
