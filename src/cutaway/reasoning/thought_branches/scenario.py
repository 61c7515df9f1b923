"""Decision scenarios as files: a prompt with slots, how the decision is read, and what is planted to cause it.

A scenario is one JSON object:

    format         1
    name           kebab-case
    system         system message, or null
    prompt         the request; ``{slot}`` is replaced by a value of that slot (also in the system message)
    slots          slot name -> list of at least two values; the first value of each gives the plain version
    decision       how the decision is read off a chain: an outcome spec (`cutaway.grading`)
    target         the decision whose rate is reported
    stated_reason  regular expression: sentences that give the reason one would expect
    true_cause     {"slot": name of the slot that is planted as the cause, "note": what it is}

Changing the true cause from its first to its second value is the intervention whose effect is known to be there if
anything is; the other slots are controls. `load_scenario` reads a file or one of `scenario_names`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from string import Formatter

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cutaway.errors import UsageError, nearest
from cutaway.grading import Outcome, parse_outcome

BUILT_IN = Path(__file__).parent / "scenarios"


class Cause(BaseModel):
    """The slot that is planted as the cause."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    slot: str
    note: str = ""


class Scenario(BaseModel):
    """A decision to take, with the cause that is planted in it; see the module's text."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: int = Field(ge=1, le=1)
    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    system: str | None
    prompt: str = Field(min_length=1)
    slots: dict[str, tuple[str, ...]]
    decision: str
    target: str
    stated_reason: str
    true_cause: Cause

    @field_validator("slots")
    @classmethod
    def _choices(cls, slots: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, values in slots.items():
            if len(values) < 2 or len(set(values)) != len(values):
                raise ValueError(f"slot {name!r} needs at least two different values")
        return slots

    @field_validator("stated_reason")
    @classmethod
    def _pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error.msg}") from error
        return pattern

    @model_validator(mode="after")
    def _fits(self) -> "Scenario":
        try:
            parts = list(Formatter().parse(self.prompt + (self.system or "")))
        except ValueError as error:
            raise ValueError(f"prompt: {error}; write {{{{ for a brace") from error
        used = {name for _, name, _, _ in parts if name is not None}
        if missing := sorted(used - set(self.slots)):
            raise ValueError(f"slots: the prompt uses {{{missing[0]}}}, which has no values")
        if unused := sorted(set(self.slots) - used):
            raise ValueError(f"slots: {unused[0]!r} does not appear in the prompt")
        if self.true_cause.slot not in self.slots:
            raise ValueError(
                f"true_cause.slot: {self.true_cause.slot!r} is no slot{nearest(self.true_cause.slot, used)}"
            )
        if self.outcome(f"The answer is {self.target}.") != self.target:
            raise ValueError(f"target: {self.target!r} is not a decision that {self.decision!r} can give")
        return self

    @property
    def outcome(self) -> Outcome:
        """How the decision is read off a chain."""
        return parse_outcome(self.decision)

    def fill(self, values: Mapping[str, int] | None = None) -> tuple[str, str | None]:
        """Prompt and system message with value number ``values[slot]`` in each slot (0 where none is named)."""
        chosen = dict.fromkeys(self.slots, 0) | dict(values or {})
        for slot, index in chosen.items():
            if slot not in self.slots:
                raise UsageError(f"scenario {self.name!r} has no slot {slot!r}{nearest(slot, self.slots)}")
            if not 0 <= index < len(self.slots[slot]):
                raise UsageError(f"{slot}={index}: scenario {self.name!r} has values 0..{len(self.slots[slot]) - 1}")
        words = {slot: self.slots[slot][index] for slot, index in chosen.items()}
        return self.prompt.format(**words), None if self.system is None else self.system.format(**words)

    def gives_reason(self, sentence: str) -> bool:
        """Whether a sentence states the expected reason."""
        return re.search(self.stated_reason, sentence, re.IGNORECASE) is not None


def scenario_names() -> tuple[str, ...]:
    """Names of the scenarios that come with Cutaway."""
    return tuple(sorted(path.stem.replace("_", "-") for path in BUILT_IN.glob("*.json")))


def load_scenario(source: str | Path) -> Scenario:
    """Read a scenario by name, or from a JSON file; UsageError names the file and the field that is wrong."""
    path = BUILT_IN / f"{str(source).replace('-', '_')}.json"
    if str(source) not in scenario_names():
        path = Path(source)
        if not path.is_file():
            raise UsageError(f"no scenario or file {str(source)!r}{nearest(str(source), scenario_names())}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"{path.name}: not readable as JSON ({error})") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path.name}: a scenario is one JSON object, this is a {type(data).__name__}")
    try:
        return Scenario.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"{path.name}: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    item = error.errors()[0]
    place = ".".join(str(part) for part in item["loc"])
    if item["type"] == "missing":
        return f"field {place!r} is missing"
    if item["type"] == "extra_forbidden":
        return f"field {place!r} is not known{nearest(str(item['loc'][-1]), Scenario.model_fields)}"
    message = item["msg"].removeprefix("Value error, ")
    return f"field {place!r}: {message}" if place else message
