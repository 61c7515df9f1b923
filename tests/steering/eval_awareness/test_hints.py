"""Type hints counted in thirty texts, and functions worked out without being run."""

import pytest

from cutaway.steering.eval_awareness import count_hints
from cutaway.steering.eval_awareness.hints import outcome, parse_functions

# text, functions, annotated functions, slots, filled slots
FIXTURES = [
    ("def f(a):\n    return a", 1, 0, 2, 0),
    ("def f(a: int):\n    return a", 1, 1, 2, 1),
    ("def f(a) -> int:\n    return a", 1, 1, 2, 1),
    ("def f(a: int, b: int) -> int:\n    return a + b", 1, 1, 3, 3),
    ("def f():\n    pass", 1, 0, 1, 0),
    ("def f() -> None:\n    pass", 1, 1, 1, 1),
    ("async def f(a):\n    return a", 1, 0, 2, 0),
    ("async def f(a: str):\n    return a", 1, 1, 2, 1),
    ("def f(a):\n    def g(b: int):\n        return b\n    return g(a)", 2, 1, 4, 1),
    ("def f(a: int):\n    def g(b):\n        return b\n    return g(a)", 2, 1, 4, 1),
    ("f = lambda a: a", 0, 0, 0, 0),
    ("def f(a):\n    return (lambda b: b)(a)", 1, 0, 2, 0),
    ("def f(*args):\n    return args", 1, 0, 2, 0),
    ("def f(*args: int):\n    return args", 1, 1, 2, 1),
    ("def f(**kw: int):\n    return kw", 1, 1, 2, 1),
    ("def f(a, *, b: int = 1):\n    return a", 1, 1, 3, 1),
    ("def f(a, /, b):\n    return a", 1, 0, 3, 0),
    ("def f(a: int, /, b):\n    return a", 1, 1, 3, 1),
    ("def f(a=1, b='x'):\n    return a", 1, 0, 3, 0),
    ("def f(a: int = 1):\n    return a", 1, 1, 2, 1),
    ("def f(a):  # type: (int) -> int\n    return a", 1, 0, 2, 0),
    ("def f(a):\n    x: int = 1\n    return a", 1, 0, 2, 0),
    ("class A:\n    def f(self, a: int):\n        return a", 1, 1, 2, 1),
    ("class A:\n    @classmethod\n    def f(cls):\n        return 1", 1, 0, 1, 0),
    ("```python\ndef f(a: int):\n    return a\n```\nIt returns a.", 1, 1, 2, 1),
    ("def f(a):\n    return a\n\nThis function returns its argument.", 1, 0, 2, 0),
    ("def f(a):\n    return a\ndef g(b: int", 1, 0, 2, 0),
    ("def f(a:", 0, 0, 0, 0),
    ("I cannot write that.", 0, 0, 0, 0),
    ("# def f(a: int):\ndef f(a):\n    return a", 1, 0, 2, 0),
    ('def f(a: "list[int]") -> "int":\n    return a[0]', 1, 1, 2, 2),
    ("", 0, 0, 0, 0),
]


@pytest.mark.parametrize("case", FIXTURES, ids=range(len(FIXTURES)))
def test_hints_are_counted(case: tuple[str, int, int, int, int]) -> None:
    text, functions, annotated, slots, filled = case
    found = count_hints(text)
    assert (found.functions, found.annotated, found.slots, found.filled) == (functions, annotated, slots, filled)
    assert found.parsed == (functions > 0)


@pytest.mark.parametrize(
    ("text", "values", "wanted"),
    [
        ("def f(a, b):\n    return a + b", (2, 3), 5),
        ("def f(a, b):\n    c = a * b\n    return c", (2, 3), 6),
        ("def f(a):\n    if a > 0:\n        return a\n    return -a", (-4,), 4),
        ("def f(a, b):\n    return max(a, b) if a != b else 0", (2, 3), 3),
        ("def f(a):\n    return open(a)", (1,), None),
        ("def f(a):\n    import os\n    return a", (1,), None),
        ("def f(a):\n    return a / 0", (1,), None),
        ("def f(a):\n    return a", (1, 2), None),
    ],
)
def test_functions_are_worked_out_and_nothing_is_run(text: str, values: tuple[int, ...], wanted: object) -> None:
    (function,) = parse_functions(text)
    assert outcome(function, values) == wanted
