r"""When are two written answers one answer? Text first, then exact rationals, then numbers at random points.

Model text is never evaluated by Python or a computer algebra system: a small grammar (numbers, one-letter
variables, ``+ - * / ^``, brackets, ``\frac``, ``\sqrt``, ``\pi``, tuples) is parsed here into an expression,
and two expressions are one answer when they agree at several fixed complex points (with positive real part,
so ``\sqrt{x^2}`` and ``x`` agree). Whatever lies outside the grammar is compared as normalised text only: no
answer is ever guessed equal.
"""

import cmath
import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

LONGEST = 200
"""Characters beyond which an answer is compared as text only."""
_DEEPEST = 30
_POINTS = 5

_Point = dict[str, complex]
_Expression = Callable[[_Point], complex]

_DROPPED = re.compile(r"\\(?:left|right|,|;|!|:|quad|qquad|displaystyle)(?![a-z])|\\ |[\s$]|\\?%|\^\{?\\circ\}?|°")
_SPELLINGS = (
    ("−", "-"),
    (r"\$", ""),
    (r"\dfrac", r"\frac"),
    (r"\tfrac", r"\frac"),
    (r"\cdot", "*"),
    (r"\times", "*"),
    ("{,}", ""),
)
_GROUPED = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_FRACTION_ARGUMENTS = re.compile(r"\\frac(?:(\d)(\d)|(\d)\{|\{([^{}]*)\}(\d))")
_NUMBER = re.compile(r"([-+]?)(\d+(?:\.\d*)?|\.\d+)(?:/(\d+))?\Z")
_LATEX_RATIO = re.compile(r"([-+]?)\\frac\{([-+]?\d+)\}\{(\d+)\}\Z")
_TOKEN = re.compile(r"\d+(?:\.\d*)?|\.\d+|\\[a-z]+|[a-z]|[-+*/^(){}\[\],]")


def normalise(answer: str) -> str:
    r"""Published normalisation: lower case, one spelling of fractions, no spaces, wrappers, percent, dollar.

    >>> normalise(r" \dfrac{1}{2}\% ")
    '\\frac{1}{2}'
    >>> normalise(r"1{,}000 \text{ cm}")
    '1000cm'
    """
    text = answer.lower().strip(" $\t\n")
    for written, plain in _SPELLINGS:
        text = text.replace(written, plain)
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    return _DROPPED.sub("", _WRAPPER.sub(r"\1", text)).rstrip(".")


def as_fraction(answer: str) -> Fraction | None:
    r"""Exact value of a plain number, ``a/b`` or ``\frac{a}{b}``, after `normalise`; None for all else."""
    text = normalise(answer)
    if len(text) > LONGEST:
        return None
    if found := _NUMBER.match(text):
        sign, top, bottom = found.groups()
        below = Fraction(bottom or 1)
    elif found := _LATEX_RATIO.match(text):
        sign, top, bottom = found.groups()
        below = Fraction(bottom)
    else:
        return None
    if below == 0:
        return None
    return (-1 if sign == "-" else 1) * Fraction(top) / below


def same_answer(a: str, b: str) -> bool:
    r"""Whether two answers mean the same: equal as text, as exact numbers, or as expressions.

    >>> same_answer("0.5", r"\frac12"), same_answer("2(x+1)", "2x+2"), same_answer("1/3", "0.333")
    (True, True, False)
    """
    if normalise(a) == normalise(b):
        return True
    left, right = as_fraction(a), as_fraction(b)
    if left is not None and right is not None:
        return left == right
    one, other = _parse(normalise(a)), _parse(normalise(b))
    return one is not None and other is not None and _agree(one, other)


def cluster_answers(answers: Sequence[str | None]) -> list[str | None]:
    """Replace each answer by the commonest spelling of its cluster (the first among equals); None stays."""
    clusters: list[Counter[str]] = []
    place: dict[str, Counter[str]] = {}
    for answer in answers:
        if answer is None:
            continue
        if answer not in place:
            known = next((c for c in clusters if same_answer(answer, next(iter(c)))), None)
            if known is None:
                known = Counter()
                clusters.append(known)
            place[answer] = known
        place[answer][answer] += 1
    return [None if answer is None else place[answer].most_common(1)[0][0] for answer in answers]


def _agree(one: list[_Expression], other: list[_Expression]) -> bool:
    if len(one) != len(other):
        return False
    for step in range(_POINTS):
        point = {
            letter: complex(0.3 + 0.17 * ((i * 7 + step * 5) % 23), 0.2 + 0.11 * ((i * 5 + step * 3) % 19))
            for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")
        }
        for left, right in zip(one, other, strict=True):
            try:
                x, y = left(point), right(point)
            except (ArithmeticError, ValueError):
                return False
            if not (cmath.isfinite(x) and abs(x - y) <= 1e-10 * max(1.0, abs(x), abs(y))):
                return False
    return True


def _parse(text: str) -> list[_Expression] | None:
    """The expressions of a (tuple) answer, or None outside the grammar."""
    text = _FRACTION_ARGUMENTS.sub(_brace, text)
    if not text or len(text) > LONGEST:
        return None
    tokens, at = [], 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if not found:
            return None
        tokens.append(found.group())
        at = found.end()
    try:
        return _Parser(tokens).answer()
    except _Outside:
        return None


def _brace(found: re.Match[str]) -> str:
    a, b, c, d, e = found.groups()
    if a is not None:
        return rf"\frac{{{a}}}{{{b}}}"
    return rf"\frac{{{c}}}{{" if c is not None else rf"\frac{{{d}}}{{{e}}}"


class _Outside(Exception):  # noqa: N818
    """The text is not in the grammar."""


class _Parser:
    """Recursive descent over tokens; each method consumes what it names, returns its value at a point."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at, self.depth = tokens, 0, 0

    def answer(self) -> list[_Expression]:
        whole = self._list()
        if self.at < len(self.tokens):
            raise _Outside
        return whole

    def _list(self) -> list[_Expression]:
        if self._is_tuple():
            closing = {"(": ")", "[": "]"}[self._next()]
            items = [self._sum()]
            while self._take(","):
                items.append(self._sum())
            self._expect(closing)
            return items
        return [self._sum()]

    def _is_tuple(self) -> bool:
        depth = 0
        for i, token in enumerate(self.tokens):
            depth += (token in "([{") - (token in ")]}")
            if depth == 0:
                return self.tokens[0] in "([" and i == len(self.tokens) - 1 and "," in self.tokens
        return False

    def _sum(self) -> _Expression:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise _Outside
        if self._take("-"):
            total = _combine("-", _zero, self._product())
        else:
            self._take("+")
            total = self._product()
        while self._peek() in {"+", "-"}:
            total = _combine(self._next(), total, self._product())
        self.depth -= 1
        return total

    def _product(self) -> _Expression:
        total = self._power()
        while (token := self._peek()) is not None and token not in "+-,)]}":
            sign = self._next() if token in "*/" else "*"
            total = _combine(sign, total, self._power())
        return total

    def _power(self) -> _Expression:
        base = self._atom()
        if not self._take("^"):
            return base
        if self._take("-"):
            return _combine("^", base, _combine("-", _zero, self._atom()))
        return _combine("^", base, self._atom())

    def _atom(self) -> _Expression:
        token = self._next()
        if token[0].isdigit() or token[0] == ".":
            value = complex(float(token))
            return lambda point: value
        if token == r"\pi":
            return lambda point: complex(cmath.pi)
        if token == r"\frac":
            return _combine("/", self._group("{"), self._group("{"))
        if token == r"\sqrt":
            degree = self._group("[") if self._peek() == "[" else (lambda point: 2 + 0j)
            root = self._group("{") if self._peek() == "{" else self._atom()
            return _combine("^", root, _combine("/", lambda point: 1 + 0j, degree))
        if len(token) == 1 and token.isalpha():
            return lambda point: point[token]
        if token in "({[":
            self.at -= 1
            return self._group(token)
        raise _Outside

    def _group(self, opening: str) -> _Expression:
        self._expect(opening)
        inside = self._sum()
        self._expect({"(": ")", "{": "}", "[": "]"}[opening])
        return inside

    def _peek(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def _next(self) -> str:
        token = self._peek()
        if token is None:
            raise _Outside
        self.at += 1
        return token

    def _take(self, token: str) -> bool:
        if self._peek() == token:
            self.at += 1
            return True
        return False

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise _Outside


def _zero(point: _Point) -> complex:
    return 0j


def _combine(sign: str, left: _Expression, right: _Expression) -> _Expression:
    return {
        "+": lambda point: left(point) + right(point),
        "-": lambda point: left(point) - right(point),
        "*": lambda point: left(point) * right(point),
        "/": lambda point: left(point) / right(point),
        "^": lambda point: left(point) ** right(point),
    }[sign]
