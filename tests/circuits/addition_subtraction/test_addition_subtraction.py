"""Errors by class, the map and the clauses on trained models, and the study over a list of configurations."""

import json
from pathlib import Path

import pytest
from small import DATA, stored

from cutaway.charts import charts_from_json
from cutaway.circuits.addition_subtraction import algorithm, class_errors, explain, nines
from cutaway.circuits.addition_subtraction.study import plans
from cutaway.circuits.arithmetic import PUBLISHED, Format
from cutaway.errors import UsageError
from cutaway.study import Lab, get_study, parse_config

STUDY = get_study("addition-subtraction")


def test_the_two_layer_model_makes_no_error_and_the_one_layer_model_many() -> None:
    two, one = stored("two-layer"), stored("one-layer")
    good = class_errors(two.model, two.recipe.format, "add", uniform_n=10_000, per_class_n=500, seed=11)
    assert good["uniform +"].value * 10_000 <= 1
    assert max(good["S4"].value, good["S5"].value) <= 0.01
    bad = class_errors(one.model, one.recipe.format, "add", uniform_n=500, per_class_n=500, seed=11)
    assert min(bad["S4"].low, bad["S5"].low) >= 0.2


def test_nines_are_the_published_shorthand() -> None:
    counts = [0, 1, 2, 10, 11, 100_000, 500_000]
    assert [nines(errors, 10**6) for errors in counts] == [6, 6, 5, 5, 4, 1, 0]


def test_the_algorithm_covers_every_digit_and_kind() -> None:
    clauses = algorithm(Format(4, signed=True))
    assert len(clauses) == 3 * 4 * 2 + 2 + 1 + 1
    assert len({clause.says for clause in clauses}) == len(clauses)


def test_all_names_the_whole_inventory_and_mistakes_are_told_before_training() -> None:
    assert [plan.name for plan in plans(parse_config(STUDY, {"models": "all"}))] == list(PUBLISHED)
    quick = plans(parse_config(STUDY, {"models": "all", "steps": "7"}))
    assert {plan.steps for plan in quick} == {7}
    for models, message in (("add_d6", "no preset"), (" ", "models is empty"), ("tiny", "no sign token")):
        with pytest.raises(UsageError, match=message):
            plans(parse_config(STUDY, {"models": models}))


def test_a_list_of_models_runs_resumes_and_inserts(tmp_path: Path) -> None:
    """A stand-in for the whole inventory: an addition model, a subtraction and an inserted one, a few steps each."""
    settings = {
        "models": "small-1-layer,small-subtraction,small-mixed",
        "steps": "10",
        "questions": "100",
        "per_class": "30",
        "explained": "false",
    }
    config, seen = parse_config(STUDY, settings), []

    def stop(progress: object) -> None:
        seen.append(progress)
        if len(list((tmp_path / "arithmetic").glob("*/training.json"))) == 1:
            raise KeyboardInterrupt

    first = STUDY.run(
        parse_config(STUDY, {**settings, "steps": "50", "models": "small-1-layer,small-subtraction"}),
        Lab(home=tmp_path, progress=stop),
    )
    assert (first.complete, len(first.result[0])) == (False, 1)
    whole = STUDY.run(config, Lab(home=tmp_path))
    assert whole.complete
    told = json.loads(whole.artifacts["models.json"])
    assert [each["model"] for each in told] == ["small-1-layer_s0", "small-subtraction_s0", "small-mixed_s0"]
    assert {"uniform +", "M0", "N1"} <= set(told[2]["errors"])
    assert told[0]["nines"] == {"uniform +": 0}


def test_the_study_takes_a_stored_model_apart_with_controls_beside_each_tag(tmp_path: Path) -> None:
    given = {"folder": str(DATA / "two-layer"), "questions": "200", "per_class": "50", "map_per_class": "30"}
    config = parse_config(STUDY, {**given, "pairs": "60"})
    run = STUDY.run(config, Lab(home=tmp_path))
    assert run.complete
    assert charts_from_json(run.artifacts["charts.json"]) == run.charts
    assert {"Loss by sub-task: small-2-layers"} <= {chart.title for chart in run.charts}
    assert "small-2-layers_s0: clauses that hold" in {item.name for item in run.items}
    assert dict(STUDY.inputs(config, Lab(home=tmp_path))) == dict(run.inputs)
    found = run.result[0][0].explanation
    strong = [tag for tag in found.roles.tags if tag.strength == "strong"]
    assert len(strong) >= 5
    for tag in strong:
        assert tag.match.value >= 0.95
        assert tag.p_shuffled < 0.05
        assert tag.p_random < 0.05
    assert {v.outcome for v in found.verdicts} == {"valid", "invalid", "not testable"}
    untested = [v.clause.tag for v in found.verdicts if v.outcome == "not testable"]
    assert {tag[:2] for tag in untested} == {"MD", "MT", "ND", "NT"}
    assert found.mlps.tags
    assert any(geometry.agreement > 0.5 for geometry in found.geometry)


def test_calibration_passes() -> None:
    found = STUDY.calibrate(Lab(), trials=1)
    assert found.passed, found.rates


def test_too_few_questions_of_a_class_are_refused() -> None:
    two = stored("two-layer")
    with pytest.raises(UsageError, match="at least 30"):
        class_errors(two.model, two.recipe.format, "add", uniform_n=100, per_class_n=20, seed=0)
    with pytest.raises(UsageError, match="at least 30"):
        explain(two.model, two.recipe.format, "add", per_class_n=10)


@pytest.mark.slow
def test_the_small_presets_reach_the_figures(tmp_path: Path) -> None:
    """Slow: trains two models, some minutes each."""
    found = STUDY.run(parse_config(STUDY, {"explained": "false"}), Lab(home=tmp_path))
    one, two = (result.errors for result in found.result[0])
    assert two["uniform +"].value * 10_000 <= 1
    assert max(two["S4"].value, two["S5"].value) <= 0.01
    assert min(one["S4"].value, one["S5"].value) >= 0.2
