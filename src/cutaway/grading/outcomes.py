r"""From a rollout's text to its answer: what the user wrote as ``--outcome``, as a small function.

=================  ====================================================================================
``number``         the number in ``\boxed{}`` or after the last "answer is", "Answer:", "####"; else the last
``letter``         the chosen option A to E, not a list of options; ``letter:A,B,C`` or ``letter:A-D`` name others
``choice:x,y``     which of the given words the text settles on
``boxed``          content of the first ``\boxed{}``, normalised as in the thought-anchors paper
``regex:PATTERN``  first group (else all) of the last match
``auto:PROMPT``    one of the above, by what the prompt asks for
=================  ====================================================================================

An outcome returns None where the text gives no answer; it never guesses one. Numbers come back in one
spelling ("1,250.00" and "$1250" are both "1250"), so plain equality groups them; `cutaway.grading.normalise`
groups expressions. A regular expression is the user's own: one that backtracks exponentially will hang, so
only the last 20,000 characters are searched.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.grading.normalise import as_fraction, normalise

SEARCHED = 20_000
"""Characters at the end of a text that a ``regex`` outcome looks at."""

Extract = Callable[[str], str | None]


@dataclass(frozen=True)
class Outcome:
    """A named way to read an answer; equal when the specs are equal."""

    spec: str
    extract: Extract = field(repr=False, compare=False)

    def __call__(self, text: str) -> str | None:
        return self.extract(text)


def parse_outcome(spec: str) -> Outcome:
    """Build the outcome that ``spec`` names (see the table above); a bad one is refused with a near match."""
    kind, colon, argument = spec.partition(":")
    if kind in {"number", "boxed"}:
        if colon:
            raise UsageError(f"outcome {spec!r}: {kind!r} takes nothing after it; write {kind!r}")
        return Outcome(kind, last_number if kind == "number" else boxed)
    if kind == "letter":
        return _letter_outcome(argument if colon else "A-E", spec)
    if kind == "choice":
        return _choice_outcome(argument, spec)
    if kind == "regex":
        return _regex_outcome(argument, spec)
    if kind == "auto":
        return auto_outcome(argument)
    raise UsageError(f"outcome {spec!r} is not known{nearest(kind, _KINDS)}")


def auto_outcome(prompt: str) -> Outcome:
    r"""Choose by the prompt: ``\boxed``, lettered options, "choose: a, b or c", else a number."""
    if r"\boxed" in prompt:
        return parse_outcome("boxed")
    letters = _listed_letters(prompt)
    if len(letters) >= 2:
        return parse_outcome("letter:" + ",".join(letters))
    words = _listed_words(prompt)
    if len(words) >= 2:
        return parse_outcome("choice:" + ",".join(words))
    return parse_outcome("number")


def from_callable(fn: Callable[[str], str | None], name: str) -> Outcome:
    """Wrap the user's own function; its results must be text or None."""

    def checked(text: str) -> str | None:
        found = fn(text)
        if found is not None and not isinstance(found, str):
            raise CutawayError(f"outcome {name!r} returned {type(found).__name__}: return text, or None for no answer")
        return found

    return Outcome(f"callable:{name}", checked)


_KINDS = ("number", "letter", "choice", "boxed", "regex", "auto")
_MARKER = re.compile(r"\banswer\b[\s*_]*(?:(?:is|would be|should be|=)[\s*_]*:?|:)[\s*_]*|####\s*", re.IGNORECASE)
_NUMBER = re.compile(
    r"""(?<![\w./])(?P<sign>[-−+]?)\$?(?:
        \\[dt]?frac\{(?P<top>-?\d+)\}\{(?P<bottom>\d+)\}
      | (?:(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?P<part>\.\d+)?|(?P<tail>\.\d+))
        (?:\s?/\s?(?P<below>\d+)(?![\d/]))?
    )""",
    re.VERBOSE,
)
_ENDED = re.compile(r"[.!?][ \t]")
_ASIDE = re.compile(r"[,;(]\s|\b(?:since|because|as|where|when|so|if|for)\b")


def last_number(text: str) -> str | None:
    r"""The number a text ends up with, in one spelling, or None.

    >>> last_number("6 boxes of 7 make 42. The answer is $1,250.00 because 5 > 3.")
    '1250'
    """
    if inside := list(_boxes(text)):
        found = list(_numbers(inside[-1]))
        return found[-1] if found else None
    for marker in reversed(list(_MARKER.finditer(text))):
        sentence = re.split(r"\n\s*\S|[.!?](?=\s|$)", text[marker.end() :], maxsplit=1)[0]
        if value := _first_value(sentence):
            return value
    found = list(_numbers(text))
    return found[-1] if found else None


def boxed(text: str) -> str | None:
    r"""Normalised content of the first closed ``\boxed{...}``; None when there is none or it is empty."""
    for content in _boxes(text):
        return normalise(content) or None
    return None


def _first_value(sentence: str) -> str | None:
    """The first number, or the end of the chain of equalities it opens: "5 + 3 = 8, since ..." gives 8."""
    value = None
    for side in sentence.split("="):
        value = next(_numbers(side), value)
        if value is not None and _ASIDE.search(side):
            break
    return value


def _numbers(text: str) -> Iterator[str]:
    for found in _NUMBER.finditer(text.replace("{,}", ",")):
        top, bottom, whole, part, tail, below = found.group("top", "bottom", "whole", "part", "tail", "below")
        if top is not None:
            written = f"{top}/{bottom}"
        else:
            written = (whole or "0").replace(",", "") + (part or tail or "") + (f"/{below}" if below else "")
        if (value := _ratio(written)) is not None:
            yield _spell(-value if found["sign"] in {"-", "−"} else value)


def _ratio(written: str) -> Fraction | None:
    top, _, bottom = written.partition("/")
    below = as_fraction(bottom or "1")
    above = as_fraction(top)
    return None if above is None or not below else above / below


def _spell(value: Fraction) -> str:
    """Decimal where it ends, else p/q."""
    twos_and_fives, digits = value.denominator, 0
    while twos_and_fives % 10 == 0 or twos_and_fives % 2 == 0 or twos_and_fives % 5 == 0:
        twos_and_fives //= 10 if twos_and_fives % 10 == 0 else 2 if twos_and_fives % 2 == 0 else 5
        digits += 1
    if twos_and_fives != 1:
        return str(value)
    scaled = str(abs(value.numerator) * 10**digits // value.denominator).rjust(digits + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{scaled[:-digits]}.{scaled[-digits:]}".rstrip("0").rstrip(".") if digits else scaled)


def _boxes(text: str) -> Iterator[str]:
    for start in re.finditer(r"\\boxed\s*\{", text):
        depth = 1
        for brace in re.finditer(r"(?<!\\)[{}]", text[start.end() :]):
            depth += 1 if brace.group() == "{" else -1
            if depth == 0:
                yield text[start.end() : start.end() + brace.start()]
                break


def _letter_outcome(argument: str, spec: str) -> Outcome:
    names = [part.strip().upper() for part in argument.split(",")]
    if span := re.fullmatch(r"([A-Z])-([A-Z])", names[0] if len(names) == 1 else ""):
        names = [chr(code) for code in range(ord(span[1]), ord(span[2]) + 1)]
    if len(names) < 2 or len(set(names)) != len(names) or not all(re.fullmatch("[A-Z]", n) for n in names):
        raise UsageError(
            f"outcome {spec!r}: name at least two different letters, such as 'letter:A,B,C' or 'letter:A-D'"
        )
    one = "".join(names)
    both = one + one.lower()
    # A bare lower-case letter counts only where nothing but punctuation follows: "the answer is a bit long".
    chosen = re.compile(rf"\(([{both}])\)|(?<![\w'])(?:([{one}])(?![\w'])|([{one.lower()}])(?=\s*(?:[.):,;*\]}}]|$)))")
    shown = re.compile(rf"\(([{both}])\)|(?:^|\n)[\s*_]*([{one}])[\s*_]*[.):]?[\s*_]*(?=\n|$)")
    bare = re.compile(
        rf"\b(?:option|choice|choose|pick|select)\s+([{one}])(?![\w'])|(?<![\w'])([{one}])(?=[.):,]|\s*$)"
    )

    def extract(text: str) -> str | None:
        for content in _boxes(text):
            if (letter := normalise(content).strip("()").upper()) in names:
                return letter
        listed = _option_items(text, names)
        for marker in reversed(list(_MARKER.finditer(text))):
            found = chosen.search(text, marker.end(), marker.end() + 80)
            if found and found.start() not in listed:
                return _group(found).upper()
        for pattern in (shown, bare):
            said = [each for each in pattern.finditer(text) if each.start(each.lastindex or 0) not in listed]
            if said:
                return _group(said[-1]).upper()
        return None

    return Outcome("letter:" + ",".join(names), extract)


def _option_items(text: str, names: Sequence[str]) -> set[int]:
    """Where the letters of repeated option lists stand ("A) 78 B) 71"): these name the options and choose none.

    A list runs from the first name on in order, with no end of a sentence inside a line: "A) is wrong. B) is right."
    is not one.
    """
    found: set[int] = set()
    run: list[re.Match[str]] = []
    marks = re.finditer(rf"(?<![\w'])\(?([{''.join(names)}])[).:]\**(?=\s*\S)", text)
    for mark in (*marks, None):
        going = bool(run) and mark is not None and len(run) < len(names) and mark[1] == names[len(run)]
        if going and mark is not None and not _ENDED.search(text[run[-1].end() : mark.start()]):
            run.append(mark)
            continue
        if len(run) > 1:
            found |= {at for each in run for at in (each.start(), each.start(1))}
        run = [mark] if mark is not None and mark[1] == names[0] else []
    return found


def _choice_outcome(argument: str, spec: str) -> Outcome:
    words = [" ".join(part.split()) for part in argument.split(",")]
    folded = {word.lower(): word for word in words}
    if len(words) < 2 or not all(words) or len(folded) != len(words):
        raise UsageError(f"outcome {spec!r}: name at least two different words, such as 'choice:umbrella,sunglasses'")
    longest_first = sorted(folded, key=len, reverse=True)
    union = "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in longest_first)
    mention = re.compile(rf"(?<!\w)(?:{union})(?!\w)", re.IGNORECASE)

    def extract(text: str) -> str | None:
        for marker in reversed(list(_MARKER.finditer(text))):
            if re.search(r"\w", text[marker.end() :]):
                found = mention.search(text, marker.end())
                return folded[" ".join(found.group().lower().split())] if found else None
        mentions = mention.findall(text)
        return folded[" ".join(mentions[-1].lower().split())] if mentions else None

    return Outcome("choice:" + ",".join(words), extract)


def _regex_outcome(pattern: str, spec: str) -> Outcome:
    if not pattern:
        raise UsageError(f"outcome {spec!r}: write a pattern after 'regex:'")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"outcome {spec!r}: {error.msg} at character {error.pos} of the pattern") from error

    def extract(text: str) -> str | None:
        everywhere = list(compiled.finditer(text[-SEARCHED:]))
        if not everywhere:
            return None
        return everywhere[-1].group(1) if compiled.groups else everywhere[-1].group()

    return Outcome(spec, extract)


def _listed_letters(prompt: str) -> list[str]:
    found = re.findall(r"(?:^|[\s,;])(?:\(([A-Z])\)|([A-Z])[).:])\s*\S", prompt)
    letters: list[str] = []
    for a, b in found:
        letter = a or b
        if letter == chr(ord("A") + len(letters)):
            letters.append(letter)
    return letters


def _listed_words(prompt: str) -> list[str]:
    found = re.search(
        r"\b(?:choose|pick|choice|options?|one of|either|decide)\b[^:?.\n]{0,40}:\s*([^:?.\n]+)", prompt, re.I
    )
    if not found:
        return []
    words = [word.strip() for word in re.split(r",\s*(?:or\s|and\s)?|\s+(?:or|and)\s+", found[1])]
    plain = all(re.fullmatch(r"[\w'-]+(?: [\w'-]+){0,2}", word) for word in words)
    return words if plain and len(words) <= 8 else []


def _group(found: re.Match[str]) -> str:
    return next(group for group in found.groups() if group is not None)
