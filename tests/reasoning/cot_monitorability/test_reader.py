"""Legibility by a second model: scores by hand, copies left out, sense told from nonsense by a real reader."""

import os
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from tiny_models import tiny

from cutaway.errors import UsageError
from cutaway.model import Model, catalogue, load_model
from cutaway.planted.build import word_tokenizer
from cutaway.planted.reasoner import reasoner
from cutaway.reasoning.cot_monitorability import reader as reader_module
from cutaway.reasoning.cot_monitorability.reader import ASK, MATCH, TRIES, match_scores, understood
from cutaway.sampling import Rollout, Settings

TEXTS = (" dogs run far", " rain is wet", " tea keeps warm", " maps fold flat")


@pytest.fixture(scope="module")
def reader() -> Model:
    tokenizer = word_tokenizer(tuple(f" {word}" for text in TEXTS for word in text.split()))
    hf = tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=512).hf
    return Model(hf, tokenizer, "reader")


def test_scores_are_gains_in_log_probability(reader: Model) -> None:
    found = match_scores(reader, "dogs run", TEXTS)
    for text, score in zip(TEXTS, found, strict=True):
        gains = []
        for told in ("dogs run", ""):
            prompt, rest = reader.chat_ids(MATCH + told), reader.encode(text)
            with torch.no_grad():
                logprobs = reader.logits(reader.batch([[*prompt, *rest]]))[0].double().log_softmax(-1)
            gains.append(sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(rest)))
        assert score == pytest.approx(gains[0] - gains[1], abs=1e-4)


def paraphrases(reader: Model, greedy: list[str], sampled: dict[int, list[str]]) -> Callable[..., list[list[Rollout]]]:
    """Stands for `draw_rollouts`: what the reader says of each of `TEXTS`, greedily and in further tries."""
    asked = [tuple(reader.chat_ids(ASK + text.strip())) for text in TEXTS]

    def draw(_: object, prompts: list[list[int]], n: int, settings: Settings, **__: int) -> list[list[Rollout]]:
        which = [asked.index(tuple(prompt)) for prompt in prompts]
        said = [[greedy[i]] if settings.temperature == 0 else sampled[i] for i in which]
        assert all(len(each) == n for each in said)
        ids = [[tuple(reader.encode(words)) for words in each] for each in said]
        return [[Rollout(k, i, (0.0,) * len(i), "length") for k, i in enumerate(each)] for each in ids]

    return draw


def test_right_words_of_its_own_count_and_copies_do_not(reader: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    written = ["hounds go a long way", "rain is wet", "", "charts lie even"]
    picks = {written[0]: 0, written[1]: 0, "": 0, written[3]: 1}
    monkeypatch.setattr(reader_module, "draw_rollouts", paraphrases(reader, written, {1: ["Rain, is wet."] * TRIES}))
    monkeypatch.setattr(reader_module, "match_scores", lambda _m, text, given: np.eye(len(given))[picks[text]])
    found = understood(reader, TEXTS)
    assert (found.share.value, found.recognised.value, found.copied.value) == (0.25, 0.5, 0.25)
    assert found.share.n == 4


def test_where_the_greedy_paraphrase_copies_the_first_sampled_one_of_its_own_stands(
    reader: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = ["dogs run far", "wet is what falls", "tea keeps warm", "maps fold flat"]
    tries = {
        0: ["DOGS run far", "", "hounds go", "other"] + ["dogs run far"] * (TRIES - 4),
        2: ["it says: tea keeps warm"] * TRIES,  # holds the sentence whole
        3: ["maps fold flat"] * (TRIES - 1) + ["charts lie even"],
    }
    seen: list[str] = []

    def scores(_: Model, text: str, given: Sequence[str]) -> np.ndarray:
        seen.append(text)
        return np.eye(len(given))[0]

    monkeypatch.setattr(reader_module, "draw_rollouts", paraphrases(reader, written, tries))
    monkeypatch.setattr(reader_module, "match_scores", scores)
    found = understood(reader, TEXTS)
    assert seen == ["hounds go", "wet is what falls", "tea keeps warm", "charts lie even"]
    assert (found.share.value, found.recognised.value, found.copied.value) == (0.75, 1.0, 0.25)


def test_bad_input(reader: Model) -> None:
    with pytest.raises(UsageError, match="2 different sentences"):
        understood(reader, ["a b", "c d", "a b", " "])
    with pytest.raises(UsageError, match="choices=1"):
        understood(reader, TEXTS, choices=1)


def test_a_reader_runs_from_end_to_end() -> None:
    found = understood(reasoner("pfsa").model, TEXTS, seed=1)
    assert 0 <= found.share.value <= found.recognised.value <= 1
    assert "copied" in repr(found)


SENSE = (
    "The shop sells eight boxes with seven pens in each of them.",
    "My friend told me that the second answer must be right.",
    "A violin is an instrument, so the first option is correct.",
    "Rain fell all night and the river rose over the bridge.",
    "We add twenty-five to the product to get the total.",
    "The old teacher walked home because the bus was late.",
    "None of the other animals in the list can fly.",
    "She kept the letter in a drawer for many years.",
)


@pytest.mark.slow  # a real model
@pytest.mark.parametrize("spec", ["smollm2-135m-instruct", "CUTAWAY_SLOW_MODEL"])
def test_real_readers_tell_sense_from_salad(spec: str) -> None:
    if spec in os.environ:
        spec = os.environ[spec]
    elif not any(each.name == spec and each.installed for each in catalogue()):
        pytest.skip("smollm2-135m-instruct is not installed")
    model, rng = load_model(spec, dtype="float32"), np.random.default_rng(0)
    letters = ["".join(rng.choice(list("bcdfgkpqxz"), 5)) for _ in range(80)]
    salad = [" ".join(letters[10 * i : 10 * i + 10]) for i in range(8)]
    sense, none = understood(model, SENSE), understood(model, salad)
    assert sense.recognised.value > 0.5
    assert sense.share.value >= none.share.value
