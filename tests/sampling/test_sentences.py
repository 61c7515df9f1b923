"""Splitting into sentences: nothing lost, nothing moved, whatever the tokens."""

import functools
import itertools

import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cutaway.model import Model
from cutaway.planted import reasoner
from cutaway.sampling.sentences import SHORTEST, split_text, split_tokens, token_ends

CORPUS = [
    "Wait, let me think about this. So 2 + 2 is 4!\n\nIs that right? Yes 👍🏽 it is. Größe und Maß, 数学は楽しい。"
] * 3


@functools.cache
def byte_level() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, in which one emoji takes several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def encode(text: str) -> list[int]:
    return byte_level()(text)["input_ids"]


def decode(ids: object) -> str:
    return byte_level().decode(ids, clean_up_tokenization_spaces=False)


PIECES = st.sampled_from(
    [
        "Wait. ",
        "No! ",
        "Then x is 3.5 apples",
        "? ",
        ". ",
        "\n\n",
        "\n",
        " ",
        "é",
        "👍🏽",
        "数学。",
        "So it goes.",
        "\t",
        "\r\n",
        "�",
    ]
)
TEXTS = st.one_of(st.lists(PIECES, max_size=14).map("".join), st.text(max_size=60))


def texts_of(ids: list[int], spans: list[tuple[int, int]]) -> list[str]:
    """Each span's text, by decoding with growing context."""
    cuts = [0, *(len(decode(ids[:end])) for _, end in spans)]
    whole = decode(ids)
    return [whole[a:b] for a, b in itertools.pairwise(cuts)]


@budget(max_examples=300, deadline=None)
@given(TEXTS, st.integers(1, 20))
def test_character_spans_cover_the_text_in_order(text, shortest):
    spans = split_text(text, shortest)
    assert "".join(text[a:b] for a, b in spans) == text
    assert all(a < b for a, b in spans)
    if len(spans) > 1:
        assert all(len(text[a:b].strip()) >= shortest for a, b in spans)


@budget(max_examples=300, deadline=None)
@given(TEXTS)
def test_token_spans_cover_the_ids_in_order_and_cut_at_or_after_the_text(text):
    ids = encode(text)
    spans = split_tokens(ids, decode)
    assert [token for a, b in spans for token in ids[a:b]] == ids
    assert all(a < b for a, b in spans)
    assert "".join(texts_of(ids, spans)) == text
    assert len(spans) <= len(split_text(text)) or not text


@budget(max_examples=200, deadline=None)
@given(TEXTS)
def test_token_ends_rise_to_the_length_of_the_text(text):
    ids = encode(text)
    ends = token_ends(ids, decode)
    assert len(ends) == len(ids)
    assert ends == sorted(ends)
    assert (ends[-1] if ends else 0) == len(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("no end in sight", ["no end in sight"]),
        ("One sentence only.", ["One sentence only."]),
        ("Plan it first. Then do it now.", ["Plan it first.", " Then do it now."]),
        ("Ok. Then we add the numbers. Fine.", ["Ok. Then we add the numbers. Fine."]),
        ("Is it 3.14159? Yes, it is 3.14159!", ["Is it 3.14159?", " Yes, it is 3.14159!"]),
        ("A heading here\n\nand the body text", ["A heading here\n\n", "and the body text"]),
        ("The first is done.\nThe second follows.", ["The first is done.\n", "The second follows."]),
        ("Wait, wait. Wait, wait. Wait, wait.", ["Wait, wait.", " Wait, wait.", " Wait, wait."]),
        ("Nice work 👍🏽. And then 数学 next.", ["Nice work 👍🏽.", " And then 数学 next."]),
        ("   \n\n  ", ["   \n\n  "]),
    ],
)
def test_known_texts(text, expected):
    assert [text[a:b] for a, b in split_text(text)] == expected
    ids = encode(text)
    assert texts_of(ids, split_tokens(ids, decode)) == expected


def test_short_fragments_join_the_next_and_a_short_last_one_the_one_before():
    text = "Hm. So. We now add the two numbers. Ok! And here we are at last. No."
    parts = [text[a:b] for a, b in split_text(text)]
    assert parts == ["Hm. So. We now add the two numbers.", " Ok! And here we are at last. No."]
    assert all(len(part.strip()) >= SHORTEST for part in parts)
    assert len(split_text(text, shortest=1)) == 6


def test_repeated_sentences_keep_their_own_place():
    ids = encode("Wait a minute." + " Wait a minute." * 4)
    spans = split_tokens(ids, decode)
    assert len(spans) == 5
    assert texts_of(ids, spans)[1:] == [" Wait a minute."] * 4
    assert [a for a, _ in spans] == [0, *(b for _, b in spans[:-1])]


def test_no_span_cuts_a_character():
    text = "".join(f"We count to {i} with 👩‍👩‍👧‍👦🏳️‍🌈 and on. " for i in range(6))
    ids = encode(text)
    assert any(decode([token]).endswith("�") for token in ids), "no character is split over tokens"
    spans = split_tokens(ids, decode)
    assert len(spans) >= 6
    assert not any("�" in part for part in texts_of(ids, spans))


def test_a_tokenizer_that_drops_the_first_blank_loses_nothing():
    """Sentencepiece-like: the first token's blank is not decoded."""
    words = ["▁We", "▁plan", "▁first.", "▁Then", "▁we", "▁act", "▁well."]

    def drop(ids):
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert split_tokens(range(7), drop) == [(0, 3), (3, 7)]
    assert token_ends(range(7), drop) == [2, 7, 14, 19, 22, 26, 32]


def test_tokens_without_text_join_the_last_sentence():
    planted = reasoner("pfsa")
    model: Model = planted.model
    ids = planted.sample_trace(0)
    spans = split_tokens(ids, model.decode)
    assert len(spans) == 4
    assert spans == list(itertools.pairwise(planted.boundaries(ids)))

    def silent_end(tokens):
        return model.decode([t for t in tokens if t not in model.eos_ids])

    assert split_tokens(ids, silent_end) == spans
    assert split_tokens(ids[-1:], silent_end) == [(0, 1)]
