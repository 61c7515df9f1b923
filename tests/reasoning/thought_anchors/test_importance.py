"""Black-box importance: naive loops, planted reasoners, exact forced answers, odd input."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.errors import UsageError
from cutaway.grading import parse_outcome
from cutaway.planted import EXACT, Reasoner, reasoner
from cutaway.reasoning.thought_anchors.boundaries import Draws, draw_boundaries, read_rollouts
from cutaway.reasoning.thought_anchors.contrast import DIVERGENCES, divergence
from cutaway.reasoning.thought_anchors.forced import choice_ids, force_answers
from cutaway.reasoning.thought_anchors.importance import MAIN, ImportanceTable, measure_importance
from cutaway.reasoning.view import TraceView
from cutaway.sampling import BranchTree, LocalEngine, Request, Rollout, Settings, Trace, split_tokens
from cutaway.stats import jensen_shannon, kl

LAYOUT = "fpfsfsa"
PLAN, STEPS, LAST_STEP = 1, (3, 5), 5


def trace_of(source: Reasoner, seed: int, room: int = 8) -> Trace:
    ids = source.sample_trace(seed)
    settings = Settings(EXACT.temperature, EXACT.top_p, EXACT.top_k, len(ids) + room)
    return Trace(source.prompt_ids, ids, (), tuple(split_tokens(ids, source.model.decode)), settings)


def measured(source: Reasoner, trace: Trace, n: int = 60, **options: object) -> ImportanceTable:
    decode = source.model.decode
    draws = draw_boundaries(LocalEngine(source.model, 128), trace, source.outcome, decode, n)
    answer = str(source.outcome(decode(trace.ids)))
    return measure_importance(trace.texts(decode), draws, answer, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def planted() -> Reasoner:
    return reasoner(LAYOUT, p_one=(0.02, 0.98), filler=(0.5, 0.3, 0.2))


def draws(*said: tuple[str, str | None]) -> Draws:
    return Draws(tuple(answer for _, answer in said), tuple(text for text, _ in said))


COUNTS = st.lists(st.integers(0, 40), min_size=4, max_size=4).filter(any)


@settings(deadline=None, max_examples=40)
@given(COUNTS, COUNTS)
def test_divergences_are_those_of_the_statistics_room(p, q):
    a, b = np.array([p], dtype=float), np.array([q], dtype=float)
    assert divergence("KL", a, b)[0] == pytest.approx(kl(p, q), abs=1e-9)
    assert divergence("KL published", a, b)[0] == pytest.approx(kl(p, q, "floor"), abs=1e-6)
    assert divergence("JS", a, b)[0] == pytest.approx(jensen_shannon(p, q), abs=1e-9)
    for name in DIVERGENCES:
        assert divergence(name, a, a)[0] == pytest.approx(0, abs=1e-9)
        assert np.isnan(divergence(name, a, b * 0)[0])


def naive(said: Sequence[Sequence[tuple[str, str | None]]], sentences: Sequence[str], i: int) -> dict[str, float]:
    """The paper's numbers of sentence ``i`` by plain loops."""
    before = [(text, a) for text, a in said[i] if a is not None]
    after = [a for _, a in said[i + 1] if a is not None]
    different = [a for text, a in before if text != sentences[i]]
    others = after + [a for text, a in before if text == sentences[i]]

    def distance(p: list[str], q: list[str]) -> float:
        answers = sorted(set(p + q))
        a, b = Counter(p), Counter(q)
        size = 1 + 1e-9 * len(answers)
        shares = [((a[x] / len(p) + 1e-9) / size, (b[x] / len(q) + 1e-9) / size) for x in answers]
        return max(0.0, sum(x * math.log(x / y) for x, y in shares))

    def right(answers: list[str]) -> float:
        return answers.count("7") / len(answers)

    return {
        "resampling importance, accuracy": right(after) - right([a for _, a in before]),
        "resampling importance, KL published": distance([a for _, a in before], after),
        "counterfactual importance, accuracy": right(different) - right(after),
        "counterfactual importance, KL published": distance(different, others),
    }


def test_the_published_numbers_equal_plain_loops():
    rng = np.random.default_rng(3)
    sentences = ("One step taken.", "Two steps taken.", "Three steps taken.")
    said = [
        [
            (str(rng.choice([sentence, "Something else."])), rng.choice(["7", "8", "9", None], p=[0.4, 0.3, 0.1, 0.2]))
            for _ in range(40)
        ]
        for sentence in sentences
    ]
    table = measure_importance(sentences, [draws(*each) for each in said], "7", published=True)
    for i in (0, 1):
        for name, value in naive(said, sentences, i).items():
            assert table[name].value[i] == pytest.approx(value, abs=1e-6), name
    d = [np.mean([text != sentence for text, _ in each]) for sentence, each in zip(sentences, said, strict=True)]
    assert table["different-trajectories fraction"].value == pytest.approx(d)
    assert table["overdeterminedness"].value == pytest.approx([1 - 2 / 40] * 3)
    accuracy = [np.mean([a == "7" for _, a in each if a is not None]) for each in said]
    identity = [(accuracy[i] - accuracy[i + 1]) / d[i] for i in (0, 1)]
    assert table["counterfactual importance, identity"].value[:2] == pytest.approx(identity)
    assert [measure.value[2] for measure in table.measures[:8]] == [0.0] * 8
    assert table.unanswered == pytest.approx(np.mean([a is None for each in said for _, a in each]))


def test_without_similar_rollouts_counterfactual_accuracy_is_minus_resampling():
    said = [draws(*(("Else.", answer) for answer in answers)) for answers in ("7788", "7778", "7777")]
    table = measure_importance(["a.", "b.", "c."], said, "7")
    flipped = [-(x or 0.0) for x in table["resampling importance, accuracy"].value]
    assert table[MAIN].value == pytest.approx(flipped)
    assert table["counterfactual importance, identity"].value == pytest.approx(flipped)
    assert table[MAIN].value[2] == 0


def test_unanswered_rollouts_count_as_an_answer_of_their_own_unless_published():
    before, after = draws(("x.", "7"), ("x.", None)), draws(("y.", "7"), ("y.", "7"))
    sentences, said = ["a.", "b."], [before, after]
    ours = measure_importance(sentences, said, "7")
    assert ours["resampling importance, accuracy"].value[0] == pytest.approx(0.5)
    assert ours["resampling importance, JS"].value[0] > 0.1
    assert ours["resampling importance, KL published"].value[0] == 0
    paper = measure_importance(sentences, said, "7", published=True)
    assert paper["resampling importance, accuracy"].value[0] == 0
    assert paper["resampling importance, JS"].value[0] == 0


def test_empty_sets_have_no_number_but_a_reason_unless_published():
    silent, spoken = draws(("x.", None), ("x.", None)), draws(("b.", "7"), ("b.", "8"))
    sentences, said = ["a.", "b.", "c."], [silent, spoken, None]
    ours = measure_importance(sentences, said, "7")
    published = ours["resampling importance, KL published"]
    assert published.value[0] is None
    assert published.undefined[0] == "no rollout before it gave an answer"
    assert published.undefined[1] == "no rollouts from the boundary after it"
    assert published.undefined[2] == "no rollouts from the boundary before it"
    assert not ours.complete
    assert ours.n == (2, 2, 0)
    both = measure_importance(sentences[:2], said[:2], "7")
    assert both[MAIN].undefined[1] == "every rollout repeats the sentence"
    paper = measure_importance(sentences[:2], said[:2], "7", published=True)
    assert paper["resampling importance, KL published"].value == (0.0, 0.0)
    assert paper[MAIN].value[1] == 0
    assert all(x is not None for measure in paper.measures[:8] for x in measure.value)


def test_the_identity_is_left_out_where_rollouts_hardly_differ():
    said = draws(*[("a.", "7")] * 24, ("else.", "8")), draws(*[("b.", "7")] * 5)
    identity = measure_importance(["a.", "b."], said, "7")["counterfactual importance, identity"]
    assert identity.value[0] is None
    assert identity.undefined[0] == "unidentified: only 4% of the rollouts say something else"


def test_repeated_sentences_keep_their_own_index():
    sentences = ("Wait a moment.", "Go on now.", "Wait a moment.")
    said = [draws(("Wait a moment.", "8"), ("Else entirely.", "8")), draws(*[("Go on now.", "8")] * 2)]
    said.append(draws(("Else entirely.", "7"), ("Else entirely.", "8")))
    table = measure_importance(sentences, said, "7")
    assert table["different-trajectories fraction"].value == pytest.approx((0.5, 0.0, 1.0))
    assert table["resampling importance, accuracy"].value == pytest.approx((0.0, 0.5, 0.5))


def test_an_embedder_decides_what_is_similar():
    words = {"Add both numbers.": (1.0, 0.0), "Sum the two numbers.": (0.9, 0.3), "Give up here.": (0.0, 1.0)}
    said = [draws(("Sum the two numbers.", "7"), ("Give up here.", "8"))]
    table = measure_importance(
        ["Add both numbers. "], said, "7", embed=lambda texts: np.array([words[t] for t in texts])
    )
    assert table["different-trajectories fraction"].value == (0.5,)
    assert measure_importance(["Add both numbers. "], said, "7")["different-trajectories fraction"].value == (1.0,)


def test_planted_plan_comes_first_and_determined_steps_do_not_differ(planted):
    first = 0
    for seed in range(3):
        table = measured(planted, trace_of(planted, seed))
        resampling, d = table["resampling importance, accuracy"], table["different-trajectories fraction"]
        first += table.largest("resampling importance, accuracy") == PLAN
        # The answer's own sentence always decides itself.
        divergences = [x or 0.0 for x in table["counterfactual importance, KL"].value[:-1]]
        first += int(np.argmax(divergences)) == PLAN
        assert d.value[PLAN] == pytest.approx(0.5, abs=0.25)
        for step in STEPS:
            assert d.value[step] == 0
            assert table[MAIN].value[step] is None
            assert table[MAIN].undefined[step] == "every rollout repeats the sentence"
        for name in ("resampling importance, KL", MAIN):
            assert table[name].p[PLAN] <= 0.01
            assert abs(table[name].value[PLAN]) > 3 * table[name].control[PLAN]
        for filler in (0, 2, 4):
            assert resampling.low[filler] <= 0.03 + abs(resampling.value[filler])
            assert abs(resampling.value[filler]) < 0.3
        assert table[MAIN].value[PLAN] == pytest.approx(-1, abs=0.2)
    assert first == 6


def test_forced_answers_are_exact_and_peak_at_the_last_step(planted):
    trace = trace_of(planted, 2)
    encode, decode = planted.model.encode, planted.model.decode
    own = str(planted.outcome(decode(trace.ids)))
    forcing = encode(" The answer is")
    engine = LocalEngine(planted.model)
    forced = force_answers(engine, trace, forcing, choices={d: [encode(f" {d}")] for d in "01"})
    truth = [planted.outcome_probs((*trace.prefix(i), *forcing))[own] for i in range(trace.n_sentences)]
    np.testing.assert_allclose(forced.curve(own), truth, atol=1e-5)
    np.testing.assert_allclose(forced.listed, 1, atol=1e-5)
    table = measured(planted, trace, forced=forced)
    accuracy = table["forced-answer importance, accuracy"]
    assert table.largest("forced-answer importance, accuracy") == LAST_STEP
    assert table.largest("forced-answer importance, JS") == LAST_STEP
    assert accuracy.value[PLAN] == pytest.approx(0, abs=1e-5)
    assert accuracy.low == accuracy.high == accuracy.value
    assert table["forced-answer importance, KL"].undefined[-1].startswith("infinite")
    exact_kl = sum(p * math.log(p / q) for p, q in ((0.5, truth[-1]), (0.5, 1 - truth[-1])))
    assert table["forced-answer importance, KL"].value[LAST_STEP] == pytest.approx(exact_kl, abs=1e-3)
    sampled = force_answers(engine, trace, forcing, outcome=planted.outcome, decode=decode, n=150, max_tokens=3)
    assert not sampled.exact
    np.testing.assert_allclose(sampled.curve(own), truth, atol=0.17)
    again = measured(planted, trace, forced=sampled)
    assert again.largest("forced-answer importance, KL") == LAST_STEP
    assert again["forced-answer importance, accuracy"].low[LAST_STEP] > 0.2


@pytest.mark.parametrize("how", ["exact", "sampled"])
def test_ctrl_c_keeps_the_answers_forced_so_far(planted, how):
    trace, encode, decode = trace_of(planted, 2), planted.model.encode, planted.model.decode
    forcing, calls = encode(" The answer is"), []

    def stop_at(limit):
        calls.append(1)
        if len(calls) > limit:
            raise KeyboardInterrupt

    class Stopped(LocalEngine):
        def token_probs(self, *given):
            stop_at(7)
            return super().token_probs(*given)

    def read(text):
        stop_at(30 * 4 + 5)
        return planted.outcome(text)

    choices = {digit: [encode(f" {digit}")] for digit in "01"}
    given = {"choices": choices} if how == "exact" else {"outcome": read, "decode": decode, "n": 30, "max_tokens": 3}
    # Exact: two calls a boundary, the last boundary first. Sampled: read group by group, in order within a group.
    expected = [4, 5, 6] if how == "exact" else [0, 1, 2, 3]
    engine = Stopped(planted.model) if how == "exact" else LocalEngine(planted.model)
    forced = force_answers(engine, trace, forcing, **given)
    assert not forced.complete
    done = [i for i in range(trace.n_sentences) if np.isfinite(forced.weights[i]).all()]
    assert done == expected
    assert f"{7 - len(done)} not reached" in repr(forced)
    own = str(planted.outcome(decode(trace.ids)))
    truth = [planted.outcome_probs((*trace.prefix(i), *forcing))[own] for i in done]
    np.testing.assert_allclose(forced.curve(own)[done], truth, atol=1e-5 if how == "exact" else 0.35)
    table = measured(planted, trace, forced=forced)
    assert not table.complete
    accuracy = table["forced-answer importance, accuracy"]
    whole = [i in done and (i == 6 or i + 1 in done) for i in range(7)]
    assert [x is not None for x in accuracy.value] == whole
    assert [not why for why in accuracy.undefined] == whole
    calls[:] = [1] * 1000
    with pytest.raises(KeyboardInterrupt):  # nothing was done: nothing to keep
        force_answers(engine, trace, forcing, **given)


def test_nothing_stands_out_where_nothing_has_an_effect():
    source = reasoner(LAYOUT, null=True, filler=(0.5, 0.3, 0.2))
    small = total = 0
    for seed in range(6):
        table = measured(source, trace_of(source, seed), n=40)
        for name in ("resampling importance, accuracy", "resampling importance, KL", "resampling importance, JS"):
            # The answer's own sentence has its effect by definition.
            small += sum(p is not None and p <= 0.05 for p in table[name].p[:-1])
            total += len(table.sentences) - 1
    assert small <= 0.12 * total


def test_intervals_cover_and_shuffles_are_calibrated():
    rng, covered, rejected, trials = np.random.default_rng(0), 0, 0, 80
    sides = (0.3, 0.6)
    for trial in range(trials):
        answers = [["7" if x else "8" for x in rng.random(60) < p] for p in (*sides, sides[1])]
        said = [draws(*(("else.", a) for a in each)) for each in answers]
        table = measure_importance(["a.", "b.", "c."], said, "7", resamples=100, seed=trial)
        found = table["resampling importance, accuracy"]
        covered += found.low[0] <= 0.3 <= found.high[0]
        rejected += table["resampling importance, KL"].p[1] <= 0.05
        for name in DIVERGENCES:
            row = table[f"resampling importance, {name}"]
            assert row.low[0] <= row.value[0] <= row.high[0]
    assert covered >= 0.9 * trials
    assert rejected <= 0.1 * trials


class Interrupted(LocalEngine):
    """An engine whose user presses Ctrl-C after some rollouts."""

    left = 400

    def stream(self, requests: Sequence[Request], edits: Sequence[object] = ()) -> Iterator[tuple[int, Rollout]]:
        for each in super().stream(requests, edits):  # type: ignore[arg-type]
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            yield each


def test_an_interrupt_keeps_what_was_drawn():
    source = reasoner("fpfffsfffsfa", filler=(0.5, 0.5))
    trace, decode = trace_of(source, 0), source.model.decode
    found = draw_boundaries(Interrupted(source.model), trace, source.outcome, decode, 40)
    assert [each is None for each in found] == [True] * 4 + [False] * 8
    table = measure_importance(trace.texts(decode), found, "1")
    assert not table.complete
    known = table["resampling importance, accuracy"]
    assert [x is None for x in known.value] == [True] * 4 + [False] * 8
    assert known.undefined[3] == "no rollouts from the boundary before it"
    json.dumps(table.to_dict())


def test_rollouts_are_shared_through_the_tree(planted, tmp_path):
    trace, decode = trace_of(planted, 1), planted.model.decode
    found = []
    for _ in range(2):
        engine = LocalEngine(planted.model)
        with BranchTree.open(tmp_path, engine.identity) as tree:
            found.append(draw_boundaries(engine, trace, planted.outcome, decode, 10, tree=tree))
    assert found[0] == found[1]
    assert engine.cost.decoded == 0


def test_rollouts_that_do_not_end_are_counted(planted):
    trace, decode = trace_of(planted, 1, room=-12), planted.model.decode
    found = draw_boundaries(LocalEngine(planted.model), trace, planted.outcome, decode, 10)
    table = measure_importance(trace.texts(decode), found, "1")
    assert 0 < table.truncated < 1
    assert table.unanswered == pytest.approx(table.truncated)


def test_given_rollouts_are_read_with_the_kept_text(planted):
    trace, decode = trace_of(planted, 1), planted.model.decode
    start = trace.spans[2][0]
    whole = Rollout(0, trace.ids[start:], (), "stop")
    found = read_rollouts(trace, 2, [whole], planted.outcome, decode)
    assert found.firsts == (trace.texts(decode)[2].strip(),)
    assert found.answers == (planted.outcome(decode(trace.ids)),)


def test_a_table_becomes_tracks_frame_and_json(planted, tmp_path):
    trace = trace_of(planted, 0)
    table = measured(planted, trace, n=20)
    tracks = table.tracks()
    TraceView("t", "p", table.sentences, table.answer, tracks=tracks)
    names = [track.name for track in tracks]
    assert names == [measure.name for measure in table.measures], "a control is no track of its own"
    controls = {track.name: track.control for track in tracks}
    assert controls[MAIN] == table[MAIN].control
    assert controls["overdeterminedness"] is None
    frame = table.to_frame()
    assert len(frame) == len(table.sentences)
    assert frame[MAIN].tolist()[PLAN] == table[MAIN].value[PLAN]
    table.save(tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text())["answer"] == table.answer
    assert f"sentence {PLAN + 1} " in repr(table)


def test_choices_come_from_the_outcome():
    assert choice_ids(parse_outcome("letter:A,B"), lambda text: [ord(c) for c in text]) == {
        "A": ((65,), (32, 65)),
        "B": ((66,), (32, 66)),
    }
    with pytest.raises(UsageError, match="does not list its answers"):
        choice_ids(parse_outcome("number"), lambda text: [0])


def test_bad_input_is_refused_in_one_line(planted):
    trace, decode = trace_of(planted, 0), planted.model.decode
    engine = LocalEngine(planted.model)
    with pytest.raises(UsageError, match="0 boundaries of rollouts for 0 sentences"):
        measure_importance([], [], "1")
    with pytest.raises(UsageError, match="1 boundaries of rollouts for 2 sentences"):
        measure_importance(["a.", "b."], [draws(("a.", "1"))], "1")
    with pytest.raises(UsageError, match=r"level=95\.0"):
        measure_importance(["a."], [draws(("a.", "1"))], "1", level=95.0)
    with pytest.raises(UsageError, match="2 answers for 1 rollouts"):
        Draws(("1", "1"), ("a",))
    with pytest.raises(UsageError, match="n=0"):
        draw_boundaries(engine, trace, planted.outcome, decode, 0)
    with pytest.raises(UsageError, match="choose one of"):
        measure_importance(["a."], [draws(("a.", "1"))], "1")["importance"]
    with pytest.raises(UsageError, match="choose one of KL published"):
        divergence("kullback", np.ones((1, 2)), np.ones((1, 2)))
    with pytest.raises(UsageError, match="forcing is empty"):
        force_answers(engine, trace, [])
    with pytest.raises(UsageError, match="pass outcome="):
        force_answers(engine, trace, [1])
    with pytest.raises(UsageError, match="one begins with the other"):
        force_answers(engine, trace, [1], choices={"a": [[1]], "b": [[1, 2]]})
    long = Trace(trace.prompt, trace.ids, (), trace.spans, Settings(1.0, 1.0, 0, 4000))
    with pytest.raises(UsageError, match="exceed the context"):
        draw_boundaries(engine, long, planted.outcome, decode, 1)
    forced = force_answers(engine, trace, planted.model.encode(" The answer is"), choices={"0": [[1]], "1": [[2]]})
    with pytest.raises(UsageError, match="boundaries for 1 sentences"):
        measure_importance(["a."], [draws(("a.", "1"))], "1", forced=forced)


def test_one_sentence_is_enough():
    table = measure_importance(["The answer is 7."], [draws(("The answer is 7.", "7"), ("It is 8.", "8"))], "7")
    assert table["resampling importance, accuracy"].value == (0.5,)
    assert table["resampling importance, accuracy"].low[0] > 0
    assert table[MAIN].value == (-1.0,)
