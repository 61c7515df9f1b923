"""Traces: prefixes and texts that join back together."""

import pytest

from cutaway.errors import UsageError
from cutaway.planted import reasoner
from cutaway.sampling import Rollout, Settings, Trace, make_trace

SETTINGS = Settings()


@pytest.fixture(scope="module")
def planted():
    return reasoner("ffpfsfsfa")


def test_prefixes_and_texts_add_up(planted):
    ids = planted.sample_trace(3)
    rollout = Rollout(3, ids, (-0.5,) * len(ids), "stop")
    trace = make_trace(planted.prompt_ids, rollout, SETTINGS, planted.model.decode)
    assert (trace.prompt, trace.ids, trace.logprobs) == (planted.prompt_ids, ids, rollout.logprobs)
    assert trace.n_sentences == 9
    assert trace.prefix(0) == planted.prompt_ids
    assert trace.prefix(9) == (*planted.prompt_ids, *ids)
    cuts = [len(trace.prefix(i)) - len(planted.prompt_ids) for i in range(10)]
    assert tuple(cuts) == planted.boundaries(ids)
    texts = trace.texts(planted.model.decode)
    assert len(texts) == 9
    assert "".join(texts) == planted.model.decode(ids)
    assert all(text.rstrip("<eos>").endswith(".") for text in texts)


def test_texts_of_tokens_that_share_a_character():
    """The first sentence ends inside a character's bytes only if the spans say so; the text is still whole."""
    raw = "Ja, sehr schön. Und weiter geht es.".encode()

    def decode(ids):
        return bytes(ids).decode("utf-8", errors="replace")

    trace = make_trace((1,), Rollout(0, tuple(raw), (), "stop"), SETTINGS, decode)
    assert trace.texts(decode) == ("Ja, sehr schön.", " Und weiter geht es.")


def test_one_sentence_and_none(planted):
    one = make_trace((1,), Rollout(0, planted.sample_trace(0)[:3], (), "length"), SETTINGS, planted.model.decode)
    assert one.n_sentences == 1
    assert one.texts(planted.model.decode) == (planted.model.decode(one.ids),)
    with pytest.raises(UsageError, match="the trace is empty"):
        make_trace((1,), Rollout(0, (), (), "stop"), SETTINGS, planted.model.decode)
    assert Trace((1,), (), (), (), SETTINGS).prefix(0) == (1,)
