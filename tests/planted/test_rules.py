"""Planted rules against their paths, read as a matcher would."""

import pytest

from cutaway.errors import UsageError
from cutaway.planted.rules import WORDS, RuleName, context_neuron, rule


def fires(paths: frozenset[tuple[str | None, ...]], row: list[int], at: int) -> set[int]:
    """Lengths of the paths that match backwards from a place."""
    back = [WORDS[token] for token in row[: at + 1]][::-1]
    return {
        len(path)
        for path in paths
        if len(path) <= len(back) and all(a in (None, b) for a, b in zip(path, back, strict=False))
    }


@pytest.mark.parametrize("name", ["anywhere", "within", "unless", "class"])
def test_a_rule_fires_just_where_its_paths_do(name: RuleName) -> None:
    each = rule(name)
    hits = 0
    for row in each.texts(60, seed=1):
        for at, value in enumerate(each.fn(row)):
            left = fires(each.truth.paths, row, at) - fires(each.truth.exceptions, row, at)
            assert value == float(bool(left)), [WORDS[token] for token in row[max(0, at - 6) : at + 1]]
            hits += bool(value)
    assert hits > 10


def test_noise_is_noise_and_silence_is_silence() -> None:
    row = rule("within").texts(1, length=200)[0]
    clean, noisy = rule("within").fn(row), rule("noisy").fn(row)
    assert any(clean)
    assert max(abs(a - b) for a, b in zip(clean, noisy, strict=True)) < 0.5
    assert noisy != clean
    assert rule("noisy", 1).fn(row) != noisy
    coin = rule("random")
    rates = [value for row in coin.texts(50, 100) for value in coin.fn(row)]
    assert 0.01 < sum(rates) / len(rates) < 0.03
    assert coin.fn(row[:50]) == coin.fn(row)[:50]
    assert max(rule("silent").fn(row)) < 0


def test_texts_and_names() -> None:
    each = rule("anywhere")
    assert each.texts(3, seed=2) == each.texts(3, seed=2) != each.texts(3, seed=3)
    assert each.spell(0) == " sun"
    assert len(set(WORDS)) == len(WORDS)
    with pytest.raises(UsageError, match="rule='witin'"):
        rule("witin")


@pytest.mark.parametrize("seed", range(3))
def test_the_context_neuron_writes_its_token_after_either_word_and_the_trigger(seed: int) -> None:
    each = context_neuron(seed)
    truth, site = each.truth, f"neurons.{each.truth.layer}"
    for row in each.texts(12, seed=seed):
        held = each.model.capture([row], site, special=True)[site][0, :, truth.neuron].detach()
        odds = each.model.logits(each.model.batch([row]))[0].detach().softmax(-1)[:, truth.token]
        for at, token in enumerate(row):
            seen = any(word in row[: at + 1] for word in truth.words)
            fires = seen and token == truth.trigger
            assert (float(held[at]) > 2) == fires
            assert (float(odds[at]) > 0.5) == fires


def test_in_the_null_the_neuron_needs_no_word() -> None:
    each = context_neuron(0, null=True)
    assert each.truth.heads == ()
    for row in each.texts(6):
        held = each.model.capture([row], "neurons.1", special=True)["neurons.1"][0, :, each.truth.neuron]
        assert [bool(value > 2) for value in held] == [token == each.truth.trigger for token in row]
