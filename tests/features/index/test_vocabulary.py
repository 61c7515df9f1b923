"""Tokens as bytes, whichever way the tokenizer writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cutaway.features.index.vocabulary import Vocabulary, token_bytes, visible, vocabulary_of


def byte_level() -> PreTrainedTokenizerFast:
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("Ġ", "P"), ("a", "r"), ("Ġ", "ð")]
    vocabulary = {**letters, **{"".join(pair): len(letters) + i for i, pair in enumerate(merges)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def blanks_as_signs() -> PreTrainedTokenizerFast:
    pieces = [("<unk>", 0.0), ("▁Paris", -1.0), ("▁", -2.0), ("a", -3.0)]
    pieces += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


BYTE_LEVEL, SIGNS = byte_level(), blanks_as_signs()


@given(st.text(max_size=30))
def test_bytes_of_tokens_end_to_end_are_the_text(text: str) -> None:
    for tokenizer in (BYTE_LEVEL, SIGNS):
        if tokenizer is SIGNS and "▁" in text:
            continue  # this tokenizer's own text would not come back either
        vocabulary = vocabulary_of(token_bytes(tokenizer))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert b"".join(vocabulary.raw(token) for token in ids) == text.encode()


def test_special_tokens_are_written_as_they_are_and_missing_ones_are_empty() -> None:
    found = token_bytes(BYTE_LEVEL, len(BYTE_LEVEL) + 2)
    assert found[BYTE_LEVEL.eos_token_id] == b"<|end|>"
    assert found[-2:] == [b"", b""]
    assert vocabulary_of(found).text(len(found) - 1) == f"[{len(found) - 1}]"


@pytest.fixture
def words() -> Vocabulary:
    tokens = [b"Paris", b" Paris", b"paris", b"PARIS ", b" ", b"  ", b"\xf0\x9f", b"\xf0", "Ö".encode(), b""]
    return vocabulary_of(tokens)


def test_case_and_blanks_count_unless_told_otherwise(words: Vocabulary) -> None:
    assert words.find("Paris") == [0]
    assert words.find("Paris", ci=True) == [0, 2]
    assert words.find("Paris", trim=True) == [0, 1]
    assert words.find(" PARIS", ci=True, trim=True) == [0, 1, 2, 3]
    assert words.find("ö", ci=True) == [8]
    assert words.find("nothing") == []
    assert words.find("") == []


def test_a_blank_is_a_token_of_its_own_also_when_blanks_do_not_count(words: Vocabulary) -> None:
    assert words.find(" ", trim=True) == [4]
    assert words.find("  ", trim=True) == [5]


def test_single_bytes_are_found_and_shown(words: Vocabulary) -> None:
    assert words.find(b"\xf0") == [7]
    assert words.find("\udcf0\udc9f") == [6]
    assert words.text(7) == "\\xf0"
    assert words.find("\udcf0", ci=True, trim=True) == [7]


def test_what_moves_text_about_is_written_out() -> None:
    assert visible("a b\n\t\u202e\x07") == "a b↵⇥\\u202e\\x07"
    assert visible("Ö 🙂<b>") == "Ö 🙂<b>"
