"""Effects: pairing, controls, rates, prices; against naive arithmetic, planted truths and nulls."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.errors import UsageError
from cutaway.model import Add, Model
from cutaway.sampling import Settings
from cutaway.steering import (
    answer_nll,
    draw_answers,
    effect,
    fluency,
    holm,
    rate,
    relative_change,
    repetition,
)

FREE = Settings(temperature=1.0, top_p=1.0, max_tokens=5)


def test_effect_pairs_by_prompt_and_reads_partial_controls() -> None:
    plain, steered = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 3.5, 4.0, 5.5])
    control = np.array([1.5, np.nan, 3.5, np.nan])
    found = effect("words", plain, steered, [control], clusters=[0, 0, 1, 1])
    assert found.change.value == pytest.approx(1.25)
    assert found.change.n == 2
    assert found.controls == (0.5,)
    assert found.over_controls is not None
    assert found.over_controls.value == pytest.approx(0.5)
    assert found.rank == 0.5
    assert found.to_dict()["shown"] == found.shown
    assert "change" in repr(found)


def test_an_effect_is_shown_only_beyond_every_control() -> None:
    rng = np.random.default_rng(0)
    plain = rng.standard_normal(40)
    near = [plain + 0.1 * rng.standard_normal(40) for _ in range(20)]
    assert effect("x", plain, plain + 1 + 0.1 * rng.standard_normal(40), near).shown
    assert not effect("x", plain, plain + 1, [*near, plain + 1.5]).shown
    assert not effect("x", plain, plain + rng.standard_normal(40), near[:0]).shown
    assert effect("x", plain, plain + 1).rank is None


def test_an_effect_is_rarely_shown_where_there_is_none() -> None:
    rng = np.random.default_rng(1)
    shown = 0
    for _ in range(40):
        draws = rng.standard_normal((12, 30))
        shown += effect("x", draws[0], draws[1], list(draws[2:])).shown
    assert shown <= 3


def test_relative_change_and_fluency_cover_the_truth() -> None:
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(20):
        plain = rng.gamma(8, 5, 40)
        found = relative_change(plain, 0.7 * plain * rng.gamma(50, 1 / 50, 40))
        inside += found.low <= -0.3 <= found.high
    assert inside >= 16
    price = fluency([1.0, 2.0, 3.0], [1.1, 2.1, 3.1])
    assert price.value == pytest.approx(np.exp(0.1) - 1)
    with pytest.raises(UsageError, match="plain mean is 0"):
        relative_change([0.0, 0.0], [1.0, 1.0])


def test_rate_by_tasks() -> None:
    assert rate([True, False] * 10, [i // 4 for i in range(20)]).value == 0.5
    same = rate([False] * 20, [i // 4 for i in range(20)])
    assert (same.value, same.low, same.n) == (0.0, 0.0, 5)
    assert 0.4 < same.high < 0.6


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_against_its_definition(p: list[float]) -> None:
    found = holm(p)
    for place, value in enumerate(p):
        wanted = max(
            min(1.0, (len(p) - sum((q, j) < (r, i) for j, q in enumerate(p))) * r)
            for i, r in enumerate(p)
            if (r, i) <= (value, place)
        )
        assert found[place] == pytest.approx(wanted)


def test_answer_nll_is_that_of_each_answer_alone(llama: Model, texts: list[list[int]]) -> None:
    answers = [one for (one,) in draw_answers(llama, texts, FREE)]
    found = answer_nll(llama, texts, answers)
    for text, answer, value in zip(texts, answers, found, strict=True):
        scores = llama.logits(llama.batch([[*text, *answer.ids]]))[0].log_softmax(-1)
        naive = [-float(scores[len(text) - 1 + i, token]) for i, token in enumerate(answer.ids)]
        assert value == pytest.approx(np.mean(naive), abs=1e-5)
        assert value == pytest.approx(-np.mean(answer.logprobs), abs=1e-4)


def test_answers_are_paired_and_kept(llama: Model, texts: list[list[int]], tmp_path: Path) -> None:
    first = draw_answers(llama, texts[:3], FREE, n=2, folder=tmp_path)
    assert [len(row) for row in first] == [2, 2, 2]
    ticks: list[int] = []
    again = draw_answers(llama, texts[:3], FREE, n=2, folder=tmp_path, report=lambda done, total: ticks.append(total))
    assert [[a.ids for a in row] for row in again] == [[a.ids for a in row] for row in first]
    push = Add("resid_post.1", 3 * torch.ones(32))
    steered = draw_answers(llama, texts[:3], FREE, n=2, edits=(push,), folder=tmp_path)
    assert [[a.seed for a in row] for row in steered] == [[a.seed for a in row] for row in first]
    assert [[a.ids for a in row] for row in steered] != [[a.ids for a in row] for row in first]
    assert len(list(tmp_path.iterdir())) == 2


def test_repetition() -> None:
    assert repetition([1, 2, 3]) == 0.0
    assert repetition(list(range(20))) == 0.0
    assert repetition([1, 2, 3, 4] * 5) == pytest.approx(1 - 4 / 17)


def test_bad_input(llama: Model, texts: list[list[int]]) -> None:
    with pytest.raises(UsageError, match="nothing to resample"):
        draw_answers(llama, texts, Settings(temperature=0.0), n=2)
    with pytest.raises(UsageError, match="pairs need one of each"):
        effect("x", [1.0], [1.0, 2.0])
    with pytest.raises(UsageError, match="a control has 3 values"):
        effect("x", [1.0, 2.0], [1.0, 2.0], [[1.0, 2.0, 3.0]])
    with pytest.raises(UsageError, match="or none at all"):
        effect("x", [1.0, 2.0], [1.0, 2.0], [[np.nan, np.nan]])


def test_a_rate_that_moved_alike_everywhere_is_no_surer_than_its_number() -> None:
    found = effect("quirk", [1.0] * 5, [0.0] * 5)
    assert found.change.value == -1
    assert found.change.high > -0.6
    words = effect("words", [12.0] * 5, [10.0] * 5)
    assert (words.change.low, words.change.high) == (-2, -2)
