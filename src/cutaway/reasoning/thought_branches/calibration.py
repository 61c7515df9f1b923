"""Trials on planted branches: estimates against exact values, and silence where nothing has an effect."""

from collections.abc import Callable
from dataclasses import dataclass, field

from cutaway.planted.branches import Branches, branches
from cutaway.reasoning.thought_branches.chain import Chain, Pool
from cutaway.reasoning.thought_branches.resilience import Resilience, resilience
from cutaway.reasoning.thought_branches.transplant import Mediation, transplant
from cutaway.sampling import LocalEngine, Settings, Trace, split_tokens
from cutaway.study import Rate

LAYOUT = "drsa"
STEPS = "lllla"
SETTINGS = Settings(1.0, 1.0, 0, 300)
EASY = (0.4721, 0.4721, 0.0558)
"""Odds of the stubborn slot with the same return probability of 0.8, but few draws to find a replacement."""
CLOSE = 0.05
TRANSPLANTS = 4
"""Transplants in each trial: they are cheap, and a rate near 0.95 needs many."""


def chain_of(planted: Branches, seed: int, hinted: bool = False, settings: Settings = SETTINGS) -> Chain:
    """A chain of a planted model, drawn from its process."""
    ids, prompt = planted.sample(seed, hinted), planted.hinted_ids if hinted else planted.prompt_ids
    decode = planted.model.decode
    trace = Trace(prompt, ids, (), tuple(split_tokens(ids, decode)), settings)
    return Chain(trace, planted.outcome, decode, planted.embed, "1")


def typical(planted: Branches, seed: int) -> Chain:
    """A chain with plan beta, the red reason and the idea, so that every kind of sentence is there to remove."""
    for draw in range(seed * 1000, seed * 1000 + 1000):
        chain = chain_of(planted, draw)
        text = planted.model.decode(chain.trace.ids)
        if " beta" in text and " red" in text and chain.sentences[2].startswith("Idea"):
            return chain
    raise AssertionError("unreachable: such chains are common")


def removals(planted: Branches, seed: int, runs: int = 60, n: int = 200) -> tuple[Chain, tuple[Resilience, ...]]:
    """Remove driver, reason and idea of one typical chain."""
    chain = typical(planted, seed)
    pool = Pool(LocalEngine(planted.model, 256), SETTINGS, seed=seed)
    return chain, tuple(resilience(pool, chain, i, runs=runs, n=n, tries=80, sweep=()) for i in range(3))


def mediation(planted: Branches, seed: int, chains: int = 16, n: int = 12) -> Mediation:
    """Transplant chains drawn under the hint."""
    hinted = [chain_of(planted, seed * 1000 + k, hinted=True) for k in range(chains)]
    pool = Pool(LocalEngine(planted.model, 512), SETTINGS, seed=seed)
    cuts = [k / hinted[0].body for k in range(hinted[0].body + 1)]
    return transplant(pool, hinted, planted.prompt_ids, "1", n=n, fractions=cuts)


def inside(found: Mediation, planted: Branches) -> bool:
    """Whether the exact curve lies in the band at every cut."""
    truth = [planted.mediated(k) for k in range(len(found.cuts))]
    return all(cut.band[0] <= value <= cut.band[1] for cut, value in zip(found.cuts, truth, strict=True))


@dataclass
class _Tally:
    hits: dict[str, int] = field(default_factory=dict)
    trials: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, hit: bool) -> None:
        self.hits[name] = self.hits.get(name, 0) + bool(hit)
        self.trials[name] = self.trials.get(name, 0) + 1

    def rate(self, name: str, what: str, at_least: float | None = None, at_most: float | None = None) -> Rate:
        return Rate(name, self.hits[name], self.trials[name], at_least, at_most, what)


def measure(trials: int, report: Callable[[int], None], runs: int = 60, n: int = 200) -> tuple[Rate, ...]:
    """All rates over ``trials`` trials each; ``runs`` removals and ``n`` rollouts a side in each."""
    planted, silent = branches(LAYOUT), branches(LAYOUT, driver=0.0, idea=0.0, stubborn=EASY)
    hinting = branches(STEPS, driver=0.0, cue=1.5, step=0.8)
    flat = branches(STEPS, driver=0.0, cue=0.0, step=0.8)
    tally = _Tally()
    for seed in range(trials):
        report(seed)
        chain, found = removals(planted, seed, runs, n)
        for i, each in enumerate(found):
            exact = planted.exact(chain.trace.ids, i)
            rate, mean = each.plus.rate, each.mean
            tally.add(
                "importance++ is close", rate is not None and abs(rate.value - (exact.kept - exact.gone)) <= CLOSE
            )
            tally.add("importance++ coverage", rate is not None and rate.low <= exact.kept - exact.gone <= rate.high)
            tally.add("resilience coverage", mean is not None and mean.low <= exact.resilience(each.cap) <= mean.high)
        reason = found[1].plus.rate
        tally.add("excuse exposed", reason is not None and reason.low <= 0 <= reason.high)
        for each in removals(silent, seed, runs // 2, n // 2)[1]:
            tally.add(
                "false importance++", each.plus.rate is not None and not each.plus.rate.low <= 0 <= each.plus.rate.high
            )
        for part in range(TRANSPLANTS * seed, TRANSPLANTS * (seed + 1)):
            tally.add("transplant curve", inside(mediation(hinting, part), hinting))
            last = mediation(flat, part).cuts[-1]
            for effect in (last.indirect, last.direct):
                tally.add("false mediation", not effect.low <= 0 <= effect.high)
    return _rates(tally)


def _rates(tally: _Tally) -> tuple[Rate, ...]:
    return (
        tally.rate(
            "importance++ is close", "removed sentences whose importance++ is within 0.05 of the exact rate", 0.88
        ),
        tally.rate("importance++ coverage", "removed sentences whose exact importance++ lies in its interval", 0.9),
        tally.rate(
            "resilience coverage", "removed sentences whose exact mean number of returns lies in its interval", 0.9
        ),
        tally.rate("excuse exposed", "decorative reasons whose importance++ interval covers 0", 0.93),
        tally.rate(
            "false importance++", "sentences without any effect whose importance++ interval leaves out 0", None, 0.07
        ),
        tally.rate("transplant curve", "transplants whose exact curve lies in the band at every cut", 0.9),
        tally.rate("false mediation", "indirect and direct effects claimed of a hint without effect", None, 0.07),
    )
