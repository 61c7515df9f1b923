"""The report's words, data and safety, without a browser."""

import json
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from page_reader import HOSTILE, Page, check_sealed

from cutaway.errors import UsageError
from cutaway.explain.page import number, probability, signed
from cutaway.explain.report import conclude, report_html
from cutaway.reasoning.thought_anchors.result import AnchorMap
from cutaway.reasoning.view import Alternative

Make = Callable[[str], AnchorMap]


def page_of(anchors: AnchorMap, **meta: str) -> Page:
    return Page(report_html(anchors, title="A question", meta=meta))


def test_the_data_travels_whole(make: Make, meta: dict[str, str]) -> None:
    anchors = make("decided")
    page = page_of(anchors, **meta)
    data = json.loads(page.raw["data"])
    assert data["title"] == "A question"
    assert data["meta"] == meta
    assert set(data["anchors"]) == set(AnchorMap.__dataclass_fields__)
    assert "".join(data["anchors"]["sentences"]) == "".join(anchors.sentences)
    np.testing.assert_allclose(data["anchors"]["curve"], anchors.curve, rtol=1e-6)
    first = anchors.alternatives[0][0]
    assert data["anchors"]["alternatives"][0][0]["text"] == first.text
    assert data["anchors"]["alternatives"][0][0]["answers"].keys() == first.answers.keys()


def test_numbers_json_cannot_write_become_null(make: Make) -> None:
    anchors = make("decided")
    anchors = replace(anchors, log_e=np.where(np.arange(8) == 2, np.inf, np.nan))
    assert json.loads(page_of(anchors).raw["data"])["anchors"]["log_e"] == [None] * 8


def test_hostile_text_stays_text(make: Make) -> None:
    anchors = make("decided")
    anchors = replace(
        anchors,
        prompt=HOSTILE,
        sentences=(HOSTILE, *anchors.sentences[1:]),
        answers=(HOSTILE, *anchors.answers[1:]),
        alternatives=((Alternative(HOSTILE, 1, 0.1, {HOSTILE: 1.0}),), *anchors.alternatives[1:]),
    )
    page = Page(report_html(anchors, title=HOSTILE, meta={HOSTILE: HOSTILE, "model": HOSTILE}))
    tags = [tag for tag, _ in page.elements]
    assert "img" not in tags
    assert tags.count("script") == 2
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert json.loads(page.raw["data"])["anchors"]["prompt"] == HOSTILE
    assert "49" not in page.text.split("Prompt")[1].split("Answer")[0]


def test_the_page_is_sealed(make: Make, meta: dict[str, str]) -> None:
    check_sealed(page_of(make("decided"), **meta))


@pytest.mark.parametrize(
    ("name", "headline"),
    [
        ("decided", "Sentence 3 decided the answer “umbrella”: it raised its probability from 0.30 to 0.79."),
        ("two anchors", "Sentence 3 decided the answer “umbrella”"),
        ("against", "The strongest anchor went against the answer “umbrella”: sentence 3 lowered"),
        ("nothing certified", "No single sentence was certified to have decided the answer “umbrella”."),
        ("partial, nothing", "The run stopped early; so far no sentence is certified"),
        ("no answer", "No single sentence was certified to have decided the outcome “no answer”."),
        ("long", "Sentence 165 did most to bring about the answer “umbrella”"),
    ],
)
def test_headline(make: Make, name: str, headline: str) -> None:
    assert conclude(make(name)).headline.startswith(headline)


def test_support_gives_the_interval_and_names_the_other_anchors(make: Make) -> None:
    only = " ".join(conclude(make("decided")).support)
    assert re.search(r"\+0\.49, with a 95% interval of \+0\.\d\d to \+0\.\d\d\. No other sentence", only)
    assert "Of 8 sentences: 1 anchor, 6 without effect, 1 undecided." in only
    assert "Also certified: sentence 6 (−0.18)." in " ".join(conclude(make("two anchors")).support)
    assert "Also certified: sentences 10" in " ".join(conclude(make("long")).support)


def test_support_without_anchors_says_where_the_answer_stood(make: Make) -> None:
    settled = " ".join(conclude(make("nothing certified")).support)
    assert "0.93 from the prompt alone" in settled
    assert "already made it the most likely outcome" in settled
    anchors = make("decided")
    gradual = replace(anchors, status=("undecided",) * 8)
    assert "too gradually, or with too few draws" in " ".join(conclude(gradual).support)
    cut = replace(gradual, draws=np.zeros(8, dtype=np.int64), complete=False)
    assert "nothing is known yet of its probability" in " ".join(conclude(cut).support)


def test_cautions_are_honest(make: Make) -> None:
    assert conclude(make("two anchors")).cautions == ()
    assert "5 of 8 are open" in " ".join(conclude(make("partial")).cautions)
    assert "control certified 1 sentence" in " ".join(conclude(make("partial")).cautions)
    assert "do not settle it" in " ".join(conclude(make("decided")).cautions)
    unread = " ".join(conclude(make("no answer")).cautions)
    assert "61% of the continuations gave no answer" in unread
    assert "40% of the continuations were cut" in unread


def test_the_cost_and_provenance_are_on_the_page(make: Make, meta: dict[str, str]) -> None:
    text = page_of(make("decided"), **meta).text
    for expected in ("148,223", "31,907", "612,440", "285 s", "5.4%", "3.1%", "deviation", *meta.values()):
        assert expected in text


def test_half_a_surrogate_pair_can_be_written(make: Make) -> None:
    html = report_html(replace(make("decided"), prompt="broken \ud83d"), title="x", meta={})
    html.encode("utf-8")


def test_an_empty_trace_is_refused(make: Make) -> None:
    with pytest.raises(UsageError, match="the trace is empty"):
        report_html(replace(make("decided"), sentences=()), title="x", meta={})


def test_numbers_as_text() -> None:
    assert [probability(p) for p in (0.0, 0.004, 0.5, 0.996, 1.0)] == [
        "0.00",
        "<0.01",
        "0.50",
        ">0.99",
        "1.00",
    ]
    assert [signed(x) for x in (0.491, -0.1, -0.001, 0.0)] == ["+0.49", "−0.10", "0.00", "0.00"]
    assert [number(x) for x in (0.0, -0.0001, 1234.6, 12.345, -5000.0)] == ["0", "−0.0001", "1,235", "12.3", "−5,000"]
