"""A trace as the viewer gets it: an anchor map as a `TraceView`, and a view as the page's data."""

from typing import Any

import numpy as np

from cutaway.explain.page import rounded
from cutaway.reasoning.view import CATEGORIES, Alternative, Links, TraceView, Track
from cutaway.sampling import without_end_mark

KEPT_LINKS = 20
"""Strongest links kept a sentence and direction; as many as the page can be asked to show."""
KEPT_ALTERNATIVES = 12
LONGEST_ALTERNATIVE = 400
SHORT = {
    "problem_setup": "setup",
    "plan_generation": "plan",
    "fact_retrieval": "fact",
    "active_computation": "compute",
    "result_consolidation": "consolidate",
    "uncertainty_management": "uncertain",
    "self_checking": "check",
    "final_answer_emission": "answer",
    "unknown": "unknown",
}


def viewer_data(view: TraceView) -> dict[str, Any]:
    """What the page carries: every number of the view, and its links and alternatives down to what can be shown."""
    return {
        "title": view.title,
        "answer": view.answer,
        "sentences": [without_end_mark(text) for text in view.sentences],
        "curve": None if view.curve is None else _track(view.curve),
        "kinds": [{"name": name.replace("_", " "), "short": SHORT[name]} for name in CATEGORIES],
        "kind": None if view.categories is None else [CATEGORIES.index(name) for name in view.categories],
        "tracks": [_track(each) for each in view.tracks],
        "links": [_links(each, len(view.sentences)) for each in view.links],
        "alternatives": None if view.alternatives is None else [_alternatives(group) for group in view.alternatives],
        "marked": sorted(view.marked),
    }


def _track(track: Track) -> dict[str, Any]:
    lists = {
        key: None if numbers is None else [rounded(x, 5) for x in numbers]
        for key, numbers in (
            *(("value", track.value), ("low", track.low), ("high", track.high)),
            ("control", track.control),
        )
    }
    named = {"name": track.name, "what": track.what, "unit": track.unit, "study": track.study}
    named |= {"control_is": track.control_is} if track.control is not None else {}
    return {**named, **lists, "undefined": None if track.undefined is None else list(track.undefined)}


def _links(links: Links, n: int) -> dict[str, Any]:
    ends = np.array([link[:2] for link in links.links], dtype=int).reshape(-1, 2)
    strength = np.array([link[2] for link in links.links], dtype=float)
    finite = np.isfinite(strength)
    keep = np.zeros(len(strength), dtype=bool)
    order = np.lexsort((np.arange(len(strength)), -np.abs(np.where(finite, strength, 0.0))))
    for side in (0, 1):
        seen = np.zeros(n, dtype=int)
        for index in order[finite[order]]:
            node = ends[index, side]
            keep[index] |= seen[node] < KEPT_LINKS
            seen[node] += 1
    return {
        "name": links.name,
        "what": links.what,
        "unit": links.unit,
        "study": links.study,
        "total": len(strength),
        "source": ends[keep, 0].tolist(),
        "target": ends[keep, 1].tolist(),
        "strength": [rounded(float(x), 4) for x in strength[keep]],
    }


def _alternatives(group: tuple[Alternative, ...]) -> dict[str, Any]:
    shown = sorted(group, key=lambda each: -each.share)[:KEPT_ALTERNATIVES]
    return {"total": len(group), "shown": [_alternative(each) for each in shown]}


def _alternative(one: Alternative) -> dict[str, Any]:
    text = without_end_mark(one.text)
    text = text if len(text) <= LONGEST_ALTERNATIVE else text[: LONGEST_ALTERNATIVE - 1] + "…"
    answers = {name: rounded(float(share), 4) for name, share in one.answers.items()}
    return {"text": text, "count": one.count, "share": rounded(float(one.share), 4), "answers": answers}
