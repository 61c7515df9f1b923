"""Reads a page as a browser would, without one: elements, attributes, text, scripts and styles."""

import base64
import hashlib
import re
from html.parser import HTMLParser

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\u2028&lt;{{ 7*7 }}\"'>"


class Page(HTMLParser):
    """Every element with its attributes, and what scripts and styles hold."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, str] = {}
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.elements.append(("", {}))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        if tag in ("script", "style"):
            key = str(attributes.get("id") or tag)
            self.raw[key] = self.raw.get(key, "") + data
        else:
            self.text += data


def check_sealed(page: Page) -> None:
    """The policy names the page's style and script and nothing else; nothing points outside the file."""
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    allowed = dict(part.strip().split(" ", 1) for part in str(policy).split(";"))
    assert allowed["default-src"] == "'none'"
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.raw.get(tag, "").encode()).digest()).decode()
        assert allowed[f"{tag}-src"] == (f"'sha256-{digest}'" if tag in page.raw else "'none'")
    links = [
        v for _, a in page.elements for k, v in a.items() if k in ("href", "src", "action", "srcset", "xlink:href")
    ]
    assert all(re.match(r"#|data:,$", str(link)) for link in links)
    assert not any(name.startswith("on") or name == "style" for _, a in page.elements for name in a)
    assert "url(" not in page.raw["style"]
    assert "@import" not in page.raw["style"]
    for name, text in page.raw.items():
        outside = set(re.findall(r"https?://[^\"'\s]+", text)) - {"http://www.w3.org/2000/svg"}
        assert outside == set(), name


CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => c.slice(0, 3).map((v) => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const c = numbers(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  let worst = { ratio: 99 };
  for (const e of document.querySelectorAll("body *")) {
    const text = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!text || !e.getClientRects().length || e.closest("script, noscript, .skip")) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(numbers(e.closest("svg") ? style.fill : style.color)), light(ground(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst.ratio) worst = { ratio, text: e.textContent.slice(0, 40) };
  }
  return worst;
}"""
"""The least contrast between a text and its ground on the page, with that text."""
