"""Span attention against whole captured patterns, by plain loops, for every kind of attention."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cutaway.errors import UsageError
from cutaway.model import AttentionMask, Batch, Model
from cutaway.planted import reasoner
from cutaway.reasoning.attention import find_span, last_row_attention, span_attention, uniform_share

IDS = torch.randint(3, 61, (24,), generator=torch.Generator().manual_seed(1)).tolist()
SPANS = [(2, 5), (5, 6), (6, 13), (13, 15), (17, 24)]


def patterns(model: Model, ids: list[int]) -> torch.Tensor:
    found = model.capture([ids], "pattern.*")
    return torch.stack([found[f"pattern.{layer}"][0] for layer in range(model.n_layers)])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block", [4, 128])
def test_span_attention_is_the_block_mean_of_the_pattern(family: str, block: int) -> None:
    model = tiny(family)
    whole = patterns(model, IDS)
    found = span_attention(model, IDS, SPANS, block=block)
    for i, (a, b) in enumerate(SPANS):
        for j, (c, d) in enumerate(SPANS):
            expected = whole[:, :, a:b, c:d].mean((-1, -2))
            torch.testing.assert_close(found[:, :, i, j], expected, atol=1e-6, rtol=0)
    assert bool(found.triu(1).eq(0).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_patterns_are_those_of_eager_attention(family: str) -> None:
    expected = tiny(family, "eager").hf(torch.tensor([IDS]), output_attentions=True).attentions
    torch.testing.assert_close(patterns(tiny(family), IDS), torch.stack(expected)[:, 0], atol=1e-5, rtol=0)


def test_layers_edits_and_any_spans() -> None:
    model = tiny("llama")
    mixed = [(6, 13), (2, 9)]  # out of order, overlapping
    part = span_attention(model, IDS, mixed, layers=[2])
    whole = patterns(model, IDS)[2]
    torch.testing.assert_close(part[0, :, 1, 0], whole[:, 2:9, 6:13].mean((-1, -2)), atol=1e-6, rtol=0)
    with model.edited(AttentionMask(2, keys=range(6, 13))):
        hidden = span_attention(model, IDS, [(6, 13), (14, 24)], layers=[2])
    assert bool(hidden[0, :, 1, 0].eq(0).all())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())


def padded(rows: list[list[int]], left: bool) -> Batch:
    width = max(map(len, rows))
    gaps = [[0] * (width - len(row)) for row in rows]
    ids = torch.tensor([gap + row if left else row + gap for gap, row in zip(gaps, rows, strict=True)])
    real = [[False] * len(gap) + [True] * len(row) for gap, row in zip(gaps, rows, strict=True)]
    return Batch(ids, torch.tensor(real if left else [row[::-1] for row in real]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("query", [-1, 7])
def test_last_row_is_a_row_of_the_pattern_also_under_padding(family: str, query: int) -> None:
    model = tiny(family)
    rows, spans = [IDS, IDS[3:17]], [SPANS[:3], [(0, 4), (5, 8), (8, 14)]]
    alone = [last_row_attention(model, row, each, query) for row, each in zip(rows, spans, strict=True)]
    for row, each, found in zip(rows, spans, alone, strict=True):
        line = patterns(model, row)[:, :, query]
        expected = torch.stack([line[..., a:b].sum(-1) for a, b in each], -1)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    for left in (False, True):
        together = last_row_attention(model, padded(rows, left), spans, query)
        torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=0)


@given(st.integers(1, 30), st.data())
@settings(max_examples=50, deadline=None)
def test_uniform_shares_of_a_partition_sum_to_one(n: int, data: st.DataObject) -> None:
    cuts = sorted({0, n, *data.draw(st.lists(st.integers(1, n), max_size=5))})
    query = data.draw(st.integers(-n, n - 1))
    share = uniform_share(list(pairwise(cuts)), n, query)
    assert float(share.sum()) == pytest.approx(1.0, abs=1e-5)


def test_uniform_share_is_what_a_uniform_head_gives() -> None:
    model = tiny("llama")
    for layer in range(3):
        model.hf.model.layers[layer].self_attn.q_proj.weight.zero_()
    found = last_row_attention(model, IDS, SPANS, 14)
    torch.testing.assert_close(found, uniform_share(SPANS, len(IDS), 14).expand_as(found), atol=1e-6, rtol=0)


def test_find_span_reads_words_repeats_and_pieces() -> None:
    model = reasoner("pffa").model
    ids = model.encode("Choose one digit with care. Plan alpha fits best. Note1 mentions amber. Note2 mentions amber.")
    whole = model.decode(ids)
    for text, occurrence in (("alpha fits best", 0), (" mentions amber", 0), (" mentions amber", 1), ("ine", 0)):
        if text not in whole:
            continue
        a, b = find_span(model, ids, text, occurrence)
        assert text in model.decode(ids[a:b])
        assert text not in model.decode(ids[a + 1 : b])
        assert text not in model.decode(ids[a : b - 1])
    first, second = (find_span(model, ids, "mentions", i) for i in (0, 1))
    assert first[1] <= second[0]
    assert find_span(model, ids, "mentions", -1) == second
    a, b = find_span(model, ids, "lpha fi")  # both edges lie inside a token
    assert model.decode(ids[a:b]) == " alpha fits"
    at = whole.index("best")
    assert find_span(model, ids, (at, at + 2)) == find_span(model, ids, "best")


CHAT = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}<|start|>assistant\n"


@pytest.fixture(scope="module")
def chatting() -> Model:
    """A byte-level tokenizer with merges and a chat template, as real chat models have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>", "<|start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Please solve this puzzle. Then bake a cake, please."] * 8, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=CHAT)
    return Model(tiny("llama", vocab_size=300).hf, fast, "chat")


def test_find_span_inside_a_chat_template(chatting: Model) -> None:
    ids = chatting.chat_ids("Solve this puzzle. Then bake a \U0001f370 cake, please. Then bake a café cake.")
    for text, occurrence in (
        ("bake a", 0),
        ("bake a", 1),
        ("\U0001f370", 0),
        ("fé ca", 0),
        ("assistant", 0),
        ("user", 0),
    ):
        a, b = find_span(chatting, ids, text, occurrence)
        assert text in chatting.decode(ids[a:b])
        for shorter in (ids[a + 1 : b], ids[a : b - 1]):
            assert text not in chatting.decode(shorter)
    assert find_span(chatting, ids, "bake a", 0)[1] <= find_span(chatting, ids, "bake a", 1)[0]
    a, b = find_span(chatting, ids, "Solve this puzzle. Then bake a \U0001f370 cake")
    share = last_row_attention(chatting, ids, [(a, b), (0, len(ids))])
    torch.testing.assert_close(share[..., 1], torch.ones(3, 4))
    assert bool((share[..., 0] < 1).all())


@pytest.mark.parametrize(
    ("what", "occurrence", "message"),
    [
        ("", 0, "empty"),
        ("zebra", 0, "occurs 0 times"),
        ("Plan", 1, "occurs 1 times"),
        ((5, 5), 0, "must be a range"),
        ((5, 10**6), 0, "must be a range"),
    ],
)
def test_find_span_refuses(what: str | tuple[int, int], occurrence: int, message: str) -> None:
    planted = reasoner("pfsa")
    ids = [*planted.prompt_ids, *planted.sample_trace(0)]
    with pytest.raises(UsageError, match=message):
        find_span(planted.model, ids, what, occurrence)


def test_bad_input() -> None:
    model = tiny("llama")
    for spans in ([], [(3, 3)], [(0, 25)], [(-1, 2)]):
        with pytest.raises(UsageError, match="span"):
            span_attention(model, IDS, spans)
    with pytest.raises(UsageError, match="layers"):
        span_attention(model, IDS, SPANS, layers=[3])
    with pytest.raises(UsageError, match="position 24 is outside"):
        last_row_attention(model, IDS, SPANS, 24)
    with pytest.raises(UsageError, match="same number of spans"):
        last_row_attention(model, padded([IDS, IDS[:5]], left=True), [[(0, 1)]])
    with pytest.raises(UsageError, match="query=5"):
        uniform_share([(0, 1)], 5, 5)
