"""Prompts of chosen lengths: on target, and the same request everywhere."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.build import blank_llama, word_tokenizer
from cutaway.planted.dilution import dilution
from cutaway.reasoning.cot_hijacking.length import (
    CUE,
    RELEVANCES,
    TOLERANCE,
    TOPICS,
    Relevance,
    make_preamble,
    make_prompt,
    over_context,
)
from cutaway.reasoning.cot_hijacking.puzzles import FAMILIES

MODEL = dilution(n_layers=2, n_ctx=4096).model
LENGTHS = (30, 77, 128, 512)


@pytest.mark.parametrize("source", [*FAMILIES, *TOPICS, ""])
def test_target_is_met_and_request_and_cue_stay_the_same(source: str) -> None:
    """Acceptance 6, for every family, topic and the random words."""
    relevance: Relevance = "puzzle" if source in FAMILIES else "topic" if source else "random"
    request = 'Explain dorvan, and say "why": 10% of it?'
    bare = make_prompt(MODEL, request, None, CUE)
    assert bare.preamble == 0
    parts = [bare.ids[slice(*bare.request)], bare.ids[slice(*(bare.cue or ()))]]
    assert [MODEL.decode(part).strip() for part in parts] == [request, CUE]
    for tokens in LENGTHS:
        preamble = make_preamble(MODEL, tokens, relevance, source=source or "sudoku", seed=3)
        assert preamble is not None
        prompt = make_prompt(MODEL, request, preamble, CUE)
        assert abs(prompt.preamble - tokens) <= TOLERANCE
        assert len(prompt.ids) - len(bare.ids) == prompt.preamble
        assert [prompt.ids[slice(*prompt.request)], prompt.ids[slice(*(prompt.cue or ()))]] == parts
        assert prompt.others == len(prompt.ids) - len(parts[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(16, 700), st.sampled_from(RELEVANCES), st.integers(0, 99))
def test_any_length(tokens: int, relevance: Relevance, seed: int) -> None:
    source = "law" if relevance == "topic" else "grid"
    preamble = make_preamble(MODEL, tokens, relevance, source=source, seed=seed)
    assert preamble is not None
    assert abs(preamble.tokens - tokens) <= TOLERANCE
    assert preamble == make_preamble(MODEL, tokens, relevance, source=source, seed=seed)
    assert abs(make_prompt(MODEL, "Explain tea", preamble).preamble - tokens) <= TOLERANCE


def test_zero_is_no_preamble_and_kinds_differ() -> None:
    assert make_preamble(MODEL, 0) is None
    texts = {
        make_preamble(MODEL, 90, kind, source=s).text for kind, s in zip(RELEVANCES, ("grid", "law", ""), strict=True)
    }  # type: ignore[union-attr]
    assert len(texts) == 3


def test_a_request_that_stands_in_the_preamble_too_is_found_behind_it() -> None:
    preamble = make_preamble(MODEL, 200, source="ledger", seed=1)
    assert preamble is not None
    word = preamble.text.split()[3]
    prompt = make_prompt(MODEL, word, preamble)
    assert prompt.request[0] > preamble.tokens
    assert MODEL.decode(prompt.ids[slice(*prompt.request)]).strip() == word


def test_prompts_beyond_the_context_are_named_before_they_run() -> None:
    short = dilution(n_layers=2, n_ctx=128).model
    prompts = [make_prompt(short, "Explain tea", make_preamble(short, n, "random")) for n in (0, 60, 110, 200)]
    assert over_context(short, prompts, 20) == [False, False, True, True]
    room = short.n_ctx - len(prompts[1].ids)
    assert over_context(short, prompts[1:2], room) == [False]
    assert over_context(short, prompts[1:2], room + 1) == [True]


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="0 or more"):
        make_preamble(MODEL, -1)
    with pytest.raises((UsageError, TypeError), match="puzzles"):
        make_preamble(MODEL, 50, "puzzles")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="topic='laws'"):
        make_preamble(MODEL, 50, "topic", source="laws")
    with pytest.raises(UsageError, match="ask for more tokens"):
        make_preamble(MODEL, 1, "random")
    with pytest.raises(UsageError, match="nothing to refuse"):
        make_prompt(MODEL, "  ")


def test_a_template_that_drops_the_request_is_an_error() -> None:
    tokenizer = word_tokenizer(("Say", " tea"))
    tokenizer.chat_template = "Say{% for m in messages %}{{ m['content'][:4] }}{% endfor %}"
    model = Model(blank_llama(tokenizer, d_model=8, n_layers=1, n_heads=1, d_head=4, n_ctx=64), tokenizer, "deaf")
    with pytest.raises(UsageError):
        make_prompt(model, "a long request")
