"""The reasoner's truth against its weights, against brute-force enumeration, and against generation."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from cutaway.errors import UsageError
from cutaway.planted import EXACT, Reasoner, reasoner
from cutaway.planted.process import tempered
from cutaway.sampling.local import LocalEngine
from cutaway.sampling.sentences import split_tokens
from cutaway.sampling.transform import candidates
from cutaway.sampling.types import Request, Settings

VARIANTS = {
    "default": {},
    "two layers": {"n_layers": 2},
    "noisy steps": {"layout": "pfssfsa", "step_noise": 0.1},
    "wobble first": {"layout": "wpsa", "doubt_shift": -2.0, "filler": (1.0,)},
    "no steps": {"layout": "pffa", "p_plan": 0.2, "filler": (0.5, 0.5)},
    "certain": {"layout": "psa", "p_one": (0.0, 1.0)},
    "null": {"null": True},
    "no effect": {"no_effect": True},
    "long": {"layout": "f" * 20 + "p" + "fs" * 10 + "wa"},
}
CARD = Settings(temperature=0.6, top_p=0.95)


@functools.cache
def build(variant: str) -> Reasoner:
    return reasoner(**VARIANTS[variant])


def model_probs(planted: Reasoner, rows: list[tuple[int, ...]]) -> list[np.ndarray]:
    with torch.no_grad():
        logits = planted.model.logits(planted.model.batch(rows)).double()
    return [logits[i, : len(row)].softmax(-1).numpy() for i, row in enumerate(rows)]


@functools.cache
def all_texts(planted: Reasoner) -> dict[tuple[int, ...], float]:
    """Every whole text with its probability, by walking the tree of tokens: the naive oracle."""
    done, open_ = {}, {planted.prompt_ids: 1.0}
    while open_:
        text, mass = open_.popitem()
        for token in np.flatnonzero(probs := planted.token_probs(text)):
            grown = (*text, int(token))
            (done if token in planted.model.eos_ids else open_)[grown] = mass * float(probs[token])
    return done


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_are_the_process_along_sampled_traces(variant):
    planted = build(variant)
    hot = Settings(temperature=4.0, top_p=1.0)  # visits unlikely branches
    rows = [planted.prompt_ids + planted.sample_trace(seed, hot) for seed in range(2 if variant == "long" else 8)]
    for row, probs in zip(rows, model_probs(planted, rows), strict=True):
        for at in range(len(row)):
            np.testing.assert_allclose(probs[at], planted.token_probs(row[: at + 1]), atol=1e-5)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"layout": "fpswsa", "filler": (0.7, 0.3), "step_noise": 0.05},
        {"layout": "pfsa", "null": True},
        {"layout": "pfswa", "no_effect": True},
    ],
)
def test_weights_are_the_process_at_every_reachable_state(kwargs):
    planted = reasoner(**kwargs)
    rows = list(all_texts(planted))
    assert math.isclose(sum(all_texts(planted).values()), 1.0)
    seen = set()
    for row, probs in zip(rows, model_probs(planted, rows), strict=True):
        for at in range(len(row)):
            if row[: at + 1] not in seen:
                seen.add(row[: at + 1])
                np.testing.assert_allclose(probs[at], planted.token_probs(row[: at + 1]), atol=1e-5)


def test_outcome_probs_equal_the_sum_over_all_texts():
    planted = reasoner("fpswsa", filler=(0.7, 0.3), step_noise=0.05)
    texts = all_texts(planted)
    for row in list(texts)[::9]:
        for at in range(len(planted.prompt_ids), len(row) + 1):
            mass = {"0": 0.0, "1": 0.0}
            for text, p in texts.items():
                if text[:at] == row[:at]:
                    mass[planted.outcome(planted.model.decode(text))] += p
            total = sum(mass.values())
            assert planted.outcome_probs(row[:at]) == pytest.approx({k: v / total for k, v in mass.items()})


@pytest.mark.parametrize("settings", [EXACT, CARD, Settings(temperature=1.3, top_p=0.85)])
def test_truth_matches_generation_at_every_boundary(settings):
    planted = reasoner("fpwsfa", filler=(0.5, 0.3, 0.2), step_noise=0.1, p_one=(0.2, 0.75))
    trace = planted.sample_trace(3, settings)
    curve, n = planted.curve(trace, settings), 600
    torch.manual_seed(0)
    for cut, expected in zip(planted.boundaries(trace)[:-1], curve, strict=False):
        ids = torch.tensor([planted.prompt_ids + trace[:cut]] * n)
        out = planted.model.hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=0,
            max_new_tokens=80,
        )
        answers = [planted.outcome(planted.model.decode(row)) for row in out.tolist()]
        assert None not in answers
        error = 4 * math.sqrt(max(expected * (1 - expected), 1 / n) / n)
        assert abs(answers.count("1") / n - expected) < error


def test_local_engine_draws_from_the_process():
    planted = build("default")
    engine, n = LocalEngine(planted.model, batch_size=200), 400
    trace = planted.sample_trace(0)
    prefix = planted.prompt_ids + trace[: planted.boundaries(trace)[2]]
    rollouts = [r for _, r in engine.stream([Request(prefix, tuple(range(n)), CARD)])]
    assert {r.finish for r in rollouts} == {"stop"}
    ones = sum(planted.outcome(planted.model.decode(r.ids)) == "1" for r in rollouts) / n
    expected = planted.outcome_probs(prefix, CARD)["1"]
    assert abs(ones - expected) < 4 * math.sqrt(expected * (1 - expected) / n)
    for rollout in rollouts[:3]:
        exact = [planted.token_probs((*prefix, *rollout.ids[:i]), CARD)[token] for i, token in enumerate(rollout.ids)]
        assert engine.token_probs(prefix, rollout.ids, CARD) == pytest.approx(exact, abs=1e-5)


def test_sampled_traces_follow_the_odds():
    planted = build("default")
    texts = [planted.model.decode(planted.sample_trace(seed)) for seed in range(500)]
    ones = sum(planted.outcome(text) == "1" for text in texts) / 500
    assert abs(ones - planted.outcome_probs(planted.prompt_ids)["1"]) < 4 * 0.5 / math.sqrt(500)
    assert planted.sample_trace(7) == planted.sample_trace(7)


def test_curve_is_a_martingale_and_moves_only_at_anchors():
    planted = build("default")
    traces = [planted.sample_trace(seed, Settings(temperature=3.0, top_p=1.0)) for seed in range(20)]
    jumps = np.abs(np.diff([planted.curve(trace) for trace in traces], axis=1))
    quiet = [i for i in range(10) if i not in planted.truth.anchors]
    assert jumps[:, quiet].max() < 1e-12
    assert (jumps[:, planted.truth.anchors].max(0) > 0.01).all()
    assert planted.truth.anchors == (2, 6, 9)
    assert planted.truth.effects[2] == max(planted.truth.effects)


def test_effects_equal_the_mean_over_all_texts():
    planted = reasoner("fpwsa", filler=(0.7, 0.3), step_noise=0.05)
    mean = sum(
        p * np.abs(np.diff(planted.curve(text[len(planted.prompt_ids) :]))) for text, p in all_texts(planted).items()
    )
    np.testing.assert_allclose(mean, planted.truth.effects, atol=1e-12)


def test_null_has_only_the_answer_and_no_effect_has_nothing():
    assert build("null").truth.anchors == (9,)
    assert build("no effect").truth.anchors == ()
    for variant, value in (("null", 0.5), ("no effect", 1.0)):
        planted = build(variant)
        for seed, settings in itertools.product(range(5), (EXACT, CARD)):
            curve = planted.curve(planted.sample_trace(seed), settings)
            np.testing.assert_allclose(curve[:-1], value, atol=1e-12)


def test_noisy_steps_are_anchors_until_top_p_removes_the_noise():
    planted = build("noisy steps")
    assert planted.truth.anchors == (0, 2, 3, 5, 6)
    assert planted.truth_under(CARD).anchors == (0,)  # the answer's own noise goes too


def test_forced_answer_peaks_at_the_last_step_and_not_at_the_plan():
    planted = reasoner("fpfsfsa", p_one=(0.1, 0.9))
    trace, forced = planted.sample_trace(0), tuple(planted.model.encode(" The answer is"))
    rows = [planted.prompt_ids + trace[:cut] + forced for cut in planted.boundaries(trace)[:-1]]
    value = [planted.outcome_probs(row)["1"] for row in rows]
    np.testing.assert_allclose(value[:6], 0.5, atol=1e-9)
    assert abs(value[6] - 0.5) == pytest.approx(0.4)
    for row, probs in zip(rows, model_probs(planted, rows), strict=True):
        np.testing.assert_allclose(probs[len(row) - 1], planted.token_probs(row), atol=1e-5)


def test_verbatim_is_one_for_determined_sentences():
    planted = build("default")
    trace = planted.sample_trace(0)
    share = planted.verbatim(trace)
    assert [share[i] for i in (4, 7)] == [1.0, 1.0]
    assert share[2] == 0.5
    assert set(share[[0, 1, 3, 5, 8]].round(9)) <= {0.4, 0.3, 0.2, 0.1}


@pytest.mark.parametrize("variant", VARIANTS)
def test_sentences_are_those_of_the_splitter(variant):
    planted = build(variant)
    for seed in range(3):
        trace = planted.sample_trace(seed)
        cuts = planted.boundaries(trace)
        assert split_tokens(trace, planted.model.decode) == list(itertools.pairwise(cuts))
        texts = [planted.model.decode(trace[a:b]).strip() for a, b in itertools.pairwise(cuts)]
        assert min(map(len, texts)) >= 12
        assert len(texts) == len(planted.truth.kinds)


def test_heads_attend_where_the_truth_says():
    planted = reasoner("fpfsfwsfa", n_layers=2)
    trace = planted.sample_trace(1)
    ids = torch.tensor([planted.prompt_ids + trace])
    planted.model.hf.set_attn_implementation("eager")
    pattern = planted.model.hf(ids, output_attentions=True).attentions[1][0].detach()
    assert planted.truth.heads == ((1, 0, "progress"), (1, 1, "link"), (1, 2, "mood"))
    words = [planted.model.decode([token]) for token in ids[0].tolist()]
    read = [words[i] for i in pattern[:, words.index(" The") - 1].argmax(-1).tolist()]
    last_step = next(w for w in reversed(words) if w[1:].startswith(("left", "right")))
    mood = next(w for w in words if w in (" calmly", " doubtfully"))
    assert read == [" Note7", last_step, mood]
    assert pattern.amax(-1).min() > 1 - 1e-6


@given(
    weights=st.lists(st.integers(1, 50), min_size=1, max_size=8, unique=True),
    temperature=st.floats(0.3, 3.0),
    top_p=st.sampled_from([0.301, 0.613, 0.907, 1.0]),
    top_k=st.integers(0, 8),
)
@budget(max_examples=60, deadline=None)
def test_tempered_equals_the_sampling_engines_transform(weights, temperature, top_p, top_k):
    probs = np.array(weights) / sum(weights)
    settings = Settings(temperature=temperature, top_p=top_p, top_k=top_k)
    kept, ids = candidates(torch.tensor(probs).log()[None], settings)
    expected = torch.zeros(len(weights), dtype=torch.float64).scatter(0, ids[0], kept[0].double())
    try:
        ours = tempered(probs, settings)
    except UsageError:
        return  # on the edge of top_p
    np.testing.assert_allclose(ours, expected, atol=1e-9)


def test_greedy_takes_the_likeliest_and_refuses_a_tie():
    greedy = Settings(temperature=0.0)
    assert tempered(np.array([0.2, 0.7, 0.1]), greedy).tolist() == [0.0, 1.0, 0.0]
    with pytest.raises(UsageError, match="equally likely"):
        tempered(np.array([0.5, 0.5]), greedy)
    with pytest.raises(UsageError, match="equally likely"):
        tempered(np.array([0.4, 0.3, 0.3]), Settings(temperature=1.0, top_p=0.6))
    with pytest.raises(UsageError, match="edge"):
        tempered(np.array([0.9, 0.1]), Settings(temperature=1.0, top_p=0.9))


def test_outcome_reads_the_stated_digit():
    planted = build("default")
    assert planted.outcome("x. The answer is 0. No. The answer is 1.") == "1"
    assert planted.outcome("The answer is 0.<eos>") == "0"
    assert planted.outcome("The answer is") is None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"layout": "fsa"}, "one p"),
        ({"layout": "spa"}, "every s after"),
        ({"layout": "pwwa"}, "at most one w"),
        ({"layout": "pap"}, "at the end"),
        ({"layout": "pxa"}, "unknown letter 'x'"),
        ({"filler": (0.5, 0.4)}, "sum to 1"),
        ({"filler": ()}, "1 to 10"),
        ({"p_plan": 1.2}, "p_plan=1.2"),
        ({"p_one": (0.1, 2.0)}, "p_beta=2.0"),
        ({"null": True, "no_effect": True}, "contradict"),
        ({"n_layers": 0}, "n_layers=0"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(UsageError, match=message):
        reasoner(**kwargs)


def test_bad_prefixes_and_settings_are_refused():
    planted = build("default")
    trace = planted.sample_trace(0)
    with pytest.raises(UsageError, match="must begin with the prompt"):
        planted.outcome_probs(trace)
    with pytest.raises(UsageError, match="empty prefix"):
        planted.outcome_probs([])
    with pytest.raises(UsageError, match="not a word of this process"):
        planted.token_probs((*planted.prompt_ids, *planted.model.encode("Q")))
    with pytest.raises(UsageError, match="nothing follows ' Turn'"):
        planted.token_probs((*planted.prompt_ids, *planted.model.encode(" Turn")))
    with pytest.raises(UsageError, match="max_tokens=5"):
        planted.outcome_probs(planted.prompt_ids, Settings(1.0, 1.0, max_tokens=5))
    with pytest.raises(UsageError, match="stop"):
        planted.outcome_probs(planted.prompt_ids, Settings(1.0, 1.0, stop=(".",)))
