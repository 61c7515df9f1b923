"""Anchor maps and trace views as runs would give them: synthetic numbers, consistent with each other; a browser."""

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # let the tests import their helpers by name

from cutaway.reasoning.thought_anchors.result import AnchorMap
from cutaway.reasoning.view import CATEGORIES, Alternative, Links, TraceView, Track

STORY = (
    "Okay, the question is what Mia should take along this morning. ",
    "She has a long walk to the station, and her bag is already heavy. ",
    "The forecast says there is an 80% chance of heavy rain before noon.\n\n",
    "A raincoat would keep her dry, but she left it at the office yesterday. ",
    "Sunglasses would be of little use under clouds. ",
    "Wait, maybe she could take the bus and need nothing at all. ",
    "But the bus stop has no roof, so she would still get wet. ",
    "So she should take the umbrella.",
)
INSTEAD = (
    "It is a sunny day, so sunglasses make sense.",
    "She might call her office and ask them to bring the raincoat.",
    "Perhaps the weather does not matter for such a short walk.",
)


@dataclass(frozen=True)
class Shape:
    """What a synthetic map looks like: answers, the certified sentences with their effects, and the start."""

    answers: tuple[str, ...]
    effects: dict[int, float]
    start: float = 0.3
    noise: float = 0.01
    undecided: int = 0


def build(sentences: tuple[str, ...], shape: Shape, seed: int = 0, **changes: object) -> AnchorMap:
    """A map whose own answer moves by ``shape.effects`` and otherwise hardly at all."""
    rng = np.random.default_rng(seed)
    n, k = len(sentences), len(shape.answers)
    effect = rng.normal(0, shape.noise, n)
    for i, size in shape.effects.items():
        effect[i] = size
    own = np.clip(shape.start + np.concatenate([[0], np.cumsum(effect)]), 0.01, 0.99)
    effect = np.diff(own)
    weights = rng.dirichlet(np.arange(k - 1, 0, -1) * 3) if k > 1 else np.zeros(0)
    curve = np.column_stack([own, np.outer(1 - own, weights)]) if k > 1 else own[:, None]
    width = 0.03 + 0.22 * np.sqrt(curve * (1 - curve))
    half = rng.uniform(0.03, 0.08, n)
    status = ["anchor" if i in shape.effects else "no effect" for i in range(n)]
    free = [i for i in range(n) if i not in shape.effects]
    for i in free[len(free) - shape.undecided :]:
        status[i] = "undecided"
    ends = np.cumsum([max(1, len(text) // 4) for text in sentences])
    stay = rng.uniform(0.02, 0.7, n)
    result = AnchorMap(
        prompt="Mia leaves the house and has to choose: umbrella, raincoat or sunglasses? Think it through.",
        sentences=sentences,
        spans=tuple((int(a), int(b)) for a, b in zip([0, *ends[:-1]], ends, strict=True)),
        answers=shape.answers,
        curve=curve,
        low=np.clip(curve - width / 2, 0, 1),
        high=np.clip(curve + width / 2, 0, 1),
        effect=effect,
        effect_low=np.clip(effect - half, -1, 1),
        effect_high=np.clip(effect + half, -1, 1),
        log_e=np.where(np.isin(range(n), list(shape.effects)), 14.2, -1.5),
        status=tuple(status),  # type: ignore[arg-type]
        stay=stay,
        draws=rng.integers(24, 180, n),
        alternatives=tuple(_alternatives(shape.answers, 1 - float(s), rng) for s in stay),
        control=0,
        truncated=0.031,
        unanswered=0.054,
        decoded=148_223,
        prefilled=31_907,
        reused=612_440,
        seconds=284.6,
        estimator="deviation",
    )
    return replace(result, **changes)  # type: ignore[arg-type]


def _alternatives(answers: tuple[str, ...], leaving: float, rng: np.random.Generator) -> tuple[Alternative, ...]:
    shares = leaving * np.array([0.5, 0.3, 0.15])
    return tuple(
        Alternative(
            text,
            count,
            float(share),
            dict(zip(answers, map(float, rng.dirichlet(np.ones(len(answers)))), strict=True)),
        )
        for text, count, share in zip(INSTEAD, (41, 23, 9), shares, strict=True)
    )


FOUR = ("umbrella", "raincoat", "sunglasses", "(none)")
MAPS: dict[str, Callable[[], AnchorMap]] = {
    "decided": lambda: build(STORY, Shape(FOUR, {2: 0.49}, undecided=1)),
    "two anchors": lambda: build(STORY, Shape(FOUR, {2: 0.45, 5: -0.18})),
    "against": lambda: build(STORY, Shape(FOUR, {2: -0.4, 6: 0.3}, start=0.6)),
    "nothing certified": lambda: build(STORY, Shape(FOUR, {}, start=0.93, undecided=3)),
    "partial": lambda: build(STORY, Shape(FOUR, {2: 0.49}, undecided=5), complete=False, control=1),
    "partial, nothing": lambda: build(STORY, Shape(FOUR, {}, undecided=8), complete=False),
    "no answer": lambda: build(
        STORY, Shape(("(none)", "umbrella"), {}), unanswered=0.61, truncated=0.4, estimator="uniform"
    ),
    "one sentence": lambda: build(("So she should take the umbrella.",), Shape(("umbrella", "(none)"), {0: 0.4})),
    "one answer": lambda: build(STORY[:3], Shape(("umbrella",), {}, start=0.97)),
    "many answers": lambda: build(STORY, Shape((*(str(7 * i) for i in range(11)), "(other)"), {1: 0.4}, start=0.2)),
    "long": lambda: build(
        tuple(STORY[i % 8].replace("Mia", f"Mia ({i})") for i in range(250)),
        Shape(FOUR, {i: (0.12 if i % 3 else -0.06) for i in range(9, 250, 31)}, noise=0.002, undecided=60),
    ),
}

KINDS = (
    ("problem_setup", "We need the number of positive divisors of 2024 that are not multiples of 4. "),
    ("plan_generation", "Let me factor 2024 first, and then count the divisors whose power of two is at most one. "),
    ("fact_retrieval", "A number with prime exponents a, b and c has (a+1)(b+1)(c+1) divisors.\n\n"),
    ("active_computation", "2024 / 8 = 253, and 253 = 11 * 23, so 2024 = 2^3 * 11 * 23. "),
    ("active_computation", "The exponent of two may be 0 or 1, which leaves 2 * 2 * 2 = 8 choices in all. "),
    ("uncertainty_management", "Wait, is 253 really 11 times 23? "),
    ("self_checking", "11 * 23 = 253, yes. "),
    ("result_consolidation", "So there are eight of them, and the other eight are multiples of 4. "),
)
DIVISORS = ("8", "16", "12", "(none)")


def build_view(n: int, *, seed: int = 0, **changes: object) -> TraceView:
    """A trace of ``n`` sentences: curve with band, six tracks with gaps, two link sets, alternatives."""
    rng = np.random.default_rng(seed)
    plans = [i for i in range(n) if i % 8 == 1]
    jumps = sorted({i for i in (1, n // 3, 2 * n // 3) if i < n})
    change = rng.normal(0, 0.008, n)
    for i, size in zip(jumps, (0.24, 0.38, -0.16), strict=False):
        change[i] = size
    value = np.clip(0.22 + np.concatenate([[0], np.cumsum(change)]), 0.03, 0.985)
    half = 0.03 + 0.1 * np.sqrt(value * (1 - value))
    change = np.diff(value)
    spread = rng.uniform(0.02, 0.06, n)
    kl = rng.gamma(0.5, 0.12, n) + np.isin(range(n), plans) * rng.gamma(2, 0.25, n)
    kl = [None if i % 11 == 7 else float(x) for i, x in enumerate(kl)]
    receiver, resilience = rng.gamma(1.2, 0.02, n), rng.beta(2, 3, n)
    fields: dict[str, object] = {
        "title": "How many divisors of 2024 are not multiples of 4?",
        "prompt": "How many positive divisors of 2024 are not multiples of 4? Reason step by step and box the answer.",
        "sentences": tuple(KINDS[i % 8][1] for i in range(n)),
        "answer": "8",
        "curve": Track(
            "P(8)",
            "Probability of the answer 8 when the model writes on afresh from each point.",
            tuple(value.tolist()),
            tuple(np.clip(value - half, 0, 1).tolist()),
            tuple(np.clip(value + half, 0, 1).tolist()),
        ),
        "categories": tuple(
            "final_answer_emission" if i == n - 1 else "unknown" if i % 29 == 28 else KINDS[i % 8][0] for i in range(n)
        ),
        "tracks": (
            Track(
                "counterfactual importance",
                "KL between the answers after a sentence of another meaning and after this one.",
                tuple(kl),
                tuple(None if x is None else 0.7 * x for x in kl),
                tuple(None if x is None else 1.25 * x + 0.03 for x in kl),
                unit="nats",
                undefined=tuple("only 4 of 100 rollouts say something else" if x is None else "" for x in kl),
                study="thought-anchors",
                control=tuple(None if x is None else 0.04 + 0.001 * i for i, x in enumerate(kl)),
                control_is="Labels shuffled between the two sets.",
            ),
            Track(
                "accuracy change",
                "Share of right answers with the sentence minus without it.",
                tuple(change.tolist()),
                tuple((change - spread).tolist()),
                tuple((change + spread).tolist()),
                study="thought-anchors",
            ),
            Track(
                "receiver attention",
                "Mean attention that later sentences pay to this one in the receiver heads.",
                tuple(None if i >= n - 4 else float(x) for i, x in enumerate(receiver)),
                undefined=tuple("no sentence lies 4 or more after it" if i >= n - 4 else "" for i in range(n)),
                study="receiver-heads",
            ),
            Track(
                "suppression effect",
                "Mean log KL that hiding this sentence makes in later ones.",
                tuple(rng.normal(0.1, 0.5, n).tolist()),
                unit="log nats",
                study="attention-suppression",
            ),
            Track(
                "resilience",
                "Share of continuations that return to the same statement after it is taken out.",
                tuple(resilience.tolist()),
                tuple((resilience * 0.8).tolist()),
                tuple((1 - (1 - resilience) * 0.8).tolist()),
                study="resilience",
            ),
            Track(
                "monitor score",
                "How strongly a probe reads the final answer at the end of the sentence.",
                tuple(np.linspace(0.1, 0.95, n).tolist()),
                study="monitorability",
            ),
        ),
        "links": (_links("causal links", n, rng, signed=False), _links("suppression", n, rng, signed=True)),
        "alternatives": tuple(
            () if i % 9 == 5 else _alternatives(DIVISORS, float(rng.uniform(0.2, 0.9)), rng) for i in range(n)
        ),
        "marked": tuple(jumps),
        "meta": {"model": "a-14b-model", "source": "synthetic", "weights sha256": "9f8a".ljust(64, "c")},
    }
    return TraceView(**{**fields, **changes})  # type: ignore[arg-type]


def _links(name: str, n: int, rng: np.random.Generator, *, signed: bool) -> Links:
    """Up to 20 links from every sentence to later ones; plans reach furthest."""
    found = []
    for s in range(n - 1):
        targets = rng.choice(np.arange(s + 1, n), size=min(20, n - 1 - s), replace=False)
        for t in sorted(targets.tolist()):
            strength = float(rng.gamma(0.6, 0.05) * (3 if s % 8 == 1 else 1) / (1 + (t - s) / 40))
            found.append((s, t, -strength if signed and rng.random() < 0.3 else strength))
    return Links(name, f"What {name} says about two sentences.", tuple(found), study="thought-anchors")


def bare_view() -> TraceView:
    """A trace of which nothing but its text is known."""
    return TraceView("Only text", "Why?", ("Because. ", "So be it."), "so")


VIEWS: dict[str, Callable[[], TraceView]] = {
    "short": lambda: build_view(24),
    "long": lambda: build_view(250),
    "one sentence": lambda: build_view(1, links=()),
    "bare": bare_view,
    "no curve": lambda: build_view(24, curve=None, marked=()),
    "no categories": lambda: build_view(24, categories=None),
    "gaps": lambda: build_view(
        24,
        curve=Track(
            "P(8)",
            "With gaps.",
            tuple(None if b in (0, 7, 9, 24) else 0.5 for b in range(25)),
            undefined=tuple("no rollout was finished" if b in (0, 7, 9, 24) else "" for b in range(25)),
        ),
    ),
    "all undefined": lambda: build_view(
        6, curve=None, marked=(), tracks=(Track("nothing", "Unknown.", (None,) * 6, undefined=("not run",) * 6),)
    ),
    "every category": lambda: build_view(9, categories=CATEGORIES),
}

META = {
    "model": "smollm2-135m-instruct",
    "settings": "temperature 0.6, top-p 0.95, at most 256 tokens, seed 0",
    "weights sha256": "9f8a".ljust(64, "c"),
    "cutaway": "0.1.0",
    "run": "r-000017",
}


@pytest.fixture
def make() -> Callable[[str], AnchorMap]:
    """Return the synthetic map of a name."""
    return lambda name: MAPS[name]()


@pytest.fixture
def meta() -> dict[str, str]:
    return dict(META)


@pytest.fixture
def make_view() -> Callable[[str], TraceView]:
    """Return the synthetic view of a name."""
    return lambda name: VIEWS[name]()


# One a module: while it is open an event loop runs in this thread, and other rooms' tests need one of their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium without a network."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Open a page; at the end nothing may have been logged, raised or asked of the network."""
    contexts, trouble = [], []

    def opened(html: str, **options: object) -> Any:
        path = tmp_path / "page.html"
        path.write_text(html, encoding="utf-8")
        context = browser.new_context(offline=True, **{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: trouble.append(request.url))
        page.goto(path.as_uri())
        trouble.remove(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [entry for entry in trouble if entry != "data:,"] == []
