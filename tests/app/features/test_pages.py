"""The pages' HTML: what models and users wrote is text, and a page without some of the data still stands."""

import re
from html import unescape
from html.parser import HTMLParser
from urllib.parse import quote

from fastapi.testclient import TestClient
from makers import ODD, SCRIPT
from places import API, HOME

from cutaway.app.features.drawing import STEPS, bars, heat, shade
from cutaway.features.index import FeatureIndex

PAGES = ("", "/0", "/odd", "/0/0", "/odd/0", "/odd/1", "/2/5", "/search", f"/search?activating={quote(SCRIPT)}")


class Tags(HTMLParser):
    """Elements with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_nothing_that_was_written_becomes_markup(client: TestClient) -> None:
    literal = 0
    for path in PAGES:
        answer = client.get(HOME + path)
        assert answer.status_code == 200, path
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        page = Tags(answer.text)
        for tag, attributes in page.tags:
            assert not any(name.startswith("on") or name == "style" for name in attributes), (path, tag)
            if tag in ("script", "link", "a", "form"):
                target = attributes.get("src") or attributes.get("href") or attributes.get("action") or ""
                assert target.startswith(("/", "#", "data:,")) or (tag == "form" and not target), (path, target)
        scripts = [attributes for tag, attributes in page.tags if tag == "script"]
        assert scripts == [{"type": "module", "src": "/features/static/features.js"}]
        assert "</script><" not in answer.text.replace("></script>", "")
        literal += page.text.count(SCRIPT)
    assert literal > 5


def test_bidirectional_signs_cannot_turn_a_page_around(client: TestClient, index: FeatureIndex) -> None:
    for path in ("/0/0", "/0", "/search?any=%E2%80%AEevil"):
        text = client.get(HOME + path).text
        assert "\u202e" not in re.sub(r'value="[^"]*"', "", text)
    assert "\\u202eevil" in client.get(f"{HOME}/search?any=%E2%80%AEevil").text


def test_numbers_on_the_page_are_those_of_the_api(client: TestClient) -> None:
    page = client.get(f"{HOME}/1/4").text
    texts = client.get(f"{API}/texts/1/4").json()["data"]["texts"]
    shown = [re.findall(r'data-v="([^"]*)"', part) for part in re.findall(r'<p class="heat".*?</p>', page)]
    for text, values in zip(texts, shown, strict=False):
        assert [float(value.replace("−", "-")) for value in values] == [float(f"{v:.3g}") for v in text["values"]]


def test_a_unit_with_nothing_still_has_a_page(client: TestClient, bare: TestClient) -> None:
    assert "It was not above zero at any of the" in client.get(f"{HOME}/odd/1").text
    page = bare.get("/features/hand/dict/79").text
    assert "Not in this index for this unit: samples, logits, graph, explanations, extra." in page
    assert "Try a text" not in page


def test_a_link_to_a_token_finds_it(client: TestClient) -> None:
    page = client.get(f"{HOME}/odd/0").text
    (to,) = re.findall(r'href="([^"]*activating=[^"]*)"', page)
    found = client.get(unescape(to)).text
    assert f'href="{HOME}/odd/0"' in found
    assert ODD in found


def test_addresses_that_are_not_there_are_pages_too(client: TestClient) -> None:
    for path in ("x", "tiny--model/7", "tiny--model/0/99", "tiny--model/0/x", "static/x"):
        answer = client.get(f"/features/{path}", headers={"accept": "text/html"})
        assert answer.status_code in (404, 400, 422), path
        assert "<h1>" in answer.text


def test_search_pages_turn(bare: TestClient) -> None:
    total = bare.get("/api/features/hand/search?any=a&limit=1").json()["total"]
    assert total > 50
    first = bare.get("/features/hand/search?any=a").text
    (after,) = re.findall(r'href="([^"]*)" rel="next"', first)
    second = bare.get(unescape(after)).text
    rows = [re.findall(r'<th scope="row"><a href="/features/hand/(\S+?)"', page) for page in (first, second)]
    assert len(set(rows[0] + rows[1])) == len(rows[0]) + len(rows[1]) == min(total, 100)


def test_an_empty_field_is_no_term(client: TestClient) -> None:
    one = client.get(f"{HOME}/search?activating=the&context=").text
    two = client.get(f"{HOME}/search?activating=the").text
    assert re.findall(r"units? for", one) == re.findall(r"units? for", two)
    assert client.get(f"{HOME}/search?activating=&context=").status_code == 200


def test_shades_grow_with_the_value() -> None:
    shades = [shade(value / 10, 1.0) for value in range(-10, 11)]
    assert shades[0] == f"l{STEPS}"
    assert shades[10] == ""
    assert shades[-1] == f"h{STEPS}"
    order = [-int(each[1:]) if each.startswith("l") else int(each[1:] or 0) for each in shades]
    assert order == sorted(order)
    assert shade(5.0, 1.0) == f"h{STEPS}"
    assert shade(None, 1.0) == shade(1.0, 0.0) == ""


def test_drawings_escape_and_cope_with_little() -> None:
    assert "&lt;script&gt;" in heat([SCRIPT], [1.0], 1.0)
    assert bars({"values": [], "heights": []}) == ""
    assert bars({"values": [0.0], "heights": [3.0]}).count("<rect") == 1
