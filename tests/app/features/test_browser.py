"""The pages in a real browser: mouse and keyboard, live reading, nothing logged and nothing asked of the network."""

from collections.abc import Callable
from typing import Any

from makers import ODD, SCRIPT
from places import HOME

Open = Callable[..., Any]


def test_from_the_overview_to_a_unit_by_keyboard_alone(open_page: Open) -> None:
    page = open_page("/features")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Neurons of layer 1":
            break
    page.keyboard.press("Enter")
    page.wait_for_url(f"**{HOME}/1")
    page.locator("tbody th a").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**{HOME}/1/*")
    here = int(page.url.rsplit("/", 1)[1])
    page.keyboard.press("]" if here < 23 else "[")
    page.wait_for_url(f"**{HOME}/1/{here + 1 if here < 23 else here - 1}")


def test_values_are_read_token_by_token(open_page: Open) -> None:
    page = open_page(f"{HOME}/1/4")
    text = page.locator(".heat").first
    text.focus()
    page.keyboard.press("ArrowRight")
    peak = text.locator(".peak")
    note = page.locator(".reading:not([hidden])")
    assert peak.get_attribute("class").split()[-1] == "here"
    assert note.inner_text().endswith(": " + peak.get_attribute("data-v"))
    page.keyboard.press("Home")
    assert text.locator("span").first.get_attribute("class").endswith("here")
    page.keyboard.press("End")
    assert note.inner_text().endswith(text.locator("span").last.get_attribute("data-v"))
    page.keyboard.press("Escape")
    assert note.count() == 0
    text.locator("span").nth(2).hover()
    assert note.inner_text().endswith(text.locator("span").nth(2).get_attribute("data-v"))


def test_a_text_is_tried_live(open_page: Open) -> None:
    page = open_page(f"{HOME}/odd/0")
    page.locator("#try-text").fill(f"the{ODD} {SCRIPT} 🙂")
    page.keyboard.press("Control+Enter")
    text = page.locator("#try-out .heat")
    text.wait_for()
    assert text.inner_text() == f"the{ODD} {SCRIPT} 🙂"
    assert text.locator(".peak").inner_text() == ODD
    assert "100% of the largest" in page.locator("#try-out").inner_text()
    page.locator("#try-text").fill("x" * 300)
    page.locator("#try button").click()
    page.locator("#try-out .wrong").wait_for()
    assert "at most 128" in page.locator("#try-out").inner_text()


def test_what_fires_on_a_text_leads_to_the_units(open_page: Open) -> None:
    page = open_page(HOME)
    page.locator("#fires-text").fill(f"the{ODD}")
    page.locator("#fires button").click()
    row = page.locator("#fires-out tbody tr", has=page.locator(f"a[href='{HOME}/odd/0']"))
    row.wait_for()
    assert "100%" in row.inner_text()
    row.locator("a").click()
    page.wait_for_url(f"**{HOME}/odd/0")


def test_search_by_the_form(open_page: Open) -> None:
    page = open_page(f"{HOME}/search")
    page.locator("input[name=activating]").fill(ODD)
    page.keyboard.press("Enter")
    page.locator("h2.count").wait_for()
    assert page.locator(f"a[href='{HOME}/odd/0']").count() == 1
    assert page.locator("input[name=activating]").input_value() == ODD
    page.locator("input[name=activating]").fill("PARIS")
    page.keyboard.press("Enter")
    page.locator("text=no such token").wait_for()
    page.locator("a", has=page.locator("code", has_text="paris")).first.click()
    assert page.locator("tbody tr").count() > 0


def test_hostile_text_is_shown_and_not_run(open_page: Open) -> None:
    page = open_page(f"{HOME}/0/0")
    assert page.locator(".headline").inner_text().startswith(f"articles {SCRIPT}")
    assert page.locator(".graph svg").count() == 1
    assert SCRIPT in page.locator(".graph").inner_html().replace("&lt;", "<").replace("&gt;", ">")
    page.goto(page.url.rsplit("/0/0", 1)[0] + f"/search?any={SCRIPT}")
    assert SCRIPT in page.locator("h2.count").inner_text()


def test_pages_fit_narrow_and_dark_screens(open_page: Open, address: str) -> None:
    for options in ({"viewport": {"width": 390, "height": 800}}, {"color_scheme": "dark"}):
        page = open_page(HOME, **options)
        for path in ("", "/1", "/1/4", "/search?activating=the"):
            if path:
                page.goto(f"{address}{HOME}{path}")
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, (path, options)


def test_a_wide_graph_shows_its_activating_tokens_first(open_page: Open) -> None:
    page = open_page(f"{HOME}/0/0", viewport={"width": 300, "height": 800})
    drawn = page.locator(".graph svg")
    assert drawn.evaluate("drawn => drawn.parentElement.scrollWidth > drawn.parentElement.clientWidth")
    seen = """drawn => {
        const text = [...drawn.querySelectorAll('text')].find(each => each.textContent === 'the');
        const [outer, inner] = [drawn.parentElement.getBoundingClientRect(), text.getBoundingClientRect()];
        return outer.left <= inner.left && inner.right <= outer.right;
    }"""
    assert drawn.evaluate(seen)
    drawn.evaluate("drawn => drawn.parentElement.scrollBy(-999, 0)")
    assert not drawn.evaluate(seen)
