"""Pages of runs: what stands on them, and which page a stored run gets."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from page_reader import CONTRAST, HOSTILE, Page, check_sealed

from cutaway.charts import Chart, Heat, Series
from cutaway.errors import UsageError
from cutaway.explain import anchors_view, calibration_page, report_of_run, run_page
from cutaway.explain.explain import with_companions
from cutaway.explain.figures import figure
from cutaway.explain.findings import finding_rows
from cutaway.explain.heats import FINEST_HEAT
from cutaway.explain.svg import ticks
from cutaway.ledger import Ledger, RunRecord
from cutaway.reasoning.thought_anchors.result import AnchorMap
from cutaway.reasoning.view import Links, TraceView, Track
from cutaway.sampling.types import Cost
from cutaway.study import Calibration, Finding, Findings, Rate

MakeView = Callable[[str], TraceView]
Open = Callable[..., Any]
RUN = RunRecord(
    id="3fa2b81c0d",
    study="some-study",
    config={
        "model": "/home/someone/models/qwen",
        "folder": "/home/someone/data",
        "alpha": 0.05,
        "kinds": ["a"],
        "x": None,
    },
    seed=0,
    started="2026-01-02T10:00:00",
    seconds=12.3,
    complete=True,
    summary="41 of 2,865 differences survive",
    inputs={"weights:qwen": "ab" * 32},
    code="cd" * 32,
    versions={"cutaway": "0.1.0"},
    machine={"cpu": "x86"},
    cost=Cost(1000, 200, 30),
)
FINDINGS = (
    Finding("difference", 0.034, 0.031, 0.037, n=2865, control=Finding("no effect", 0.025, 0.02, 0.03, n=2865)),
    Finding("sentences", 2885.0, n=20),
    Finding("reliability", None, undefined="one trace only", control=Finding("of noise", 0.0)),
    Finding("open", 0.3, None, 0.4, level=0.9, unit="nats"),
)
BARS = Chart("Bars", ("plan", "a name too long to stand beside a bar in full"), (Series("kl", (0.5, None)),), "", "KL")
LINES = Chart(
    "Lines",
    (1.0, 10.0, 100.0, 1000.0),
    (
        Series("own", (0.1, None, 0.3, 0.4), (0.05, None, 0.2, 0.3), (0.2, None, 0.4, 0.5)),
        Series("null", (0.0, 0.0, 0.0, 0.0), control=True),
    ),
    "n",
    "error",
    log_x=True,
)
HEAT = Heat("Heat", ("r1", "r2"), ("c1", "c2", "c3"), ((1.0, -2.0, None), (0.0, 0.5, 2.0)), "z")
RATES = (
    Rate("coverage", 194, 200, at_least=0.93, what="curves inside"),
    Rate("false", 20, 200, at_most=0.05),
    Rate("free", 1, 2),
)


def attributes(svg: str, name: str) -> list[float]:
    return [float(x) for x in re.findall(rf' {name}="(-?[\d.]+)"', svg)]


def test_a_run_on_one_page() -> None:
    page = Page(run_page(RUN, FINDINGS, (BARS, LINES, HEAT)))
    check_sealed(page)
    for part in (
        *("41 of 2,865", "0.034", "0.031 to 0.037", "2,885", "no effect", "undefined", "one trace only"),
        *("open to 0.4 at 0.9", "qwen", "1,000 decoded", "Bars", "Lines", "Heat"),
    ):
        assert part in page.text
    assert "someone" not in page.text, "paths stay at home"
    assert "script" not in page.raw, "nothing to run, so nothing may run"


def test_headers_and_alternatives_for_those_who_hear_it() -> None:
    page = Page(run_page(RUN, FINDINGS, (BARS, LINES, HEAT)))
    headers = [a for tag, a in page.elements if tag == "th"]
    assert headers
    assert all(a.get("scope") in ("col", "row") for a in headers)
    pictures = [a for tag, a in page.elements if tag == "svg" and a.get("aria-hidden") != "true"]
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    named = [a["aria-labelledby"] for a in pictures if "aria-labelledby" in a]
    assert len(named) == 3
    assert all(part in ids for name in named for part in str(name).split())


def test_a_partial_run_says_so() -> None:
    assert "ended early" not in run_page(RUN, FINDINGS)
    assert "ended early" in run_page(replace(RUN, complete=False), FINDINGS)


def test_many_findings_are_folded_but_all_there() -> None:
    page = run_page(RUN, [Finding(f"number {i}", float(i)) for i in range(100)])
    assert "60 more findings" in page
    assert all(f"number {i}" in page for i in range(100))


def test_hostile_texts_of_findings_and_charts_stay_text() -> None:
    bad = Finding(HOSTILE, 1.0, unit=HOSTILE, control=Finding(HOSTILE, None, undefined=HOSTILE))
    charts = (
        Chart(HOSTILE, (HOSTILE,), (Series(HOSTILE, (1.0,)),), HOSTILE, HOSTILE, HOSTILE),
        Chart(HOSTILE, (1.0, 2.0), (Series(HOSTILE, (1.0, 2.0)),), HOSTILE, HOSTILE, HOSTILE),
        Heat(HOSTILE, (HOSTILE,), (HOSTILE,), ((1.0,),), HOSTILE, HOSTILE),
    )
    run = replace(RUN, study=HOSTILE, summary=HOSTILE, config={HOSTILE: HOSTILE}, versions={HOSTILE: HOSTILE})
    for html in (run_page(run, (bad,), charts), calibration_page(run, (Rate(HOSTILE, 1, 2, what=HOSTILE),))):
        page = Page(html)
        check_sealed(page)
        tags = [tag for tag, _ in page.elements]
        assert "img" not in tags
        assert "script" not in tags
        assert HOSTILE in page.text


def test_lines_stand_at_their_numbers_and_break_at_gaps() -> None:
    svg = str(figure(LINES, 0).svg)
    own = re.search(r'<g class="c0">(.*?)</g>', svg)
    null = re.search(r'<g class="c-none">(.*?)</g>', svg)
    assert own is not None
    assert null is not None
    y = attributes(own[1], "cy")
    zero = attributes(null[1], "cy")[0]
    assert len(y) == 3
    assert (zero - y[1]) / (zero - y[0]) == pytest.approx(3.0, abs=0.05)
    assert (zero - y[2]) / (zero - y[0]) == pytest.approx(4.0, abs=0.05)
    x = attributes(null[1], "cx")
    assert [b - a for a, b in pairwise(x)] == pytest.approx([x[1] - x[0]] * 3, abs=0.11), "log axis"
    assert own[1].count('class="curve"') == 1, "the lone first point has no line"
    assert own[1].count('class="whisker"') == 1
    assert own[1].count('class="band"') == 1


def test_bars_stand_at_their_numbers() -> None:
    chart = Chart("t", ("a", "b", "c"), (Series("s", (0.2, -0.1, 0.4)),))
    svg = str(figure(chart, 0).svg)
    widths = [float(w) for w in re.findall(r'class="bar"[^>]* width="([\d.]+)"', svg)]
    assert widths[0] / widths[1] == pytest.approx(2, abs=0.02)
    assert widths[2] / widths[1] == pytest.approx(4, abs=0.04)
    assert figure(BARS, 0).rows[1][1] == "–", "a gap is no zero"


def test_heat_shades_grow_with_size_and_gaps_are_no_zeros() -> None:
    svg = str(figure(HEAT, 0).svg)
    cells = re.search(r'<g class="heat">(.*?)</g>', svg)
    assert cells is not None
    found = re.findall(r'class="(more|less|hole)"(?: fill-opacity="([\d.]+)")?', cells[1])
    assert found == [("more", "0.5"), ("less", "1.0"), ("hole", ""), ("more", "0.0"), ("more", "0.25"), ("more", "1.0")]


def test_a_fine_heat_is_averaged_and_stays_light() -> None:
    n = 2 * FINEST_HEAT
    values = tuple(tuple(1.0 if i // 2 == j // 2 else None if i < j else 0.0 for j in range(n)) for i in range(n))
    names = tuple(map(str, range(n)))
    drawn = figure(Heat("large", names, names, values), 0)
    assert "means over blocks of 2 by 2" in drawn.note
    assert len(drawn.svg) < 100_000
    assert drawn.rows == ()


@pytest.mark.parametrize(
    "chart",
    [
        Chart("nothing", (), ()),
        Chart("no series", ("a", "b"), ()),
        Chart("all gaps", (1.0, 2.0), (Series("s", (None, None)),)),
        Chart("one point", (3.0,), (Series("s", (0.5,), (0.4,), (0.6,)),)),
        Chart("constant", (1.0, 2.0), (Series("s", (5.0, 5.0)),)),
        Chart("tiny", (1.0, 2.0), (Series("s", (1e-9, 3e-9)),)),
        Chart("negative bars", ("a",), (Series("s", (-5.0,)),)),
        Chart("one log x", (10.0,), (Series("s", (1.0,)),), log_x=True),
        Chart("long", tuple(map(float, range(500))), (Series("s", tuple(map(float, range(500)))),)),
        Heat("empty", (), (), ()),
        Heat("all gaps", ("a",), ("b",), ((None,),)),
        Heat("zeros", ("a",), ("b",), ((0.0,),)),
        Heat("long names", ("row " * 20,), tuple(f"column {i} of a long name" for i in range(30)), ((1.0,) * 30,)),
    ],
    ids=lambda chart: chart.title,
)
def test_odd_charts_are_drawn(chart: Chart | Heat) -> None:
    drawn = figure(chart, 3)
    assert not re.search(r"\b(nan|inf|None)\b", str(drawn.svg).replace("chart-3", ""))
    check_sealed(Page(run_page(RUN, (), (chart,))))


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.87), (-3.0, 7.0), (0.001, 0.0013), (-1e6, -1e5), (0.0, 1.0)])
def test_ticks_are_few_even_and_hold_the_ends(low: float, high: float) -> None:
    steps = ticks(low, high)
    assert 3 <= len(steps) <= 9
    assert steps[0] <= low + 1e-12
    assert steps[-1] >= high - 1e-12
    widths = [b - a for a, b in pairwise(steps)]
    assert widths == pytest.approx([widths[0]] * len(widths))


def test_dots_of_one_unit_share_a_scale_and_stand_at_their_numbers() -> None:
    a, b = finding_rows((Finding("a", 2.0, 1.0, 3.0, unit="nats"), Finding("b", 4.0, unit="nats")))
    (xa,), (xb,) = (attributes(str(row.plot), "cx") for row in (a, b))
    assert (xb - 8) / (xa - 8) == pytest.approx(2, abs=0.01)
    small, large = finding_rows((Finding("s", 2.0, unit="u"), Finding("l", 4000.0, unit="u")))
    assert attributes(str(small.plot), "cx") == attributes(str(large.plot), "cx"), "too far apart for one scale"
    undefined, control = finding_rows((FINDINGS[2], FINDINGS[0]))
    assert undefined.measured.undefined == "one trace only"
    assert "dot-own" not in str(undefined.plot)
    assert "dot-control" in str(control.plot)
    assert finding_rows((Finding("n", None, undefined="r"),))[0].plot is None


def test_a_calibration_shows_each_rate_beside_its_requirement() -> None:
    page = Page(calibration_page(replace(RUN, study="calibrate:some-study", summary="failed"), RATES))
    check_sealed(page)
    for part in ("0.97", "194 of 200", "at least 0.93", "curves inside", "0.1", "at most 0.05", "no requirement"):
        assert part in page.text
    words = page.text.split()
    assert words.count("met") == 2
    assert words.count("missed") == 1


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(f"sqlite:///{tmp_path / 'ledger.db'}") as book:
        yield book


def stored(ledger: Ledger, study: str, findings: Findings, **config: Any) -> RunRecord:
    run = replace(RUN, study=study, config=config, summary=findings.summary)
    ledger.add_run(run, findings)
    return ledger.run(run.id)


def test_a_run_with_findings_charts_and_a_view(ledger: Ledger, make_view: Callable[[str], TraceView]) -> None:
    view = {"view.json": json.dumps(make_view("short").to_dict()).encode()}
    run = stored(ledger, "some-study", Findings(FINDINGS, "a summary", view, charts=(LINES, HEAT)))
    page = Page(report_of_run(ledger, run))
    check_sealed(page)
    for part in ("a summary", "difference", "Lines", "Heat", "How many divisors", "Along the trace"):
        assert part in page.text
    assert len(json.loads(page.raw["view-data"])["sentences"]) == 24


def test_an_explained_answer_gets_its_report(ledger: Ledger, make: Callable[[str], AnchorMap]) -> None:
    anchors = make("decided")
    files = {"anchors.json": json.dumps(anchors.to_dict()).encode()}
    config = {"model": "/m/some", "temperature": 0.6, "top_p": 0.95, "seed": 0, "outcome": "auto"}
    run = stored(ledger, "thought-anchors", Findings(FINDINGS, "s", files), **config)
    page = Page(report_of_run(ledger, run))
    assert "Why this answer?" in page.text
    assert "Along the trace" not in page.text
    files["view.json"] = json.dumps(anchors_view(anchors, title="t", meta={}).to_dict()).encode()
    second = replace(run, id="ffff000000")
    ledger.add_run(second, Findings(FINDINGS, "s", files))
    assert "Along the trace" in Page(report_of_run(ledger, second)).text


def test_a_stored_calibration_gets_its_page(ledger: Ledger) -> None:
    calibration = Calibration("some-study", RATES, 1.0, {"trials": 200})
    items = tuple(Finding(r.name, r.rate, r.low, r.high, n=r.trials) for r in RATES)
    document = json.dumps(calibration.to_dict()).encode()
    run = stored(ledger, "calibrate:some-study", Findings(items, "s", {"calibration.json": document}), trials=200)
    text = Page(report_of_run(ledger, run)).text
    assert "at least 0.93" in text
    assert "missed" in text


def test_a_run_with_nothing_to_show_is_refused(ledger: Ledger) -> None:
    run = stored(ledger, "some-study", Findings((), "nothing"))
    with pytest.raises(UsageError, match=r"some-study\) stored no findings, charts or trace"):
        report_of_run(ledger, run)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_run_page_in_a_browser(open_page: Open, make_view: MakeView, scheme: str) -> None:
    html = run_page(RUN, FINDINGS, (BARS, LINES, HEAT), make_view("short"))
    page = open_page(html, color_scheme=scheme)
    page.locator("details").first.evaluate("e => e.open = true")
    worst = page.evaluate(CONTRAST)
    assert worst["ratio"] >= 4.5, worst
    assert page.locator(".chart svg[role=img]").count() == 3
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_long_numbers_at_the_end_of_an_axis_stay_in_the_picture(open_page: Open) -> None:
    growth = Chart("Growth", tuple(1000.0 * i for i in range(31)), (Series("atoms", tuple(map(float, range(31)))),))
    page = open_page(run_page(RUN, FINDINGS, (growth,)))
    cut = page.evaluate(
        """[...document.querySelectorAll('.chart svg text')].filter(text => {
            const own = text.getBoundingClientRect(), all = text.ownerSVGElement.getBoundingClientRect();
            return own.right > all.right + 0.5 || own.left < all.left - 0.5;
        }).map(text => text.textContent)"""
    )
    assert cut == []
    assert page.get_by_text("30,000", exact=True).count() > 0


def test_runs_on_one_trace_line_up_on_one_page(tmp_path: Path, make: Callable[..., AnchorMap]) -> None:
    links = Links("suppression", "what hiding does", ((0, 1, 0.5),))
    own = anchors_view(make("decided"), title="t")
    other = replace(own, tracks=(Track("resilience", "rounds", (1.0,) * len(own.sentences)),), links=(links,))
    elsewhere = replace(other, sentences=("Another.", *own.sentences[1:]), links=())
    with Ledger(f"sqlite:///{tmp_path / 'l.db'}") as ledger:
        for name, view, weights in (("a", own, "w"), ("b", other, "w"), ("c", elsewhere, "w"), ("d", other, "v")):
            made = replace(RUN, id=name * 10, config={"prompt": "p"}, inputs={"weights:m": weights})
            ledger.add_run(made, Findings((), "s", {"view.json": json.dumps(view.to_dict()).encode()}))
        merged = with_companions(ledger, ledger.run("a" * 10), own)
        assert [track.name for track in merged.tracks] == [*(track.name for track in own.tracks), "resilience"]
        assert merged.links == (*own.links, links)
        assert with_companions(ledger, ledger.run("c" * 10), elsewhere) == elsewhere
