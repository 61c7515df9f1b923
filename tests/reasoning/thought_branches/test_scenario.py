"""Scenario files: what comes with Cutaway, and errors that name the file and the field."""

import json

import pytest

from cutaway.errors import UsageError
from cutaway.reasoning.thought_branches.scenario import BUILT_IN, Scenario, load_scenario, scenario_names

GOOD = {
    "format": 1,
    "name": "tea-time",
    "system": None,
    "prompt": "{first} Tea or coffee? {second}",
    "slots": {"first": ["Hello.", "Good day."], "second": ["Choose.", "Decide."]},
    "decision": "choice:tea,coffee",
    "target": "tea",
    "stated_reason": "warm|mild",
    "true_cause": {"slot": "first", "note": "the greeting"},
}


def written(tmp_path, **changes):
    path = tmp_path / "tea.json"
    data = {**GOOD, **changes}
    path.write_text(json.dumps({k: v for k, v in data.items() if v != "MISSING"}))
    return path


@pytest.mark.parametrize("name", scenario_names())
def test_built_in_scenarios_are_sound(name):
    found = load_scenario(name)
    assert found.name == name
    plain, _ = found.fill()
    changed, _ = found.fill({found.true_cause.slot: 1})
    assert plain != changed
    assert "{" not in plain
    assert found.outcome(f"So the answer is {found.target}.") == found.target


def test_there_are_at_least_three():
    assert len(scenario_names()) >= 3
    assert len(list(BUILT_IN.glob("*.json"))) == len(scenario_names())


def test_filling_in(tmp_path):
    found = load_scenario(written(tmp_path, system="Be brief. {second}"))
    assert found.fill() == ("Hello. Tea or coffee? Choose.", "Be brief. Choose.")
    assert found.fill({"second": 1})[0] == "Hello. Tea or coffee? Decide."
    assert found.gives_reason("It is WARM.")
    assert not found.gives_reason("It is wet.")
    with pytest.raises(UsageError, match="no slot 'secnd'; did you mean 'second'"):
        found.fill({"secnd": 1})
    with pytest.raises(UsageError, match=r"values 0\.\.1"):
        found.fill({"second": 2})


@pytest.mark.parametrize("field", [*GOOD])
def test_a_missing_field_is_named_with_its_file(tmp_path, field):
    with pytest.raises(UsageError, match=rf"^tea\.json: field '{field}' is missing$"):
        load_scenario(written(tmp_path, **{field: "MISSING"}))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"promt": "x"}, "field 'promt' is not known; did you mean 'prompt'"),
        ({"format": 2}, "field 'format'"),
        ({"name": "Tea Time"}, "field 'name'"),
        ({"prompt": "{first} {second} {third}"}, "uses {third}, which has no values"),
        ({"prompt": "{first}"}, "'second' does not appear"),
        ({"prompt": "{first"}, "write {{ for a brace"),
        ({"slots": {"first": ["a"], "second": ["b", "c"]}}, "slot 'first' needs at least two"),
        ({"decision": "choise:a,b"}, "did you mean 'choice'"),
        ({"target": "water"}, "'water' is not a decision"),
        ({"stated_reason": "("}, "not a regular expression"),
        ({"true_cause": {"slot": "fist"}}, "no slot; did you mean 'first'"),
        ({"true_cause": {}}, "field 'true_cause.slot' is missing"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, changes, complaint):
    with pytest.raises(UsageError, match=r"^tea") as caught:
        load_scenario(written(tmp_path, **changes))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_scenarios(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(UsageError, match=r"broken\.json: not readable as JSON"):
        load_scenario(broken)
    broken.write_text("[]")
    with pytest.raises(UsageError, match="one JSON object"):
        load_scenario(broken)
    with pytest.raises(UsageError, match="did you mean 'vendor-order'"):
        load_scenario("vender-order")


def test_round_trip():
    found = load_scenario("vendor-order")
    assert Scenario.model_validate_json(found.model_dump_json()) == found
