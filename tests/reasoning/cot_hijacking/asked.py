"""Planted refusing models, asked at several lengths."""

from cutaway.planted.dilution import COMPLY, CUE, REFUSE, Cause, Dilution, dilution
from cutaway.reasoning.cot_hijacking.data import Goal
from cutaway.reasoning.cot_hijacking.length import Prompt, make_preamble, make_prompt
from cutaway.reasoning.cot_hijacking.reading import Readout

LONG = 300


def planted(cause: Cause = "length", seed: int = 0) -> Dilution:
    return dilution(cause, n_heads=8, checks=3, noise=0.02, spread=0.1, seed=seed)


def readout(each: Dilution) -> Readout:
    vocabulary = each.model.tokenizer.get_vocab()
    return Readout((vocabulary[REFUSE],), (vocabulary[COMPLY],))


def ask(each: Dilution, tokens: int, *, forbidden: bool = True, cue: bool = False) -> list[Prompt]:
    preamble = make_preamble(each.model, tokens, source="ledger", seed=1)
    return [make_prompt(each.model, text, preamble, CUE if cue else "") for text in each.requests(forbidden=forbidden)]


def goals(each: Dilution) -> list[Goal]:
    pairs = zip(each.requests(forbidden=True), each.requests(forbidden=False), strict=True)
    return [Goal(f"g{i}", "law", bad, good) for i, (bad, good) in enumerate(pairs)]
