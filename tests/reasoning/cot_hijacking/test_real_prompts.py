"""Real tokenizers and weights: the slow tier."""

import os

import pytest

from cutaway.model import catalogue, load_model
from cutaway.reasoning.attention import last_row_attention
from cutaway.reasoning.cot_hijacking.data import default_requests, read_goals
from cutaway.reasoning.cot_hijacking.length import CUE, TOLERANCE, make_preamble, make_prompt

pytestmark = pytest.mark.slow  # real weights

REAL = [item.name for item in catalogue() if item.kind == "model" and item.installed]
if extra := os.environ.get("CUTAWAY_SLOW_MODEL"):
    REAL.append(extra)


@pytest.mark.parametrize("name", REAL)
def test_spans_and_lengths_of_real_tokenizers(name: str) -> None:
    """Acceptance 5 and 6 on real chat templates, for every request at hand."""
    model = load_model(name, dtype="float32", device="cpu")
    for tokens in (0, 128, 1500):
        preamble = make_preamble(model, tokens, "puzzle", source="sudoku")
        for goal in read_goals(default_requests())[:: 1 if tokens == 0 else 9]:
            prompt = make_prompt(model, goal.harmful, preamble, CUE)
            assert abs(prompt.preamble - tokens) <= TOLERANCE
            assert model.decode(prompt.ids[slice(*prompt.request)]).strip() == goal.harmful
            assert prompt.cue is not None
            assert model.decode(prompt.ids[slice(*prompt.cue)]).strip() == CUE
    short = make_prompt(model, "Explain how tides work.")
    share = last_row_attention(model, short.ids, [(0, len(short.ids))])
    assert float((share - 1).abs().max()) < 1e-4
