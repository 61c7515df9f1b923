"""The report in a real browser, with the network off: any console message or request fails the test."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from page_reader import CONTRAST

from cutaway.explain.report import conclude, report_html
from cutaway.reasoning.thought_anchors.result import AnchorMap
from cutaway.reasoning.view import Alternative

Make = Callable[[str], AnchorMap]
Open = Callable[..., Any]
SHORT = (
    *("decided", "two anchors", "against", "nothing certified", "partial", "partial, nothing"),
    *("no answer", "one sentence", "one answer", "many answers"),
)
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"


@pytest.fixture
def open_report(open_page: Open, meta: dict[str, str]) -> Open:
    """Open the report of a map."""
    return lambda anchors, **options: open_page(report_html(anchors, title="What to take along", meta=meta), **options)


@pytest.mark.parametrize("name", SHORT)
def test_every_kind_of_run_draws_its_figure_and_rows(open_report: Open, make: Make, name: str) -> None:
    anchors = make(name)
    page = open_report(anchors)
    drawn = min(6, len(anchors.answers))
    assert page.locator("#figure .band").count() == drawn
    assert page.locator("#figure path.curve").count() == drawn
    assert page.locator("#figure .flag").count() == len(anchors.anchors)
    assert page.locator("#figure .cell").count() == len(anchors.sentences)
    assert page.locator(".row").count() == len(anchors.sentences)
    assert page.locator(".caution").count() == len(conclude(anchors).cautions)
    assert "NaN" not in page.content()


def test_the_curve_stands_where_the_numbers_say(open_report: Open, make: Make) -> None:
    anchors = make("decided")
    page = open_report(anchors)
    points = page.locator("#figure .own .point").evaluate_all(
        "all => all.map(p => [+p.getAttribute('cx'), +p.getAttribute('cy')])"
    )
    grid = page.locator("#figure :is(.grid, .base)").evaluate_all("all => all.map(l => +l.getAttribute('y1'))")
    zero, one = max(grid), min(grid)
    heights = [(zero - y) / (zero - one) for _, y in points]
    assert heights == pytest.approx(list(anchors.curve[:, 0]), abs=1e-6)
    steps = [b[0] - a[0] for a, b in pairwise(points)]
    assert steps == pytest.approx([steps[0]] * 8)


def test_a_click_opens_what_the_model_would_have_said(open_report: Open, make: Make) -> None:
    anchors = make("decided")
    page = open_report(anchors)
    page.locator("#s3 .text").click()
    assert page.locator("#s3 .toggle").get_attribute("aria-expanded") == "true"
    said = page.locator("#s3 .other .said").all_inner_texts()
    assert said == [other.text for other in anchors.alternatives[2]]
    assert "umbrella 79%" in page.locator("#s3 .own .words").inner_text()
    assert "e-value 10^6.2" in page.locator("#s3 .fine").inner_text()
    page.locator("#s3 .text").click()
    assert not page.locator("#s3 .panel").is_visible()


def test_a_sentence_without_alternatives_says_so(open_report: Open, make: Make) -> None:
    anchors = make("one sentence")
    page = open_report(replace(anchors, alternatives=((),), draws=anchors.draws * 0))
    page.locator("#s1 .text").click()
    assert "No continuation was drawn" in page.locator("#s1 .panel").inner_text()


def test_the_conclusion_leads_to_its_sentence(open_report: Open, make: Make) -> None:
    page = open_report(make("decided"))
    page.locator("blockquote a").click()
    assert page.locator("#s3 .panel").is_visible()
    assert page.evaluate("document.activeElement.getAttribute('aria-controls')") == "alternatives-3"


def test_hover_shows_the_numbers(open_report: Open, make: Make) -> None:
    page = open_report(make("decided"))
    flag = page.locator("#figure .column").bounding_box()
    assert flag is not None
    page.mouse.move(flag["x"] + flag["width"] / 2, flag["y"] + 60)
    tip = page.locator(".tip")
    assert tip.is_visible()
    assert "Sentence 3" in tip.inner_text()
    assert "0.30 → 0.79" in tip.inner_text()
    page.mouse.move(flag["x"], flag["y"] - 300)
    assert not tip.is_visible()


def test_the_keyboard_alone_is_enough(open_report: Open, make: Make) -> None:
    page = open_report(make("decided"))
    page.locator("#figure").focus()
    for key in ("ArrowRight", "End", "Home", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert "Sentence 3, anchor" in str(page.locator("#figure").get_attribute("aria-valuetext"))
    page.keyboard.press("Escape")
    assert not page.locator(".tip").is_visible()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    assert page.locator("#s8 .panel").is_visible()
    page.keyboard.press("ArrowLeft")
    assert not page.locator("#s8 .panel").is_visible()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    assert page.locator("#s7 .panel").is_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.locator("#s8 .panel").is_visible()


def test_filter_and_sort(open_report: Open, make: Make) -> None:
    page = open_report(make("two anchors"))
    page.locator("#sort").select_option("effect")
    assert page.locator(".row .index").all_inner_texts()[:2] == ["3", "6"]
    page.locator("#show").select_option("anchor")
    assert page.locator(".row").count() == 2
    assert page.locator("#count").inner_text() == "2 of 8 sentences"


def test_anchors_only_with_none_certified(open_report: Open, make: Make) -> None:
    page = open_report(make("nothing certified"))
    page.locator("#show").select_option("anchor")
    assert "No sentence was certified" in page.locator("#rows").inner_text()


def test_250_sentences_answer_a_click_within_a_second(open_report: Open, make: Make) -> None:
    page = open_report(make("long"))
    assert page.locator(".row").count() == 250
    for act in (
        "document.querySelector('#s200 .toggle').click()",
        "document.querySelector('blockquote a').click()",
        "sort.value = 'effect'; sort.dispatchEvent(new Event('change'))",
        "show.value = 'anchor'; show.dispatchEvent(new Event('change'))",
        "show.value = 'all'; show.dispatchEvent(new Event('change'))",
    ):
        waits = page.evaluate(f"""() => {{
            const [show, sort] = ["show", "sort"].map((id) => document.getElementById(id));
            return [1, 2, 3].map(() => {{
                const started = performance.now();
                {act};
                document.body.getBoundingClientRect();  // layout belongs to the time a person waits
                return performance.now() - started;
            }});
        }}""")
        assert min(waits) < 1000, (act, waits)  # the page's own time: other programs on the machine delay single clicks


def test_hostile_text_is_never_run(open_report: Open, make: Make) -> None:
    anchors = make("decided")
    hostile = replace(
        anchors,
        prompt=HOSTILE,
        sentences=(HOSTILE,) * 8,
        answers=(HOSTILE, *anchors.answers[1:]),
        alternatives=((Alternative(HOSTILE, 1, 0.1, {HOSTILE: 1.0}),),) * 8,
    )
    page = open_report(hostile)
    page.locator("#s3 .text").click()
    page.locator("#figure").focus()
    page.keyboard.press("Home")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert page.locator(".prompt").inner_text() == HOSTILE
    assert page.locator("#s3 .other .said").inner_text() == HOSTILE


def test_downloads(open_report: Open, make: Make) -> None:
    anchors = make("decided")
    anchors = replace(anchors, sentences=("=1+1, she said ", *anchors.sentences[1:]))
    page = open_report(anchors, accept_downloads=True)
    with page.expect_download() as waiting:
        page.locator("#json").click()
    assert json.loads(waiting.value.path().read_text())["anchors"]["sentences"] == list(anchors.sentences)
    with page.expect_download() as waiting:
        page.locator("#csv").click()
    rows = list(csv.DictReader(io.StringIO(waiting.value.path().read_bytes().decode(), newline="")))
    assert len(rows) == 8
    assert rows[0]["text"] == "'=1+1, she said "
    assert rows[2]["text"] == anchors.sentences[2]
    assert float(rows[2]["p_after[umbrella]"]) == pytest.approx(anchors.curve[3, 0], rel=1e-6)
    assert float(rows[1]["effect"]) == pytest.approx(anchors.effect[1], rel=1e-6)


@pytest.mark.parametrize("name", ["decided", "long", "many answers"])
def test_a_narrow_screen_needs_no_sideways_scrolling(open_report: Open, make: Make, name: str) -> None:
    page = open_report(make(name), viewport={"width": 400, "height": 800})
    page.locator("#s3 .toggle").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_contrast_is_at_least_4_5(open_report: Open, make: Make, scheme: str) -> None:
    page = open_report(make("partial"), color_scheme=scheme)
    page.locator("#s3 .toggle").click()
    worst = page.evaluate(CONTRAST)
    assert worst["ratio"] >= 4.5, worst
