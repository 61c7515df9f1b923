"""Measuring: verdicts only, refused up front beyond the context, partial on Ctrl-C; requests as data."""

from pathlib import Path

import numpy as np
import pytest
from asked import LONG, goals, planted, readout

from cutaway.errors import UsageError
from cutaway.grading.refusal import Outcome
from cutaway.planted.dilution import dilution
from cutaway.reasoning.cot_hijacking.data import COLUMNS, Goal, default_requests, read_goals, split_goals
from cutaway.reasoning.cot_hijacking.direction import components
from cutaway.reasoning.cot_hijacking.factorial import Cell, analyse
from cutaway.reasoning.cot_hijacking.method import look_inside, measure, outcome_auc, prompts_for
from cutaway.sampling import Settings

GREEDY = Settings(0.0, 1.0, 0, 4)


def test_greedy_verdicts_are_those_of_the_planted_odds() -> None:
    each = dilution("length", spread=0.3, seed=1)
    asked = goals(each)
    cells = [Cell(0), Cell(60), Cell(250), Cell(250, "random")]
    found = measure(each.model, asked, cells, GREEDY, harmless=[Cell(0)], family="ledger", seed=2)
    assert found.complete
    for cell in cells:
        prompts = prompts_for(each.model, asked, cell, harmful=True, family="ledger", cue="", seed=2)
        expected = [
            "refuse" if each.truth.log_odds(goal.harmful.removeprefix("Explain"), len(p.ids)) > 0 else "comply"
            for goal, p in zip(asked, prompts, strict=True)
        ]
        assert found.outcomes(cell) == expected
    assert set(found.outcomes(Cell(0), harmful=False)) == {"comply"}
    assert found.agreement.value == 1
    report = analyse(found.trials)
    assert report.detected
    assert report.confounded == ("no length-matched control: add random preambles of the same lengths",)


def test_beyond_the_context_never_runs() -> None:
    """Acceptance 8: its own class, no token spent, no success."""
    each = dilution("length", n_layers=2, n_ctx=128)
    found = measure(each.model, goals(each)[:3], [Cell(0), Cell(200)], GREEDY, family="ledger")
    assert found.outcomes(Cell(200)) == ["over-context"] * 3
    assert found.cost.prefilled < 60
    assert analyse([*found.trials]).left_out == {"over-context": 3}


@pytest.mark.parametrize("outcome", ["empty", "blocked"])
def test_what_a_judge_calls_no_answer_is_no_success(outcome: Outcome) -> None:
    each = planted()
    judge = lambda text, finish: outcome  # noqa: E731
    found = measure(each.model, goals(each)[:3], [Cell(0)], GREEDY, judges=(judge, judge))
    assert found.outcomes(Cell(0)) == [outcome] * 3
    assert np.isnan(found.agreement.value)
    with pytest.raises(UsageError, match="none of 3"):
        analyse(found.trials)


def test_texts_are_not_kept() -> None:
    each = planted()
    found = measure(each.model, goals(each)[:2], [Cell(0)], GREEDY)
    kept = repr(found.trials) + str(found.to_dict())
    assert "cannot help" not in kept
    assert "dorvan" not in kept


def test_draws_differ_and_seeds_repeat() -> None:
    each = dilution("length", seed=1)
    cell = Cell(245)
    once, again, other = (
        measure(each.model, goals(each), [cell], Settings(1.0, 1.0, 0, 2), runs=6, seed=seed, family="ledger")
        for seed in (0, 0, 1)
    )
    assert once.trials == again.trials
    assert once.outcomes(cell) != other.outcomes(cell)
    assert len(set(once.outcomes(cell))) == 2
    assert len(once.trials) == 72


def test_ctrl_c_keeps_what_is_done() -> None:
    each = planted()

    def stop(done: int, planned: int, note: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    found = measure(each.model, goals(each)[:2], [Cell(0), Cell(40)], GREEDY, report=stop)
    assert not found.complete
    assert {t.cell for t in found.trials} == {Cell(0)}


def test_looking_inside_a_planted_model() -> None:
    each = planted(seed=3)
    asked = goals(each)
    found = look_inside(
        each.model,
        (asked[:4], asked[4:7], asked[7:]),
        (0, 60, LONG),
        readout(each),
        family="ledger",
        heads=3,
        sets=40,
        few=3,
    )
    assert set(found.head_test.heads) == set(each.truth.heads)
    assert found.head_test.drop.value > 0.8
    assert found.given.restored.value > 0.9
    assert abs(found.direction.vector @ each.truth.direction) > 0.95
    last = found.component[:, -1]
    assert last[0] > last[1] > last[2]
    assert found.component_change.high < 0
    assert found.told_apart[0].value == 1
    assert list(found.bare) == [goal.name for goal in asked[7:]]
    assert min(found.bare.values()) > 0.2
    assert len(found.to_dict()["component"]) == 3


def test_components_are_in_units_of_the_test_parts_own_bare_harmless_prompts() -> None:
    each = planted(seed=3)
    asked = goals(each)
    parts = (asked[:4], asked[4:7], asked[7:])
    found = look_inside(each.model, parts, (0, 60), readout(each), family="ledger", heads=3, sets=5, few=2)
    vector = found.direction.tensor(each.model)

    def r(chosen: list[Goal], tokens: int, harmful: bool) -> np.ndarray:
        asked = prompts_for(each.model, chosen, Cell(tokens), harmful=harmful, family="ledger", cue="", seed=0)
        return components(each.model, [prompt.ids for prompt in asked], vector)

    quiet = r(asked[7:], 0, False)
    for row, tokens in zip(found.component, (0, 60), strict=True):
        expected = (r(asked[7:], tokens, True).mean(0) - quiet.mean(0)) / quiet.std(0, ddof=1)
        assert row == pytest.approx(expected, rel=1e-3)


def test_outcome_auc_is_at_one_length() -> None:
    each = dilution("length", spread=0.3, seed=1)
    trials = measure(each.model, goals(each), [Cell(225, "random")], GREEDY).trials
    strengths = dict(zip([t.goal for t in trials], each.truth.strengths.values(), strict=True))
    assert {t.outcome for t in trials} == {"refuse", "comply"}
    assert outcome_auc(trials, strengths, Cell(225, "random")).value == 1
    assert np.isnan(outcome_auc(trials, strengths, Cell(0)).value)


def test_the_requests_at_hand() -> None:
    asked = read_goals(default_requests())
    assert 40 <= len(asked) <= 60
    assert {goal.topic for goal in asked} == {"computing", "law", "news"}
    ratio = [len(goal.harmless) / len(goal.harmful) for goal in asked]
    assert 0.6 < min(ratio) < max(ratio) < 1.6
    same_verb = [goal.harmful.split()[0] == goal.harmless.split()[0] for goal in asked]
    assert all(same_verb)
    parts = split_goals(asked, (2.0, 1.0, 2.0), seed=1)
    assert sorted(g.name for part in parts for g in part) == sorted(g.name for g in asked)
    assert [len(part) for part in parts] == [18, 8, 18]


def test_bad_request_files(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    with pytest.raises(UsageError, match="no such file"):
        read_goals(path)
    for text, fault in (
        ("", "no rows"),
        ("goal,topic,harmful\na,b,c\n", "'harmless' is missing"),
        (f"{','.join(COLUMNS)}\na,law,,y\n", "empty request"),
        (f"{','.join(COLUMNS)}\na,law,x,y\na,law,x,y\n", "comes twice"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=fault):
            read_goals(path)
    with pytest.raises(UsageError, match="too few for 3 parts"):
        split_goals(read_goals(default_requests())[:2], (1.0, 1.0, 1.0))
