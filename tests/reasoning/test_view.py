"""The data behind a trace page: checked when made, the same after a round trip."""

import json

import pytest

from cutaway.errors import UsageError
from cutaway.reasoning.view import Alternative, Links, TraceView, Track

TRACK = Track(
    "importance",
    "how much",
    (0.5, None),
    (0.1, None),
    (0.9, None),
    undefined=("", "no draws"),
    control=(0.05, float("nan")),
    control_is="Shuffled.",
)
VIEW = TraceView(
    title="t",
    prompt="p",
    sentences=("One. ", "Two."),
    answer="2",
    curve=Track("P(2)", "probability", (0.1, 0.5, 1.0)),
    categories=("plan_generation", "unknown"),
    tracks=(TRACK,),
    links=(Links("influence", "what it does", ((0, 1, 0.25),)),),
    alternatives=((Alternative("Three.", 2, 0.5, {"3": 1.0}),), ()),
    marked=(0,),
    meta={"model": "m"},
)


def test_a_view_survives_json() -> None:
    assert TraceView.from_dict(json.loads(json.dumps(VIEW.to_dict()))) == VIEW


def test_numbers_that_are_not_finite_are_gaps_and_need_a_reason() -> None:
    assert Track("a", "b", (float("nan"), 1.0), undefined=("no draw", "")).value == (None, 1.0)
    with pytest.raises(UsageError, match="sentence 0 has no value"):
        Track("a", "b", (float("inf"), 1.0))


def test_a_control_has_a_number_a_sentence_and_says_what_it_is() -> None:
    assert TRACK.control == (0.05, None)
    with pytest.raises(UsageError, match=r"lengths \[1, 2\]"):
        Track("a", "b", (0.1, 0.2), control=(0.1,), control_is="Shuffled.")
    with pytest.raises(UsageError, match="say in `control_is`"):
        Track("a", "b", (0.1, 0.2), control=(0.1, 0.1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sentences": ()}, "the trace is empty"),
        ({"curve": Track("P", "p", (0.1, 0.2))}, "3 boundaries|has 2 values"),
        ({"categories": ("plan_generation", "planning")}, "'planning' is not one of"),
        ({"categories": ("unknown",)}, "1 entries for 2 sentences"),
        ({"links": (Links("i", "w", ((1, 0, 0.1),)),)}, "an earlier and a later"),
        ({"tracks": (TRACK, TRACK)}, "appears twice"),
    ],
)
def test_a_view_refuses_what_does_not_fit(change: dict[str, object], message: str) -> None:
    fields = {name: getattr(VIEW, name) for name in VIEW.__dataclass_fields__}
    with pytest.raises(UsageError, match=message):
        TraceView(**(fields | change))
