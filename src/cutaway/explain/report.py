"""One answer, opened, on one page: an `AnchorMap` as a self-contained HTML report.

`conclude` says the result in words; the script draws the rest. What other methods say about the same trace joins
it as a `TraceView`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from cutaway.errors import UsageError
from cutaway.explain.page import VIEWER_SCRIPTS, VIEWER_STYLES, embedded, probability, render, signed
from cutaway.explain.views import viewer_data
from cutaway.reasoning.thought_anchors.result import NO_ANSWER, AnchorMap
from cutaway.reasoning.view import TraceView
from cutaway.sampling import without_end_mark

SCRIPTS = ("core.js", "figure.js", "trace.js")
HIGH_TRUNCATED = 0.10
HIGH_UNANSWERED = 0.20


@dataclass(frozen=True)
class Conclusion:
    """The result of a run in plain words."""

    headline: str
    """One sentence that answers "why this answer?"."""
    support: tuple[str, ...]
    """The numbers behind it, and what else was found."""
    cautions: tuple[str, ...]
    """What the reader must know before relying on it."""
    sentence: int | None
    """Index of the sentence the headline speaks of; None when none was certified."""


def report_html(anchors: AnchorMap, *, title: str, meta: Mapping[str, str], view: TraceView | None = None) -> str:
    """Return the whole report as one HTML document.

    ``meta`` is shown as given, in its order, as the report's provenance; its ``model`` and ``settings`` also
    stand in the header. A ``view`` of the same trace with tracks or links adds the section that lines them up.
    Raises `UsageError` when the trace has no sentence, or the view shows another one.
    """
    if not anchors.sentences:
        raise UsageError("sentences=(): the trace is empty; sample a new one to report on")
    if view is not None and view.sentences != anchors.sentences:
        raise UsageError(f"view {view.title!r} shows another trace than the anchors; build it with anchors_view")
    if view is not None and not (view.tracks or view.links):
        view = None
    return render(
        "report.html.j2",
        scripts=[SCRIPTS] if view is None else [SCRIPTS, VIEWER_SCRIPTS],
        styles=("report.css",) if view is None else VIEWER_STYLES,
        map=anchors,
        title=title,
        meta=dict(meta),
        conclusion=conclude(anchors),
        data=embedded({"title": title, "meta": dict(meta), "anchors": _plain(anchors)}),
        view=view,
        view_data="" if view is None else embedded(viewer_data(view)),
    )


def conclude(anchors: AnchorMap) -> Conclusion:
    """Say in words what the run found, and what it leaves open."""
    certified = anchors.anchors
    return Conclusion(
        headline=_headline(anchors),
        support=(*_support(anchors), _tally(anchors)),
        cautions=_cautions(anchors),
        sentence=certified[0] if certified else None,
    )


def _headline(anchors: AnchorMap) -> str:
    answer = _answer_name(anchors.answers[0])
    if not anchors.anchors:
        if not anchors.complete:
            return f"The run stopped early; so far no sentence is certified to have moved {answer}."
        return f"No single sentence was certified to have decided {answer}."
    first = anchors.anchors[0]
    before, after = anchors.curve[first, 0], anchors.curve[first + 1, 0]
    change = f"from {probability(before)} to {probability(after)}"
    if anchors.effect[first] < 0:
        return f"The strongest anchor went against {answer}: sentence {first + 1} lowered its probability {change}."
    if before < 0.5 <= after:
        return f"Sentence {first + 1} decided {answer}: it raised its probability {change}."
    return f"Sentence {first + 1} did most to bring about {answer}: it raised its probability {change}."


def _support(anchors: AnchorMap) -> tuple[str, ...]:
    level = f"{anchors.level:.0%}"
    if anchors.anchors:
        first, *others = anchors.anchors
        interval = f"{signed(anchors.effect_low[first])} to {signed(anchors.effect_high[first])}"
        lines = [f"The change is {signed(anchors.effect[first])}, with a {level} interval of {interval}."]
        if not others:
            return (*lines, "No other sentence was certified.")
        listed = ", ".join(f"{i + 1} ({signed(anchors.effect[i])})" for i in sorted(others)[:8])
        if len(others) > 8:
            listed += f" and {len(others) - 8} more"
        noun = "sentence" if len(others) == 1 else "sentences"
        return (*lines, f"Also certified: {noun} {listed}.")
    if not anchors.complete and not anchors.draws.any():
        return ("No continuation had ended, so nothing is known yet of its probability.",)
    start, end = float(anchors.curve[0, 0]), float(anchors.curve[-1, 0])
    lines = [
        f"Its probability was {probability(start)} from the prompt alone and {probability(end)} "
        "after the last sentence."
    ]
    if anchors.low[0, 0] > 0.5:
        lines.append("The prompt alone already made it the most likely outcome.")
    elif anchors.low[-1, 0] > anchors.high[0, 0]:
        lines.append("It grew along the trace, but too gradually, or with too few draws, to credit one sentence.")
    return tuple(lines)


def _tally(anchors: AnchorMap) -> str:
    counts = {name: anchors.status.count(name) for name in ("anchor", "no effect", "undecided")}
    total = len(anchors.sentences)
    noun = "sentence" if total == 1 else "sentences"
    certified = "1 anchor" if counts["anchor"] == 1 else f"{counts['anchor']} anchors"
    return f"Of {total} {noun}: {certified}, {counts['no effect']} without effect, {counts['undecided']} undecided."


def _cautions(anchors: AnchorMap) -> tuple[str, ...]:
    lines = []
    undecided = anchors.status.count("undecided")
    if not anchors.complete:
        lines.append(
            f"The run ended before every sentence was decided. {undecided} of {len(anchors.sentences)} are "
            "open; more draws may certify further sentences."
        )
    elif undecided:
        lines.append("Undecided means that the draws do not settle it, not that the sentence has no effect.")
    if anchors.control:
        noun = "sentence" if anchors.control == 1 else "sentences"
        lines.append(
            f"The control certified {anchors.control} {noun} where nothing can differ; none is expected, so "
            "read the anchors with care."
        )
    if anchors.unanswered > HIGH_UNANSWERED:
        lines.append(f"{anchors.unanswered:.0%} of the continuations gave no answer that could be read.")
    if anchors.truncated > HIGH_TRUNCATED:
        lines.append(
            f"{anchors.truncated:.0%} of the continuations were cut at the token limit; a higher limit may "
            "change the picture."
        )
    return tuple(lines)


def _answer_name(answer: str) -> str:
    if answer == NO_ANSWER:
        return "the outcome “no answer”"
    return f"the answer “{answer if len(answer) <= 80 else answer[:79] + '…'}”"


def _plain(anchors: AnchorMap) -> dict[str, Any]:
    values = {f.name: _json_value(getattr(anchors, f.name)) for f in fields(anchors)}
    return values | {"sentences": [without_end_mark(text) for text in anchors.sentences]}


def _json_value(value: Any) -> Any:
    """Nested plain values; numbers JSON cannot write become null, floats keep seven digits."""
    match value:
        case np.ndarray() | np.generic():
            return _json_value(value.tolist())
        case float():
            return float(f"{value:.7g}") if math.isfinite(value) else None
        case tuple() | list():
            return [_json_value(item) for item in value]
        case dict():
            return {key: _json_value(item) for key, item in value.items()}
        case None | bool() | int() | str():
            return value
        case _:
            return {f.name: _json_value(getattr(value, f.name)) for f in fields(value)}
