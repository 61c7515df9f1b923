"""Data that fit two rules at once in training and tell them apart in the test, and a small model that knows both.

*Vectors*: a wanted sign of amplitude 1 and a louder unwanted sign of amplitude 2 in a random rotation, noise
0.25 (at 0.5 nobody could read the wanted sign more often than 97.7%).

*Double questions*: two questions stand in one prompt and each option answers both. Tied: both answers agree, so the
label does not say which question counts. Reversed: they never do. No question is shared between splits, the right
option stands first as often as second. `two_rules` is a small Llama that was trained to name both answers in one word;
then the unwanted answer is made the louder one in its last block. " A" and " B" alone it never answered.

Source: card caft (2507.16795), B and At small scale. All words are written here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float

from cutaway.errors import UsageError, nearest
from cutaway.model import Model
from cutaway.planted.small import answer_data, pretrain, small_llama

Law = Literal["independent", "tied", "reversed"]
Split = Literal["train", "validation", "test"]
SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}
A, B, ASK = " A", " B", " Answer"
BOTH = ((" AA", " AB"), (" BA", " BB"))
"""What the model was trained to answer, by wanted and unwanted side."""


@dataclass(frozen=True)
class Family:
    """Questions of one kind: a cue of either class, and pairs of options, the first right for class 0."""

    cues: tuple[tuple[str, ...], tuple[str, ...]]
    options: tuple[tuple[str, str], ...]

    @property
    def words(self) -> list[str]:
        return [*self.cues[0], *self.cues[1], *(word for pair in self.options for word in pair)]


def _words(text: str) -> tuple[str, ...]:
    return tuple(f" {word}" for word in text.split())


FAMILIES = {
    "agreement": Family(
        (
            _words("cat dog bird horse child cook king guest"),
            _words("cats dogs birds horses children cooks kings guests"),
        ),
        ((" runs", " run"), (" sings", " sing"), (" waits", " wait"), (" sleeps", " sleep")),
    ),
    "sentiment": Family(
        (
            _words("awful nasty dull sour grim bleak rude stale"),
            _words("lovely superb bright sweet merry sunny kind fresh"),
        ),
        ((" frown", " smile"), (" bad", " good"), (" worse", " better"), (" loss", " win")),
    ),
    "sports": Family(
        (
            _words("racket serve umpire volley court baseline deuce ace"),
            _words("puck rink goalie skates ice slapshot crease icing"),
        ),
        ((" tennis", " hockey"), (" lawn", " frost"), (" strings", " stick"), (" net", " boards")),
    ),
    "pronouns": Family(
        (
            _words("John Paul Mark Peter Henry Oscar Simon Frank"),
            _words("Mary Anna Laura Susan Emma Alice Julia Helen"),
        ),
        ((" he", " she"), (" him", " her"), (" his", " hers"), (" himself", " herself")),
    ),
}


@dataclass(frozen=True)
class DoubleItem:
    """One prompt with both rules' answers, and the questions it was made of."""

    prompt: str
    wanted: int
    """0 where the wanted question's answer is option A, 1 for B."""
    unwanted: int
    questions: tuple[tuple[str, str], tuple[str, str]]
    """(cue, first option) of the wanted and the unwanted question."""


@dataclass(frozen=True)
class SpuriousVectors:
    """The law of the vectors."""

    rotation: Float[np.ndarray, "d d"]
    amplitudes: tuple[float, float] = (1.0, 2.0)
    noise: float = 0.25

    def draw(self, n: int, law: Law, seed: int = 0) -> tuple[Float[np.ndarray, "row d"], np.ndarray, np.ndarray]:
        """``n`` rows with their wanted and unwanted labels, 0 or 1."""
        rng = np.random.default_rng((seed, _law(law)))
        wanted = rng.integers(0, 2, n)
        unwanted = _partner(wanted, law, rng)
        x = self.noise * rng.standard_normal((n, len(self.rotation)))
        x[:, 0] += self.amplitudes[0] * (2 * wanted - 1)
        x[:, 1] += self.amplitudes[1] * (2 * unwanted - 1)
        return (x @ self.rotation).astype(np.float32), wanted, unwanted


def spurious_vectors(d: int = 32, seed: int = 0) -> SpuriousVectors:
    """Return a law with a rotation drawn by ``seed``; UsageError below 4 dimensions."""
    if d < 4:
        raise UsageError(f"d={d}: 4 or more")
    return SpuriousVectors(np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0])


def questions(family: str, split: Split, seed: int = 0) -> list[tuple[str, int, tuple[str, str]]]:
    """Return (cue, class, options) of one split; the three splits share none and cover all."""
    if family not in FAMILIES:
        raise UsageError(f"family {family!r}{nearest(family, FAMILIES)}")
    if split not in SHARES:
        raise UsageError(f"split={split!r}{nearest(split, SHARES)}")
    held = FAMILIES[family]
    rng = np.random.default_rng((seed, sorted(FAMILIES).index(family)))
    found = []
    for kind in (0, 1):
        every = [(cue, kind, pair) for cue, pair in product(held.cues[kind], held.options)]
        every = [every[i] for i in rng.permutation(len(every))]
        ends = np.cumsum([round(share * len(every)) for share in SHARES.values()])
        start = {"train": 0, "validation": int(ends[0]), "test": int(ends[1])}[split]
        found += every[start : len(every) if split == "test" else start + round(SHARES[split] * len(every))]
    return found


def double_items(
    wanted: str, unwanted: str, n: int, law: Law, *, split: Split = "train", seed: int = 0
) -> list[DoubleItem]:
    """Return ``n`` prompts of two questions; the wanted answer is A in exactly half (one more for odd n)."""
    if wanted == unwanted:
        raise UsageError(f"a pair of two {wanted!r}: name two families")
    pools = [questions(family, split, seed) for family in (wanted, unwanted)]
    rng = np.random.default_rng((seed, _law(law), list(SHARES).index(split), 1))
    sides = rng.permutation(np.arange(n) % 2)
    others = _partner(sides, law, rng)
    return [_item(pools, (int(a), int(b)), rng) for a, b in zip(sides, others, strict=True)]


def _item(
    pools: Sequence[list[tuple[str, int, tuple[str, str]]]], sides: tuple[int, int], rng: np.random.Generator
) -> DoubleItem:
    cues, columns, used = "", (["", ""]), []
    for pool, side in zip(pools, sides, strict=True):
        cue, kind, pair = pool[int(rng.integers(len(pool)))]
        right, wrong = pair[kind], pair[1 - kind]
        cues += cue
        columns[side] += right
        columns[1 - side] += wrong
        used.append((cue, pair[0]))
    return DoubleItem(f"{cues}{A}{columns[0]}{B}{columns[1]}{ASK}", sides[0], sides[1], (used[0], used[1]))


@dataclass(frozen=True)
class TwoRules:
    """The model that knows both rules."""

    model: Model
    wanted: str
    unwanted: str
    loss: float
    """Of the last steps of its training, in nats."""


def two_rules(
    wanted: str = "agreement",
    unwanted: str = "sentiment",
    *,
    loudness: float = 3.0,
    d_model: int = 32,
    n_layers: int = 2,
    steps: int = 300,
    seed: int = 0,
) -> TwoRules:
    """Train a small model to answer both questions at once; make the unwanted answer ``loudness`` times as loud."""
    if not loudness > 0:
        raise UsageError(f"loudness={loudness}: above 0")
    words = [*FAMILIES[wanted].words, *FAMILIES[unwanted].words, A, B, ASK, *BOTH[0], *BOTH[1]]
    model = small_llama(words, "planted-two-rules", d_model=d_model, n_layers=n_layers, seed=seed)
    _tell_classes(model, (wanted, unwanted), seed)
    rows = []
    for split, share in SHARES.items():
        for item in double_items(wanted, unwanted, int(8000 * share), "independent", split=split, seed=seed):  # type: ignore[arg-type]
            rows.append((model.encode(item.prompt), model.encode(BOTH[item.wanted][item.unwanted])))
    loss = pretrain(model, answer_data(rows), steps, seed=seed)
    _amplify(model, double_items(wanted, unwanted, 400, "independent", seed=seed + 1), loudness)
    with torch.no_grad():
        head = model.hf.get_output_embeddings().weight
        # the new answers start between the old ones, so that neither rule decides before tuning
        old = head[[model.encode(word)[0] for row in BOTH for word in row]].mean(0)
        head[[model.encode(A)[0], model.encode(B)[0]]] = old
    return TwoRules(model, wanted, unwanted, loss)


def _tell_classes(model: Model, families: tuple[str, str], seed: int) -> None:
    """Give words of a class a part in common, cues and options each their own: training then takes seconds."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        embed = model.hf.get_input_embeddings().weight
        for family in families:
            cue, option = torch.randn(2, embed.shape[1], generator=generator) * 0.3
            for kind in (0, 1):
                for word in FAMILIES[family].cues[kind]:
                    embed[model.encode(word)[0]] += (2 * kind - 1) * cue
                for pair in FAMILIES[family].options:
                    embed[model.encode(pair[kind])[0]] += (2 * kind - 1) * option


@torch.no_grad()
def _amplify(model: Model, items: Sequence[DoubleItem], factor: float) -> None:
    """Stretch what the last block writes along the unwanted answer's direction, and read it as much less loudly."""
    last = model.n_layers - 1
    found = model.capture([model.encode(item.prompt) for item in items], f"resid_post.{last}", "last")
    states = found[f"resid_post.{last}"][:, 0]
    side = torch.tensor([item.unwanted for item in items], dtype=torch.bool)
    direction = states[side].mean(0) - states[~side].mean(0)
    direction = direction / direction.norm()
    block = model.hf.model.layers[last]
    for module in (block.self_attn.o_proj, block.mlp.down_proj):
        module.weight += (factor - 1) * torch.outer(direction, direction @ module.weight)
    gain, head = model.hf.model.norm.weight, model.hf.get_output_embeddings().weight
    read = head * gain
    head += (1 / factor - 1) * torch.outer(read @ direction, direction) / gain


def _law(law: Law) -> int:
    if law not in get_args(Law):
        raise UsageError(f"law={law!r}{nearest(law, get_args(Law))}")
    return get_args(Law).index(law)


def _partner(labels: np.ndarray, law: Law, rng: np.random.Generator) -> np.ndarray:
    if law == "independent":
        return rng.integers(0, 2, len(labels))
    return labels.copy() if law == "tied" else 1 - labels
