"""The planted receiver model against its own truth: what the heads read, what the steps say, and the null."""

from collections.abc import Iterator

import pytest
import torch

from cutaway.errors import UsageError
from cutaway.planted.receiver import PLANS, TURNS, receiver


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("null", [False, True])
def test_steps_turn_as_the_plan_says(null: bool) -> None:
    planted = receiver(null=null)
    turns = planted.model.tokenizer.convert_tokens_to_ids(list(TURNS))
    for seed in range(4):
        trace = planted.trace(seed)
        for step in planted.steps(trace):
            ids, word = planted.question(trace, step)
            probs = planted.model.logits(planted.model.batch([list(ids)]))[0, -1].softmax(-1)
            assert float(probs[turns].sum()) == pytest.approx(1, abs=1e-5)
            right = float(probs[turns[TURNS.index(word)]])
            assert right == pytest.approx(planted.truth.p_right, abs=0.08 if null else 0.01)


def test_receivers_look_at_the_plan_and_nothing_else() -> None:
    planted = receiver()
    trace = planted.trace(3)
    start, word = len(trace.prompt), trace.spans[planted.plan_sentence(trace)][0] + 1
    found = planted.model.capture([[*trace.prompt, *trace.ids]], "pattern.*")
    for layer, head in planted.truth.heads:
        rows = found[f"pattern.{layer}"][0, head]
        torch.testing.assert_close(rows[start + word :, start + word], torch.ones(len(trace.ids) - word))
        torch.testing.assert_close(rows[: start + word, 0], torch.ones(start + word))
    for layer, head in planted.truth.distractors:
        assert float(found[f"pattern.{layer}"][0, head, -1].max()) < 0.5


def test_the_null_attends_uniformly() -> None:
    planted = receiver(null=True)
    assert planted.truth.heads == ()
    assert len(planted.truth.distractors) == 12
    trace = planted.trace(0)
    found = planted.model.capture([list(trace.ids)], "pattern.*", "last")
    for layer in range(3):
        rows = found[f"pattern.{layer}"]
        torch.testing.assert_close(rows, torch.full_like(rows, 1 / len(trace.ids)))


def test_a_trace_is_text_of_the_tokenizer_with_one_plan() -> None:
    planted = receiver()
    seen = set()
    for seed in range(20):
        trace = planted.trace(seed)
        text = planted.model.decode([*trace.prompt, *trace.ids])
        assert planted.model.encode(text) == [*trace.prompt, *trace.ids]
        assert sum(text.count(f"Plan{plan}") for plan in PLANS) == 1
        assert trace.spans[0][0] == 0
        assert trace.spans[-1][1] == len(trace.ids)
        assert all(a[1] == b[0] for a, b in zip(trace.spans, trace.spans[1:], strict=False))
        assert planted.plan_sentence(trace) < min(planted.steps(trace))
        seen.add(planted.plan_sentence(trace))
    assert seen == {1, 2, 3}


def test_the_model_continues_a_trace_in_its_own_words() -> None:
    planted = receiver()
    trace = planted.trace(1)
    ids = torch.tensor([[*trace.prompt, *trace.ids]])
    logprobs = planted.model.hf(ids).logits.log_softmax(-1)[0, len(trace.prompt) - 1 : -1]
    assert float(logprobs.gather(-1, ids[0, len(trace.prompt) :, None]).min()) > -6


def test_building_is_deterministic_and_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    assert receiver(seed=4).model.fingerprint == receiver(seed=4).model.fingerprint
    assert receiver(seed=4).model.fingerprint != receiver(seed=5).model.fingerprint
    assert torch.equal(torch.random.get_rng_state(), before)


def test_bad_arguments() -> None:
    for heads in ((), ((0, 1),), ((3, 0),), ((1, 4),)):
        with pytest.raises(UsageError, match="heads="):
            receiver(heads)
    with pytest.raises(UsageError, match="n_sentences=5"):
        receiver().trace(0, 5)
