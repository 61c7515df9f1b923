"""Forced histories: the planted effect, silence without one, repairs, and what has no answer."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.errors import UsageError
from cutaway.planted.echo import Echo, echo
from cutaway.reasoning.history_echoes import (
    Arm,
    Chat,
    Contrast,
    contrasts,
    effect,
    get_phenomenon,
    make_targets,
    run_forced,
    select_items,
)
from cutaway.reasoning.history_echoes.calibration import STYLE, steering_flips, style_effects, style_items
from cutaway.reasoning.history_echoes.forced import history_of
from cutaway.sampling import Request, Rollout


def test_the_forced_effect_is_the_planted_one(planted: Echo) -> None:
    found = style_effects(planted, 600, seed=2)
    main = found["dose 2"].difference
    assert main.value == pytest.approx(planted.truth.risk_difference, abs=0.06)
    assert main.low is not None
    assert main.high is not None
    assert main.low <= planted.truth.risk_difference <= main.high
    distant = found["distance 2"].difference
    assert distant.low is not None
    assert distant.high is not None
    assert distant.low <= 0 <= distant.high
    assert found["dose 2"].p is not None
    assert found["dose 2"].p < 1e-6


def test_without_carry_over_there_is_no_effect() -> None:
    found = style_effects(echo(0.0, spread=1.0), 400, seed=0)["dose 2"].difference
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 0 <= found.high


@pytest.mark.slow
def test_acceptance_number_of_the_planted_effect() -> None:
    """Slow: 4,000 targets under five arms."""
    planted = echo(0.6)
    found = style_effects(planted, 4000)["dose 2"].difference
    assert planted.truth.risk_difference == pytest.approx(0.6, abs=1e-9)
    assert found.value == pytest.approx(0.6, abs=0.03)


def test_steering_along_the_style_flips_it_and_random_steps_do_not() -> None:
    flips, stray, tries = steering_flips(echo(0.6, n_questions=60), 60)
    assert flips >= 0.9 * tries
    assert stray <= 0.05 * tries


outcomes = st.lists(st.tuples(st.integers(-1, 1), st.integers(-1, 1)), min_size=1, max_size=30)


@given(outcomes)
def test_an_effect_is_the_mean_difference_of_known_pairs(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs).T
    found = effect("x", a, b)
    known = [(x, y) for x, y in pairs if x >= 0 and y >= 0]
    assert found.left_out == len(pairs) - len(known)
    if len(known) < 2:
        assert found.difference.value is None
        assert found.difference.undefined
        return
    assert found.difference.value == pytest.approx(np.mean([x - y for x, y in known]))
    assert found.difference.low is not None
    assert found.difference.high is not None
    assert -1 <= found.difference.low <= found.difference.value <= found.difference.high <= 1
    # Even pairs that all agree leave a width: 30 of them do not prove that there is no effect.
    assert found.difference.high - found.difference.low > 0.05
    swapped = effect("x", b, a)
    assert swapped.difference.value == pytest.approx(-found.difference.value)
    assert swapped.p == found.p


def test_clusters_widen_the_interval_and_agreeing_ones_leave_it_open() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(10), 8)
    a = (rng.random(80) < np.repeat(rng.random(10), 8)).astype(int)
    b = np.zeros(80, dtype=int)
    single, grouped = effect("x", a, b).difference, effect("x", a, b, clusters).difference
    assert single.low is not None
    assert grouped.low is not None
    assert grouped.low < single.low
    assert effect("x", b, b, clusters).difference.low is None
    with pytest.raises(UsageError, match="one of each"):
        effect("x", a, b[:3])


def test_histories_have_the_same_questions_and_differ_in_answers_only() -> None:
    items = select_items(("capital", "element"))
    target = make_targets(items, 4, 4, seed=1)[2]
    phenomenon = get_phenomenon("hallucination")
    plus, minus = (history_of(target, Arm(marks), phenomenon) for marks in ("++++", "----"))
    assert [q for q, _ in plus] == [q for q, _ in minus]
    assert all(phenomenon.present(a, item) for (_, a), item in zip(plus, target.same, strict=True))
    assert not any(phenomenon.present(a, item) for (_, a), item in zip(minus, target.same, strict=True))
    assert {item.topic for item in target.same} == {target.item.topic}
    assert target.item.topic not in {item.topic for item in target.other}
    repaired = history_of(target, Arm("+-", repair="correct"), phenomenon)
    assert len(repaired) == 3
    assert target.same[0].answer in repaired[2][0]
    assert target.same[1].answer not in repaired[2][0]
    assert history_of(target, Arm(), phenomenon) == ()


def test_the_standard_contrasts_pair_arms_of_one_length() -> None:
    plan = {c.name: c for c in contrasts((1, 3), (2,))}
    assert plan["dose 3"].treated == Arm("+++")
    assert plan["distance 2"].treated == Arm("+-")
    assert plan["placebo"].treated.source == "again"
    assert plan["delete"].treated == Arm()
    with pytest.raises(UsageError, match="doses from 1"):
        contrasts(())
    with pytest.raises(UsageError, match="use \\+ and -"):
        Arm("+x")
    with pytest.raises(UsageError, match="no history to repair"):
        Arm("", repair="apologise")
    with pytest.raises(UsageError, match="history=500"):
        make_targets(select_items(), 2, 500)


class Interrupted:
    """Stops after a number of streams, as Ctrl-C would."""

    def __init__(self, engine: object, after: int) -> None:
        self.engine, self.left = engine, after
        self.identity, self.cost = engine.identity, engine.cost  # type: ignore[attr-defined]

    def token_probs(self, prefix: object, continuation: object, settings: object) -> None:
        return None

    def stream(self, requests: list[Request], edits: object = ()) -> list[tuple[int, Rollout]]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return list(self.engine.stream(requests))  # type: ignore[attr-defined]


def test_ctrl_c_keeps_what_is_known(planted: Echo, chat_of: Callable[..., Chat]) -> None:
    chat = chat_of(planted)
    chat = Chat(chat.model, Interrupted(chat.engine, 2), chat.settings)
    targets = make_targets(style_items_of_two_topics(planted), 12, 2)
    plan = (Contrast("dose 1", Arm("+"), Arm("-")), Contrast("history of - against none", Arm("-"), Arm()))
    found = run_forced(chat, targets, STYLE, plan, width=12)
    assert not found.complete
    assert sum(-1 in values for values in found.arms.values()) == 1
    assert "pairs" in found["dose 1"].difference.undefined or found["dose 1"].difference.value is not None
    assert found.to_frame().shape[0] == 2
    with pytest.raises(KeyError, match="no contrast 'dose 9'"):
        found["dose 9"]


def style_items_of_two_topics(planted: Echo) -> tuple:
    """Targets need other answers in their topic: give every question its own."""
    from dataclasses import replace

    return tuple(replace(item, answer=item.question) for item in style_items(planted))
