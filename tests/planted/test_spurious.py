"""Data that fit two rules: labels, balance, splits, and a model in which the unwanted rule is the louder one."""

from itertools import combinations

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from sklearn.linear_model import LogisticRegression

from cutaway.errors import UsageError
from cutaway.planted.spurious import FAMILIES, SHARES, A, B, double_items, questions, spurious_vectors, two_rules


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_splits_share_no_question_and_cover_all(family: str) -> None:
    splits = {split: {(cue, pair) for cue, _, pair in questions(family, split)} for split in SHARES}
    for a, b in combinations(splits.values(), 2):
        assert not a & b
    held = FAMILIES[family]
    assert sum(map(len, splits.values())) == (len(held.cues[0]) + len(held.cues[1])) * len(held.options)


@pytest.mark.parametrize("split", list(SHARES))
def test_labels_agree_in_tied_items_and_never_in_reversed_ones(split: str) -> None:
    for law, agree in (("tied", 1.0), ("reversed", 0.0)):
        items = double_items("sports", "pronouns", 300, law, split=split)  # type: ignore[arg-type]
        assert np.mean([item.wanted == item.unwanted for item in items]) == agree
        assert sum(item.wanted for item in items) == 150


def test_a_prompt_holds_the_right_options_where_the_labels_say() -> None:
    for item in double_items("agreement", "sentiment", 60, "independent"):
        _, options = item.prompt.split(A + " ", 1)
        columns = [column.split() for column in options.removesuffix(" Answer").split(B + " ", 1)]
        for place, (family, label) in enumerate((("agreement", item.wanted), ("sentiment", item.unwanted))):
            cue, first = item.questions[place]
            kind = int(cue in FAMILIES[family].cues[1])
            pair = next(pair for pair in FAMILIES[family].options if pair[0] == first)
            assert columns[label][place] == pair[kind].strip()


def test_no_prompt_of_the_test_stands_in_training() -> None:
    used = [{q for item in double_items("agreement", "sentiment", 400, "tied", split=s) for q in item.questions}
            for s in ("train", "test")]  # type: ignore[arg-type]  # fmt: skip
    assert not used[0] & used[1]


def test_vectors_carry_both_signs_the_unwanted_twice_as_loud() -> None:
    law = spurious_vectors(16, seed=3)
    x, wanted, unwanted = law.draw(4000, "independent", seed=1)
    for label, size in ((wanted, 1.0), (unwanted, 2.0)):
        assert np.linalg.norm(x[label == 1].mean(0) - x[label == 0].mean(0)) == pytest.approx(2 * size, abs=0.1)
    assert abs(np.corrcoef(wanted, unwanted)[0, 1]) < 0.05
    _, wanted, unwanted = law.draw(100, "reversed")
    assert (wanted != unwanted).all()


def test_the_model_knows_both_rules_and_has_chosen_neither() -> None:
    rules = two_rules(steps=160)
    assert rules.loss < 0.1
    items = double_items("agreement", "sentiment", 400, "independent", split="validation")
    states = rules.model.capture([rules.model.encode(item.prompt) for item in items], "resid_post.1", "last")
    h = states["resid_post.1"][:, 0].detach().numpy()
    spread = {}
    for rule in ("wanted", "unwanted"):
        label = np.array([getattr(item, rule) for item in items])
        reader = LogisticRegression(max_iter=2000).fit(h[:300], label[:300])
        assert reader.score(h[300:], label[300:]) >= 0.95
        spread[rule] = float(np.linalg.norm(h[label == 1].mean(0) - h[label == 0].mean(0)))
    assert spread["unwanted"] > 1.5 * spread["wanted"]
    head = rules.model.hf.get_output_embeddings().weight
    assert (head[rules.model.encode(A)[0]] == head[rules.model.encode(B)[0]]).all()


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="did you mean 'sports'"):
        questions("sport", "train")
    with pytest.raises(UsageError, match="two families"):
        double_items("sports", "sports", 4, "tied")
    with pytest.raises((UsageError, TypeCheckError), match="both"):  # whichever check comes first
        double_items("sports", "pronouns", 4, "both")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="4 or more"):
        spurious_vectors(3)
    with pytest.raises(UsageError, match="loudness"):
        two_rules(loudness=0.0)
