"""Trials on planted branches: estimates against exact values, and silence where nothing has an effect."""

from collections.abc import Callable
from dataclasses import dataclass, field

from cutaway.planted.branches import Branches, Exact, branches
from cutaway.reasoning.thought_branches.chain import Chain, Pool
from cutaway.reasoning.thought_branches.resilience import Resilience, resilience
from cutaway.reasoning.thought_branches.transplant import Mediation, transplant
from cutaway.sampling import LocalEngine, Settings, Trace, split_tokens
from cutaway.stats import Interval
from cutaway.study import Rate

LAYOUT = "drsa"
STEPS = "lllla"
SETTINGS = Settings(1.0, 1.0, 0, 300)
EASY = (0.4721, 0.4721, 0.0558)
"""Odds of the stubborn slot with the same return probability of 0.8, but few draws to find a replacement."""
CLOSE = 0.05
NULLS, TRANSPLANTS = 4, 2
"""Chains without effects and transplants in each trial: they are cheap, and a rate near 0.05 needs many."""


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


def measure(
    trials: int, report: Callable[[int], None], runs: int = 60, n: int = 200, chains: int = 16
) -> tuple[Rate, ...]:
    """All rates over ``trials`` trials.

    Each removes sentences ``runs`` times with ``n`` rollouts a side (in the null half as often), and transplants
    ``chains`` chains.
    """
    planted, silent = branches(LAYOUT), branches(LAYOUT, driver=0.0, idea=0.0, stubborn=EASY)
    hinting = branches(STEPS, driver=0.0, cue=1.5, step=0.8)
    flat = branches(STEPS, driver=0.0, cue=0.0, step=0.8)
    tally = _Tally()
    for seed in range(trials):
        report(seed)
        _effects(tally, planted, seed, runs, n)
        for part in range(NULLS * seed, NULLS * (seed + 1)):
            _nothing(tally, silent, part, runs // 2, n // 2)
        for part in range(TRANSPLANTS * seed, TRANSPLANTS * (seed + 1)):
            moved, still = mediation(hinting, part, chains), mediation(flat, part, chains)
            tally.add("transplant curve", inside(moved, hinting))
            tally.add("mediation found", _leaves_out_0(moved.cuts[-1].indirect))
            tally.add("false mediation", _leaves_out_0(still.cuts[-1].indirect))
            tally.add("false mediation", _leaves_out_0(still.cuts[-1].direct))
    return _rates(tally)


def _effects(tally: _Tally, planted: Branches, seed: int, runs: int, n: int) -> None:
    """One chain whose driver and idea act and whose reason does not."""
    chain, found = removals(planted, seed, runs, n)
    for i, each in enumerate(found):
        exact = planted.exact(chain.trace.ids, i)
        rate, truth = each.plus.rate, exact.kept - exact.gone
        tally.add("importance++ is close", rate is not None and abs(rate.value - truth) <= CLOSE)
        tally.add("importance++ coverage", rate is not None and rate.low <= truth <= rate.high)
        _returns(tally, exact, each)
        if i in planted.truth:
            tally.add("importance++ found", _leaves_out_0(rate))
        else:
            tally.add("excuse exposed", rate is not None and not _leaves_out_0(rate))


def _nothing(tally: _Tally, silent: Branches, seed: int, runs: int, n: int) -> None:
    """One chain whose idea returns and where nothing acts."""
    chain, found = removals(silent, seed, runs, n)
    for i, each in enumerate(found):
        tally.add("false importance++", _leaves_out_0(each.plus.rate))
        _returns(tally, silent.exact(chain.trace.ids, i), each)


def _returns(tally: _Tally, exact: Exact, found: Resilience) -> None:
    truth, mean = exact.resilience(found.cap), found.mean
    if truth > 0:
        tally.add("resilience coverage", mean is not None and mean.low <= truth <= mean.high)


def _leaves_out_0(found: Interval | None) -> bool:
    return found is not None and not found.low <= 0 <= found.high


def _rates(tally: _Tally) -> tuple[Rate, ...]:
    rate = tally.rate
    return (
        rate("importance++ is close", "removed sentences whose importance++ is within 0.05 of the exact rate", 0.88),
        rate("importance++ coverage", "removed sentences whose exact importance++ lies in its interval", 0.9),
        rate("importance++ found", "removed sentences that act and whose importance++ interval leaves out 0", 0.9),
        rate("resilience coverage", "sentences that return whose exact mean number of returns is in its interval", 0.9),
        rate("excuse exposed", "decorative reasons whose importance++ interval covers 0", 0.93),
        rate("false importance++", "sentences without effect whose importance++ interval leaves out 0", None, 0.07),
        rate("transplant curve", "transplants whose exact curve lies in the band at every cut", 0.9),
        rate("mediation found", "hints that act through the chain and whose indirect effect leaves out 0", 0.9),
        rate("false mediation", "indirect and direct effects claimed of a hint without effect", None, 0.07),
    )
