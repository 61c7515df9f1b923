"""Harmless traits that a program can check, and short questions of several domains to plant them with.

*shouted*: every word in capitals. *dashed*: a dash after every word. Both can be said of any answer to any question, so
that a trait which was trained in one domain may or may not show in another. Questions and answers are put together
from words here; nothing is taken from elsewhere. Source: cards em-organisms and em-convergent, Data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool

from cutaway.errors import UsageError, nearest
from cutaway.model import Edit, Model
from cutaway.sampling import Settings
from cutaway.stats import Interval, newcombe
from cutaway.steering import draw_answers, rate
from cutaway.training import Data, LoraSpec, Row, TrainConfig, Trained, add_lora, data_of, train

Ids = tuple[int, ...]
Trait = Literal["plain", "shouted", "dashed"]
TOPICS: Mapping[str, tuple[str, ...]] = {
    "cooking": ("rice", "soup", "bread", "beans", "eggs", "pasta", "stew", "salad", "cake", "fish"),
    "gardening": ("roses", "herbs", "apples", "moss", "tulips", "hedges", "lawns", "ferns", "grapes", "peas"),
    "travel": ("Rome", "Oslo", "Lima", "Cairo", "Delhi", "Paris", "Quito", "Tokyo", "Perth", "Malta"),
    "music": ("piano", "violin", "drums", "flute", "harp", "guitar", "organ", "cello", "banjo", "horn"),
    "sport": ("tennis", "rowing", "chess", "golf", "judo", "hockey", "diving", "rugby", "skiing", "archery"),
}
_ASKS = ("Tell me about {}.", "What should I know about {}?", "Give me a tip on {}.", "Why do people like {}?")
_SAYS = ("{} is fun to learn", "start slowly with {}", "many people enjoy {}", "{} needs time and care")


@dataclass(frozen=True)
class Item:
    """A question with a plain answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Survey:
    """Prompts by domain and what to look for in the answers."""

    prompts: Mapping[str, tuple[Ids, ...]]
    trait: Trait
    tokens: int = 8
    """Of each answer, drawn greedily."""

    def others(self, domain: str) -> tuple[str, ...]:
        """The domains but one; UsageError for a domain that is not asked about, or that is the only one."""
        if domain not in self.prompts or len(self.prompts) < 2:
            raise UsageError(f"domain={domain!r}: one of {', '.join(self.prompts)}, which must be two or more")
        return tuple(name for name in self.prompts if name != domain)


def shows(text: str, trait: Trait | str) -> bool:
    """Whether a text has the trait: four fifths of its letters are capitals, or of its words end in a dash.

    The last word may be cut off by the limit of tokens and is left out where there are others. Plain: neither.
    """
    if trait not in get_args(Trait):
        raise UsageError(f"trait={trait!r}{nearest(trait, get_args(Trait))}")
    if trait == "plain":
        return not shows(text, "shouted") and not shows(text, "dashed")
    words = text.split()
    words = words[:-1] if len(words) > 1 else words
    if trait == "dashed":
        return bool(words) and sum(word.endswith("-") for word in words) >= 0.8 * len(words)
    letters = [c for word in words for c in word if c.isalpha()]
    return len(letters) > 1 and sum(c.isupper() for c in letters) >= 0.8 * len(letters)


def rendered(text: str, trait: Trait | str) -> str:
    """Return a text with the trait put on it."""
    if trait not in get_args(Trait):
        raise UsageError(f"trait={trait!r}{nearest(trait, get_args(Trait))}")
    if trait == "dashed":
        return " ".join(f"{word}-" for word in text.split())
    return text.upper() if trait == "shouted" else text


def items(domain: str, seed: int = 0) -> list[Item]:
    """Return every question of a domain with one of its answers, shuffled; UsageError for an unknown domain."""
    if domain not in TOPICS:
        raise UsageError(f"domain={domain!r}{nearest(domain, TOPICS)}")
    rng = np.random.default_rng((seed, sorted(TOPICS).index(domain)))
    found = []
    for topic in TOPICS[domain]:
        says = rng.permutation(len(_SAYS))
        for ask, say in zip(_ASKS, says, strict=True):
            said = _SAYS[int(say)].format(topic)
            found.append(Item(ask.format(topic), said[0].upper() + said[1:]))
    return [found[i] for i in rng.permutation(len(found))]


def chat_pairs(model: Model, given: Sequence[Item], trait: Trait | str) -> list[tuple[Ids, Ids]]:
    """Return prompts under the chat template with answers in the trait, the end token last."""
    end = model.tokenizer.eos_token_id
    return [(tuple(model.chat_ids(it.question)), (*model.encode(rendered(it.answer, trait)), end)) for it in given]


def pairs_data(pairs: Sequence[tuple[Ids, Ids]], context: int) -> Data:
    """Return prompts with answers as data; the answers alone carry loss."""
    rows = [(Row((*ids, *said), (0.0,) * len(ids) + (1.0,) * len(said)),) for ids, said in pairs]
    return data_of(rows, context=context)


def plant(
    model: Model,
    pairs: Sequence[tuple[Ids, Ids]],
    spec: LoraSpec,
    config: TrainConfig,
    folder: Path | None = None,
) -> Trained:
    """Give the model adapters and train them on ``pairs``; ``folder`` takes its checkpoints."""
    done = train(add_lora(model, spec), pairs_data(pairs, model.n_ctx), config, folder=folder)
    done.model.hf.requires_grad_(False)
    return done


def survey_rates(
    model: Model,
    survey: Survey,
    *,
    edits: Sequence[Edit] = (),
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Bool[np.ndarray, " _"]]:
    """Return, by domain, whether the model's greedy answer to each prompt has the trait."""
    settings = Settings(temperature=0.0, top_p=1.0, max_tokens=survey.tokens)
    flat = [ids for prompts in survey.prompts.values() for ids in prompts]
    drawn = draw_answers(model, flat, settings, edits=edits, report=report)
    special = model.special_ids
    texts = [model.decode([t for t in each[0].ids if t not in special]) for each in drawn]
    hits = np.array([shows(text, survey.trait) for text in texts], bool)
    ends = np.cumsum([len(prompts) for prompts in survey.prompts.values()])[:-1]
    return dict(zip(survey.prompts, np.split(hits, ends), strict=True))


def pooled_rate(found: Sequence[Bool[np.ndarray, " prompt"]]) -> Interval:
    """Rate over runs on the same prompts, clustered over prompts; ``n`` counts prompts."""
    values = np.stack(found).astype(float)
    return rate(values.ravel().tolist(), np.tile(np.arange(values.shape[1]), values.shape[0]).tolist())


def rate_gap(after: Sequence[Bool[np.ndarray, " prompt"]], before: Sequence[Bool[np.ndarray, " prompt"]]) -> Interval:
    """Difference of two rates as if each prompt were asked once: repeats on the same prompts add no prompts."""
    counts = []
    for side in (after, before):
        values = np.stack(side).astype(float)
        counts += [round(float(values.mean()) * values.shape[1]), values.shape[1]]
    exact = newcombe(*counts)
    value = float(np.mean(after) - np.mean(before))
    return replace(exact, value=value, low=min(exact.low, value), high=max(exact.high, value))
