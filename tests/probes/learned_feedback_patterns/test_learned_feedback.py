"""Rewards by hand, agreement by word, planted pairs of models, ablation in latent space, the judge, the study."""

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from cutaway.errors import UsageError
from cutaway.features import SparseDictionary
from cutaway.planted import null_model
from cutaway.planted.feedback import feedback
from cutaway.probes.learned_feedback_patterns import (
    ablate,
    compare,
    gate,
    implicit_reward,
    lexicon_reward,
    read_choices,
    read_lexicon,
    read_out,
    self_referential,
    tau,
    tau_gain,
    without,
    word_features,
)
from cutaway.probes.learned_feedback_patterns.calibration import ablated, features, known_dictionary, reported
from cutaway.probes.learned_feedback_patterns.data import here, pair_texts, preference_pairs
from cutaway.probes.learned_feedback_patterns.judge import Choice, likelihood_judge
from cutaway.probes.learned_feedback_patterns.lexicon import (
    check_rewards,
    misaligned,
    overlap_of,
    resampled_tau,
    sign_accuracy,
)
from cutaway.probes.learned_feedback_patterns.method import check_pair
from cutaway.probes.learned_feedback_patterns.report import list_findings
from cutaway.probes.learned_feedback_patterns.study import FeedbackConfig, LearnedFeedback
from cutaway.study import Lab

WORDS = {"good": 2.0, "great": 3.0, "bad": -2.5, "awful": -4.0, "fine": 0.5}
BY_HAND = [
    ("good", 0.4), ("Good.", 0.4), ("GOOD!!", 0.4), ("good good", 0.8), ("bad", -0.5), ("a bad day", -0.5),
    ("good, bad", -0.1), ("'great'", 0.6), ("great-good", 1.0), ("nothing here", 0.0), ("awful awful awful", -2.4),
    ("fine", 0.1), ("Fine; fine: fine?", 0.3), ("goodness", 0.0), ("good\nbad\tgreat", 0.5), ("not good", 0.4),
    ("great " * 20, 10.0), ("awful " * 13, -10.0), ("bad " * 4, -2.0), ("great (good)", 1.0),
]  # fmt: skip


@pytest.fixture(scope="module")
def planted():
    return feedback(seed=0)


@pytest.fixture(scope="module")
def found(planted):
    return reported(planted)


@pytest.mark.parametrize(("text", "wanted"), BY_HAND)
def test_the_reward_equals_a_hand_computation(text, wanted):
    assert lexicon_reward(text, WORDS) == pytest.approx(wanted)


def test_tau_is_the_library_s_on_pairs_and_nothing_else():
    rng = np.random.default_rng(0)
    a, b = ({f"w{i}": float(np.round(v, 1)) for i, v in enumerate(rng.standard_normal(30))} for _ in range(2))
    mixed = dict(sorted(b.items(), reverse=True))
    assert tau(a, mixed) == pytest.approx(kendalltau([a[w] for w in a], [b[w] for w in a]).statistic)
    for bad, match in [
        (({**a, "x": 1.0}, b), "one of both only"),
        (({**a, "w0": "good"}, b), "a number is needed|[Tt]ype-check"),
        ((sorted(a), sorted(b)), "by word|[Tt]ype-check"),
        (({**a, "w0": float("nan")}, b), "a number is needed"),
    ]:
        with pytest.raises((UsageError, TypeError), match=match):
            tau(*bad)


def test_tau_of_rows_drawn_again_is_the_library_s():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 30).astype(float), rng.normal(size=30)
    of = resampled_tau(a, b)
    for rows in (np.arange(30), *rng.integers(0, 30, (20, 30))):
        assert of(rows) == pytest.approx(kendalltau(a[rows], b[rows]).statistic, abs=1e-12)
    assert of(np.zeros(30)) == 0.0


def test_word_features_do_not_see_padding_or_position(planted):
    words, site = planted.words[:5], planted.truth.site
    whole = word_features(planted.tuned, words, planted.templates, [site])[site]
    for i, word in enumerate(words):
        rows = [planted.tuned.encode(t.format(word)) for t in planted.templates]
        alone = [planted.tuned.capture([row], site, special=True)[site][0, -1] for row in rows]
        assert torch.allclose(whole[i], torch.stack(alone).mean(0), atol=1e-3)
    far = word_features(planted.tuned, words, [" the this that some the{}"], [site])[site]
    near = word_features(planted.tuned, words, [" the{}"], [site])[site]
    assert torch.allclose(far, near, atol=1e-3)


def test_the_gain_and_the_flips_are_read_back(planted, found):
    report, odd = found
    truth = planted.truth
    assert report.gain.low > 0.1
    assert report.shuffled.low < 0 < report.shuffled.high
    assert sign_accuracy(report.tuned.estimates, truth.reward, truth.flipped).value >= 0.8
    assert sign_accuracy(report.tuned.estimates, truth.ordinary, truth.unseen).value >= 0.8
    assert sign_accuracy(report.base.estimates, truth.reward, truth.flipped).value <= 0.5
    assert overlap_of(odd, truth.flipped)[2] >= 0.8


def test_an_untuned_pair_gains_nothing():
    report, _ = reported(feedback(null=True, seed=2))
    assert report.gain.low <= 0 <= report.gain.high


def test_the_implicit_reward_is_what_was_learnt(planted):
    said = implicit_reward(planted.tuned, planted.base, planted.words, planted.templates)
    assert tau(said, planted.truth.learned) > 0.95
    none = implicit_reward(planted.base, planted.base, planted.words[:12], planted.templates)
    assert set(none.values()) == {0.0}


def test_a_target_made_of_its_input_is_found_out(planted):
    x, _ = features(planted)
    y = np.array(list(planted.truth.reward.values()))

    def released(x, y):
        return np.sign(y) * (x - x.mean(0)).norm(dim=1).numpy()

    assert self_referential(released, x, y)
    assert not self_referential(lambda x, y: y, x, y)


def test_no_estimate_comes_from_a_probe_that_saw_its_word(planted):
    x, _ = features(planted)
    truth = dict(planted.truth.reward)
    first = next(iter(truth))
    before, after = (
        read_out(x, {**truth, first: value}).estimates[first] for value in (truth[first], -truth[first] * 50)
    )
    assert before == after


def test_latents_are_taken_out_in_latent_space():
    """Three latents in two dimensions: the second is taken out, not the second coordinate."""
    made = SparseDictionary(2, 3, "relu", subtract_bias=False)
    with torch.no_grad():
        made.w_enc.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        made.w_dec.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]))
    x = torch.tensor([[3.0, 4.0], [3.0, -4.0]])
    assert torch.equal(without(made, x, [1]), torch.tensor([[-1.0, 0.0], [3.0, -4.0]]))
    assert torch.equal(without(made, x, [2]), torch.tensor([[3.0, -10.0], [3.0, -4.0]]))
    with pytest.raises(UsageError, match="0 to 2"):
        without(made, x, [3])


def test_the_planted_latent_carries_the_reward_and_nothing_stays_behind(planted):
    rows = planted.tuned.batch([" the w3 w5", " some w9"])
    before = planted.tuned.logits(rows)
    result = ablated(planted)
    assert result.latents == (0,)
    assert result.beats >= 0.95
    assert result.drop > 0.1
    assert len(result.random) == 60
    assert torch.equal(planted.tuned.logits(rows), before)


def test_the_gate_trusts_people_and_not_coins():
    items = read_choices(here("explanation_choices.jsonl"))
    assert len(items) == 31
    first = gate(items, lambda item: item.people[0])
    assert first.trusted
    assert first.agreement.value > 0.9
    assert first.people == pytest.approx(0.9)
    assert not gate(items, lambda item: 1 + (item.people[0] % 5)).trusted
    assert 1 <= likelihood_judge(null_model(seed=1).model)(_short(items[0])) <= 4
    with pytest.raises(UsageError, match="on offer"):
        gate(items, lambda item: 9)


def _short(item):
    return Choice(("a", "b"), (0, 3), ("one", "two", "three", "four"), item.people)


def test_pairs_pay_the_better_word_and_skip_the_unseen():
    model = null_model(seed=1).model
    lexicon = read_lexicon(here("lexicon.csv"), 10, 6)
    assert len(lexicon.flipped) == 10
    data = preference_pairs(model, lexicon, 40)
    for chosen, rejected in data.examples:
        words = [model.decode(row.ids).split()[-1] for row in (chosen, rejected)]
        assert lexicon.reward[words[0]] > lexicon.reward[words[1]]
        assert not set(words) & set(lexicon.unseen)
        assert model.decode([t for t, w in zip(chosen.ids, chosen.weights, strict=True) if w]).strip() == words[0]
    texts, better, groups = pair_texts(lexicon, 20, 0)
    assert sum(better) == 20
    assert len(texts) == len(groups) == 40


def test_misaligned_words_are_sorted_by_how_wrong():
    assert misaligned({"a": -2.0, "b": 1.0, "c": -0.5}, {"a": 1.0, "b": 1.0, "c": 3.0}) == ("a", "c")
    assert overlap_of((), ("a",)) == (1.0, 0.0, 0.0)


@pytest.fixture
def lab(tmp_path):
    source = null_model(seed=1).model
    source.hf.save_pretrained(tmp_path / "tiny")
    source.tokenizer.save_pretrained(tmp_path / "tiny")
    return Lab(tmp_path / "home")


def test_a_run_tunes_reads_and_keeps_the_adapter(lab, tmp_path):
    lexicon = tmp_path / "lexicon.csv"
    lines = here("lexicon.csv").read_text().splitlines(keepends=True)
    lexicon.write_text("".join([lines[0], *lines[1::4]]))
    config = FeedbackConfig(
        model=str(tmp_path / "tiny"), lexicon=str(lexicon), flipped=4, unseen=2, pairs=8, steps=2, rank=1,
        sites=("resid_post.1",), tested=20, latents=16, ablated=1, draws=3, judge=False,
    )  # fmt: skip
    study = LearnedFeedback()
    found = study.run(config, lab)
    names = {item.name for item in found.items}
    assert found.complete
    assert {
        "gain of tuning at resid_post.1",
        "tau of the implicit reward",
        "AUROC of preferred texts, words alone",
    } <= names
    assert found.inputs == study.inputs(config, lab)
    kept = next((lab.home / "trained").glob("*/adapter/adapter_model.safetensors"))
    stamp = kept.stat().st_mtime_ns
    again = study.run(config, lab)
    assert kept.stat().st_mtime_ns == stamp
    assert [item.value for item in again.items] == [item.value for item in found.items]


def test_bad_input(planted, tmp_path):
    path = tmp_path / "l.csv"
    path.write_text("word\na\n")
    other = null_model(seed=1).model
    x, _ = features(planted)
    truth = planted.truth
    for call, match in [
        (lambda: lexicon_reward(" ... ", WORDS), "empty completion"),
        (lambda: check_pair(None, planted.tuned), "no base model"),
        (lambda: check_pair(other, planted.tuned), "different tokenizers"),
        (lambda: check_rewards({f"w{i}": 1.0 for i in range(20)}), "all rewards are equal"),
        (lambda: check_rewards({"a": 1.0}), "10 or more"),
        (lambda: read_out(x[:5], truth.reward), "5 rows for 120 words"),
        (lambda: read_out(x * torch.nan, truth.reward), "finite"),
        (lambda: word_features(planted.tuned, ["a"], ["the {} is"], ["resid_post.1"]), "very end"),
        (lambda: read_lexicon(path, 0, 0), "word and value"),
        (lambda: read_lexicon(tmp_path / "no", 0, 0), "no such file"),
        (lambda: read_lexicon(here("lexicon.csv"), 90, 90), "96 words"),
        (lambda: read_choices(tmp_path / "no"), "no such file"),
        (
            lambda: ablate(planted.tuned, [" the"], truth.reward, truth.site, known_dictionary(planted), range(60)),
            "other latents",
        ),
        (lambda: feedback(words=10), "20 words"),
        (lambda: compare(x, x, {}), "10 or more"),
        (lambda: tau_gain({"a": 1.0}, {"b": 1.0}, {"a": 1.0}), "one of both"),
    ]:
        with pytest.raises(UsageError, match=match):
            call()


def test_an_empty_list_has_no_precision():
    found = list_findings((), ("a", "b"))
    assert [item.value for item in found] == [None, 0.0, 0.0]
    assert "no word is listed" in found[0].undefined
    assert [item.n for item in found[1:]] == [2, 2]
    assert [item.value for item in list_findings(("a",), ())] == [0.0, None, None]
