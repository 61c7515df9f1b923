"""Sentence-to-sentence influence: a naive loop, planted links, nothing where nothing is, odd input."""

import json

import numpy as np
import pytest
from scipy.stats import fisher_exact

from cutaway.errors import UsageError
from cutaway.planted import EXACT, Reasoner, reasoner
from cutaway.reasoning.embedding import cosine
from cutaway.reasoning.thought_anchors.boundaries import Draws, draw_boundaries
from cutaway.reasoning.thought_anchors.influence import Influence, measure_influence
from cutaway.reasoning.view import TraceView
from cutaway.sampling import LocalEngine, Settings, Trace, split_text, split_tokens
from cutaway.stats import newcombe

LAYOUT = "fpfsfsa"
PLAN, STEPS = 1, (3, 5)


def influence_of(source: Reasoner, seed: int, n: int = 60, **options: object) -> tuple[Influence, Trace]:
    ids, decode = source.sample_trace(seed), source.model.decode
    settings = Settings(EXACT.temperature, EXACT.top_p, EXACT.top_k, len(ids) + 8)
    trace = Trace(source.prompt_ids, ids, (), tuple(split_tokens(ids, decode)), settings)
    draws = draw_boundaries(LocalEngine(source.model, 128), trace, source.outcome, decode, n)
    return measure_influence(trace.texts(decode), draws, **options), trace  # type: ignore[arg-type]


def draws(*texts: str) -> Draws:
    return Draws((None,) * len(texts), texts)


def letters(texts):
    """Counts of letters: texts with the same letters have cosine 1."""
    return np.array([[text.lower().count(chr(97 + k)) for k in range(26)] for text in texts], dtype=float)


@pytest.mark.parametrize("embed", [None, letters])
def test_all_pairs_equal_a_naive_loop(embed):
    rng = np.random.default_rng(1)
    words = [
        "Take the first road.",
        "Count all the sheep.",
        "Sheep all the count.",
        "Nothing of that kind.",
        "Stop here right now.",
    ]
    sentences = (words[0], words[1], words[3], words[4])
    said = [[" ".join(rng.choice(words, rng.integers(1, 4))) for _ in range(15)] for _ in sentences]
    found = measure_influence(sentences, [draws(*each) for each in said], embed, least=0.95)

    def says(text: str, target: str) -> bool:
        parts = [text[a:b].strip() for a, b in split_text(text)]
        if embed is None:
            return target in parts
        return bool((cosine(embed(parts), embed([target])) >= 0.95).any())

    for i in range(4):
        for j in range(4):
            if not i < j or i == 3:
                assert np.isnan(found.strength[i, j])
                assert not found.kept[i, j]
                continue
            before, after = (sum(says(text, sentences[j]) for text in said[b]) for b in (i, i + 1))
            exact = newcombe(after, 15, before, 15)
            got = found.strength[i, j], found.low[i, j], found.high[i, j]
            assert got == pytest.approx((exact.value, exact.low, exact.high), abs=1e-9)
            if 0 < before + after < 30:
                table = [[after, 15 - after], [before, 15 - before]]
                tails = [fisher_exact(table, side).pvalue for side in ("less", "greater")]
                assert found.p[i, j] == pytest.approx(min(1.0, 2 * min(tails)), abs=1e-9)
            else:
                assert np.isnan(found.p[i, j])
    assert found.n.tolist() == [15] * 4


def test_the_plan_makes_its_steps_appear_and_nothing_else_does():
    source = reasoner(LAYOUT, p_one=(0.05, 0.95), filler=(0.5, 0.3, 0.2))
    for seed in range(3):
        found, trace = influence_of(source, seed)
        for step in STEPS:
            assert found.kept[PLAN, step]
            assert found.strength[PLAN, step] == pytest.approx(0.5, abs=0.25)
            assert found.low[PLAN, step] <= 0.5 <= found.high[PLAN, step]
        own = str(source.outcome(source.model.decode(trace.ids)))
        truth = source.outcome_probs(trace.prefix(PLAN + 1))[own] - source.outcome_probs(trace.prefix(PLAN))[own]
        assert found.low[PLAN, 6] <= truth <= found.high[PLAN, 6]
        assert np.argwhere(found.kept).tolist() == [[PLAN, 3], [PLAN, 5], [PLAN, 6]]
        assert {j for _, j, _ in found.outgoing(PLAN)} == {3, 5, 6}
        assert [i for i, _, _ in found.incoming(3)] == [PLAN]
        assert found.outgoing(0) == ()
        assert found.control <= 1


def test_without_effects_hardly_any_link_survives():
    source = reasoner("fffpffa", no_effect=True, filler=(0.4, 0.3, 0.2, 0.1))
    runs = [influence_of(source, seed, n=40)[0] for seed in range(4)]
    assert sum(run.kept.any() for run in runs) <= 1
    assert sum(run.control > 0 for run in runs) <= 1
    assert all(run.tested > 10 for run in runs)


def test_a_link_can_be_negative():
    said = draws(*["Go left here. Then go home now."] * 20), draws(*["Then stay right there."] * 20)
    found = measure_influence(["Go left here.", "Then go home now."], said)
    assert found.links().links == ((0, 1, -1.0),)


def test_repeated_sentences_are_each_their_own_target():
    said = draws(*["Wait a moment. Add them up."] * 20), draws(*["Add them up. Wait a moment."] * 20)
    said += (draws(*["Wait a moment."] * 20),)
    found = measure_influence(["Wait a moment.", "Add them up.", "Wait a moment."], said)
    assert found.strength[0].tolist()[1:] == [0.0, 0.0]
    assert found.strength[1, 2] == 0
    assert np.isnan(found.p).all()


def test_boundaries_without_rollouts_link_to_nothing():
    full = draws(*["Add them up. The end is near."] * 5)
    found = measure_influence(["One by one.", "Add them up.", "The end is near."], [None, full, full])
    assert np.isnan(found.strength[0]).all()
    assert found.strength[1, 2] == 0
    assert found.n.tolist() == [0, 5, 5]
    assert repr(found) == "Influence(3 sentences, 0 of 0 links kept, 0 when shuffled)"
    nothing = measure_influence(["One by one."], [None], letters)
    assert nothing.tested == 0


def test_everything_is_saved_and_shown(tmp_path):
    found, _ = influence_of(reasoner(LAYOUT), 0, n=30)
    view = TraceView("t", "p", found.sentences, "1", links=(found.links(),))
    assert view.links[0].links
    frame = found.to_frame()
    assert len(frame) == 7 * 6 // 2
    assert frame.loc[frame.kept, "p"].max() < 0.05
    found.save(tmp_path / "links.json")
    read = json.loads((tmp_path / "links.json").read_text())
    assert read["strength"][PLAN][3] == found.strength[PLAN, 3]
    assert read["strength"][3][PLAN] is None
    assert "strongest 2 -> " in repr(found)


def test_bad_input_is_refused_in_one_line():
    with pytest.raises(UsageError, match="0 boundaries of rollouts for 0 sentences"):
        measure_influence([], [])
    with pytest.raises(UsageError, match="1 boundaries of rollouts for 2 sentences"):
        measure_influence(["a.", "b."], [None])
    found = measure_influence(["One by one."], [draws("One by one.")])
    with pytest.raises(UsageError, match="sentence 1: the trace has 0 to 0"):
        found.outgoing(1)
