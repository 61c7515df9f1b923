"""The study's calibration: one seed's planted models, each asked what the study asks of a real one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cutaway.grading.refusal import Outcome
from cutaway.planted.dilution import COMPLY, CUE, REFUSE, Dilution, dilution
from cutaway.reasoning.cot_hijacking.direction import check_direction, fit_direction
from cutaway.reasoning.cot_hijacking.factorial import Cell, Trial, analyse
from cutaway.reasoning.cot_hijacking.heads import ablate_heads, give_back, scan_heads
from cutaway.reasoning.cot_hijacking.length import Prompt, make_preamble, make_prompt
from cutaway.reasoning.cot_hijacking.reading import Readout, probability, refusal_odds

LENGTHS = (0, 80, 320)
CHECKS = 4
EXPERIMENTS = 20
"""Draws of outcomes from each planted model's own odds."""


@dataclass(frozen=True)
class Tally:
    """Counts over seeds."""

    models: int = 0
    found: int = 0
    ablated: int = 0
    directed: int = 0
    random: int = 0
    returned: int = 0
    misled: int = 0
    experiments: int = 0
    detected: int = 0
    false: int = 0


def one_seed(tally: Tally, seed: int) -> Tally:
    """Build the models of one seed, run every step, add what was found."""
    # 16 heads a layer: with fewer there are not 200 other sets in the layers of the check heads, and p cannot be small.
    diluted = dilution("length", n_heads=16, checks=CHECKS, noise=0.02, spread=0.1, seed=seed)
    readout = answer_readout(diluted)
    bad = {n: prompts(diluted, n, forbidden=True, seed=seed) for n in (LENGTHS[0], LENGTHS[-1])}
    good = {n: prompts(diluted, n, forbidden=False, seed=seed) for n in (LENGTHS[0], LENGTHS[-1])}
    known, fresh = slice(0, 12, 2), slice(1, 12, 2)
    scan = scan_heads(
        diluted.model, {n: p[known] for n, p in bad.items()}, {n: p[known] for n, p in good.items()}, readout
    )
    chosen = scan.ranking()[:CHECKS]
    test = ablate_heads(diluted.model, [p.ids for p in bad[0][fresh]], chosen, readout, sets=200, seed=seed)
    given = give_back(diluted.model, bad[0][fresh], bad[LENGTHS[-1]][fresh], chosen, readout, controls=1, seed=seed)
    ids = [[p.ids for p in side[0]] for side in (bad, good)]
    direction = fit_direction(diluted.model, ids[0][:6], ids[1][:6], readout, validation=(ids[0][6:9], ids[1][6:9]))
    effect = check_direction(diluted.model, direction, ids[0][9:], ids[1][9:], readout, seed=seed)
    moved = max(abs(effect.random_removed.value), abs(effect.random_added.value))
    return replace(
        tally,
        models=tally.models + 1,
        found=tally.found + (set(chosen) == set(diluted.truth.heads)),
        ablated=tally.ablated + (test.drop.value >= 0.8 and test.p < 0.01),
        directed=tally.directed + bool(abs(direction.vector @ diluted.truth.direction) > 0.95),
        random=tally.random + (moved >= 0.05),
        returned=tally.returned + bool(given.restored.value >= 0.9),
        misled=tally.misled + cue_misled(seed),
        experiments=tally.experiments + EXPERIMENTS,
        detected=tally.detected + detections("length", 8.0, seed),
        false=tally.false + detections("none", 19.0, seed),
    )


def cue_misled(seed: int) -> bool:
    """Whether giving attention back moves the refusal of a model that lost it to the cue."""
    planted = dilution("cue", n_heads=8, checks=CHECKS, noise=0.02, spread=0.1, seed=seed)
    short = prompts(planted, 0, forbidden=True, seed=seed)[:4]
    long = prompts(planted, LENGTHS[-1], forbidden=True, seed=seed, cue=CUE)[:4]
    given = give_back(planted.model, short, long, planted.truth.heads, answer_readout(planted), controls=1, seed=seed)
    return bool(abs(given.returned.value) >= 0.05)


def detections(cause: str, threshold: float, seed: int) -> int:
    """In how many experiments a length effect is found; outcomes are drawn from the model's own odds.

    ``threshold`` keeps refusal away from 0 and 1 where length is idle, so that there is something to misread.
    """
    planted = dilution(cause, n_heads=8, threshold=threshold, noise=0.02, spread=0.1, seed=seed)  # type: ignore[arg-type]
    readout, cells = (
        answer_readout(planted),
        [Cell(0), *(Cell(n, k) for n in LENGTHS[1:] for k in ("puzzle", "random"))],
    )
    odds = [
        refusal_odds(
            planted.model,
            [p.ids for p in prompts(planted, cell.tokens, forbidden=True, seed=seed, kind=cell.relevance)],
            readout,
        )
        for cell in cells
    ]
    chances = probability(np.array(odds))
    rng = np.random.default_rng((seed, 7))
    found = 0
    for _ in range(EXPERIMENTS):
        refused = rng.random((2, *chances.shape)) < chances
        outcomes: list[Trial] = [
            Trial(f"goal {g}", cell, _outcome(bool(refused[run, c, g])))
            for run in range(2)
            for c, cell in enumerate(cells)
            for g in range(chances.shape[1])
        ]
        found += analyse(outcomes).detected
    return found


def prompts(
    planted: Dilution, tokens: int, *, forbidden: bool, seed: int, cue: str = "", kind: str = "puzzle"
) -> Sequence[Prompt]:
    """All requests of one kind behind one preamble."""
    preamble = make_preamble(planted.model, tokens, kind, source="ledger", seed=seed)  # type: ignore[arg-type]
    return [make_prompt(planted.model, each, preamble, cue) for each in planted.requests(forbidden=forbidden)]


def answer_readout(planted: Dilution) -> Readout:
    """Refusal against compliance, by the planted answers."""
    vocabulary = planted.model.tokenizer.get_vocab()
    return Readout((vocabulary[REFUSE],), (vocabulary[COMPLY],))


def _outcome(refused: bool) -> Outcome:
    return "refuse" if refused else "comply"
