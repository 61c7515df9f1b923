"""Thought anchors on planted reasoners: what is found, what is not, budgets, interruptions, odd traces."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from planted_traces import exact_curve, own_answer, planted, result_of, trace_of

from cutaway.errors import CutawayError, UsageError
from cutaway.planted import Reasoner
from cutaway.reasoning.rollouts import first_sentence
from cutaway.reasoning.source import sample_trace
from cutaway.reasoning.thought_anchors.alternatives import group_alternatives
from cutaway.reasoning.thought_anchors.calibration import planted_run
from cutaway.reasoning.thought_anchors.method import UNIFORM, explain_answer, find_anchors
from cutaway.reasoning.thought_anchors.result import NO_ANSWER, OTHER, AnchorMap
from cutaway.sampling import BranchTree, LocalEngine, Settings, Trace, split_tokens

ROUNDING = 1e-6


def find(source: Reasoner, trace: Trace, **options: Any) -> AnchorMap:
    engine = options.pop("engine", None) or LocalEngine(source.model, 128)
    outcome = options.pop("outcome", source.outcome)
    return find_anchors(engine, trace, outcome, source.model.decode, **{"budget": 800, **options})


def assert_sound(found: AnchorMap) -> None:
    """What holds for every map, complete or not."""
    n, answers = len(found.sentences), len(found.answers)
    assert found.curve.shape == found.low.shape == found.high.shape == (n + 1, answers)
    for each in (found.curve, found.low, found.high):
        assert np.isfinite(each).all()
        assert (each >= -1e-9).all()
        assert (each <= 1 + 1e-9).all()
    assert (found.low <= found.curve + 1e-9).all()
    assert (found.curve <= found.high + 1e-9).all()
    assert found.curve[-1, 0] == pytest.approx(1)
    assert (found.effect_low <= found.effect_high).all()
    np.testing.assert_allclose(found.effect, np.diff(found.curve[:, 0]), atol=1e-12)
    assert len(found.status) == len(found.alternatives) == len(found.draws) == n
    assert 0 <= found.unanswered <= 1
    assert 0 <= found.truncated <= 1
    for group, stay in zip(found.alternatives, found.stay, strict=True):
        assert sum(each.share for each in group) <= 1 - stay + 1e-9


def test_planted_truth_is_found_over_twelve_traces():
    source = planted("ffpfsfsfa", 0.02, 0.98)
    covered = first = real = recalled = 0
    for seed in range(12):
        found, truth = planted_run(source, seed)
        assert_sound(found)
        inside = (found.low[:, 0] <= truth + ROUNDING) & (truth <= found.high[:, 0] + ROUNDING)
        covered += bool(inside.all())
        first += int(np.abs(found.effect).argmax()) == source.truth.kinds.index("plan")
        moved = np.flatnonzero(np.abs(np.diff(truth)) > 0.2)
        real += len(moved)
        recalled += sum(found.status[i] == "anchor" for i in moved)
        assert found.control == 0
    assert covered >= 10
    assert first >= 11
    assert recalled >= 0.85 * real


def test_nothing_is_certified_where_nothing_has_an_effect():
    source = planted("ffpfsfsfa", no_effect=True)
    for seed in range(12):
        found, truth = planted_run(source, seed, budget=1200)
        assert_sound(found)
        assert found.anchors == ()
        assert truth == pytest.approx(1)
        assert found.answers == ("1",)


def test_the_paper_s_estimator_draws_a_hundred_free_rollouts_a_boundary():
    source = planted("pfsa")
    trace = trace_of(source, 0)
    found = find(source, trace, estimator="uniform", budget=None)
    truth = exact_curve(source, trace)
    assert_sound(found)
    assert found.complete
    assert found.estimator == "uniform"
    assert found.draws.tolist() == [UNIFORM] * 4
    assert (found.stay == 0).all()
    assert (np.abs(found.curve[:, 0] - truth) <= 4 * np.sqrt(truth * (1 - truth) / UNIFORM) + 1e-9).all()
    np.testing.assert_allclose(found.curve[:-1] * UNIFORM, np.round(found.curve[:-1] * UNIFORM), atol=1e-9)
    cut = find(source, trace, estimator="uniform", budget=100)
    assert not cut.complete
    assert 0 < cut.draws.sum() < 4 * UNIFORM
    assert_sound(cut)


def test_without_reuse_rollouts_start_freely():
    source = planted("pfsa")
    trace = trace_of(source, 1)
    found = find(source, trace, reuse=False, budget=1500)
    assert_sound(found)
    assert (found.stay == 0).all()
    truth = exact_curve(source, trace)
    assert ((found.low[:, 0] <= truth + ROUNDING) & (truth <= found.high[:, 0] + ROUNDING)).all()


@pytest.mark.parametrize("budget", [1, 200, 800, 2500])
def test_the_budget_is_kept_within_a_round(budget):
    source = planted("ffpfsfsfa")
    trace = trace_of(source, 2)
    found = find(source, trace, budget=budget)
    thin = 2 * sum(len(trace.ids) - start for start, _ in trace.spans)
    assert found.decoded <= budget + thin
    assert found.complete
    assert_sound(found)


def test_the_same_call_on_the_same_tree_decodes_nothing_and_says_the_same(tmp_path):
    source = planted("pfsa")
    trace, maps = trace_of(source, 4), []
    for _ in range(2):
        with BranchTree.open(tmp_path, source.model.fingerprint) as tree:
            maps.append(find(source, trace, tree=tree))
    assert maps[0].decoded > 0
    assert maps[1].decoded == 0
    assert maps[1].reused > 0
    assert result_of(maps[0]) == result_of(maps[1]) == result_of(find(source, trace))
    assert result_of(find(source, trace, seed=1)) != result_of(maps[0])


@pytest.mark.parametrize("after", [1, 9, 30])
def test_ctrl_c_keeps_what_is_known_and_a_rerun_goes_on(tmp_path, after):
    source = planted("ffpfsfsfa")
    trace, calls = trace_of(source, 5), []

    def interrupt(spent: int, planned: int, note: str) -> None:
        calls.append(spent)
        if len(calls) == after:
            raise KeyboardInterrupt

    with BranchTree.open(tmp_path, source.model.fingerprint) as tree:
        part = find(source, trace, tree=tree, report=interrupt)
    assert not part.complete
    assert len(calls) == after
    assert_sound(part)
    with BranchTree.open(tmp_path, source.model.fingerprint) as tree:
        assert len(tree) >= after
        whole = find(source, trace, tree=tree)
    assert whole.complete
    uninterrupted = find(source, trace)
    assert result_of(whole) == result_of(uninterrupted)
    assert 0 < whole.decoded < uninterrupted.decoded


def test_a_deadline_ends_the_run_early():
    source = planted("ffpfsfsfa")
    found = find(source, trace_of(source, 0), budget=10**6, deadline=time.monotonic() - 1)
    assert not found.complete
    assert (found.draws > 0).any()
    assert_sound(found)


def test_progress_is_reported_in_tokens_of_the_budget():
    source, seen = planted("pfsa"), []
    found = find(source, trace_of(source, 0), report=lambda *args: seen.append(args))
    spent = [s for s, _, _ in seen]
    assert len(seen) == found.draws.sum()
    assert spent == sorted(spent)
    assert all(0 < s <= planned == 800 and "rollouts" in note for s, planned, note in seen)


def test_maps_survive_json_and_files(tmp_path):
    source = planted("pfsa")
    found = find(source, trace_of(source, 0))
    text = json.dumps(found.to_dict())
    assert AnchorMap.from_dict(json.loads(text)).to_dict() == found.to_dict()
    found.save(tmp_path / "map.json")
    loaded = AnchorMap.from_dict(json.loads((tmp_path / "map.json").read_text()))
    assert loaded.to_dict() == found.to_dict()
    assert loaded.anchors == found.anchors
    assert loaded.curve.dtype == found.curve.dtype
    assert loaded.draws.dtype == found.draws.dtype
    assert repr(loaded) == repr(found)
    frame = found.to_frame()
    assert len(frame) == 4
    assert frame["effect"].tolist() == found.effect.tolist()
    assert "".join(found.sentences) == source.model.decode(trace_of(source, 0).ids)


def test_a_trace_of_one_sentence():
    source = planted("pfsa", 0.3, 0.7)
    trace = trace_of(source, 0)
    start, _ = trace.spans[-1]
    last = trace.ids[start:]
    one = Trace((*trace.prompt, *trace.ids[:start]), last, (), ((0, len(last)),), trace.settings)
    found = find(source, one)
    assert_sound(found)
    assert len(found.sentences) == 1
    assert found.low[0, 0] <= exact_curve(source, one)[0] <= found.high[0, 0]
    assert found.status == ("anchor",)


def test_repeated_sentences_keep_their_own_numbers():
    source = planted("ffpfsfsfa")
    trace = trace_of(source, 0)
    (a, b), ids = trace.spans[1], trace.ids
    twice = (*ids[:b], *ids[a:b], *ids[a:])
    spans = tuple(split_tokens(twice, source.model.decode))
    long = Trace(trace.prompt, twice, (), spans, replace(trace.settings, max_tokens=len(twice) + 8))
    found = find(source, long)
    assert_sound(found)
    assert len(found.sentences) == 11
    assert found.sentences[1] == found.sentences[2] == found.sentences[3]
    assert found.stay[2] == pytest.approx(0, abs=1e-9)
    assert found.stay[1] > 0.05


def test_rollouts_that_never_end_are_a_visible_answer():
    source = planted("pfsa")
    trace = trace_of(source, 0)
    cut = replace(trace, settings=replace(trace.settings, max_tokens=8))
    found = find(source, cut, budget=300)
    assert_sound(found)
    assert NO_ANSWER in found.answers
    assert found.truncated > 0.5
    assert found.unanswered > 0.5
    assert found.curve[0, found.answers.index(NO_ANSWER)] > 0.5


def test_many_answers_are_folded_into_other():
    source = planted("ffpfsfsfa")
    trace = trace_of(source, 0)

    def wordy(text: str) -> str:
        return (
            " ".join(word for word in text.split() if word in ("coral", "alpha", "beta") or "Note" in word)
            + text[20:60]
        )

    found = find(source, trace, outcome=wordy)
    assert_sound(found)
    assert OTHER in found.answers
    assert len(found.answers) == 6
    np.testing.assert_allclose(found.curve.sum(1), 1, atol=0.2)  # each answer's curve is kept inside its own band


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda trace: replace(trace, settings=Settings(temperature=0.0)), "temperature=0 leaves nothing"),
        (lambda trace: replace(trace, ids=trace.ids[:5], spans=((0, 5),)), "the trace itself has no answer"),
    ],
)
def test_traces_that_cannot_be_explained(change, match):
    source = planted("pfsa")
    with pytest.raises(UsageError, match=match):
        find(source, change(trace_of(source, 0)))


def test_sampled_traces_have_an_answer_and_repeat(tmp_path):
    source, settings = planted("pfsa"), Settings(1.0, 1.0, 0, 60)

    def draw(**options: Any) -> Trace:
        engine = LocalEngine(source.model)
        return sample_trace(engine, source.prompt_ids, source.outcome, source.model.decode, settings, **options)

    trace = draw(seed=3)
    assert own_answer(source, trace) in "01"
    assert trace == draw(seed=3)
    assert trace.ids != draw(seed=4).ids
    with BranchTree.open(tmp_path, source.model.fingerprint) as tree:
        stored = draw(seed=3, tree=tree)
        assert draw(seed=3, tree=tree).ids == stored.ids == trace.ids
    with pytest.raises(CutawayError, match=r"no answer in 5 sampled traces .*One trace ended"):
        sample_trace(
            LocalEngine(source.model), source.prompt_ids, lambda text: None, source.model.decode, settings, tries=5
        )
    short = replace(settings, max_tokens=4)
    with pytest.raises(CutawayError, match="raise max_tokens"):
        sample_trace(LocalEngine(source.model), source.prompt_ids, source.outcome, source.model.decode, short)


def test_one_call_explains_an_answer():
    source, settings = planted("pfsa"), Settings(1.0, 1.0, 0, 60)
    found = explain_answer(
        source.model, source.prompt, r"regex:The answer is (\d)", settings=settings, raw=True, budget=400
    )
    assert_sound(found)
    assert found.prompt == source.prompt
    assert found.answers[0] in "01"
    with pytest.raises(UsageError, match="prompt is empty"):
        explain_answer(source.model, " \n", settings=settings)


class Silent:
    """A local engine that, like most servers, cannot say how likely a given text is."""

    def __init__(self, engine: LocalEngine) -> None:
        self.engine, self.stream, self.identity = engine, engine.stream, engine.identity

    @property
    def cost(self) -> Any:
        return self.engine.cost

    def token_probs(self, prefix: Sequence[int], continuation: Sequence[int], settings: Settings) -> None:
        return None


def test_an_engine_without_token_probabilities_draws_freely():
    source = planted("pfsa")
    trace = trace_of(source, 1)
    found = find(source, trace, engine=Silent(LocalEngine(source.model, 128)))
    assert result_of(found) == result_of(find(source, trace, reuse=False))


def by_letter(texts: Sequence[str]) -> np.ndarray:
    return np.array([[text.startswith("A"), not text.startswith("A")] for text in texts], dtype=float)


@pytest.mark.parametrize(("embed", "groups"), [(None, 4), (by_letter, 2)])
def test_alternatives_are_grouped_with_their_answers(embed: Callable[..., Any] | None, groups: int):
    texts = ["Add.", "Add.", "Also add.", "But wait.", "But no.", "But wait.", "But wait."]
    answers = ["1", "2", "1", "3", "3", "3", "1"]
    found = group_alternatives(texts, answers, 0.7, embed)
    assert len(found) == groups
    assert sum(each.count for each in found) == 7
    assert sum(each.share for each in found) == pytest.approx(0.7)
    assert [each.count for each in found] == sorted((each.count for each in found), reverse=True)
    assert found[0].text == "But wait."
    assert found[0].answers == (
        {"3": pytest.approx(2 / 3), "1": pytest.approx(1 / 3)} if embed is None else {"3": 0.75, "1": 0.25}
    )
    assert group_alternatives([], [], 0.7, embed) == ()
    assert len(group_alternatives(texts, answers, 0.7, None, most=2)) == 2


def test_first_sentences():
    assert first_sentence(" Wait, let me see. Then it goes on.") == "Wait, let me see."
    assert first_sentence("") == ""
