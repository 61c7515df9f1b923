"""Twins that never learnt, a model that only refuses, a destroyed one; and the checks' own arithmetic."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cutaway.editing.concepts import months_abroad
from cutaway.editing.facts import answers
from cutaway.editing.learning import gradient_ascent, misdirection, projected, relearning
from cutaway.editing.unlearning_open_problems import CAPPED, Sets, audit
from cutaway.editing.unlearning_open_problems.checks import calibration_error, robust, traces
from cutaway.editing.unlearning_open_problems.erasers import pruned
from cutaway.editing.unlearning_open_problems.planted import RELEARN, removals
from cutaway.editing.unlearning_open_problems.report import charts, findings, summarise
from cutaway.editing.unlearning_open_problems.study import AuditConfig, Unlearning
from cutaway.errors import UsageError
from cutaway.study import Lab
from cutaway.training import TrainConfig

FAST = TrainConfig(1e-3, 8, steps=6, schedule="constant", bucket=1, precision="float32", probe_every=1)


@pytest.fixture(scope="module")
def made():
    found = removals(8, 2, steps=90)
    return replace(found, settings=replace(found.settings, relearn=replace(RELEARN, steps=8)))


@pytest.fixture(scope="module")
def true(made):
    return audit(made.before, made.removed, made.sets, made.settings, control=made.control)


def test_a_twin_that_never_learnt_is_called_removed(true):
    assert true.verdict == "removed"
    assert true.flagged == ()
    for row in true.rows:
        if row.gap is not None:
            assert row.gap.low <= 0 <= row.gap.high or abs(row.gap.value) < 0.05


def test_a_model_that_only_refuses_shows_through(made):
    fake = audit(made.before, made.refusing, made.sets, made.settings, control=made.control)
    assert fake.row("direct", "forget known").scores["after"].mean() <= 0.25
    for check, measure in (("rephrase", "share among choices"), ("relearning", "known, mean over relearning")):
        assert fake.row(check, measure).gap.value > 0.2


def test_facts_in_other_words_are_judged_where_they_are_given(made):
    """Composition and languages: for once the same facts, which the twin cannot know and the model itself does."""
    asked = replace(made.sets, composed=made.sets.forget, translated=made.sets.forget)
    plain = replace(made.settings, relearn=None)
    kept = audit(made.before, made.before, asked, plain, control=made.control)
    gone = audit(made.before, made.removed, asked, plain, control=made.control)
    for check in ("composition", "languages"):
        assert kept.row(check, "chosen").mean("before").value == 1.0
        assert kept.row(check, "chosen").gap.value > 0.4
        assert gone.row(check, "chosen").gap.value < 0.3
        assert check not in gone.flagged


def test_months_are_asked_in_two_other_languages():
    facts = months_abroad()
    assert len(facts) == 24
    assert {"Les mois dans l'ordre : janvier, février,", "Los meses en orden : enero, febrero,"} <= {
        fact.prompt for fact in facts
    }
    assert all(fact.answer in fact.choices and len(set(fact.choices)) == 4 for fact in facts)


def test_random_weights_are_unusable_and_no_success(made):
    broken = audit(made.before, made.destroyed, made.sets, made.settings, control=made.control)
    assert broken.verdict == "removed, unusable"


def test_the_model_itself_is_not_removed_and_without_control_the_verdict_is_capped(made):
    plain = replace(made.settings, relearn=None)
    assert audit(made.before, made.before, made.sets, plain, control=made.control).verdict == "not removed"
    alone = audit(made.before, made.removed, made.sets, plain)
    assert alone.verdict == CAPPED
    assert alone.flagged == ()
    assert next(item for item in findings(alone) if item.name == "flagged checks").value is None


def test_relearning_starts_at_the_score_and_sees_the_same_order(made, true):
    for name, model in (("before", made.before), ("after", made.removed), ("control", made.control)):
        assert true.curves[name][0] == (0, answers(model, made.sets.forget).known.mean())
    losses = []
    for _ in range(2):
        losses.append(relearning(made.removed, made.sets.lessons, lambda now: float(len(losses)), RELEARN)[0])
    assert losses[0][0] == losses[1][0] == 0
    with pytest.raises(UsageError, match="no lessons"):
        relearning(made.removed, (), lambda now: 0.0, RELEARN)


def test_probes_stand_beside_the_control_and_a_shuffled_null(made, true):
    row = true.row("traces", "probe at its best layer")
    assert set(row.scores) == {"before", "after", "control"}
    assert row.scores["before"].mean() >= row.scores["control"].mean()
    assert set(true.layers["after"]) == {"probe", "shuffled"}
    assert true.row("traces", "probe of shuffled labels").flagged is None
    few = replace(made.sets, lessons=())
    assert set(traces(made.before, few, made.settings)[0]) == {"layers at which the answer leads"}


def test_rounding_to_many_bits_changes_nothing_and_the_models_stay_as_they_are(made):
    before = made.before.copy().fingerprint
    found = robust(made.before, made.sets, made.settings)
    assert np.array_equal(found["chosen, 8 bits"], answers(made.before, made.sets.forget).chosen)
    assert (found["chosen, any treatment"] >= found["chosen, 4 bits"]).all()
    assert made.before.copy().fingerprint == before


def test_calibration_error_by_hand():
    confidence, right = np.array([0.95, 0.95, 0.25, 0.25]), np.array([1.0, 0.0, 0.0, 0.0])
    assert calibration_error(confidence, right) == pytest.approx((2 * 0.45 + 2 * 0.25) / 4)


def test_every_baseline_lowers_the_facts_on_a_copy(made):
    sets, model = made.sets, made.before
    before, plain = model.copy().fingerprint, answers(model, sets.forget).logp.mean()
    words = [model.encode(answer)[0] for answer in {fact.answer for fact in sets.forget}]
    for changed in (
        gradient_ascent(model, sets.forget, sets.retain, FAST),
        misdirection(model, sets.forget, sets.retain, replace(FAST, steps=12), layer=0),
        projected(model, model.hf.get_output_embeddings().weight[words]),
        pruned(model, sets.forget, sets.retain, 0.3),
    ):
        assert answers(changed, sets.forget).logp.mean() < plain - 0.05
        assert all(torch.isfinite(weight).all() for weight in changed.hf.parameters())
    stopped = gradient_ascent(model, sets.forget, sets.retain, FAST, until=lambda now: True)
    assert stopped.fingerprint == before == model.copy().fingerprint


def test_the_report_says_every_number_and_the_time_of_each_check(true):
    names = {item.name: item for item in findings(true)}
    assert names["flagged checks"].value == 0
    assert names["rephrase: chosen in any wording"].control is not None
    assert {name for name in names if name.startswith("time of")} == {f"time of {check}" for check in true.seconds}
    assert summarise(true).startswith("removed: known 100% -> ")
    assert [chart.title for chart in charts(true)] == [
        "Every measure",
        "Relearning from adjacent facts",
        "What probes read",
    ]
    assert len(true.to_frame()) == len(true.rows)


@pytest.mark.slow  # three sets of planted models with three audits each: minutes
def test_the_calibration_passes():
    assert Unlearning().calibrate(Lab(), 2).passed


def test_bad_input(made):
    with pytest.raises(UsageError, match="at least one"):
        Sets((), made.sets.retain)
    shared = made.sets.forget[0]
    with pytest.raises(UsageError, match=rf"{shared.prompt}' \(forget, retain\)"):
        Sets(made.sets.forget, (*made.sets.retain, shared))
    with pytest.raises(ValueError, match="for model=planted only"):
        AuditConfig(method="refusing")
    with pytest.raises(ValueError, match="bring theirs"):
        AuditConfig(model="planted", control="folder")
    with pytest.raises(UsageError, match="share=1"):
        pruned(made.before, made.sets.forget, made.sets.retain, 1.0)
