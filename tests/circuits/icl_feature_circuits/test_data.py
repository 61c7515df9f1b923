import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cutaway.circuits.icl_feature_circuits import Prompt, Split, Task, few_shot, prepare, single_token, split
from cutaway.circuits.icl_feature_circuits.data import ARROW, HEADER, ROLES, tokens
from cutaway.circuits.icl_feature_circuits.words import gerund, past, plural, task, tasks, third
from cutaway.errors import UsageError
from cutaway.planted.build import word_tokenizer


def byte_level(extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = [f"{HEADER}red apple -> two words\nhot -> cold\n" * 3, *extra]
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


TOKENIZERS = {
    "byte-level": byte_level(),
    "words": word_tokenizer(("Follow", " the", " pattern", ":", ARROW, "red", " red", " apple")),
}
word = st.text(st.sampled_from("abcdeXYZ019é"), min_size=1, max_size=6)
ascii_word = st.text(st.sampled_from("abcdeXYZ019"), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(TOKENIZERS)))
def test_every_token_has_the_role_of_its_place(data: st.DataObject, kind: str) -> None:
    one = word if kind == "byte-level" else ascii_word
    phrase = st.lists(one, min_size=1, max_size=3).map(" ".join)
    pairs = data.draw(st.lists(st.tuples(phrase, phrase), min_size=1, max_size=3, unique_by=lambda pair: pair[0]))
    query = data.draw(st.none() | st.tuples(phrase, phrase))
    tokenizer = TOKENIZERS[kind]
    ids, roles, arrows = tokens(tokenizer, Prompt(tuple(pairs), query))
    pieces = [tokenizer.decode([i]) for i in ids]
    assert set(roles) <= {*ROLES, "", *(f"prompt.{i}" for i in range(4, 40))}
    assert len(ids) == len(roles)
    count = len(pairs) + (query is not None)
    assert [roles.count(role) for role in ("arrow", "input", "output", "newline")] == [count, count, *[len(pairs)] * 2]
    assert [i for i, role in enumerate(roles) if role == "arrow"] == arrows
    header = roles.index("input") - 1
    while roles[header] == "inside":
        header -= 1
    # Inputs and outputs are rebuilt from the tokens between the marks.
    expected = [*(pairs if query is None else [*pairs, query])]
    begin = header + 1
    for line, (x, y) in enumerate(expected):
        arrow = arrows[line]
        assert pieces[arrow].strip() == "->"
        assert roles[arrow - 1] == "input"
        assert all(role == "inside" for role in roles[begin : arrow - 1])
        if kind == "words":
            assert "".join(pieces[begin:arrow]) == x
        if line < len(pairs):
            end = roles.index("newline", arrow)
            assert roles[end - 1] == "output"
            assert all(role == "inside" for role in roles[arrow + 1 : end - 1])
            if kind == "words":
                assert "".join(pieces[arrow + 1 : end]) == f" {y}"
            begin = end + 1
        else:
            assert set(roles[arrow + 1 :]) == {""}


def test_masks_are_disjoint_and_padding_has_no_role(planted, parts) -> None:
    rows = few_shot(parts.shots, 3, 3, seed=0) + few_shot(parts.shots, 2, 2, seed=1)
    made = prepare(planted.model, rows)
    total = sum(made.having(role).long() for role in made.roles)
    assert int(total.max()) == 1
    assert not bool(total[~made.batch.mask].any())
    assert made.at.shape[1] == 2  # every arrow but the first
    assert made.real.tolist() == [[True, True]] * 3 + [[True, False]] * 2
    assert bool(made.having("arrow").gather(1, made.at).all())
    assert bool((made.target == made.batch.ids.gather(1, made.at + 1)).all())


def test_targets_of_a_query_are_its_first_tokens() -> None:
    class Holder:
        tokenizer = TOKENIZERS["words"]

    ids, roles, arrows = tokens(Holder.tokenizer, Prompt((("red", "apple"),), ("red", "xyz")))
    assert [Holder.tokenizer.decode([i]) for i in ids[arrows[-1] :]] == [ARROW, " ", "x", "y", "z"]
    assert roles[arrows[-1] + 1 :] == [""] * 4


def test_a_split_arrow_or_newline_is_refused() -> None:
    plain = word_tokenizer(("Follow", " the"))
    with pytest.raises(UsageError, match="arrow must be one"):
        tokens(plain, Prompt((("a", "b"),)))
    with pytest.raises(UsageError, match="reaches over"):
        tokens(word_tokenizer((ARROW, "b\n")), Prompt((("a", "b"),)))


def test_splits_never_share_an_input() -> None:
    parts = split(task("plural"), 8, queries=24, seed=4)
    used = [{x for x, _ in part} for part in (parts.shots, parts.fit, parts.held)]
    assert len(parts.fit) == len(parts.held) == 24
    assert not used[2] & (used[0] | used[1])
    with pytest.raises(UsageError, match="both for fitting and for evaluation"):
        Split("t", (("a", "b"),), (), (("a", "c"),))


def test_too_few_pairs_are_named() -> None:
    few = Task("tiny", (("a", "b"), ("c", "d"), ("e", "f")))
    with pytest.raises(UsageError, match="'tiny': 3 pairs"):
        split(few, 4)
    with pytest.raises(UsageError, match="at least 4"):
        few_shot(few.pairs, 3, 1)
    with pytest.raises(UsageError, match="asked twice"):
        Task("t", (("a", "b"), ("a", "c")))
    with pytest.raises(UsageError, match="did you mean"):
        task("plurals")


def test_single_token_answers_are_checked_by_the_tokenizer() -> None:
    class Holder:
        tokenizer = TOKENIZERS["words"]

    checked = single_token(Holder, Task("t", (("a", "red"), ("b", "blue"), ("c", "apple"))))  # type: ignore[arg-type]
    assert [x for x, _ in checked.task.pairs] == ["a", "c"]
    assert checked.dropped == (("b", "blue"),)


def test_prompts_show_different_examples_and_never_their_query(parts) -> None:
    for prompt in few_shot(parts.shots, 3, 5, queries=parts.shots, seed=2):
        inputs = [x for x, _ in prompt.shots]
        assert prompt.query is not None
        assert len({*inputs, prompt.query[0]}) == 4


def test_lists_are_long_enough_and_rules_are_right() -> None:
    sizes = {name: len(found.pairs) for name, found in tasks().items()}
    assert all(n >= 90 for name, n in sizes.items() if name != "next letter"), sizes
    assert [plural(x) for x in ("box", "city", "boy", "child", "church")] == [
        *("boxes", "cities", "boys", "children", "churches"),
    ]
    assert [past(x) for x in ("bake", "stop", "study", "play", "go")] == [
        "baked",
        "stopped",
        "studied",
        "played",
        "went",
    ]
    assert [gerund(x) for x in ("bake", "stop", "agree", "run")] == ["baking", "stopping", "agreeing", "running"]
    assert [third(x) for x in ("go", "watch", "study", "play")] == ["goes", "watches", "studies", "plays"]
    place = {"first": 0, "second": 1, "third": 2, "last": 3}
    for name, index in place.items():
        assert all(x.split()[index] == y for x, y in tasks()[name].pairs)
