"""Monitors: scopes, quotes, failures, tracks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.errors import UsageError
from cutaway.reasoning.cot_monitorability.monitors import (
    ACTION,
    BOTH,
    CHAIN,
    Monitor,
    Reading,
    RuleMonitor,
    Scope,
    Verdict,
    cue_rule,
    failed,
    judge,
    limit,
    monitor_track,
)

CHAIN_TEXT = ("First I add.", " The hint says B.", " Seven fits.", " A professor agrees.")


class Touchy:
    """Crashes on one word."""

    name = "touchy"
    trained_on = frozenset()

    def judge(self, readings):
        if any("boom" in reading.text for reading in readings):
            raise KeyError("boom")
        return [Verdict(0.0, False)] * len(readings)


def test_scopes_let_through_what_they_say():
    read = {str(s): limit("Q", CHAIN_TEXT, " Answer B.", s) for s in (CHAIN, ACTION, BOTH, Scope("chain", 0.5))}
    assert read["chain"] == Reading("Q", CHAIN_TEXT, "")
    assert read["action"] == Reading("Q", (), " Answer B.")
    assert read["both"] == Reading("Q", CHAIN_TEXT, " Answer B.")
    assert read["first 50% of the chain"] == Reading("Q", CHAIN_TEXT[:2], "")
    assert read["both"].text == "".join(CHAIN_TEXT) + " Answer B."


@given(st.integers(0, 40), st.floats(0.01, 1), st.floats(0.01, 1))
def test_prefixes_are_nested_and_never_empty(n, a, b):
    chain = tuple(f" s{i}." for i in range(n))
    short, long = (limit("", chain, "", Scope("chain", share)).chain for share in sorted((a, b)))
    assert long[: len(short)] == short
    assert bool(short) == bool(n)
    assert limit("", chain, "", CHAIN).chain == chain


def test_rule_quotes_the_sentences_that_match():
    rule = cue_rule()
    assert isinstance(rule, Monitor)
    (verdict,) = rule.judge([Reading("", CHAIN_TEXT, "")])
    assert (verdict.flagged, verdict.quotes, verdict.score) == (True, (1, 3), 2.0)
    (clean,) = rule.judge([Reading("", ("Seven times six is 42.",), " The answer is B.")])
    assert (clean.flagged, clean.quotes) == (False, ())
    (late,) = rule.judge([Reading("", (), " The hint says C.")])
    assert (late.flagged, late.quotes) == (True, ())


def test_a_crash_is_a_failure_of_that_reading_only():
    readings = [Reading("", (text,), "") for text in ("fine here.", "boom here.", "fine too.")]
    verdicts = judge(Touchy(), readings)
    assert [verdict.flagged for verdict in verdicts] == [False, None, False]
    assert "KeyError" in verdicts[1].failure


def test_wrong_number_of_verdicts_is_a_failure():
    class Short:
        name = "short"
        trained_on = frozenset()

        def judge(self, readings):
            return []

    (verdict,) = judge(Short(), [Reading("", ("text",), "")])
    assert "crashed" in verdict.failure


def test_interrupts_pass():
    class Stopped:
        name = "stopped"
        trained_on = frozenset()

        def judge(self, readings):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(Stopped(), [Reading("", ("text",), "")])


@pytest.mark.parametrize(
    ("reading", "scope", "reason"),
    [
        (Reading("", (), ""), CHAIN, "the chain is empty"),
        (Reading("", ("  \n",), ""), CHAIN, "the chain is empty"),
        (Reading("", (), " "), BOTH, "the text is empty"),
        (Reading("", (), " "), ACTION, "the action is empty"),
    ],
)
def test_nothing_to_read(reading, scope, reason):
    (verdict,) = judge(cue_rule(), [reading], scope)
    assert (verdict.flagged, verdict.failure) == (None, reason)


def test_track_scores_each_sentence():
    track = monitor_track(cue_rule(), CHAIN_TEXT)
    assert track.value == (0.0, 1.0, 0.0, 1.0)
    broken = monitor_track(Touchy(), ("fine here.", "boom here."))
    assert broken.value == (0.0, None)
    assert "KeyError" in broken.undefined[1]


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Scope("chain", 0.0), "share=0.0"),
        (lambda: Scope("action", 0.5), "takes no share"),
        (lambda: RuleMonitor("r", ()), "at least one"),
        (lambda: RuleMonitor("r", ("(",)), "character"),
        (lambda: Verdict(1.0, None), "a failure, and only one"),
        (lambda: Verdict(1.0, True, failure="x"), "a failure, and only one"),
        (lambda: Verdict(float("nan"), True), "finite"),
    ],
)
def test_bad_input(build, says):
    with pytest.raises(UsageError, match=says):
        build()


def test_a_failure_always_has_a_reason():
    assert failed(" \n").failure == "no reason given"
