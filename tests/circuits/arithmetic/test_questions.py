"""Questions against Python's integers, classes against a walk over the columns."""

import numpy as np
import pytest
from by_hand import carries_by_hand, class_by_hand, integers
from hypothesis import given
from hypothesis import strategies as st

from cutaway.circuits.arithmetic import (
    CLASSES,
    Format,
    Questions,
    answer_digits,
    chain,
    class_names,
    class_probabilities,
    from_text,
    join,
    of_class,
    per_class,
    training_batch,
    uniform,
)
from cutaway.errors import UsageError


def check_answers(questions: Questions) -> None:
    first, second = integers(questions.first), integers(questions.second)
    truth = [a - b if minus else a + b for a, b, minus in zip(first, second, questions.minus.tolist(), strict=True)]
    digits = questions.format.digits + 1
    for text, value in zip(questions.texts(), truth, strict=True):
        written = text.split("=")[1]
        sign = ("-" if value < 0 else "+") if questions.format.signed else ""
        assert written == f"{sign}{abs(value):0{digits}d}"


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("digits", [1, 2, 5, 20])
def test_answers_are_those_of_integer_arithmetic(digits: int, signed: bool) -> None:
    form = Format(digits, signed)
    share = 0.5 if signed else 0.0
    rng = np.random.default_rng(1)
    batch = training_batch(form, 500, rng, minus=share, batches=1.0, cells=0.4)
    questions = join([uniform(form, 500, 0, minus=share), batch])
    check_answers(questions)
    assert questions.tokens.shape == (1000, form.n_ctx)
    np.testing.assert_array_equal(questions.columns.arrives, carries_by_hand(questions))


def test_zero_is_never_negative_and_leading_zeros_are_written() -> None:
    form = Format(4, signed=True)
    questions = from_text(form, ["0012-0012", "0000-0000", "0001-0009", "9999+0001", "9999-9999"])
    answers = [text.split("=")[1] for text in questions.texts()]
    assert answers == ["+00000", "+00000", "-00008", "+10000", "+00000"]
    assert questions.negative.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("digits", [1, 3, 6])
def test_a_class_holds_what_its_name_says(name: str, digits: int) -> None:
    form = Format(digits, signed=True)
    if class_probabilities(form, minus=name[0] != "S")[name] == 0:
        with pytest.raises(UsageError, match="does not exist"):
            of_class(form, name, 1, 0)
        return
    questions = of_class(form, name, 400, 3)
    check_answers(questions)
    assert set(class_names(questions)) == {name}
    rows = zip(questions.first.tolist(), questions.second.tolist(), questions.minus.tolist(), strict=True)
    assert {class_by_hand(a, b, minus) for a, b, minus in rows} == {name}


@pytest.mark.parametrize("minus", [False, True])
def test_class_probabilities_are_exact(minus: bool) -> None:
    """All 10,000 two-digit questions, one by one."""
    form = Format(2, signed=True)
    every = np.stack(np.meshgrid(*[np.arange(10)] * 4, indexing="ij"), -1).reshape(-1, 4)
    questions = Questions(form, every[:, :2], every[:, 2:], np.full(len(every), minus))
    names, counts = np.unique(class_names(questions), return_counts=True)
    exact = class_probabilities(form, minus=minus)
    assert sum(exact.values()) == 1
    found = dict(zip(names.tolist(), counts.tolist(), strict=True))
    assert {name: p * 10_000 for name, p in exact.items() if p} == found


def test_a_class_is_drawn_uniformly() -> None:
    """Every two-digit S2 question comes up as often as any other."""
    form = Format(2)
    drawn = of_class(form, "S2", 45_000, 0)
    keys = drawn.first @ [1, 10] * 100 + drawn.second @ [1, 10]
    counts = np.bincount(keys, minlength=10_000)
    there = counts[counts > 0]
    assert len(there) == 450  # 45 pairs that carry, 10 that sum to 9
    assert (abs(there - 100) < 50).all()  # five standard deviations
    assert class_names(drawn).tolist() == ["S2"] * len(drawn)


def test_the_three_sets_are_disjoint_and_exhaustive() -> None:
    questions = uniform(Format(6, signed=True), 3000, 0, minus=0.5)
    sets = questions.columns.sets
    assert sum((sets == place).sum() for place in range(3)) == sets.size
    columns = questions.columns
    for place, cells in enumerate(
        (~columns.arrives, columns.arrives & ~columns.passes, columns.arrives & columns.passes)
    ):
        np.testing.assert_array_equal(sets == place, cells)


@given(st.integers(1, 8), st.integers(0, 10_000), st.booleans())
def test_the_causal_model_is_arithmetic(digits: int, seed: int, minus: bool) -> None:
    questions = uniform(Format(digits, signed=True), 20, seed, minus=minus)
    columns = questions.columns
    again = answer_digits(columns.base, columns.case, questions.minus)
    np.testing.assert_array_equal(again, questions.answer)


@pytest.mark.parametrize(("start", "length"), [(0, 0), (0, 4), (1, 2), (3, 1)])
def test_chains_start_and_end_where_asked(start: int, length: int) -> None:
    questions = chain(Format(5), start, length, 300, 0)
    check_answers(questions)
    columns = questions.columns
    assert columns.makes[:, start].all()
    assert columns.passes[:, start + 1 : start + 1 + length].all()
    if start + length + 1 < 5:
        assert not columns.passes[:, start + length + 1].any()


def test_enrichment_makes_nines_equal_numbers_and_negative_answers() -> None:
    form, rng = Format(6, signed=True), np.random.default_rng(0)
    adds = training_batch(form, 20_000, rng, minus=False, batches=1.0, cells=0.4)
    assert abs(adds.columns.passes.mean() - (0.4 + 0.6 * 0.1)) < 0.01
    subs = training_batch(form, 20_000, rng, minus=True, batches=1.0, cells=0.4)
    assert abs((subs.first == subs.second).all(axis=1).mean() - 0.01) < 0.004
    plain = training_batch(form, 20_000, rng, minus=True, batches=0.0, cells=0.4)
    assert subs.negative.mean() > plain.negative.mean() + 0.03


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Format(0), "at least 1 digit"),
        (lambda: Format(-3), "at least 1 digit"),
        (lambda: Format(3).token("x"), "symbol 'x'"),
        (lambda: from_text(Format(3), ["12+345"]), "has 2 digits"),
        (lambda: from_text(Format(3), ["-12+345"]), "not a number of plain digits"),
        (lambda: from_text(Format(3), ["1a2+345"]), "not a number of plain digits"),
        (lambda: from_text(Format(3), ["123*456"]), "with \\+ or - between"),
        (lambda: from_text(Format(3), ["123-456"]), "signed=True"),
        (lambda: uniform(Format(3), 5, 0, minus=True), "signed=True"),
        (lambda: uniform(Format(3), -1, 0), "n=-1"),
        (lambda: of_class(Format(3), "S9", 5, 0), "class 'S9'"),
        (lambda: of_class(Format(3), "M1", 5, 0), "signed=True"),
        (lambda: chain(Format(3), 2, 1, 5, 0), "does not fit"),
        (lambda: per_class(Format(3), 5, 0, operations="times"), "operations='times'"),
        (lambda: join([uniform(Format(3), 1, 0), uniform(Format(4), 1, 0)]), "one format"),
    ],
)
def test_bad_questions_are_refused(make: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.slow
def test_a_hundred_thousand_of_each_class() -> None:
    """Slow: the acceptance numbers, 200,000 questions of every class of six digits."""
    form = Format(6, signed=True)
    for i, name in enumerate(CLASSES):
        questions = of_class(form, name, 200_000, i)
        check_answers(questions)
        rows = zip(questions.first.tolist(), questions.second.tolist(), questions.minus.tolist(), strict=True)
        assert {class_by_hand(a, b, minus) for a, b, minus in rows} == {name}
        np.testing.assert_array_equal(questions.columns.arrives, carries_by_hand(questions))
