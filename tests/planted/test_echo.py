"""The planted model of answer style equals its truth at every state; simulators have the rates they claim."""

import numpy as np
import pytest
import torch

from cutaway.errors import UsageError
from cutaway.planted.echo import SITE, STYLES, echo, simulate_chain, simulate_items, simulate_states
from cutaway.sampling import LocalEngine, Request, Settings


@pytest.mark.parametrize(("q", "spread"), [(0.0, 0.0), (0.6, 0.0), (0.6, 1.0), (0.9, 0.5)])
def test_every_question_after_every_style_has_the_stated_odds(q: float, spread: float) -> None:
    planted = echo(q, spread=spread, n_questions=6, rate=0.4)
    model = planted.model
    plus, minus = model.encode(STYLES[1])[0], model.encode(STYLES[0])[0]
    starts = {None: "", 0: f"{planted.questions[0]}{STYLES[0]} ", 1: f"{planted.questions[1]}{STYLES[1]} "}
    for previous, start in starts.items():
        for i, question in enumerate(planted.questions):
            ids = model.chat_ids(start + question)
            with torch.inference_mode():
                probs = model.logits(model.batch([ids]))[0, -1].softmax(-1)
            assert float(probs[plus]) == pytest.approx(planted.p_plus(i, previous), abs=1e-5)
            assert float(probs[plus] + probs[minus]) == pytest.approx(1.0, abs=1e-5)


def test_only_the_last_answer_counts_and_an_answer_is_one_word() -> None:
    planted = echo(0.7)
    model = planted.model
    rows = [model.chat_ids(f"q11{STYLES[a]} q12{STYLES[1]} q13") for a in (0, 1)]
    with torch.inference_mode():
        first, second = (model.logits(model.batch([row]))[0, -1] for row in rows)
    assert torch.allclose(first, second, atol=1e-4)
    request = Request(tuple(rows[0]), (0, 1, 2), Settings(1.0, 1.0, 0, 5))
    for _, rollout in LocalEngine(model).stream([request]):
        assert rollout.finish == "stop"
        assert len(rollout.ids) == 2


def test_truth_is_q_at_equal_ease_and_less_than_q_for_unequal() -> None:
    assert echo(0.6).truth.risk_difference == pytest.approx(0.6)
    assert echo(0.0, spread=2.0).truth.risk_difference == pytest.approx(0.0)
    assert 0.3 < echo(0.6, spread=2.0).truth.risk_difference < 0.6


def test_the_style_lies_on_its_axis_and_answers_at_their_angle() -> None:
    planted = echo(0.6)
    model = planted.model
    ids = model.chat_ids(f"q11{STYLES[1]} q12{STYLES[0]} q13")
    seen = model.capture([ids], [SITE])[SITE][0]
    reading = (seen @ planted.truth.direction).detach()
    assert reading.tolist() == pytest.approx([0, 0, 0, 1, 0, -1], abs=1e-5)
    plus, minus = seen[2], seen[4]
    angle = torch.rad2deg(torch.acos(torch.cosine_similarity(plus, minus, dim=0)))
    assert float(angle.detach()) == pytest.approx(planted.truth.angle, abs=1e-2)


def test_simulated_chains_have_their_rates() -> None:
    y = simulate_chain(0.6, 0.8, 400, 50, seed=0)
    now, then = y[:, :-1], y[:, 1:]
    assert np.mean(then[now == 1]) == pytest.approx(0.8, abs=0.02)
    assert np.mean(then[now == 0]) == pytest.approx(0.4, abs=0.02)
    assert y[:, 0].mean() == pytest.approx(2 / 3, abs=0.06)


@pytest.mark.parametrize(
    ("options", "trace"),
    [({}, 1.0), ({"correlation": 0.5}, 1.14), ({"correlation": 0.9}, 1.26), ({"sd": 0.0, "base_sd": 1.5}, 1.29)],
)
def test_items_alone_give_the_traces_of_the_card(options: dict[str, float], trace: float) -> None:
    found = []
    for seed in range(30):
        y = simulate_items(100, 19, seed=seed, **options).outcomes  # type: ignore[arg-type]
        now, then = y[:, :-1], y[:, 1:]
        found.append(then[now == 1].mean() + 1 - then[now == 0].mean())
    assert np.mean(found) == pytest.approx(trace, abs=0.02)


def test_simulated_forced_answers_differ_by_the_stated_amount() -> None:
    items = simulate_items(400, 50, carry=0.5, seed=0)
    assert items.after_plus.mean() - items.after_minus.mean() == pytest.approx(items.risk_difference, abs=0.02)
    assert simulate_items(5, 5).risk_difference == 0


def test_simulated_states_have_their_angle() -> None:
    planted = simulate_states(40.0, 200, 20, noise=0.1, seed=1)
    plus, minus = (planted.states[planted.labels == y].mean(0) for y in (1, 0))
    cosine = plus @ minus / np.linalg.norm(plus) / np.linalg.norm(minus)
    assert np.degrees(np.arccos(cosine)) == pytest.approx(40.0, abs=0.5)


def test_impossible_arguments_are_refused() -> None:
    for wrong in ({"q": 1.0}, {"rate": 0.0}, {"n_questions": 1}, {"spread": -1.0}):
        with pytest.raises(UsageError):
            echo(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="stay_plus"):
        simulate_chain(0.5, 1.0, 2, 2)
