"""The claim as code, its verdicts on planted and trained models, and the study end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
from small import DATA, permuted_heads, stored, varied

from cutaway.charts import charts_from_json
from cutaway.circuits.addition_transformers import (
    base_head,
    chain_accuracy,
    early_pattern,
    judge,
    predict,
    question_suite,
    roles_by_shift,
    staircase,
)
from cutaway.circuits.arithmetic import Format, chain, recipe, score, uniform
from cutaway.circuits.arithmetic.ablate import ablate
from cutaway.circuits.arithmetic.nodes import residuals, whole_heads
from cutaway.circuits.arithmetic.planted_check import planted_roles
from cutaway.circuits.arithmetic.roles import mean_attention
from cutaway.errors import CutawayError, UsageError
from cutaway.planted.adder import adder
from cutaway.study import Lab, get_study, parse_config

FORM = Format(5)


def by_loop(first: list[int], second: list[int], below: int | None) -> list[int]:
    """The claim's digits, most significant first, one column at a time."""
    n, out = len(first), []
    for i in range(n + 1):
        carry = 0
        for j in range(0 if below is None else max(0, i - below), i):
            carry = int(first[j] + second[j] + carry >= 10)
        out.append(((first[i] + second[i] if i < n else 0) + carry) % 10)
    return out[::-1]


@pytest.mark.parametrize("below", [0, 1, 2, None])
def test_the_accounts_are_what_they_say(below: int | None) -> None:
    questions = question_suite(FORM, 200, 0)
    rows = zip(questions.first.tolist(), questions.second.tolist(), strict=True)
    assert predict(questions, below).tolist() == [by_loop(a, b, below) for a, b in rows]
    if below is None:
        np.testing.assert_array_equal(predict(questions, None), questions.answer_tokens)


def test_the_claim_fails_exactly_on_long_chains() -> None:
    for length in range(5):
        questions = chain(FORM, 0, length, 100, 1)
        fails = (predict(questions, 2) != questions.answer_tokens).any(axis=1)
        assert fails.all() if length >= 2 else not fails.any() or (chain_lengths(questions)[fails] >= 2).all()


def chain_lengths(questions: object) -> np.ndarray:
    from cutaway.circuits.arithmetic import class_names

    return np.array([int(name[1]) - 1 for name in class_names(questions)])  # type: ignore[arg-type]


@pytest.mark.parametrize(("columns", "accepted"), [(3, True), (2, False), (4, False)])
def test_verdicts_on_planted_models(columns: int, accepted: bool) -> None:
    scores = score(adder(5, columns=columns).model, question_suite(FORM, 300, 0))
    found = judge(scores)
    assert found.accepted is accepted
    assert bool(found.against) is not accepted
    if columns == 2:
        assert found.of("one column below").everywhere.value == 1
    assert ("accepted" if accepted else "rejected") in repr(found)


def test_the_two_layer_model_rejects_the_claim() -> None:
    two = stored("two-layer")
    found = judge(score(two.model, question_suite(two.recipe.format, 400, 0)))
    assert not found.accepted
    assert found.of("full addition").disputed.low > 0.95
    assert found.of("two columns below").disputed.high < 0.05
    assert "claim" in found.against[0]


def test_accuracy_by_chain_beside_the_claims_own() -> None:
    found = chain_accuracy(score(adder(5).model, question_suite(FORM, 300, 0)))
    assert set(found) == {-1, 0, 1, 2, 3, 4}
    for length, (model, claim) in found.items():
        assert model.value == claim.value == (1.0 if length <= 1 else 0.0)


def test_the_planted_staircase_is_perfect_and_noise_has_none() -> None:
    planted = adder(5)
    steps = staircase(mean_attention(planted.model, uniform(FORM, 50, 0)), FORM)
    for shift, ((layer, head),) in enumerate(planted.truth.heads):
        assert steps[layer, head, shift] > 0.999
        assert np.delete(steps[layer, head], shift).max() < 0.001
    noise = staircase(mean_attention(adder(5, null=True).model, uniform(FORM, 50, 0)), FORM)
    assert noise.max() < 0.5


@pytest.mark.parametrize("model", ["planted", "one-layer"])
def test_digits_are_computed_one_position_early(model: str) -> None:
    subject = adder(5).model if model == "planted" else stored(model).model
    assert early_pattern(ablate(subject, varied(FORM, 60, 1), residuals(FORM), varied(FORM, 60, 2))).all()


def test_the_base_head_is_found_whatever_its_number() -> None:
    model = stored("one-layer").model
    questions, reference, order = varied(FORM, 120, 1), varied(FORM, 60, 2), [1, 2, 0]
    one = base_head(ablate(model, questions, whole_heads(model), reference))
    assert one.ratio >= 10
    moved = permuted_heads(model, 0, order)
    other = base_head(ablate(moved, questions, whole_heads(moved), reference))
    assert order[other.head[1]] == one.head[1]
    assert other.rise.value == pytest.approx(one.rise.value, rel=1e-3)


def test_jobs_are_counted_by_head() -> None:
    planted = adder(3)
    jobs = roles_by_shift(planted_roles(planted))
    counts = ({"base": 3}, {"case 1": 3}, {"case 2": 2})
    assert jobs == {places[0]: count for places, count in zip(planted.truth.heads, counts, strict=True)}


def test_the_study_takes_a_stored_model_apart(tmp_path: Path) -> None:
    study = get_study("addition-transformers")
    config = parse_config(
        study, {"folder": str(DATA / "one-layer"), "questions": "200", "per_class": "40", "pairs": "40"}
    )
    found = study.run(config, Lab(home=tmp_path))
    assert found.complete
    assert found.summary.startswith("1 of 1 models are right on 99%")
    assert charts_from_json(found.artifacts["charts.json"]) == found.charts
    (told,) = json.loads(found.artifacts["models.json"])
    assert told["seed"] == 3
    assert {"recipe_sha256", "questions_sha256", "weights_sha256"} <= set(told)
    assert all(item.value is not None for item in found.items)
    assert dict(study.inputs(config, Lab(home=tmp_path))) == dict(found.inputs)


def test_the_study_trains_resumes_and_keeps(tmp_path: Path) -> None:
    study, lab = get_study("addition-transformers"), Lab(home=tmp_path)
    config = parse_config(study, {"seeds": "[4]", "steps": "120", "questions": "100", "per_class": "30", "pairs": "30"})

    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    stopped = study.run(config, Lab(home=tmp_path, progress=stop))
    assert not stopped.complete
    assert "stopped" in stopped.summary
    (kept,) = (tmp_path / "arithmetic").glob("*.safetensors")
    first = study.run(config, lab)
    assert first.complete
    assert not kept.exists()
    again = study.run(config, Lab(home=tmp_path, progress=stop))
    assert [item.value for item in again.items] == [item.value for item in first.items]


def test_calibration_passes() -> None:
    found = get_study("addition-transformers").calibrate(Lab(), trials=1)
    assert found.passed, found.rates


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: predict(uniform(Format(3, signed=True), 5, 0, minus=True), 2), "with \\+ only"),
        (lambda: judge(score(adder(5).model, chain(FORM, 4, 0, 40, 0)[:1])), "no question"),
        (lambda: recipe("tiny", heads=5), "not divisible"),
    ],
)
def test_bad_input(make: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()  # type: ignore[operator]


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    study = get_study("addition-transformers")
    with pytest.raises(CutawayError, match="holds no trained arithmetic model"):
        study.run(parse_config(study, {"folder": str(tmp_path)}), Lab(home=tmp_path))


@pytest.mark.slow
def test_five_seeds_reach_99_percent(tmp_path: Path) -> None:
    """Slow: trains five models, some two minutes each."""
    study = get_study("addition-transformers")
    found = study.run(parse_config(study, {}), Lab(home=tmp_path))
    good = [each.uniform.value >= 0.99 for each in found.result]
    assert sum(good) >= 4
    assert all(each.stored.training["seconds"] < 600 for each in found.result)
    assert sum(all(each.early[:5]) for each in found.result) >= 4
    assert all(each.question_positions == 0 for each in found.result)
