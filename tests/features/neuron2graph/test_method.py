"""Each step against its definition, planted rules in full, reuse of what comes before, bad input."""

import math
from collections.abc import Sequence

import pytest
import torch

from cutaway.errors import CutawayError, UsageError
from cutaway.features import SparseDictionary
from cutaway.features.neuron2graph import (
    NeuronGraph,
    Settings,
    Snippet,
    fit,
    listed,
    mask_tokens,
    nearest_tokens,
    next_tokens,
    prune,
    published,
    read,
    saliency,
    speller,
    start_tokens,
    vary,
)
from cutaway.features.neuron2graph.calibration import SETTINGS, planted
from cutaway.features.neuron2graph.snippets import halves
from cutaway.features.neuron2graph.steps import augment
from cutaway.features.unit import Unit, function, head, latent, neuron
from cutaway.model import Model
from cutaway.planted.rules import WORDS, rule

PLAIN = Settings(fillers=(0,), start=(), after=0)


def word(token: int) -> str:
    return f" {chr(97 + token)}"


def test_pruning_takes_the_shortest_window_that_keeps_the_peak() -> None:
    # Worth one for each of the 12 tokens before: half of 12 is kept by the window of 10 tokens (9 before).
    far = function("far", lambda ids: [float(min(i, 12)) if token == 9 else 0.0 for i, token in enumerate(ids)])
    ids = (1,) * 20 + (9,) + (2,) * 9
    (found,) = prune(far, [Snippet(ids, 20, 12.0)], spell=word, settings=PLAIN)
    assert found is not None
    assert (len(found.ids), found.position, found.kept, found.scale) == (10, 9, True, 12 / 9)


def test_pruning_falls_back_to_the_longest_window() -> None:
    # No window keeps the peak: its neighbour is always louder there; 30 tokens is the longest tried.
    louder = function("louder", lambda ids: [3.0 if t == 8 else 1.0 if t == 9 else 0.0 for t in ids])
    ids = (1,) * 40 + (8, 9)
    (found,) = prune(louder, [Snippet(ids, 41, 1.0)], spell=word, settings=PLAIN)
    assert found is not None
    assert (len(found.ids), found.position, found.kept) == (30, 29, False)
    gone = function("gone", lambda ids: [1.0 if len(ids) > 50 else -1.0 for _ in ids])
    assert prune(gone, [Snippet((1,) * 60, 55, 1.0)], spell=word, settings=PLAIN) == [None]


def test_what_stands_behind_the_peak_stays_in_its_sentence_and_never_leads() -> None:
    def spell(token: int) -> str:
        return "." if token == 5 else word(token)

    def pruned(ids: tuple[int, ...], position: int, values: dict[int, float]) -> tuple[int, ...]:
        unit = function("u", lambda row: [values.get(token, 0.0) for token in row])
        (found,) = prune(unit, [Snippet(ids, position, 1.0)], spell=spell, settings=Settings(fillers=(0,), start=(7,)))
        assert found is not None
        read_back = unit.fn(found.ids)
        assert found.ids[found.position] == ids[position]
        assert not found.kept or max(read_back) == read_back[found.position]
        return found.ids[found.position :]

    assert pruned((1, 9, 1, 2, 5, 3, 4), 1, {9: 1.0}) == (9, 1, 2, 5)
    assert pruned((1, 9, 1, 1, 1, 1, 1, 1), 1, {9: 1.0}) == (9, 1, 1, 1, 1, 1)
    assert pruned((1, 9, 1, 8, 1), 1, {9: 1.0, 8: 2.0}) == (9, 1)


def test_saliency_of_a_bag_of_words_is_each_words_share() -> None:
    weights = [0.1, 0.5, 1.0, 2.0, -4.0]
    bag = function("bag", lambda ids: [sum(weights[t] for t in ids[: j + 1]) for j in range(len(ids))])
    ids = [1, 2, 3, 2]
    (found,) = saliency(bag, [ids], settings=Settings(fillers=(0, 1), start=()))
    for i in range(4):
        for j in range(4):
            loss = [(weights[ids[i]] - weights[f]) / float(found.values[j]) if i <= j else 0.0 for f in (0, 1)]
            assert float(found.importance[i, j]) == pytest.approx(sum(loss) / 2, abs=1e-6)
            assert float(found.sd[i, j]) == pytest.approx(abs(loss[0] - loss[1]) / 2, abs=1e-6)


def test_importance_for_a_token_that_does_not_fire_is_undefined() -> None:
    signed = function("signed", lambda ids: [float(t) - 2.0 for t in ids])
    (found,) = saliency(signed, [[1, 2, 3]], settings=PLAIN)
    assert torch.isnan(found.importance[:, :2]).all()
    assert torch.isfinite(found.importance[:, 2]).all()


def test_start_tokens_are_neither_masked_nor_kept() -> None:
    unit = function("last", lambda ids: [float(t == 3) * (2.0 if ids[0] == 9 else 1.0) for t in ids])
    settings = Settings(fillers=(0,), start=(9,))
    (found,) = saliency(unit, [[9, 1, 3]], settings=settings)
    assert found.importance[0].eq(0).sum() == 1
    made = fit(unit, [Snippet((1, 3), 1, 2.0)], largest=2.0, spell=word, settings=settings)
    assert made.graph.paths == {("d",)}


def sides(unit: Unit) -> Unit:
    """The same feature, its rows padded on the left on the way to the model."""

    class Left:
        name = "left"

        def activations(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            lengths = mask.sum(-1).tolist()
            turned = torch.stack([torch.roll(row, -n) for row, n in zip(ids, lengths, strict=True)])
            back = unit.activations(turned, mask.flip(1))
            return torch.stack([torch.roll(row, n) for row, n in zip(back, lengths, strict=True)])

    return Left()


def test_variants_on_a_shared_past_equal_variants_read_whole(any_model: Model) -> None:
    rng = torch.Generator().manual_seed(0)
    texts = [torch.randint(5, 90, (n,), generator=rng).tolist() for n in (23, 9, 14)]
    variants = [
        (t, [*ids[:i], int(torch.randint(5, 90, (1,), generator=rng)), *ids[i + 1 :]])
        for t, ids in enumerate(texts)
        for i in range(len(ids))
    ]
    sites = [neuron(any_model, 1, 3), head(any_model, 2, 1), neuron(any_model, 0, 5, negative=True)]
    for unit in sites:
        fast = vary(unit, texts, variants, tokens=60)
        plain = vary(unit, texts, variants, reuse=False, tokens=1)
        left = vary(sides(unit), texts, variants)
        for a, b, c in zip(fast.variants, plain.variants, left.variants, strict=True):
            assert torch.allclose(a, b, atol=1e-4)
            assert torch.allclose(a, c, atol=1e-4)
        for a, b in zip(fast.texts, plain.texts, strict=True):
            assert torch.allclose(a, b, atol=1e-5)
    assert not torch.allclose(fast.variants[0], fast.texts[0])


def test_a_site_below_attention_has_no_past(model: Model) -> None:
    made = SparseDictionary(16, 24, "topk", k=4, seed=0)
    unit = latent(model, made, "resid_pre.0", 3)
    found = vary(unit, [[5, 6, 7]], [(0, [5, 8, 7])])
    assert found.variants[0].shape == (3,)


def test_one_graph_whichever_way_it_is_read(model: Model) -> None:
    rows = [tuple(row) for row in torch.randint(5, 90, (40, 24), generator=torch.Generator().manual_seed(1)).tolist()]
    unit, spell = neuron(model, 2, 4), speller(model)
    known = read([unit], rows)
    snippets, largest = known.snippets(0, 6), known.largest(0)
    graphs = []
    for each, reuse in ((unit, True), (unit, False), (sides(unit), False)):
        settings = Settings(fillers=(40, 41), start=(), rounds=1, per_round=3, reuse=reuse)
        made = fit(
            each,
            snippets,
            largest=largest,
            spell=spell,
            settings=settings,
            propose=nearest_tokens(model),
            text=known.of(0)[:8],
        )
        graphs.append(made.graph.to_dict()["nodes"])
    for other in graphs[1:]:
        assert [node["tokens"] for node in other] == [node["tokens"] for node in graphs[0]]
        for a, b in zip(other, graphs[0], strict=True):
            assert a["activation"] == pytest.approx(b["activation"], abs=1e-4)
            assert a["importance"] == pytest.approx(b["importance"], abs=1e-3)
    assert len(graphs[0]) > 4


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["anywhere", "within"])
def test_the_first_two_rules_come_back_path_by_path(name: str, seed: int) -> None:
    each = rule(name, seed)
    found = planted(each, seed, rows=150)
    assert found.fitted is not None
    assert found.fitted.graph.paths == each.truth.paths
    assert found.other["graph"].f1 >= 0.95
    if name == "within":
        # The rate of "apple" within five tokens before "bread", which a look-up cannot see.
        assert found.other["token look-up, largest"].precision < 0.45
        assert found.other["token look-up, mean"].recall < 0.1


def test_exceptions_classes_and_noise() -> None:
    unless = planted(rule("unless"), 0)
    assert unless.fitted is not None
    quiet = {each.path for each in unless.fitted.graph.endings if each.activation < 0.5}
    assert unless.fitted.graph.paths == rule("unless").truth.paths
    assert quiet <= rule("unless").truth.exceptions
    assert unless.other["graph"].f1 >= 0.95
    assert planted(rule("class"), 0, rows=150).other["graph"].f1 >= 0.95
    assert planted(rule("noisy"), 0, rows=100).other["graph"].f1 >= 0.95


def test_noise_predicts_nothing_and_silence_is_said() -> None:
    noise = planted(rule("random"), 0, rows=60)
    assert noise.other["graph"].predicted <= 0.002 * noise.other["graph"].tokens
    silent = planted(rule("silent"), 0, rows=20)
    assert silent.fitted is None
    assert repr(silent) == "silent: never fires"


def test_without_its_additions_a_pattern_with_two_alternatives_is_lost() -> None:
    either = function("either", lambda ids: [float(t == 9 and 1 in ids[max(0, i - 4) : i]) for i, t in enumerate(ids)])
    snippets = [Snippet((3, 4, 1, 5, 1, 9), 5, 1.0)]
    bare = fit(either, snippets, largest=1.0, spell=word, settings=published("2305.19911", filler=0, start=()))
    ours = fit(either, snippets, largest=1.0, spell=word, settings=Settings(fillers=(0,), start=()))
    assert bare.graph.paths == {("j",)}
    assert ours.graph.paths == {("j", "b")}


def test_the_papers_settings_differ_where_their_code_does() -> None:
    early, late = (published(paper, filler=1, start=()) for paper in ("2304.12918", "2305.19911"))
    assert (early.lengths[:3], early.after) == ((1, 2, 3), 0)
    assert (late.lengths, late.after) == ((5, 10, 15, 20, 25, 30), 5)
    assert early.merge
    assert late.matching == "greedy"
    each = rule("anywhere")
    unit = function("anywhere", each.fn)
    known = read([unit], [tuple(row) for row in each.texts(40)])
    for settings in (early, late):
        made = fit(
            unit,
            known.snippets(0, 6),
            largest=1.0,
            spell=each.spell,
            settings=settings,
            propose=listed(range(len(WORDS))),
        )
        assert made.graph.paths == {("bread",)}


def test_substitutes_are_words_of_the_same_form_and_never_the_token_itself() -> None:
    texts = {0: " x", 1: " Red", 2: " red", 3: " Blue", 4: "Green", 5: " 7", 6: " Pink", 7: " sky"}
    found = prune(
        function("f", lambda ids: [float(t == 7 and 1 in ids) for t in ids]),
        [Snippet((1, 7), 1, 1.0)],
        spell=texts.__getitem__,
        settings=PLAIN,
    )
    unit = function("f", lambda ids: [float(t == 7 and ids[0] in (1, 3)) for t in ids])
    measured = saliency(unit, [each.ids for each in found if each], settings=PLAIN)
    variants = augment(
        [each for each in found if each], measured, propose=listed(range(8)), spell=texts.__getitem__, settings=PLAIN
    )
    assert [ids for _, ids in variants if ids[1] == 7] == [(3, 7), (6, 7)]
    made = fit(
        unit, [Snippet((1, 7), 1, 1.0)], largest=1.0, spell=texts.__getitem__, settings=PLAIN, propose=listed(range(8))
    )
    assert made.graph.paths == {("sky", "red"), ("sky", "blue")}


def test_proposers_offer_other_tokens_best_first(model: Model) -> None:
    ids = [40, 41, 42]
    following = next_tokens(model, top=5)(ids, 2)
    odds = model.logits(model.batch([ids[:2]]))[0, -1]
    assert list(following) == odds.topk(5).indices.tolist()
    assert next_tokens(model)(ids, 0) == ()
    near = nearest_tokens(model, top=4)(ids, 1)
    assert 41 not in near
    assert len(near) == 4


def test_ctrl_c_leaves_the_patterns_found_so_far() -> None:
    calls = []

    def fn(ids: Sequence[int]) -> list[float]:
        calls.append(1)
        if len(calls) > 200:
            raise KeyboardInterrupt
        return [float(t == 9) for t in ids]

    snippets = [Snippet((1, 2, 9, 3 + i % 3), 2, 1.0) for i in range(40)]
    made = fit(function("slow", fn), snippets, largest=1.0, spell=word, settings=PLAIN)
    assert not made.complete
    assert made.graph.paths == {("j",)}
    assert 0 < len(made.pruned) < 40


def test_bad_input(model: Model) -> None:
    unit = function("zero", lambda ids: [0.0] * len(ids))
    with pytest.raises(UsageError, match="'zero' has no snippet with a value above 0"):
        fit(unit, [], largest=1.0, spell=word, settings=PLAIN)
    with pytest.raises(UsageError, match="never fires"):
        fit(unit, [Snippet((1, 2), 0, 0.0)], largest=1.0, spell=word, settings=PLAIN)
    broken = function("broken", lambda ids: [math.nan] * len(ids))
    with pytest.raises(CutawayError, match="NaN or infinite"):
        fit(broken, [Snippet((1, 2), 0, 1.0)], largest=1.0, spell=word, settings=PLAIN)
    for make, message in (
        (lambda: Settings(fillers=(), start=()), "at least one token to mask with"),
        (lambda: Settings(fillers=(1,), start=(), lengths=(5, 3)), "rising"),
        (lambda: Settings(fillers=(1,), start=(), keep=0.0), "keep=0.0"),
        (lambda: published("2305", filler=1, start=()), "paper='2305'"),
        (lambda: start_tokens(model, "bos"), "the tokenizer of reader-0 has no such token"),
        (lambda: start_tokens(model, "begin"), "one of bos, eos, none"),
        (lambda: mask_tokens(model, "mask"), "has no such token; try random"),
        (lambda: mask_tokens(model, "id:9999"), "a token from 0"),
        (lambda: mask_tokens(model, "noise"), "mask, pad, random or id"),
        (lambda: mask_tokens(model, "random", [(5, 6)]), "whole words"),
        (lambda: vary(unit, [[1, 2]], [(0, [1])]), "has 1 tokens, the text 2"),
    ):
        with pytest.raises(UsageError, match=message):
            make()  # type: ignore[no-untyped-call]
    assert start_tokens(model, "eos") == (0,)
    assert start_tokens(model, "id:7") == (7,)
    assert mask_tokens(model, "pad") == (1,)


def test_halves_are_apart_and_fixed_by_the_seed() -> None:
    snippets = [Snippet((i,), 0, 1.0) for i in range(9)]
    a, b = halves(snippets, 3)
    assert (len(a), len(b)) == (5, 4)
    assert {each.ids for each in a}.isdisjoint(each.ids for each in b)
    assert halves(snippets, 3) == (a, b)
    assert halves(snippets, 4) != (a, b)


def test_settings_of_the_calibration_are_ours() -> None:
    assert SETTINGS.matching == "all"
    assert isinstance(NeuronGraph("x", ()).predict_tokens(["a"]), torch.Tensor)
