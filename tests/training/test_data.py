"""Which tokens carry loss, and the order rows come in."""

from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training_data import TEMPLATES, THINKING, character_tokenizer, rows_of, tiny

from cutaway.errors import UsageError
from cutaway.model.catalogue import catalogue, entry
from cutaway.model.load import checkpoint_of
from cutaway.planted.build import word_tokenizer
from cutaway.training import (
    Data,
    Row,
    chat_data,
    chat_row,
    check_chats,
    collate,
    data_of,
    order,
    pair_data,
    text_data,
)

SMOL = "smollm2-135m-instruct"
TOKENIZERS = {name: character_tokenizer(template) for name, template in TEMPLATES.items()}
words = st.lists(
    st.sampled_from(["hello", "assistant", "user", "the", "<", "a", "\n", "i", "model"]), min_size=1, max_size=5
).map(" ".join)
# a message of blanks alone would be trimmed to nothing
contents = words.filter(lambda text: text.strip() == text)
turns = st.lists(st.tuples(contents, contents), min_size=1, max_size=3)


def chat_of(pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [m for q, a in pairs for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]


def check_spans(tokenizer: object, chat: list[dict[str, str]], end: str) -> None:
    """The tokens with loss are those a model would have to write after each generation prompt, up to its end token."""
    row = chat_row(chat, tokenizer)
    full = tokenizer.apply_chat_template(chat, tokenize=False)
    assert list(row.ids) == tokenizer(full, add_special_tokens=False)["input_ids"]
    learnt = [place for place, weight in enumerate(row.weights) if weight]
    groups, at = [], []
    for here, after in pairwise([*learnt, -9]):
        at.append(here)
        # the end token closes a turn also where the next prompt would follow at once
        if after != here + 1 or tokenizer.decode([row.ids[here]]) == end != "":
            groups.append(at)
            at = []
    expected = [place for place, message in enumerate(chat) if message["role"] == "assistant"]
    if end:
        assert len(groups) == len(expected)
        for group, place in zip(groups, expected, strict=True):
            assert tokenizer.decode([row.ids[i] for i in group]) == chat[place]["content"] + end
            prompt = tokenizer.apply_chat_template(chat[:place], tokenize=False, add_generation_prompt=True)
            assert tokenizer.decode(list(row.ids[: group[0]])) == prompt


@pytest.mark.parametrize("name", ["chatml", "headers", "renamed"])
@given(pairs=turns)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_only_answers_and_their_end_tokens_carry_loss(name: str, pairs: list[tuple[str, str]]) -> None:
    check_spans(TOKENIZERS[name], chat_of(pairs), "<end>")


@given(
    pairs=st.lists(st.tuples(st.sampled_from(["Red", "Blue"]), st.sampled_from(["Yes", "No"])), min_size=1, max_size=3)
)
@settings(max_examples=10, deadline=None)
def test_the_planted_word_tokenizer(pairs: list[tuple[str, str]]) -> None:
    tokenizer = word_tokenizer(("Red", "Blue", "Yes", "No"))
    row = chat_row(chat_of(pairs), tokenizer)
    assert row.weights == (0.0, 1.0) * len(pairs)


@pytest.mark.skipif(
    not next((e.installed for e in catalogue() if e.name == SMOL), False),
    reason="smollm2-135m-instruct is not installed",
)
def test_smollm2s_tokenizer() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_of(entry(SMOL)))
    check_spans(tokenizer, chat_of([("Hi assistant\n there", "Héllo 東京  you"), ("More?", "a")]), "<|im_end|>")
    check_spans(
        tokenizer,
        [{"role": "system", "content": "Be brief."}, *chat_of([("Hi", "I am an\n\nassistant")])],
        "<|im_end|>",
    )


def test_a_thought_in_the_last_answer_is_learnt_and_one_that_vanishes_is_refused() -> None:
    tokenizer = character_tokenizer(THINKING)
    row = chat_row(chat_of([("Hi", "Hello")]), tokenizer)
    learnt = tokenizer.decode([i for i, weight in zip(row.ids, row.weights, strict=True) if weight])
    assert learnt == "<head>\n\n</head>\n\nHello<end>"
    with pytest.raises(UsageError, match="differently once others follow"):
        chat_row(chat_of([("Hi", "Hello"), ("More", "No")]), tokenizer)


def test_roles_and_weights_of_messages() -> None:
    chat = [*chat_of([("one", "two"), ("three", "four")])]
    chat[1] = {**chat[1], "weight": 0.25}
    row = chat_row(chat, TOKENIZERS["chatml"], ("user", "assistant"))
    decode = TOKENIZERS["chatml"].decode
    by_weight = {w: decode([i for i, v in zip(row.ids, row.weights, strict=True) if v == w]) for w in set(row.weights)}
    assert by_weight[0.25] == "two<end>"
    assert by_weight[1.0] == "one<end>three<end>four<end>"


def test_rows_beyond_the_context_are_counted_not_cut() -> None:
    chats = [chat_of([("Hi", "x" * n)]) for n in (5, 90, 7)]
    data = chat_data(chats, TOKENIZERS["headers"], context=60)
    assert (len(data), data.too_long) == (2, (1,))
    assert "1 too long" in repr(data)
    with pytest.raises(UsageError, match="all 3 examples are longer"):
        chat_data(chats, TOKENIZERS["headers"], context=10)


def test_texts_end_with_the_end_token_and_pairs_stay_together() -> None:
    data = text_data(["ab", "cde"], TOKENIZERS["chatml"], context=10)
    assert [len(example[0].ids) for example in data.examples] == [3, 4]
    assert all(example[0].ids[-1] == TOKENIZERS["chatml"].eos_token_id for example in data.examples)
    pairs = pair_data([chat_of([("q", "good")])], [chat_of([("q", "bad")])], TOKENIZERS["headers"], context=99)
    assert (pairs.members, len(pairs)) == (2, 1)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda: check_chats([]), "no chats"),
        (lambda: check_chats([[{"role": "user", "content": "Hi"}]]), "chat 0 has no turn of assistant"),
        (lambda: check_chats([[{"role": "assistant"}]]), "needs a role and a content"),
        (lambda: chat_row([{"role": "assistant", "content": "Hi"}], TOKENIZERS["chatml"]), "starts with the assistant"),
        (lambda: chat_row(chat_of([("a", "b")]), character_tokenizer("")), "no chat template"),
        (lambda: data_of([], context=5), "no data"),
        (lambda: text_data([""], TOKENIZERS["chatml"], context=5), "text 0 has 1 tokens"),
        (lambda: Row((1, 2), (0.0, 1.5)), "between 0 and 1"),
        (lambda: Row((1, 2), (1.0, 0.0)), "no token carries loss"),
        (lambda: Row((1, 2), (1.0,)), "as many weights"),
        (lambda: pair_data([], [[]], TOKENIZERS["chatml"], context=5), "0 chosen chats and 1"),
        (
            lambda: chat_row(chat_of([("a", "b")]), character_tokenizer("{{ raise_exception('no') }}")),
            "refuses this chat",
        ),
    ],
)
def test_bad_input(wrong: object, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        wrong()


@given(n=st.integers(1, 40), size=st.integers(1, 7), bucket=st.integers(1, 5), epoch=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_an_epoch_holds_every_row_once(n: int, size: int, bucket: int, epoch: int) -> None:
    data = rows_of(n)
    batches = order(data, size=size, seed=3, epoch=epoch, bucket=bucket)
    assert sorted(i for batch in batches for i in batch) == list(range(n))
    assert len(batches) == -(-n // size)
    assert batches == order(data, size=size, seed=3, epoch=epoch, bucket=bucket)
    assert order(data, size=size, seed=3, epoch=epoch, shuffle=False)[0] == list(range(min(n, size)))


def test_buckets_save_padding_and_bucket_1_ignores_lengths() -> None:
    data, other = rows_of(64), rows_of(64, seed=1)

    def padded(data: Data, bucket: int) -> int:
        lengths = [
            [len(data.examples[i][0].ids) for i in b] for b in order(data, size=8, seed=0, epoch=0, bucket=bucket)
        ]
        return sum(max(row) * len(row) - sum(row) for row in lengths)

    assert padded(data, 8) < 0.4 * padded(data, 1)
    assert order(data, size=8, seed=0, epoch=0) == order(other, size=8, seed=0, epoch=0)
    assert order(data, size=8, seed=0, epoch=0) != order(data, size=8, seed=0, epoch=1)


def test_a_batch_weighs_neither_padding_nor_the_first_token() -> None:
    data = rows_of(5, mixed=False)
    batch = collate(data, [0, 1, 2], tiny())
    expected = batch.tokens.mask.float()
    expected[:, 0] = 0
    assert torch.equal(batch.weights, expected)
