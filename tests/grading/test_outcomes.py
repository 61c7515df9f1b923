import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.errors import CutawayError, UsageError
from cutaway.grading import auto_outcome, from_callable, parse_outcome


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("6 boxes of 7 pens make 42 pens.", "42"),
        ("Step 1: 3 + 4 = 7\nStep 2: 7 * 2 = 14\nThe answer is 14.", "14"),
        ("The answer is 42 because 6 * 7 = 42 and 5 > 3.", "42"),
        ("The answer is 42, since x = 7.", "42"),
        ("The answer is 5 + 3 = 8.", "8"),
        ("So the final answer is x = 8.", "8"),
        ("**Answer:** $1,250.00\n\nLet me know if you need 2 more!", "1250"),
        ("Answer:\n42", "42"),
        ("Natalia sold 48/2 = 24 clips.\n#### 72", "72"),
        ("The temperature fell to -3.5 degrees", "-3.5"),
        ("It fell to −4°C.", "-4"),
        ("10 - 3", "3"),
        ("between 5-10", "10"),
        ("a share of 3/4", "0.75"),
        ("that is 2/3 of it.", "2/3"),
        (r"so $x = -\frac{3}{4}$", "-0.75"),
        (r"Thus \boxed{1{,}000} in 3 steps", "1000"),
        ("50% of them", "50"),
        ("it costs $.50", "0.5"),
        ("the value 3.14.", "3.14"),
        ("I hope the answer is clear: 12. The answer is clear.", "12"),
        ("model v1.2 and H2O", None),
        ("no idea", None),
        ("", None),
        ("100 200 300", "300"),
        ("1,2,3", "3"),
        ("1/0", None),
        ("0.0", "0"),
        ("-0", "0"),
        ("one million is 1,000,000!", "1000000"),
    ],
)
def test_number(text, answer):
    assert parse_outcome("number")(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is (B).", "B"),
        ("Answer: C", "C"),
        ("**Answer:** d", "D"),
        ("The answer is a bit unclear. I would say (E)", "E"),
        ("The answer is A.", "A"),
        ("The correct answer is option C because A is wrong.", "C"),
        ("A) red B) blue. I choose B because it is a nice one", "B"),
        ("(A) is too small, (B) fits", None),
        ("A) 78 B) 71", None),
        ("(A) 12 (B) 13", None),
        ("A. 78\nB. 71\nC. 80", None),
        ("The choices are\n**A)** It rains.\n**B)** It snows.", None),
        ("Answer: A) 78 B) 71", None),
        ("A) 78 B) 71 C) 80. So C) 80 it is", "C"),
        ("A) 78 B) 71\n\nB", "B"),
        ("A) 78 B) 71\nThe answer is B) 71.", "B"),
        ("A) 78 B) 71\nSo (B).", "B"),
        ("A) is wrong. B) is right.", "B"),
        ("The answer is A) 78.", "A"),
        ("I would rather say C: it is the only one left", "C"),
        ("Let me think.\nB\n", "B"),
        ("Let me think.\n**C.**", "C"),
        (r"So $\boxed{\text{D}}$", "D"),
        ("A man walks in and sees a dog", None),
        ("I think so", None),
        ("", None),
    ],
)
def test_letter(text, answer):
    assert parse_outcome("letter")(text) == answer


def test_letters_may_be_named_or_spanned():
    assert parse_outcome("letter:A-D").spec == "letter:A,B,C,D"
    assert parse_outcome("letter:A,B")("The answer is (C)") is None
    assert parse_outcome("letter:x,y")("Answer: Y") == "Y"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She takes the umbrella.", "umbrella"),
        ("Not the umbrella; it is sunny, so Sunglasses!", "sunglasses"),
        ("Umbrella or sunglasses? Answer: umbrella, not sunglasses", "umbrella"),
        ("The umbrella is good. Answer: a hat", None),
        ("sunglasses it is. Answer:", "sunglasses"),
        ("two umbrellas", None),
        ("take the rain  coat", "rain coat"),
        ("", None),
    ],
)
def test_choice(text, answer):
    assert parse_outcome("choice:umbrella, sunglasses,rain coat")(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{42} and \boxed{43}", "42"),
        (r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ \text{Even} }", "even"),
        (r"\boxed{\{1, 2\}}", r"\{1,2\}"),
        (r"\boxed{1 + \frac{2}{x", None),
        (r"\boxed{}", None),
        ("42", None),
    ],
)
def test_boxed(text, answer):
    assert parse_outcome("boxed")(text) == answer


def test_regex_takes_the_last_match():
    assert parse_outcome(r"regex:verdict: (\w+)")("verdict: guilty ... verdict: innocent") == "innocent"
    assert parse_outcome("regex:[0-9]+")("1 and 22") == "22"
    assert parse_outcome("regex:(a)|b")("b") is None
    assert parse_outcome("regex:x")("none") is None


@pytest.mark.parametrize(
    ("prompt", "spec"),
    [
        (r"Solve it and put the answer in \boxed{}.", "boxed"),
        ("Which one?\nA) red\nB) blue\nC) green", "letter:A,B,C"),
        ("Which one? (A) 12 (B) 13", "letter:A,B"),
        ("Which one?\nA. red\nB. blue", "letter:A,B"),
        (
            "Mia has to choose: umbrella, raincoat or sunglasses? Think it through.",
            "choice:umbrella,raincoat,sunglasses",
        ),
        ("Answer with one of: red, green, or blue.", "choice:red,green,blue"),
        ("A farmer has 12 cows. How many legs are there?", "number"),
        ("What is 2 + 2?", "number"),
    ],
)
def test_auto_reads_the_prompt(prompt, spec):
    assert auto_outcome(prompt).spec == spec
    assert parse_outcome(f"auto:{prompt}").spec == spec


def test_a_callable_is_wrapped_and_checked():
    outcome = from_callable(lambda text: text[-1:] or None, "last")
    assert (outcome.spec, outcome("abc"), outcome("")) == ("callable:last", "c", None)
    with pytest.raises(CutawayError, match="returned int"):
        from_callable(len, "length")("abc")  # type: ignore[arg-type]


@given(st.integers(-(10**12), 10**12))
def test_any_integer_is_read_back_with_or_without_commas(n):
    number = parse_outcome("number")
    assert number(f"The answer is {n}.") == str(n)
    assert number(f"First 7, then in total {n:,}") == str(n)


@given(st.decimals(-(10**6), 10**6, places=3, allow_nan=False))
def test_any_decimal_is_read_back(d):
    assert float(parse_outcome("number")(f"Answer: {d}")) == float(d)


@given(st.text(max_size=300), st.sampled_from(["number", "letter", "choice:a,b c", "boxed", "regex:(.)b"]))
def test_no_text_breaks_an_outcome(text, spec):
    found = parse_outcome(spec)(text)
    assert found is None or isinstance(found, str)


@given(st.sampled_from(["number", "letter:A,B,C", "choice:red,blue", "boxed", "regex:a(b)"]))
def test_a_spec_names_itself(spec):
    assert parse_outcome(spec).spec == spec
    assert parse_outcome(parse_outcome(spec).spec) == parse_outcome(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nubmer", "did you mean 'number'"),
        ("number:5", "takes nothing after it"),
        ("letter:A", "at least two different letters"),
        ("letter:A,A", "at least two different letters"),
        ("letter:", "at least two different letters"),
        ("choice:umbrella", "at least two different words"),
        ("choice:a,,b", "at least two different words"),
        ("regex:", "write a pattern"),
        ("regex:(ab", "at character 0"),
        ("", "choose one of"),
    ],
)
def test_bad_specs_are_refused(spec, message):
    with pytest.raises(UsageError, match=message):
        parse_outcome(spec)
