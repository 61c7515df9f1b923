"""The method where the truth is known: vectors and a small model whose unwanted rule is the louder one."""

from collections.abc import Callable

from cutaway.finetuning.caft.data import double_task
from cutaway.finetuning.caft.method import Comparison, compare, labelled_concept
from cutaway.finetuning.caft.toy import toy_arms
from cutaway.planted.spurious import two_rules
from cutaway.study import Rate
from cutaway.training import TrainConfig

STEPS, RATE = 80, 1e-3
SITE = "resid_post.1"


def all_rates(trials: int, report: Callable[[int, int], None] = lambda done, total: None) -> tuple[Rate, ...]:
    """Everything, over ``trials`` draws; the small model is trained once for each two of them."""
    toy = toy_arms(2 * trials, report=report)
    hits = {arm.name: arm.values["reversed"] for arm in toy.arms}
    # where something is taken out in the test alone, a head may miss what it was trained with
    as_trained = [arm for arm in toy.arms if not arm.name.startswith("test only") and not arm.name.endswith("kept")]
    tied = [value for arm in as_trained for value in arm.values["tied"]]
    n = 2 * trials
    small = [small_trial(seed) for seed in range(max(1, trials // 2))]
    gains = [run.gain("ablation frozen") for run in small]
    nulls = [run.arms.difference("random", "none", "reversed") for run in small]
    kept = [run.arms.mean("ablation frozen", "tied") >= run.arms.mean("none", "tied") - 0.02 for run in small]
    return (
        Rate(
            "cue followed when nothing is removed",
            sum(x <= 0.05 for x in hits["none"]),
            n,
            at_least=0.9,
            what="vectors, reversed accuracy at most 0.05",
        ),
        Rate(
            "rule recovered, frozen trunk",
            sum(x >= 0.95 for x in hits["ablation frozen"]),
            n,
            at_least=0.9,
            what="vectors, reversed accuracy at least 0.95",
        ),
        Rate(
            "false recovery, random direction",
            sum(x > 0.15 for x in hits["random"]),
            n,
            at_most=0.15,
            what="vectors, reversed accuracy above 0.15",
        ),
        Rate(
            "task kept",
            sum(x >= 0.98 for x in tied),
            len(tied),
            at_least=0.95,
            what="vectors, tied accuracy at least 0.98",
        ),
        Rate(
            "gain on a small model",
            sum(g.low > 0 for g in gains),
            len(gains),
            at_least=0.9,
            what="interval of the gain over plain tuning above 0",
        ),
        Rate(
            "gain of a random span",
            sum(g.low > 0 for g in nulls),
            len(nulls),
            at_most=0.1,
            what="the same for a random span",
        ),
        Rate(
            "task kept on a small model",
            sum(kept),
            len(kept),
            at_least=0.9,
            what="tied accuracy within two points of plain tuning",
        ),
    )


def small_trial(seed: int, repeats: int = 2, every: int = 0) -> Comparison:
    """Train a two-rule model and every arm on it."""
    base = two_rules(seed=seed, steps=200).model
    task = double_task(base, "agreement", "sentiment", train=400, probe=300, test=300, seed=seed)
    config = TrainConfig(rate=RATE, batch=32, steps=STEPS, bucket=1, precision="float32", seed=seed)
    return compare(lambda repeat: base.copy(), task, labelled_concept(task, SITE), config, repeats=repeats, every=every)
