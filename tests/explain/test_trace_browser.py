"""The trace viewer in a real browser with the network off: any console message or request fails the test."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Any

import pytest
from page_reader import CONTRAST, HOSTILE

from cutaway.explain import anchors_view, report_html, trace_page
from cutaway.reasoning.thought_anchors.result import AnchorMap
from cutaway.reasoning.view import Alternative, Links, TraceView, Track

MakeView = Callable[[str], TraceView]
Open = Callable[..., Any]
NAMES = (
    *("short", "one sentence", "bare", "no curve", "no categories"),
    *("gaps", "all undefined", "every category"),
)


PLACES = "all => all.map(c => +c.getAttribute('cx')).sort((a, b) => a - b)"


def heading(page: Any) -> str:
    """What the pane says it shows."""
    return str(page.locator(".v-detail h3").first.inner_text())


def ranked(view: TraceView, node: int, side: int, links: int = 0) -> list[tuple[int, int, float]]:
    """Links that end (1) or begin (0) at a sentence, strongest first."""
    own = [link for link in view.links[links].links if link[side] == node]
    return sorted(own, key=lambda link: -abs(link[2]))


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_view_is_drawn(open_page: Open, make_view: MakeView, name: str) -> None:
    view = make_view(name)
    page = open_page(trace_page(view))
    n = len(view.sentences)
    assert page.locator(".v-row").count() == n
    assert page.locator("#v-plot .v-node").count() == n
    assert page.locator("#v-plot .flag").count() == len(view.marked)
    assert page.locator(".v-row.marked").count() == len(view.marked)
    assert page.locator("#v-plot .band").count() == (view.curve is not None and view.curve.low is not None)
    assert page.locator("#v-kinds button").count() == len(set(view.categories or ()))
    assert "NaN" not in page.content()
    assert "undefined" not in page.locator("#v-plot").inner_html()
    assert heading(page).startswith("Sentence ")


def test_curve_nodes_and_rows_stand_where_the_numbers_say(open_page: Open, make_view: MakeView) -> None:
    view = make_view("short")
    page = open_page(trace_page(view), viewport={"width": 1600, "height": 900})
    assert view.curve is not None
    points = page.locator("#v-plot .own .point").evaluate_all(
        "all => all.map(p => [+p.getAttribute('cx'), +p.getAttribute('cy')])"
    )
    grid = page.locator("#v-plot :is(.grid, .base)").evaluate_all("all => all.map(l => +l.getAttribute('y1'))")
    heights = [(max(grid) - y) / (max(grid) - min(grid)) for _, y in points]
    assert heights == pytest.approx(list(view.curve.value), abs=1e-4)
    nodes = page.locator("#v-plot .v-node").evaluate_all(PLACES)
    middles = [(a[0] + b[0]) / 2 for a, b in pairwise(points)]
    assert nodes == pytest.approx(middles, abs=0.06), "a sentence stands between its two boundaries"
    bars = page.locator("#v-rows .v-strip").evaluate_all(
        "all => all.map(s => s.querySelector('.bar.now') ? +s.querySelector('.bar.now').getAttribute('width') : null)"
    )
    values = view.tracks[0].value
    assert [bar is None for bar in bars] == [value is None for value in values]
    top = max(range(24), key=lambda i: values[i] or 0)
    for bar, value in zip(bars, values, strict=True):
        if bar is not None and value > 0.05:
            assert bar / bars[top] == pytest.approx(value / values[top], abs=0.03)
    lines = page.locator("#v-rows .v-curve .curve").evaluate_all("all => all.map(p => p.getAttribute('d'))")
    assert lines[3] == f"M{100 * view.curve.value[3]:.1f},0L{100 * view.curve.value[4]:.1f},100"


def test_a_click_shows_everything_known_about_a_sentence(open_page: Open, make_view: MakeView) -> None:
    view = make_view("short")
    page = open_page(trace_page(view))
    assert heading(page) == "Sentence 2 of 24", "the first certified sentence is shown at once"
    page.locator(".v-row").nth(7).click()
    assert heading(page) == "Sentence 8 of 24"
    pane = page.locator(".v-detail")
    text = pane.inner_text()
    assert view.sentences[7].strip() in text
    assert "result consolidation" in text
    assert "only 4 of 100 rollouts say something else" in text, "a gap says why"
    for track in view.tracks:
        assert track.name in text
    resilience = view.tracks[4]
    assert resilience.low is not None
    assert f"{resilience.low[7]:.3g} to" in text
    assert view.curve is not None
    assert f"{view.curve.value[7]:.2f}" in text
    assert f"{view.curve.value[8]:.2f}" in text
    said = pane.locator(".v-alternatives .said").all_inner_texts()
    assert view.alternatives is not None
    assert said == [each.text for each in view.alternatives[7]]
    shares = view.alternatives[7][0].answers
    assert f"8 {round(100 * shares['8'])}%" in pane.locator(".v-alternatives .words").first.inner_text()
    assert page.locator(".v-row.is-chosen .v-num").inner_text() == "8"
    page.locator(".v-row").nth(5).click()
    assert "No alternative is known here" in pane.inner_text()


def test_controls_are_shown_on_demand_beside_their_measure(open_page: Open, make_view: MakeView) -> None:
    view = make_view("short")
    page = open_page(trace_page(view), viewport={"width": 1600, "height": 900})
    assert page.locator("#v-measure option").count() == len(view.tracks), "a control is no measure of its own"
    page.locator(".v-row").nth(3).click()
    assert page.locator(".v-strip .control").count() == 0
    assert "control" not in page.locator(".v-detail").inner_text()
    page.locator("#v-controls").check()
    control = view.tracks[0].control
    assert control is not None
    assert page.locator(".v-strip .control").count() == sum(x is not None for x in control)
    (line,) = page.locator(".v-detail .v-control").all_inner_texts()
    assert line == f"control {control[3]:.3g}"
    # The mark stands where a bar of its size would end.
    top = max(range(24), key=lambda i: view.tracks[0].value[i] or 0)
    strip, value = page.locator(".v-row").nth(top).locator(".v-strip"), view.tracks[0].value[top]
    left, width = (float(strip.locator(".bar.now").get_attribute(name)) for name in ("x", "width"))
    mark = float(strip.locator(".control").get_attribute("d").split(",")[0][1:])
    assert value is not None
    assert mark - left == pytest.approx(width * control[top] / value, abs=0.11)
    page.locator("#v-controls").uncheck()
    assert page.locator(".v-strip .control").count() == 0
    plain = open_page(trace_page(make_view("bare")))
    assert plain.locator("#v-controls").count() == 0


def test_a_set_without_links_takes_no_room_and_says_so(open_page: Open, make_view: MakeView) -> None:
    view = make_view("short")
    full = open_page(trace_page(view)).locator("#v-plot").bounding_box()
    page = open_page(trace_page(replace(view, links=(Links("suppression", "w", ()),))))
    small = page.locator("#v-plot").bounding_box()
    assert "No link by suppression." in page.locator("#v-plot svg").text_content()
    assert small["height"] < full["height"] - 100
    one = open_page(trace_page(replace(view, links=(view.links[0], Links("suppression", "w", ())))))
    assert "No link" not in one.locator("#v-plot svg").text_content()
    one.locator("#v-set").select_option("1")
    assert "No link by suppression." in one.locator("#v-plot svg").text_content()


def test_the_trees_hold_the_strongest_links_to_depth_two(open_page: Open, make_view: MakeView) -> None:
    view = make_view("short")
    page = open_page(trace_page(view))
    page.locator(".v-row").nth(11).click()
    for direction, side, other in (("in", 1, 0), ("out", 0, 1)):
        near = ranked(view, 11, side)[:2]
        shown = page.locator(f".v-tree.{direction} > ul > li > .v-link > .n:not(.soft)").all_inner_texts()
        assert shown == [str(link[other] + 1) for link in near]
        for place, link in enumerate(near):
            far = ranked(view, link[other], side)[:2]
            below = page.locator(f".v-tree.{direction} > ul > li").nth(place).locator("ul .n:not(.soft)")
            assert below.all_inner_texts() == [str(each[other] + 1) for each in far]
    assert page.locator(".link.in.near").count() == 2
    assert page.locator(".link.out.near").count() == 2
    first = page.locator(".v-tree.in > ul > li > .v-link").first
    number = first.locator(".n:not(.soft)").inner_text()
    first.click()
    assert heading(page) == f"Sentence {number} of 24"


def test_links_per_sentence_direction_and_set(open_page: Open, make_view: MakeView) -> None:
    view = make_view("short")
    page = open_page(trace_page(view))

    def arcs() -> int:
        paths = page.locator("#v-plot .arc").evaluate_all("all => all.map(p => p.getAttribute('d'))")
        return sum(path.count("M") for path in paths)

    def expected(side: int, per: int, links: int) -> int:
        return sum(min(per, len(ranked(view, i, side, links))) for i in range(24))

    assert arcs() == expected(1, 2, 0)
    page.locator("#v-per").fill("5")
    assert page.locator("#v-per-out").inner_text() == "5 links"
    assert arcs() == expected(1, 5, 0)
    page.locator("#v-direction").select_option("out")
    assert arcs() == expected(0, 5, 0)
    assert page.locator(".v-tree").first.locator("h4").inner_text().startswith("Outgoing")
    page.locator("#v-set").select_option(label="suppression")
    assert arcs() == expected(0, 5, 1)
    assert page.locator("#v-plot .arc.minus").count() > 0, "negative links are dashed"
    assert "Links: suppression" in page.locator(".v-detail").inner_text()


def test_the_measure_sizes_the_nodes_and_orders_the_rows(open_page: Open, make_view: MakeView) -> None:
    view = make_view("short")
    page = open_page(trace_page(view), viewport={"width": 1600, "height": 900})

    def largest() -> float:
        return float(
            page.locator("#v-plot .v-node").evaluate_all(
                "all => all.sort((a, b) => b.getAttribute('r') - a.getAttribute('r'))[0].getAttribute('cx')"
            )
        )

    def place(i: int) -> float:
        nodes = page.locator("#v-plot .v-node").evaluate_all(PLACES)
        return float(nodes[i])

    def top(track: Track) -> int:
        return max(range(24), key=lambda i: abs(track.value[i] or 0))

    assert largest() == place(top(view.tracks[0]))
    page.locator("#v-measure").select_option(label="resilience")
    assert largest() == place(top(view.tracks[4]))
    assert page.locator("button.v-col[aria-pressed=true]").get_attribute("aria-label") == "Size by resilience"
    page.locator("#v-order").select_option("size")
    assert page.locator(".v-num").first.inner_text() == str(top(view.tracks[4]) + 1)
    page.locator("button.v-col", has_text="monitor score").click()
    assert page.locator("#v-measure").input_value() == "5"
    assert page.locator(".v-num").first.inner_text() == "24"


def test_filters_by_category_text_and_size(open_page: Open, make_view: MakeView) -> None:
    view = make_view("short")
    page = open_page(trace_page(view))
    assert view.categories is not None
    page.locator("#v-kinds button", has_text="plan generation").click()
    plans = [i for i, name in enumerate(view.categories) if name == "plan_generation"]
    assert page.locator(".v-num").all_inner_texts() == [str(i + 1) for i in plans]
    assert page.locator("#v-plot .v-node.dim").count() == 24 - len(plans)
    page.locator("#v-kinds button", has_text="fact retrieval").click()
    assert page.locator("#v-count").inner_text() == f"{2 * len(plans)} of 24 sentences"
    for name in ("plan generation", "fact retrieval"):
        page.locator("#v-kinds button", has_text=name).click()
    page.locator("#v-find").fill("EXPONENT of two")
    assert page.locator(".v-num").all_inner_texts() == ["5", "13", "21"]
    page.locator("#v-find").fill("no such words")
    assert "No sentence passes" in page.locator("#v-rows").inner_text()
    page.locator("#v-find").fill("")
    page.locator("#v-least").fill("50")
    values = view.tracks[0].value
    most = max(x for x in values if x is not None)
    large = [i for i, x in enumerate(values) if x is not None and x >= most / 2]
    assert page.locator(".v-num").all_inner_texts() == [str(i + 1) for i in large]
    assert page.locator("#v-least-out").inner_text() == f"{most / 2:.3g}"


def test_the_keyboard_alone_is_enough(open_page: Open, make_view: MakeView) -> None:
    page = open_page(trace_page(make_view("short")))
    page.locator("#v-plot").focus()
    for key, expected in (("ArrowRight", 3), ("End", 24), ("ArrowLeft", 23), ("Home", 1), ("PageDown", 11)):
        page.keyboard.press(key)
        assert heading(page) == f"Sentence {expected} of 24"
    assert "Sentence 11, fact retrieval" in str(page.locator("#v-plot").get_attribute("aria-valuetext"))
    assert page.locator(".v-num[tabindex='0']").count() == 1
    page.locator(".v-row.is-chosen .v-num").focus()
    for key, expected in (("ArrowDown", 12), ("End", 24), ("ArrowUp", 23), ("Home", 1)):
        page.keyboard.press(key)
        assert heading(page) == f"Sentence {expected} of 24"
        assert page.evaluate("document.activeElement.textContent") == str(expected)
    page.locator("button.v-col").nth(1).focus()
    page.keyboard.press("Enter")
    assert page.locator("#v-measure").input_value() == "1"
    page.locator(".v-turn").last.click()
    page.keyboard.press("Enter")
    assert heading(page) == "Sentence 3 of 24"


def test_hover_and_click_in_the_graph(open_page: Open, make_view: MakeView) -> None:
    page = open_page(trace_page(make_view("short")))
    node = page.locator("#v-plot .v-node").evaluate_all(
        "all => { const xs = all.map(c => c.getBoundingClientRect()).sort((a, b) => a.x - b.x); "
        "return [xs[15].x + xs[15].width / 2, xs[15].y]; }"
    )
    page.mouse.move(node[0], node[1] - 60)
    assert "Sentence 16" in page.locator(".tip").inner_text()
    assert "→" in page.locator(".tip").inner_text()
    page.mouse.click(node[0], node[1])
    assert heading(page) == "Sentence 16 of 24"
    page.mouse.move(node[0], 5)
    assert not page.locator(".tip").is_visible()


def test_250_sentences_answer_within_a_second(open_page: Open, make_view: MakeView) -> None:
    page = open_page(trace_page(make_view("long")))
    acts = [f"document.querySelectorAll('.v-row')[{i}].click()" for i in (3, 60, 120, 180, 249)]
    acts += [
        "set('v-per', 20, 'input')",
        "document.querySelectorAll('.v-row')[125].click()",
        "set('v-measure', 3, 'change')",
        "document.querySelector('.v-filter').click()",
        "document.querySelector('.v-filter').click()",
        "set('v-order', 'size', 'change')",
        "document.querySelector('.v-turn').click()",
    ]
    times = [
        page.evaluate(f"""() => {{
            const set = (id, value, type) => {{
                const input = document.getElementById(id);
                input.value = value;
                input.dispatchEvent(new Event(type));
            }};
            const started = performance.now();
            {act};
            document.body.getBoundingClientRect();  // layout belongs to the time a person waits
            return performance.now() - started;
        }}""")
        for act in acts
    ]
    assert median(times) < 1000
    assert heading(page) == "Sentence 125 of 250"


def test_hostile_text_is_never_run(open_page: Open, make_view: MakeView) -> None:
    view = make_view("short")
    n = len(view.sentences)
    hostile = replace(
        view,
        title=HOSTILE,
        prompt=HOSTILE,
        answer=HOSTILE,
        sentences=(HOSTILE,) * n,
        tracks=(Track(HOSTILE, HOSTILE, (None,) * n, unit=HOSTILE, undefined=(HOSTILE,) * n, study=HOSTILE),),
        links=(Links(HOSTILE + "!", HOSTILE, view.links[0].links, unit=HOSTILE),),
        alternatives=((Alternative(HOSTILE, 1, 0.1, {HOSTILE: 1.0}),),) * n,
    )
    page = open_page(trace_page(hostile))
    page.locator(".v-row").nth(3).click()
    page.locator("#v-plot").hover()
    page.locator("#v-find").fill("<img")
    assert page.locator(".v-row").count() == n
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert "<img src=x" in page.locator(".v-quote").inner_text()
    assert "<img src=x" in page.locator(".v-numbers .undefined").inner_text()


def test_downloads(open_page: Open, make_view: MakeView) -> None:
    view = make_view("short")
    view = replace(view, sentences=("=1+1, she said ", *view.sentences[1:]))
    page = open_page(trace_page(view), accept_downloads=True)
    with page.expect_download() as waiting:
        page.locator("#v-json").click()
    assert json.loads(waiting.value.path().read_text())["sentences"] == list(view.sentences)
    with page.expect_download() as waiting:
        page.locator("#v-csv").click()
    rows = list(csv.DictReader(io.StringIO(waiting.value.path().read_bytes().decode())))
    assert len(rows) == 24
    assert rows[0]["text"] == "'=1+1, she said "
    assert rows[7]["counterfactual importance"] == ""
    assert float(rows[3]["resilience"]) == pytest.approx(view.tracks[4].value[3], rel=1e-4)
    assert [row["certified"] for row in rows].count("certified") == len(view.marked)


@pytest.mark.parametrize("name", ["short", "bare"])
def test_a_narrow_screen_opens_a_sentence_in_its_place(open_page: Open, make_view: MakeView, name: str) -> None:
    page = open_page(trace_page(make_view(name)), viewport={"width": 400, "height": 800})
    page.locator(".v-row").nth(1).click()
    assert page.locator(".v-row.is-chosen + .v-host .v-detail").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.set_viewport_size({"width": 1400, "height": 900})
    page.wait_for_selector("#v-aside .v-detail")
    assert page.locator(".v-host").count() == 0
    assert heading(page).startswith("Sentence 2")


@pytest.mark.parametrize("width", [700, 1024, 1280, 1920])
def test_no_width_needs_sideways_scrolling(open_page: Open, make_view: MakeView, width: int) -> None:
    page = open_page(trace_page(make_view("short")), viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    inside = page.evaluate(
        "() => { const list = document.getElementById('v-rows').getBoundingClientRect();"
        "const cells = [...document.querySelectorAll('.v-row > *')];"
        "return cells.every((e) => e.getBoundingClientRect().right <= list.right + 1); }"
    )
    assert inside, "a column runs out of the list"


def test_what_is_measured_already_is_not_measured_twice(open_page: Open, make_view: MakeView) -> None:
    view = make_view("short")
    assert open_page(trace_page(view)).locator("#v-measure option").count() == 6, "accuracy change is the curve's own"
    other = replace(view, tracks=view.tracks[2:])
    names = open_page(trace_page(other)).locator("#v-measure option").all_inner_texts()
    assert names == [*(track.name for track in other.tracks), "change of P(8)"]


def test_replacements_without_answers_have_no_bar(open_page: Open, make_view: MakeView) -> None:
    view = make_view("bare")
    group = (Alternative("It may not be.", 2, 0.5, {}),)
    page = open_page(trace_page(replace(view, alternatives=(group, ()))))
    assert page.locator(".v-alternatives .said").all_inner_texts() == ["It may not be."]
    assert page.locator(".v-alternatives .leads").count() == 0


def test_print_shows_every_sentence_in_full(open_page: Open, make_view: MakeView) -> None:
    page = open_page(trace_page(make_view("short")))
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert not page.locator("#v-find").is_visible()
    assert page.locator(".v-text").first.evaluate("e => e.scrollWidth <= e.clientWidth")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_contrast_is_at_least_4_5(open_page: Open, make_view: MakeView, scheme: str) -> None:
    page = open_page(trace_page(make_view("short")), color_scheme=scheme)
    page.locator(".v-row").nth(8).click()
    page.locator("#v-kinds button").first.click()
    worst = page.evaluate(CONTRAST)
    assert worst["ratio"] >= 4.5, worst


def test_the_report_shows_its_own_trace_with_other_methods(
    open_page: Open, make: Callable[[str], AnchorMap], make_view: MakeView
) -> None:
    anchors = make("decided")
    values = (0.1, None, 0.3, 0.2, 0.5, 0.4, 0.1, 0.2)
    track = Track("receiver attention", "w", values, undefined=("", "too near", *[""] * 6))
    links = Links("attention", "w", ((0, 2, 0.5), (2, 7, 0.9)))
    view = anchors_view(anchors, title="t", meta={}, tracks=[track], links=[links])
    page = open_page(report_html(anchors, title="Why", meta={}, view=view))
    assert page.locator("#figure .band").count() == 4
    assert heading(page) == "Sentence 3 of 8"
    page.locator(".v-row").nth(1).click()
    assert "too near" in page.locator(".v-detail").inner_text()
    page.locator("#s3 .text").click()
    assert page.locator("#s3 .panel").is_visible()
