"""How a question is written: n digits, operator, n digits, equals, then the answer, most significant digit first."""

from dataclasses import dataclass

from cutaway.errors import UsageError

ADDITION_ONLY = "0123456789+="
"""Vocabulary of addition-transformers: token id = place in the string."""
BOTH = "0123456789+-=*/"
"""Vocabulary of addition-subtraction."""


@dataclass(frozen=True)
class Format:
    """Where each digit stands. Digits are counted from the units: D0 is the last digit of the first number.

    >>> Format(5).n_ctx, Format(6, signed=True).n_ctx
    (18, 22)
    """

    digits: int
    signed: bool = False
    """True: the answer starts with + or -, and both operators exist."""

    def __post_init__(self) -> None:
        if self.digits < 1:
            raise UsageError(f"digits={self.digits}: a question needs at least 1 digit")

    @property
    def symbols(self) -> str:
        """Every token, in the order of its id."""
        return BOTH if self.signed else ADDITION_ONLY

    def token(self, symbol: str) -> int:
        """Id of one symbol; UsageError for one that this format does not have."""
        place = self.symbols.find(symbol)
        if len(symbol) != 1 or place < 0:
            raise UsageError(f"symbol {symbol!r}: this format has {' '.join(self.symbols)}")
        return place

    @property
    def n_answer(self) -> int:
        """Answer tokens: n + 1 digits, and the sign where there is one."""
        return self.digits + 1 + self.signed

    @property
    def n_ctx(self) -> int:
        return 2 * self.digits + 2 + self.n_answer

    @property
    def equals(self) -> int:
        """Position of ``=``, where the first answer token is predicted."""
        return 2 * self.digits + 1

    @property
    def predicting(self) -> range:
        """Positions whose logits are scored, in the order of the answer tokens."""
        return range(self.equals, self.equals + self.n_answer)

    def first(self, digit: int) -> int:
        """Position of digit ``digit`` of the first number (D)."""
        return self.digits - 1 - self._inside(digit, self.digits)

    def second(self, digit: int) -> int:
        """Position of digit ``digit`` of the second number (D')."""
        return 2 * self.digits - self._inside(digit, self.digits)

    def answer(self, digit: int) -> int:
        """Position of answer digit ``digit`` (A)."""
        return self.n_ctx - 1 - self._inside(digit, self.digits + 1)

    def predicts(self, digit: int) -> int:
        """Position whose logits say answer digit ``digit``: one before it stands."""
        return self.answer(digit) - 1

    def column(self, digit: int) -> int:
        """Place of answer digit ``digit`` among the answer tokens."""
        return self.n_answer - 1 - self._inside(digit, self.digits + 1)

    def name(self, position: int) -> str:
        """Name of a position: D5..D0, OPR, D'5..D'0, =, SGN, A6..A0."""
        n = self.digits
        if not 0 <= position < self.n_ctx:
            raise UsageError(f"position={position}: 0 to {self.n_ctx - 1}")
        if position < n:
            return f"D{n - 1 - position}"
        if position <= n:
            return "OPR"
        if position <= 2 * n:
            return f"D'{2 * n - position}"
        if position == self.equals:
            return "="
        from_end = self.n_ctx - 1 - position
        return "SGN" if from_end > n else f"A{from_end}"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.name(position) for position in range(self.n_ctx))

    @property
    def answer_names(self) -> tuple[str, ...]:
        """What each answer token is: SGN, A6..A0."""
        return self.names[self.equals + 1 :]

    def _inside(self, digit: int, count: int) -> int:
        if not 0 <= digit < count:
            raise UsageError(f"digit={digit}: 0 (units) to {count - 1} with {self.digits} digits")
        return digit
