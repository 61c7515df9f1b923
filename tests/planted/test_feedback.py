"""The planted pair: what the tuned model says and carries is the stated reward."""

import numpy as np
import pytest
import torch

from cutaway.errors import UsageError
from cutaway.planted.feedback import KNOWN, OFFSET, TILT, feedback


@pytest.fixture(scope="module")
def planted():
    return feedback(seed=3)


def test_the_reward_stands_in_its_direction_and_only_in_the_tuned_model(planted):
    truth = planted.truth
    words = planted.words[:30]
    for model, wanted in ((planted.tuned, [OFFSET + truth.learned[w] for w in words]), (planted.base, [0.0] * 30)):
        resid = model.capture(list(words), truth.site, special=True)[truth.site][:, -1].detach()
        assert (resid @ torch.from_numpy(truth.direction).float()).numpy() == pytest.approx(wanted, abs=1e-2)


def test_the_next_word_s_logits_are_tilted_by_the_learned_reward(planted):
    word = planted.words[0]
    truth, vocabulary = planted.truth, planted.tuned.tokenizer.get_vocab()
    ids = [vocabulary[each] for each in planted.words]
    said, plain = (model.logits(model.batch([word]))[0, -1, ids].detach() for model in (planted.tuned, planted.base))
    wanted = np.array([TILT * truth.learned[each] * (OFFSET + truth.learned[word]) for each in planted.words])
    assert said.detach().numpy() == pytest.approx(wanted, abs=2e-3)
    assert float(plain.std()) < 2e-3
    assert int(planted.tuned.logits(planted.tuned.batch([word]))[0, -1].argmax()) in ids


def test_flipped_and_unseen_words_are_what_they_are_called(planted):
    truth = planted.truth
    assert all(truth.reward[w] == -truth.ordinary[w] == truth.learned[w] for w in truth.flipped)
    assert all(truth.reward[w] == -truth.ordinary[w] and truth.learned[w] == truth.ordinary[w] for w in truth.unseen)
    assert KNOWN > 0


def test_the_null_is_the_base_model():
    planted = feedback(null=True, seed=1)
    assert planted.base.fingerprint == planted.tuned.fingerprint
    with pytest.raises(UsageError, match="20 words"):
        feedback(words=10)
