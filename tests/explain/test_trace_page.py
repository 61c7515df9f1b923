"""The trace page's data and safety, without a browser; and the views that explained answers give."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from page_reader import HOSTILE, Page, check_sealed

from cutaway.charts import Chart, Series
from cutaway.errors import UsageError
from cutaway.explain import anchors_view, report_html, trace_page
from cutaway.explain.views import KEPT_ALTERNATIVES, KEPT_LINKS, viewer_data
from cutaway.reasoning.thought_anchors.result import AnchorMap
from cutaway.reasoning.view import Alternative, Links, TraceView, Track
from cutaway.study import Finding

MakeView = Callable[[str], TraceView]
Make = Callable[[str], AnchorMap]


def hostile_view() -> TraceView:
    """Every text of a view is an attack."""
    return TraceView(
        title=HOSTILE,
        prompt=HOSTILE,
        sentences=(HOSTILE,) * 3,
        answer=HOSTILE,
        curve=Track(HOSTILE, HOSTILE, (0.1, None, 0.2, 0.3), undefined=("", HOSTILE, "", "")),
        categories=("unknown",) * 3,
        tracks=(
            Track(HOSTILE + "2", HOSTILE, (1.0, None, 2.0), unit=HOSTILE, undefined=(HOSTILE,) * 3, study=HOSTILE),
        ),
        links=(Links(HOSTILE + "3", HOSTILE, ((0, 1, 0.5), (1, 2, -0.5)), unit=HOSTILE, study=HOSTILE),),
        alternatives=((Alternative(HOSTILE, 1, 0.5, {HOSTILE: 1.0}),),) * 3,
        marked=(0,),
        meta={HOSTILE: HOSTILE, "model": HOSTILE},
    )


@pytest.mark.parametrize("name", ["short", "one sentence", "bare", "no curve", "all undefined", "every category"])
def test_the_page_is_sealed_and_its_data_whole(make_view: MakeView, name: str) -> None:
    view = make_view(name)
    page = Page(trace_page(view))
    check_sealed(page)
    data = json.loads(page.raw["view-data"])
    assert data["sentences"] == list(view.sentences)
    for given, track in zip(data["tracks"], view.tracks, strict=True):
        known = [(a, b) for a, b in zip(given["value"], track.value, strict=True) if b is not None]
        assert [a for a, b in known] == pytest.approx([b for a, b in known], rel=1e-4)
        assert [x is None for x in given["value"]] == [x is None for x in track.value]
    assert data["marked"] == sorted(view.marked)


def test_250_sentences_with_all_their_links_stay_under_a_megabyte_and_a_half(make_view: MakeView) -> None:
    view = make_view("long")
    assert sum(len(each.links) for each in view.links) > 2 * 250 * 18
    assert len(trace_page(view).encode()) < 1_500_000
    dense = tuple((s, t, 1 / (1 + t - s)) for s in range(250) for t in range(s + 1, 250))
    many = tuple(tuple(Alternative("y" * 500, 3, 0.01, {"8": 1.0}) for _ in range(40)) for _ in range(250))
    full = replace(view, links=tuple(Links(f"set {i}", "", dense) for i in range(3)), alternatives=many)
    assert len(trace_page(full).encode()) < 2_500_000, "far more than a method gives, and still a page"


def test_each_sentence_keeps_its_strongest_links_both_ways() -> None:
    rng = np.random.default_rng(1)
    n = 60
    dense = tuple((s, t, float(rng.normal())) for s in range(n) for t in range(s + 1, n))
    view = TraceView("t", "p", ("x. ",) * n, "a", links=(Links("all", "", dense),))
    given = viewer_data(view)["links"][0]
    kept = set(zip(given["source"], given["target"], strict=True))
    assert given["total"] == len(dense)
    assert len(kept) < len(dense)
    for side in (0, 1):
        for node in range(n):
            own = sorted((link for link in dense if link[side] == node), key=lambda link: -abs(link[2]))
            assert {link[:2] for link in own[:KEPT_LINKS]} <= kept


def test_rare_alternatives_are_counted_not_carried(make_view: MakeView) -> None:
    view = make_view("bare")
    group = tuple(Alternative(f"{i} " + "long " * 200, 1, i / 1000, {"a": 1.0}) for i in range(30))
    data = viewer_data(replace(view, alternatives=(group, ())))["alternatives"]
    assert [each["total"] for each in data] == [30, 0]
    assert [each["share"] for each in data[0]["shown"]] == [i / 1000 for i in range(29, 29 - KEPT_ALTERNATIVES, -1)]
    assert all(each["text"].endswith("…") for each in data[0]["shown"])


def test_a_hostile_view_stays_text() -> None:
    finding = Finding(HOSTILE, 1.0, unit=HOSTILE, control=Finding(HOSTILE, None, undefined=HOSTILE))
    chart = Chart(HOSTILE, (HOSTILE, "b"), (Series(HOSTILE, (1.0, None)),), HOSTILE, HOSTILE, HOSTILE)
    page = Page(trace_page(hostile_view(), [chart], [finding]))
    check_sealed(page)
    tags = [tag for tag, _ in page.elements]
    assert "img" not in tags
    assert tags.count("script") == 2
    assert json.loads(page.raw["view-data"])["sentences"] == [HOSTILE] * 3
    assert page.text.count(HOSTILE) > 15
    assert "49" not in page.text


def test_numbers_json_cannot_write_become_gaps() -> None:
    links = Links("odd", "", ((0, 1, float("nan")), (0, 2, float("inf")), (1, 2, 0.25)))
    view = TraceView("t", "p", ("a. ", "b. ", "c."), "x", links=(links,))
    given = json.loads(Page(trace_page(view)).raw["view-data"])["links"][0]
    assert (given["source"], given["target"], given["strength"]) == ([1], [2], [0.25])


def test_charts_findings_and_provenance_stand_below_the_trace(make_view: MakeView) -> None:
    chart = Chart("A chart", (1.0, 2.0), (Series("s", (0.1, 0.2)),))
    text = Page(trace_page(make_view("short"), [chart], [Finding("a finding", 0.5, n=3)])).text
    assert text.index("Sentence by sentence") < text.index("a finding") < text.index("A chart")
    assert "a-14b-model" in text


def test_an_anchor_map_as_a_view(make: Make) -> None:
    anchors = make("two anchors")
    extra = Track("receiver attention", "w", (0.5,) * 8)
    view = anchors_view(anchors, title="t", meta={"a": "b"}, tracks=[extra], categories=["unknown"] * 8)
    assert view.curve is not None
    assert view.curve.name == "P(umbrella)"
    assert view.curve.value == pytest.approx(anchors.curve[:, 0])
    assert view.curve.low == pytest.approx(anchors.low[:, 0])
    assert [track.name for track in view.tracks] == ["change of P(umbrella)", "stays", "receiver attention"]
    assert view.tracks[0].value == pytest.approx(anchors.effect)
    assert view.marked == anchors.anchors
    assert view.alternatives == anchors.alternatives
    assert TraceView.from_dict(json.loads(json.dumps(view.to_dict()))) == view


def test_what_was_never_drawn_is_undefined_with_its_reason(make: Make) -> None:
    anchors = make("no answer")
    stay, curve = anchors.stay.copy(), anchors.curve.copy()
    stay[2] = curve[4, 0] = np.nan
    view = anchors_view(replace(anchors, stay=stay, curve=curve), title="t", meta={})
    assert view.curve is not None
    assert view.curve.name == "P(no answer)"
    assert view.curve.value[4] is None
    assert view.curve.undefined is not None
    assert view.curve.undefined[4] == "no continuation was drawn here"
    assert view.tracks[1].value[2] is None


def test_the_report_takes_a_view_of_its_own_trace_only(make: Make, make_view: MakeView) -> None:
    anchors = make("decided")
    plain = report_html(anchors, title="t", meta={})
    assert "Along the trace" not in plain
    view = anchors_view(anchors, title="t", meta={})
    page = Page(report_html(anchors, title="t", meta={}, view=view))
    check_sealed(page)
    assert "Along the trace" in page.text
    assert json.loads(page.raw["data"])["anchors"]["sentences"] == json.loads(page.raw["view-data"])["sentences"]
    assert report_html(anchors, title="t", meta={}, view=replace(view, tracks=())) == plain
    with pytest.raises(UsageError, match="shows another trace"):
        report_html(anchors, title="t", meta={}, view=make_view("bare"))
