"""Style-neutral questions by template and topic, and the instructions that induce a style.

Questions of one topic stay together, so a split by topic shares no topic between its parts. The instructions are the
published ones (data/k-steering); the questions are written here.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cutaway.errors import UsageError, nearest

TOPICS = (
    "bees",
    "bicycles",
    "black holes",
    "bread baking",
    "bridges",
    "chess",
    "city parks",
    "clouds",
    "coffee",
    "compost",
    "coral reefs",
    "earthquakes",
    "elevators",
    "gardening",
    "glaciers",
    "guitars",
    "honey",
    "lighthouses",
    "magnets",
    "maps",
    "meditation",
    "microscopes",
    "museums",
    "photosynthesis",
    "public libraries",
    "rainbows",
    "recycling",
    "refrigerators",
    "rivers",
    "sailing",
    "sleep",
    "solar panels",
    "swimming",
    "telescopes",
    "tides",
    "trains",
    "translation",
    "vaccines",
    "volcanoes",
    "watercolours",
)
TEMPLATES = (
    "How would you describe {} to a newcomer?",
    "Why do people care about {}?",
    "What should someone know about {}?",
    "How has our understanding of {} changed over time?",
    "What are common mistakes people make about {}?",
    "Why are {} sometimes misunderstood?",
    "What is surprising about {}?",
    "How do {} affect everyday life?",
)


@dataclass(frozen=True)
class Question:
    """One question and the topic it belongs to."""

    text: str
    topic: int


@dataclass(frozen=True)
class Questions:
    """Three parts that share no topic: to fit on, to choose a strength on, to measure on."""

    fit: tuple[Question, ...]
    choose: tuple[Question, ...]
    measure: tuple[Question, ...]


def questions(fit: int = 60, choose: int = 12, measure: int = 40, seed: int = 0) -> Questions:
    """Draw questions for each part; UsageError for more than the topics of a part give.

    Half of the topics are to fit on, a tenth to choose on, the rest to measure on.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(TOPICS)).tolist()
    first, second = len(TOPICS) // 2, len(TOPICS) // 2 + len(TOPICS) // 10
    parts = {"fit": (fit, order[:first]), "choose": (choose, order[first:second]), "measure": (measure, order[second:])}
    drawn: dict[str, tuple[Question, ...]] = {}
    for name, (n, topics) in parts.items():
        pool = [Question(form.format(TOPICS[topic]), topic) for topic in topics for form in TEMPLATES]
        if not 2 <= n <= len(pool):
            raise UsageError(f"{name}={n}: between 2 and {len(pool)} questions")
        picks = rng.permutation(len(pool))[:n]
        drawn[name] = tuple(pool[i] for i in sorted(picks.tolist()))
    return Questions(**drawn)


def default_instructions() -> Path:
    """The instructions of the source tree; UsageError where the package was installed without it."""
    path = Path(__file__).parents[4] / "data" / "k-steering" / "style_instructions.json"
    if not path.is_file():
        raise UsageError("no style instructions at hand; set instructions=FILE, JSON of group -> label -> instruction")
    return path


def read_instructions(path: str | Path, group: str = "tones") -> tuple[dict[str, str], str]:
    """Return label -> instruction of one group, in the file's order, and the file's sha256.

    Raises UsageError for a missing or malformed file or an unknown group.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"instructions={path.name}: no such file; give JSON of group -> label -> instruction")
    content = path.read_bytes()
    try:
        groups = json.loads(content)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path.name} is no JSON: {error}") from error
    if not isinstance(groups, dict) or group not in groups:
        raise UsageError(f"group={group!r}{nearest(group, map(str, groups))}")
    labels = groups[group]
    if not isinstance(labels, dict) or len(labels) < 2 or not all(isinstance(x, str) and x for x in labels.values()):
        raise UsageError(f"{path.name}: {group!r} needs two or more labels, each with an instruction")
    return dict(labels), hashlib.sha256(content).hexdigest()
