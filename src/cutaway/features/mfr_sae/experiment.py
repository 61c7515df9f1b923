"""Does the penalty find more of the truth? Arms on planted activations, paired by seed, at equal compute.

    alone      N peers, weight 0
    mfr        the same peers, the same batches, with the penalty
    long       one peer for N times as many steps
    auxiliary  one TopK with separate encoder and revival of dead latents, N times as many steps
    batchtopk  one BatchTopK, N times as many steps
    random     as mfr, pulled to fixed random atoms
    shuffled   as mfr, pulled to peers whose coordinates are permuted

The penalty's weight is chosen on seeds of its own. The verdict looks at the mean over true atoms of the largest cosine
found, seed by seed: *supported* where mfr beats alone, long and random with intervals above zero; *not supported* where
against one of them a gain of ``margin`` is ruled out; *inconclusive* otherwise. All three must hold, so no correction
for their number is needed.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.features.mfr_sae.method import MfrConfig, train_peers
from cutaway.features.mfr_sae.similarity import cosines, duplicates, effective_rank, recovery, reproducibility
from cutaway.features.sparse import SparseDictionary
from cutaway.features.train import TrainConfig, train
from cutaway.planted.superposition import Superposition
from cutaway.stats import Interval, mean_interval, paired_difference

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["supported", "not supported", "inconclusive"]
ARMS = ("alone", "mfr", "long", "auxiliary", "batchtopk", "random", "shuffled")
RIVALS = ("alone", "long", "random")
"""What mfr has to beat."""
_VARIES = 1e-4
"""Range of cosines below which there is nothing to correlate."""
_HELD = 999_983
"""Seed of the rows that are measured on; batches use others."""


@dataclass(frozen=True)
class Outcome:
    """One arm with one seed; means over its dictionaries."""

    recovery: float
    """Mean over true atoms of the largest cosine with one found."""
    above: float
    """Share of true atoms found with a cosine above 0.9."""
    one_to_one: float
    fvu: float
    """On rows held out."""
    l0: float
    dead: float
    """Share of latents silent on those rows."""
    rank: float
    """Effective rank of the atoms over their number of dimensions."""
    duplicates: float
    """Share of atoms with a like one (cosine above 0.95) in the same dictionary."""
    peers: float
    """Mean over latents of the largest cosine with a peer's; nan for one dictionary."""
    spearman: float
    """Over latents: that against the largest cosine with a true atom."""
    pearson: float
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Every arm over all seeds."""

    outcomes: Mapping[str, tuple[Outcome, ...]]
    weight: float
    """Chosen on the discovery seeds."""
    tried: Mapping[float, float]
    """Weight to recovery on the discovery seeds."""
    gains: Mapping[str, Interval]
    """Rival to the paired difference in recovery, mfr minus rival."""
    verdict: Verdict
    complete: bool = True

    def __repr__(self) -> str:
        gains = ", ".join(
            f"{name} {gain.value:+.3f} [{gain.low:.3f}, {gain.high:.3f}]" for name, gain in self.gains.items()
        )
        return f"Comparison({self.verdict}: recovery against {gains})"

    def interval(self, arm: str, what: str) -> Interval:
        """Return the mean over seeds of one of `Outcome`'s numbers."""
        return mean_interval(np.array([getattr(each, what) for each in self.outcomes[arm]]))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "verdict": self.verdict,
            "weight": self.weight,
            "tried": {str(weight): value for weight, value in self.tried.items()},
            "gains": {name: asdict(gain) for name, gain in self.gains.items()},
            "outcomes": {arm: [asdict(each) for each in found] for arm, found in self.outcomes.items()},
            "complete": self.complete,
        }

    def to_frame(self) -> "pd.DataFrame":
        """Return one row for each arm and seed."""
        import pandas as pd

        return pd.DataFrame(
            [
                {"arm": arm, "seed": i, **asdict(each)}
                for arm, found in self.outcomes.items()
                for i, each in enumerate(found)
            ]
        )


def compare(
    planted: Superposition,
    config: MfrConfig,
    *,
    seeds: int = 5,
    weights: Sequence[float] = (0.01, 0.03, 0.1),
    discovery: int = 1,
    margin: float = 0.01,
    arms: Sequence[str] = ARMS,
    tick: Callable[[float, float, str], None] = lambda done, total, note: None,
) -> Comparison:
    """Train every arm with every seed; Ctrl-C compares the seeds that are done.

    ``config`` needs ``steps``; its own weight and seed are not used. UsageError for a planted null, fewer than two
    seeds, or no weight above zero.
    """
    if planted.null:
        raise UsageError("the null has no true atoms to recover; plant some")
    if config.steps is None or seeds < 2 or not weights or min(weights) <= 0 or config.peers < 2:
        raise UsageError(
            f"steps={config.steps}, seeds={seeds}, weights={list(weights)}, peers={config.peers}: a comparison needs"
            " steps, two seeds, weights above 0 and two peers"
        )
    if missing := {"mfr", *RIVALS} - set(arms):
        raise UsageError(f"arms={list(arms)}: {sorted(missing)[0]!r} is missing")
    total, done = float(len(weights) * discovery + len(arms) * seeds), 0.0
    tried: dict[float, float] = {}
    found: dict[str, list[Outcome]] = {arm: [] for arm in arms}
    best, complete = weights[0], True
    try:
        for weight in weights if len(weights) > 1 else ():
            trial = [run_arm("mfr", planted, config, weight, 1000 + i).recovery for i in range(discovery)]
            tried[weight], done = float(np.mean(trial)), done + discovery
            tick(done, total, f"weight {weight:g}")
        best = max(tried, key=lambda weight: tried[weight]) if tried else weights[0]
        for seed in range(seeds):
            row = {}
            for arm in arms:
                row[arm] = run_arm(arm, planted, config, best, seed)
                done += 1
                tick(done, total, arm)
            for arm, outcome in row.items():
                found[arm].append(outcome)
    except KeyboardInterrupt:
        complete = False
        if len(found["mfr"]) < 2:
            raise
    values = {arm: np.array([each.recovery for each in found[arm]]) for arm in ("mfr", *RIVALS)}
    gains = {rival: paired_difference(values["mfr"], values[rival]) for rival in RIVALS}
    outcomes = {arm: tuple(each) for arm, each in found.items()}
    return Comparison(outcomes, best, tried, gains, judge(gains, margin), complete)


def judge(gains: Mapping[str, Interval], margin: float = 0.01) -> Verdict:
    """Return the verdict on gains over rivals."""
    if all(gain.low > 0 for gain in gains.values()):
        return "supported"
    if any(gain.high < margin for gain in gains.values()):
        return "not supported"
    return "inconclusive"


def run_arm(arm: str, planted: Superposition, config: MfrConfig, weight: float, seed: int) -> Outcome:
    """Train one arm and measure it."""
    if config.steps is None:
        raise UsageError("steps=None: an arm needs a number of steps")
    started = time.monotonic()
    if arm in ("auxiliary", "batchtopk"):
        steps = config.steps * config.peers
        other = TrainConfig(
            n_latents=config.n_latents,
            kind="topk" if arm == "auxiliary" else "batchtopk",
            k=config.k,
            batch=config.batch,
            rate=config.rate,
            warm_up=1,
            cool_down=config.cool_down,
            steps=steps,
            dead_after=max(1, steps * config.batch // 10),
            seed=seed,
        )
        made: tuple[SparseDictionary, ...] = (train(_rows(planted, config.batch, seed), other).dictionary,)
    else:
        one = {"peers": 1, "steps": config.steps * config.peers} if arm == "long" else {}
        own = replace(
            config,
            weight=0.0 if arm in ("alone", "long") else weight,
            towards=arm if arm in ("random", "shuffled") else "peers",
            seed=seed,
            **one,  # type: ignore[arg-type]
        )
        made = train_peers(_rows(planted, config.batch, seed), own).dictionaries
    return measure(made, planted.truth.atoms, planted.rows(4096, seed=_HELD), time.monotonic() - started)


@torch.no_grad()
def measure(
    made: Sequence[SparseDictionary],
    true: Float[Tensor, "latent d"],
    held: Float[Tensor, "row d"],
    seconds: float = 0.0,
) -> Outcome:
    """Measure an arm's dictionaries on rows held out; means over dictionaries."""
    scores = reproducibility(made) if len(made) > 1 else ()
    rows = []
    spread = (held - held.mean(0)).square().sum()
    for i, each in enumerate(made):
        found = recovery(each.atoms, true)
        codes = each.encode(held)
        row = {
            "recovery": found.mean,
            "above": found.above,
            "one_to_one": found.one_to_one,
            "fvu": float((each.decode(codes, held) - held).square().sum() / spread),
            "l0": float(codes.l0.mean()),
            "dead": float((codes.dense().sum(0) == 0).float().mean()),
            "rank": effective_rank(each.atoms) / each.d_in,
            "duplicates": duplicates(each.atoms),
        }
        if scores:
            truth = cosines(each.atoms, true).amax(1).numpy()
            row |= {"peers": float(scores[i].mean())}
            if min(np.ptp(scores[i].numpy()), np.ptp(truth)) > _VARIES:
                row |= {"spearman": float(spearmanr(scores[i].numpy(), truth).statistic)}
                row |= {"pearson": float(pearsonr(scores[i].numpy(), truth).statistic)}
        rows.append(row)
    means = {
        name: float(np.mean([row.get(name, np.nan) for row in rows])) for name in (f.name for f in fields(Outcome))
    }
    return Outcome(**{**means, "seconds": seconds})


def _rows(planted: Superposition, batch: int, seed: int) -> Iterator[Tensor]:
    step = 0
    while True:
        yield planted.rows(batch, seed=1_000_003 * (seed + 1) + step)
        step += 1
