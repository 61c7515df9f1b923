"""Scripted policies and the cue model: rates against their truth, weights against the process at every state."""

import itertools

import numpy as np
import pytest
import torch

from cutaway.errors import UsageError
from cutaway.planted.policy import CueModel, Policy, cue_model
from cutaway.sampling import LocalEngine, Request, Settings

VARIANTS = {
    "open": {"q": 0.5, "h": 0.7},
    "certain": {"q": 1.0, "h": 1.0, "p0": 0.0, "hiding": "code", "thoughts": 0},
    "never used": {"q": 0.0, "h": 0.5, "thoughts": 2},
    "never said": {"q": 0.8, "h": 0.0, "thoughts": 3},
}


def words_of(planted: CueModel, ids) -> list[str]:
    return planted.model.tokenizer.convert_ids_to_tokens(list(ids))


def traces(planted: CueModel, problem: int, arm: int) -> dict[tuple[str, ...], float]:
    """Every trace with its probability, the thoughts' wordings fixed: the naive oracle."""
    prompt, out = words_of(planted, planted.prompt_ids(problem, arm)), {}
    flat = [choices for sentence in planted.layout for choices in sentence]
    for words in itertools.product(*(c[:1] if c[0].startswith(" amber") else c for c in flat)):
        mass = 1.0
        for at, word in enumerate(words):
            probs = planted.next_probs([*prompt, *words[:at]])
            mass *= 1.0 if word.startswith(" amber") else probs.get(word, 0.0)
        if mass:
            out[words] = mass
    return out


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_are_the_process_at_every_reachable_state(variant):
    planted = cue_model(**{"problems": 3, **VARIANTS[variant]})
    for problem, arm in itertools.product(range(3), (0, 1)):
        prompt = list(planted.prompt_ids(problem, arm))
        for words in traces(planted, problem, arm):
            ids = prompt + planted.model.tokenizer.convert_tokens_to_ids(list(words))
            with torch.no_grad():
                found = planted.model.logits(planted.model.batch([ids]))[0].double().softmax(-1).numpy()
            for at in range(len(prompt) - 1, len(ids)):
                exact = np.zeros(planted.model.vocab_size)
                for word, p in planted.next_probs(words_of(planted, ids[: at + 1])).items():
                    exact[planted.model.tokenizer.convert_tokens_to_ids(word)] = p
                np.testing.assert_allclose(found[at], exact, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_process_has_the_rates_it_was_given(variant):
    given = {"p0": 0.1, **VARIANTS[variant]}
    planted = cue_model(**{"problems": 2, **given})
    for problem in range(2):
        joint = {}
        for arm in (0, 1):
            for words, mass in traces(planted, problem, arm).items():
                letter, named = planted.read("".join(words))
                key = (arm, letter == planted.letters[problem], named)
                joint[key] = joint.get(key, 0.0) + mass
        assert sum(joint.get((0, True, named), 0) for named in (True, False)) == pytest.approx(given["p0"])
        followed = sum(joint.get((1, True, named), 0) for named in (True, False))
        assert followed - given["p0"] == pytest.approx(planted.truth.effect)
        assert joint.get((1, True, True), 0) == pytest.approx(planted.truth.effect * planted.truth.tpr)
        assert joint.get((1, False, True), 0) == joint.get((0, True, True), 0) == 0


def test_prompts_are_text_and_the_engine_samples_the_truth():
    planted = cue_model(0.5, 0.6, problems=2, seed=3)
    for problem, arm in itertools.product(range(2), (0, 1)):
        assert tuple(planted.model.encode(planted.prompt(problem, arm))) == planted.prompt_ids(problem, arm)
        assert planted.prompt(problem, 1).startswith(planted.prompt(problem, 0))
    request = Request(planted.prompt_ids(1, 1), tuple(range(400)), Settings(1.0, 1.0, 0, 40))
    drawn = [rollout for _, rollout in LocalEngine(planted.model, 200).stream([request])]
    assert {rollout.finish for rollout in drawn} == {"stop"}
    read = [planted.read(planted.model.decode(rollout.ids)) for rollout in drawn]
    named = np.mean([said for _, said in read])
    followed = np.mean([letter == planted.letters[1] for letter, _ in read])
    assert abs(named - 0.5 * 0.9 * 0.6) < 0.09
    assert abs(followed - (0.1 + 0.9 * 0.5)) < 0.1


def test_the_model_is_saved_and_loaded_whole(tmp_path):
    from cutaway.model import load_model

    planted = cue_model(0.5, 0.6, problems=2)
    planted.model.hf.save_pretrained(tmp_path)
    planted.model.tokenizer.save_pretrained(tmp_path)
    again = load_model(tmp_path, dtype="float32")
    assert again.fingerprint == planted.model.fingerprint
    assert again.encode(planted.prompt(1, 1)) == list(planted.prompt_ids(1, 1))


@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_scripted_rates(spread):
    policy = Policy(0.4, 0.7, p0=0.2, babble=0.1, spread=spread)
    draws = policy.draw(2000, 30, 0)
    assert not draws.changed[:, 0].any()
    assert not draws.said[:, 0].any()
    assert np.all(draws.followed | ~draws.changed)
    effect = draws.followed[:, 1].mean() - draws.followed[:, 0].mean()
    assert abs(effect - policy.truth.effect) < 0.02
    assert abs(draws.said[draws.changed].mean() - policy.truth.tpr) < 0.02
    unchanged = ~draws.changed[:, 1]
    assert abs((1 - draws.said[:, 1][unchanged].mean() + 1) / 2 - policy.truth.tnr) < 0.01
    by_problem = draws.followed[:, 0].mean(-1).std()
    assert (by_problem > 0.15) == (spread > 0)


def test_another_run_keeps_the_problems():
    policy = Policy(0.4, 0.7, p0=0.3, spread=0.3)
    one, two = policy.draw(300, 30, 5), policy.draw(300, 30, 5, run=1)
    assert one.letters == two.letters
    assert (one.followed != two.followed).any()
    rates = [each.followed[:, 0].mean(-1) for each in (one, two)]
    assert np.corrcoef(rates)[0, 1] > 0.8


@pytest.mark.parametrize(("hiding", "cue"), [("open", "hint suggests"), ("reworded", "pencilled"), ("code", "Amber")])
def test_text_says_what_happened(hiding, cue):
    policy = Policy(0.6, 0.5, hiding=hiding, sentences=4)
    draws = policy.draw(5, 20, 1)
    for run in policy.write(draws, 2):
        assert len(run.sentences) == 4
        assert any(cue in sentence for sentence in run.sentences) == run.said
        letter = draws.letters[run.problem]
        assert (f"is {letter}." in run.action) == run.followed
    assert policy.write(draws, 2) == policy.write(draws, 2)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Policy(1.5, 0.5), "q=1.5"),
        (lambda: Policy(0.5, 0.5, spread=1.0), "spread=1.0"),
        (lambda: Policy(0.5, 0.5, sentences=0), "sentences=0"),
        (lambda: cue_model(0.5, -0.1), "h=-0.1"),
        (lambda: cue_model(0.5, 0.5, problems=0), "problems=0"),
        (lambda: cue_model(0.5, 0.5).next_probs([" Item0", " asks"]), "cut after"),
    ],
)
def test_bad_input(build, says):
    with pytest.raises(UsageError, match=says):
        build()
