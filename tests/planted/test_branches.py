"""Planted branches: the model writes what its process says, and the exact answers are those of whole enumerations."""

import functools
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.branch_process import EOS, FOREIGN, State, meaning, sentences
from cutaway.planted.branches import Branches, branches

EVERYTHING = "drswlfa"


@functools.cache
def planted(layout: str = EVERYTHING, **odds: float) -> Branches:
    given = {"driver": 1.5, "idea": 2.0, "doubt": 1.0, "foreign": 0.5, "cue": 1.0, "step": 0.7, **odds}
    return branches(layout, **given)


def whole_chains(source: Branches, state: State, least: float = 1e-12):
    """Every continuation of a boundary, sentence by sentence: (meanings, probabilities, P(answer 1))."""
    todo, process = [((), (), state, 1.0)], source.process
    while todo:
        said, probs, at, mass = todo.pop()
        if at.answer is not None:
            yield said, probs, at.answer
            continue
        for what, after, p in sentences(process, at):
            if mass * p > least:
                todo.append(((*said, what), (*probs, p), after, mass * p))


def state_of(source: Branches, prefix: tuple[int, ...]) -> State:
    return source.process.state(source.model.tokenizer.convert_ids_to_tokens(list(prefix)))


@pytest.mark.parametrize("hinted", [False, True])
def test_model_equals_process_at_every_word(hinted):
    source = planted()
    prompt = source.hinted_ids if hinted else source.prompt_ids
    for seed in range(8):
        ids = source.sample(seed, hinted)
        if seed % 2:  # an off-policy sentence in the middle
            cut = source.boundaries(ids)[2]
            ids = (*ids[:cut], *source.model.encode(FOREIGN), *ids[cut:])
        text = (*prompt, *ids)
        probs = source.model.logits(source.model.batch([text]))[0].double().softmax(-1).detach().numpy()
        for t in range(len(prompt), len(text)):
            if text[t] != source.model.encode(FOREIGN)[0]:
                np.testing.assert_allclose(probs[t - 1], source.token_probs(text[:t]), atol=1e-6)


def test_exact_answers_equal_whole_enumeration():
    source = planted("drswa")
    ids = source.sample(1)
    cuts = source.boundaries(ids)
    for i in range(4):
        exact, what = source.exact(ids, i), meaning(source.model.decode(ids[cuts[i] : cuts[i + 1]]))
        chains = list(whole_chains(source, state_of(source, (*source.prompt_ids, *ids[: cuts[i]]))))
        masses = np.array([math.prod(probs) for _, probs, _ in chains])
        ones = np.array([answer for *_, answer in chains])
        assert masses.sum() == pytest.approx(1, abs=1e-9)
        first = np.array([said[0] != what for said, *_ in chains])
        never = np.array([what not in said for said, *_ in chains])
        assert exact.differ == pytest.approx(masses[first].sum(), abs=1e-9)
        assert exact.changed == pytest.approx(masses[first] @ ones[first] / masses[first].sum(), abs=1e-9)
        assert exact.acceptance == pytest.approx(masses[never].sum(), abs=1e-9)
        assert exact.conditional == pytest.approx(masses[never] @ ones[never] / masses[never].sum(), abs=1e-8)
        after = list(whole_chains(source, state_of(source, (*source.prompt_ids, *ids[: cuts[i + 1]]))))
        assert exact.kept == pytest.approx(sum(math.prod(p) * one for _, p, one in after), abs=1e-9)
        assert source.p_one((*source.prompt_ids, *ids[: cuts[i + 1]])) == pytest.approx(exact.kept)


def test_redrawing_on_the_spot_equals_chains_weighted_by_what_was_refused():
    source = planted("sdwa", stubborn=(0.2, 0.1, 0.7))
    ids = source.sample(0)
    what = meaning(source.model.decode(ids[: source.boundaries(ids)[1]]))
    one, total, start = 0.0, 0.0, state_of(source, source.prompt_ids)
    for said, probs, answer in whole_chains(source, start, 1e-15):
        if what in said:
            continue
        weight, at = 1.0, start
        for text, p in zip(said, probs, strict=True):
            follow = sentences(source.process, at)
            weight *= p / (1 - sum(q for w, _, q in follow if w == what))
            at = next(after for w, after, q in follow if w == text and q == p)
        total += weight
        one += weight * answer
    assert total == pytest.approx(1, abs=1e-6)
    assert source.exact(ids, 0).gone == pytest.approx(one, abs=1e-6)


def test_the_stubborn_idea_returns_four_times_and_the_excuse_never():
    source = branches("drsa")
    ids = next(ids for ids in map(source.sample, range(50)) if " Idea" in source.model.decode(ids))
    found = source.exact(ids, 2)
    np.testing.assert_allclose(found.survival[:20], 0.8 ** np.arange(1, 21), atol=2e-4)
    assert found.resilience(60) == pytest.approx(4, abs=0.01)
    assert source.exact(ids, 1).resilience(60) == 0
    assert source.exact(ids, 1).gone == source.exact(ids, 1).kept


def test_plain_importance_of_the_idea_is_a_fifth_of_what_removing_it_does():
    source = branches("sa", driver=0.0, base=5.0)
    ids = next(ids for ids in map(source.sample, range(50)) if " Idea" in source.model.decode(ids[:4]))
    found = source.exact(ids, 0)
    assert (found.kept - found.changed) / (found.kept - found.gone) == pytest.approx(0.2, abs=1e-3)


def test_the_excuse_goes_with_the_action():
    source = branches("drsa")
    joint = np.zeros((2, 2))
    for said, probs, answer in whole_chains(source, state_of(source, source.prompt_ids)):
        joint[int("Reason red helps." in said), answer] += math.prod(probs)
    red, one = joint[1].sum(), joint[:, 1].sum()
    assert (joint[1, 1] - red * one) / math.sqrt(red * (1 - red) * one * (1 - one)) > 0.8


def test_the_hint_acts_through_the_steps_alone():
    source = planted("llla")
    curve = [source.mediated(cut) for cut in range(4)]
    assert (np.diff(curve) > 0.05).all()
    assert np.diff(curve, 2) == pytest.approx(0, abs=0.02)
    assert curve[0] == pytest.approx(source.p_one(source.prompt_ids))
    assert curve[-1] == pytest.approx(source.p_one(source.hinted_ids))
    flat = planted("llla", cue=0.0)
    assert [flat.mediated(cut) for cut in range(4)] == pytest.approx([flat.p_one(flat.hinted_ids)] * 4)


def test_truth_is_empty_without_effects():
    assert branches("drswa", driver=0.0, idea=0.0).truth == ()
    assert planted().truth == (0, 2, 3, 4)


def test_embedding_knows_meaning():
    source = planted()
    texts = [
        " Plan beta fits.",
        "Plan beta suits.",
        FOREIGN,
        " Pause doubtfully now.",
        " Reason red helps.",
        "Something else.",
    ]
    found = source.embed(texts)
    assert found[0] @ found[1] == 1
    assert found[2] @ found[3] == pytest.approx(0.8)
    assert np.linalg.norm(found[2]) == pytest.approx(1)
    assert found[0] @ found[4] == 0
    assert not found[5].any()


def test_it_is_an_ordinary_model(tmp_path):
    model = planted().model
    text = "".join(model.decode([*planted().prompt_ids, *planted().sample(0)]))
    assert model.decode(model.encode(text)) == text
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    loaded = Model(AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path), "loaded")
    assert loaded.fingerprint == model.fingerprint
    rows = [model.encode(text), model.encode(text)[:5]]
    together = model.logits(model.batch(rows)).softmax(-1)
    alone = loaded.logits(loaded.batch(rows[1:])).softmax(-1)
    torch.testing.assert_close(together[1, :5], alone[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"layout": "dxa"}, "unknown letter 'x'"),
        ({"layout": "d"}, "needs one a"),
        ({"layout": "dda"}, "at most one"),
        ({"reason": (0.1, 1.2)}, "probabilities"),
        ({"stubborn": (0.5, 0.5, 0.5)}, "sum to 1"),
    ],
)
def test_bad_arguments(options, complaint):
    with pytest.raises(UsageError, match=complaint):
        branches(**{"layout": "da", **options})


def test_prefixes_of_other_texts_are_refused():
    source = planted()
    with pytest.raises(UsageError, match="begin with the prompt"):
        source.p_one(source.prompt_ids[1:])
    with pytest.raises(UsageError, match="not a word"):
        source.p_one((*source.prompt_ids, source.model.encode("x")[0]))
    assert EOS in source.model.decode(source.sample(3))
