"""Anchor maps as a run would give them: synthetic numbers, consistent with each other."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from cutaway.reasoning.thought_anchors.result import AnchorMap
from cutaway.reasoning.view import Alternative

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
