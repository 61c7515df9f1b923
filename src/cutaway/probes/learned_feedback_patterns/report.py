"""What tuning taught a model, as findings, charts and a line to quote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from cutaway.charts import Chart, Heat, Series
from cutaway.probes.learned_feedback_patterns.judge import JudgeGate
from cutaway.probes.learned_feedback_patterns.lexicon import Lexicon, overlap_of, sign_accuracy
from cutaway.probes.learned_feedback_patterns.method import Ablation, FeedbackReport
from cutaway.stats import Interval
from cutaway.study import Finding

_finding = partial(Finding.of, undefined="estimates do not vary")


@dataclass(frozen=True)
class Outcome:
    """What one run measured."""

    reports: tuple[FeedbackReport, ...]
    """By site."""
    lexicon: Lexicon
    misaligned: tuple[str, ...]
    """At the best site, from what tuning changed."""
    implicit: Interval
    """Tau of the implicit reward."""
    codes: Mapping[str, Interval]
    """Tau of a probe on a dictionary's codes, by site."""
    pairs: Mapping[str, Interval]
    """AUROC of better against worse texts: tuned, base, words, shuffled."""
    ablation: Ablation | None
    judge: JudgeGate | None

    @property
    def best(self) -> FeedbackReport:
        return max(self.reports, key=lambda each: each.gain.value)


def findings(found: Outcome) -> tuple[Finding, ...]:
    """Every number with its control."""
    items: list[Finding] = []
    for each in found.reports:
        base = _finding("base model", each.base.agreement)
        items.append(_finding(f"tau of held-out words at {each.tuned.site}", each.tuned.agreement, control=base))
        items.append(
            _finding(
                f"gain of tuning at {each.tuned.site}", each.gain, control=_finding("shuffled rewards", each.shuffled)
            )
        )
        items.append(_finding(f"tau from what tuning changed at {each.tuned.site}", each.difference.agreement))
        if each.random is not None:
            items.append(_finding(f"tau of a model of random weights at {each.tuned.site}", each.random.agreement))
    for site, agreement in found.codes.items():
        items.append(_finding(f"tau of a probe on codes at {site}", agreement))
    items.append(_finding("tau of the implicit reward", found.implicit))
    best, lexicon = found.best, found.lexicon
    for name, words, truth in (
        ("flipped words read with the new sign", lexicon.flipped, lexicon.reward),
        ("unseen flipped words read with the old sign", lexicon.unseen, lexicon.ordinary),
    ):
        if words:
            base = _finding("base model", sign_accuracy(best.base.estimates, truth, words))
            items.append(_finding(name, sign_accuracy(best.tuned.estimates, truth, words), control=base))
    items += list_findings(found.misaligned, lexicon.flipped)
    for name, area in found.pairs.items():
        items.append(_finding(f"AUROC of preferred texts, {name}", area))
    return (*items, *_ablation(found.ablation), *_judge(found.judge))


def list_findings(words: Sequence[str], true: Sequence[str]) -> list[Finding]:
    """How well the list names the flipped words; what an empty list or an unflipped lexicon leaves open is said."""
    values = zip(("precision", "recall", "F1"), overlap_of(words, true), (words, true, true), strict=True)
    reasons = {"precision": "no word is listed", "recall": "no word is flipped", "F1": "no word is flipped"}
    return [
        Finding(f"{name} of the list of misaligned words", value, n=len(over))
        if over
        else Finding(f"{name} of the list of misaligned words", None, undefined=reasons[name])
        for name, value, over in values
    ]


def summarise(found: Outcome) -> str:
    """One line."""
    best = found.best
    listed = overlap_of(found.misaligned, found.lexicon.flipped)[2]
    return (
        f"tuning adds tau {best.gain} at {best.tuned.site} ({best.base.agreement.value:.2f} to "
        f"{best.tuned.agreement.value:.2f}); implicit reward {found.implicit.value:.2f}; misaligned words listed with "
        f"F1 {listed:.2f}"
    )


def charts(found: Outcome) -> tuple[Chart | Heat, ...]:
    """Tau by site for every read-out; the words that went another way."""
    sites = tuple(each.tuned.site for each in found.reports)
    series = [
        _series("tuned", [each.tuned.agreement for each in found.reports]),
        _series("what tuning changed", [each.difference.agreement for each in found.reports]),
        _series("base", [each.base.agreement for each in found.reports], control=True),
    ]
    out: list[Chart | Heat] = [Chart("Tau of held-out words", sites, tuple(series), "site", "Kendall tau")]
    words = found.misaligned[:20]
    if words:
        best = found.best
        values = tuple(
            (found.lexicon.ordinary[w], found.lexicon.reward[w], best.tuned.estimates[w], best.base.estimates[w])
            for w in words
        )
        out.append(
            Heat(
                "Words read against their ordinary sense",
                words,
                ("ordinary", "paid", "tuned", "base"),
                values,
                "reward",
            )
        )
    return tuple(out)


def _ablation(found: Ablation | None) -> list[Finding]:
    if found is None:
        return [Finding("reward lost by ablation", None, undefined="too few latents are active for a control")]
    random = sum(found.random) / len(found.random)
    control = Finding("as many random latents, mean", found.before - random, n=len(found.random))
    return [
        Finding("reward lost by ablation", found.drop, n=len(found.latents), control=control),
        Finding("random sets that lower the reward less", found.beats, n=len(found.random)),
        Finding("surprise added by ablation", found.surprise_after - found.surprise_before, unit="nats"),
    ]


def _judge(found: JudgeGate | None) -> list[Finding]:
    if found is None:
        return []
    verdict = "trusted" if found.trusted else "untrusted"
    people = None if found.people is None else Finding("people among themselves", found.people)
    return [_finding(f"judge agreeing with people ({verdict}; chance 0.2)", found.agreement, control=people)]


def _series(name: str, values: Sequence[Interval], control: bool = False) -> Series:
    value, low, high = (tuple(float(getattr(each, end)) for each in values) for end in ("value", "low", "high"))
    return Series(name, value, low, high, control)
