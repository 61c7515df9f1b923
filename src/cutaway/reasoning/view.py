"""One trace with what each method says about its sentences: the data behind a report page.

Methods return `Track` (one number a sentence) and `Links` (one number a pair of sentences); a study puts them in
a `TraceView` and stores it as ``view.json``. Drawing is the report's work.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cutaway.errors import UsageError

Numbers = tuple[float | None, ...]


@dataclass(frozen=True)
class Alternative:
    """Something the model would have said instead of a sentence."""

    text: str
    """A typical wording: the first new sentence of the group's most central rollout."""
    count: int
    """Rollouts in the group."""
    share: float
    """Probability of this group among all continuations of the boundary, staying with the trace included."""
    answers: dict[str, float]
    """Share of each answer among the group's rollouts."""


@dataclass(frozen=True)
class Track:
    """One number a sentence, from one method; None where it is undefined."""

    name: str
    """The field's term: ``counterfactual importance``, ``receiver attention``."""
    what: str
    """One sentence: how to read the number."""
    value: Numbers
    low: Numbers | None = None
    high: Numbers | None = None
    unit: str = ""
    undefined: tuple[str, ...] | None = None
    """The reason a sentence, where `value` is None; else empty."""
    study: str = ""
    """Id of the study that measured it."""
    control: Numbers | None = None
    """The same number where nothing can matter, shown beside it on demand; None where there is none."""
    control_is: str = ""
    """One sentence: what the control is."""

    def __post_init__(self) -> None:
        for key in ("value", "low", "high", "control"):
            numbers = getattr(self, key)
            if numbers is not None:
                plain = tuple(None if x is None or not math.isfinite(x) else float(x) for x in numbers)
                object.__setattr__(self, key, plain)
        lists = (self.value, self.low, self.high, self.undefined, self.control)
        sizes = {len(x) for x in lists if x is not None}
        if len(sizes) > 1:
            raise UsageError(
                f"track {self.name!r}: value, low, high, undefined and control have lengths {sorted(sizes)}"
            )
        if self.control is not None and not self.control_is:
            raise UsageError(f"track {self.name!r}: say in `control_is` what its control is")
        gaps = [i for i, x in enumerate(self.value) if x is None and not (self.undefined and self.undefined[i])]
        if gaps:
            raise UsageError(f"track {self.name!r}: sentence {gaps[0]} has no value; say why in `undefined`")


@dataclass(frozen=True)
class Links:
    """One number an ordered pair of sentences: what ``source`` does to ``target``."""

    name: str
    what: str
    links: tuple[tuple[int, int, float], ...]
    """(source, target, strength), source before target; pairs left out were not measured or are nothing."""
    unit: str = ""
    study: str = ""


@dataclass(frozen=True)
class TraceView:
    """Everything known about one trace, sentence by sentence."""

    title: str
    prompt: str
    sentences: tuple[str, ...]
    """Texts that joined together give the trace."""
    answer: str
    """The trace's own answer."""
    curve: Track | None = None
    """P(answer) at each of the ``n + 1`` sentence boundaries, with its band."""
    categories: tuple[str, ...] | None = None
    """One label a sentence, as in `CATEGORIES`."""
    tracks: tuple[Track, ...] = ()
    links: tuple[Links, ...] = ()
    alternatives: tuple[tuple[Alternative, ...], ...] | None = None
    """A group a sentence; a group may be empty."""
    marked: tuple[int, ...] = ()
    """Sentences certified to have moved the answer."""
    meta: Mapping[str, str] = field(default_factory=dict)
    """Provenance, shown as given."""

    def __post_init__(self) -> None:
        n = len(self.sentences)
        if not n:
            raise UsageError("sentences=(): the trace is empty; nothing can be shown")
        if self.curve is not None and len(self.curve.value) != n + 1:
            raise UsageError(f"curve has {len(self.curve.value)} values; {n} sentences have {n + 1} boundaries")
        lists: dict[str, Any] = {"categories": self.categories, "alternatives": self.alternatives}
        lists |= {f"track {track.name!r}": track.value for track in self.tracks}
        for name, given in lists.items():
            if given is not None and len(given) != n:
                raise UsageError(f"{name} has {len(given)} entries for {n} sentences")
        unknown = sorted(set(self.categories or ()) - set(CATEGORIES))
        if unknown:
            raise UsageError(f"category {unknown[0]!r} is not one of {', '.join(CATEGORIES)}")
        for each in self.links:
            bad = next((link for link in each.links if not 0 <= link[0] < link[1] < n), None)
            if bad is not None:
                raise UsageError(f"links {each.name!r}: {bad} must name an earlier and a later of {n} sentences")
        names = [track.name for track in self.tracks] + [each.name for each in self.links]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"track {twice[0]!r} appears twice")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return asdict(self) | {"meta": dict(self.meta)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TraceView":
        """Rebuild a view from `to_dict`, or from JSON of it."""
        fields = dict(data)
        fields["sentences"] = tuple(data["sentences"])
        fields["curve"] = None if data["curve"] is None else _track(data["curve"])
        fields["tracks"] = tuple(_track(each) for each in data["tracks"])
        fields["links"] = tuple(
            Links(**(each | {"links": tuple((int(s), int(t), float(x)) for s, t, x in each["links"])}))
            for each in data["links"]
        )
        fields["categories"] = None if data["categories"] is None else tuple(data["categories"])
        if data["alternatives"] is not None:
            fields["alternatives"] = tuple(tuple(Alternative(**a) for a in group) for group in data["alternatives"])
        fields["marked"] = tuple(data["marked"])
        return cls(**fields)

    def save(self, path: str | Path) -> None:
        """Write the view as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), ensure_ascii=False) + "\n", encoding="utf-8")


CATEGORIES = (
    "problem_setup",
    "plan_generation",
    "fact_retrieval",
    "active_computation",
    "result_consolidation",
    "uncertainty_management",
    "self_checking",
    "final_answer_emission",
    "unknown",
)
"""What a sentence of reasoning does (thought-anchors card, taxonomy)."""


def _track(data: Mapping[str, Any]) -> Track:
    lists = ("value", "low", "high", "undefined", "control")
    fields: dict[str, Any] = {k: tuple(v) if k in lists and v is not None else v for k, v in data.items()}
    return Track(**fields)
