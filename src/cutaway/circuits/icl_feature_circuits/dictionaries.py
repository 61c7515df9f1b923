"""Small dictionaries trained for one study: few-shot prompts of its tasks and plain sentences, cached by content."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.circuits.icl_feature_circuits.data import HEADER, Split
from cutaway.circuits.icl_feature_circuits.words import NOUNS, REGULAR_VERBS, past
from cutaway.errors import UsageError
from cutaway.features import SparseDictionary, TrainConfig, load_dictionary, train_dictionary
from cutaway.model import Model

_WIDTH = 128
"""Tokens of a row."""
_ROWS = 16


@dataclass(frozen=True)
class Recipe:
    """How the dictionaries of a study are trained."""

    n_latents: int = 2304
    k: int = 24
    tokens: int = 40_000
    """Different tokens whose activations are read."""
    passes: int = 4
    """Times they are shown."""
    rate: float = 1e-3
    shots: int = 12
    plain: float = 0.3
    """Share of rows that are plain sentences."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.n_latents, self.k, self.passes, self.shots) < 1 or self.tokens < _WIDTH:
            raise UsageError(f"{self}: sizes are 1 or more, tokens {_WIDTH} or more")


def trained(
    model: Model,
    splits: Sequence[Split],
    sites: Sequence[str],
    recipe: Recipe,
    home: Path | None,
    report: Callable[[float, float], None] = lambda done, planned: None,
) -> dict[str, SparseDictionary]:
    """One TopK dictionary for each of ``sites``; read from ``home`` where the same one was trained before.

    Held-out queries of ``splits`` are not among the texts. report: (done, planned) tokens.
    """
    key = _key(model, splits, recipe)
    folders = {site: home / key / site for site in sites} if home is not None else {}
    if folders and all((folder / "dictionary.json").is_file() for folder in folders.values()):
        return {site: load_dictionary(folder).requires_grad_(False) for site, folder in folders.items()}
    rows = texts(model, splits, recipe)
    stored = _harvest(model, rows, sites, report)
    made = {}
    for site in sites:
        made[site] = _train(model, site, stored[site], recipe, key)
        if site in folders:
            made[site].save(folders[site])
    return made


def texts(model: Model, splits: Sequence[Split], recipe: Recipe) -> list[list[int]]:
    """Rows of token ids of at most `_WIDTH`: prompts of all tasks in turn, and plain sentences."""
    rng = np.random.default_rng([recipe.seed, 41])
    rows: list[list[int]] = []
    total, turn = 0, 0
    while total < recipe.tokens:
        if rng.random() < recipe.plain:
            text = " ".join(_sentence(rng) for _ in range(14))
        else:
            pairs = [*splits[turn % len(splits)].shots, *splits[turn % len(splits)].fit]
            shown = [pairs[i] for i in rng.permutation(len(pairs))[: recipe.shots]]
            text = HEADER + "".join(f"{x} -> {y}\n" for x, y in shown)
            turn += 1
        rows.append(model.encode(text, special=True)[:_WIDTH])
        total += len(rows[-1])
    return rows


def unexplained(dictionary: SparseDictionary, x: Float[Tensor, "row d_model"]) -> float:
    """Share of the variance of ``x`` that the reconstruction misses."""
    with torch.no_grad():
        missed = (x - dictionary(x)).square().sum()
        return float(missed / (x - x.mean(0)).square().sum())


def _train(model: Model, site: str, x: Tensor, recipe: Recipe, key: str) -> SparseDictionary:
    batch = min(1024, len(x))
    steps = recipe.passes * len(x) // batch
    config = TrainConfig(
        n_latents=recipe.n_latents,
        k=recipe.k,
        batch=batch,
        rate=recipe.rate,
        warm_up=min(50, math.ceil(steps / 10)),
        steps=steps,
        dead_after=max(4 * batch, len(x) // 2),
        seed=recipe.seed,
    )
    found = train_dictionary(_shuffled(x, recipe), config).dictionary
    found.provenance = replace(found.provenance, model=model.name, fingerprint=model.fingerprint, site=site, data=key)
    return found.requires_grad_(False)


def _shuffled(x: Tensor, recipe: Recipe) -> Iterator[Tensor]:
    for turn in range(recipe.passes + 1):
        generator = torch.Generator().manual_seed(recipe.seed * 1000 + turn)
        yield from x[torch.randperm(len(x), generator=generator)].split(4096)


def _harvest(
    model: Model, rows: Sequence[Sequence[int]], sites: Sequence[str], report: Callable[[float, float], None]
) -> Mapping[str, Tensor]:
    """Activations of all tokens but each row's first, which is like no other."""
    kept: dict[str, list[Tensor]] = {site: [] for site in sites}
    ordered = sorted(rows, key=len)
    total, done = float(sum(map(len, rows))), 0.0
    for start in range(0, len(ordered), _ROWS):
        part = ordered[start : start + _ROWS]
        with torch.no_grad():
            caught = model.capture([list(row) for row in part], list(sites), positions=slice(1, None), special=True)
        for site in sites:
            kept[site].append(caught.flat(site).float())
        done += sum(map(len, part))
        report(done, total)
    return {site: torch.cat(parts) for site, parts in kept.items()}


def _sentence(rng: np.random.Generator) -> str:
    a, b, c = (NOUNS[i] for i in rng.permutation(len(NOUNS))[:3])
    verb, other = (REGULAR_VERBS[i] for i in rng.permutation(len(REGULAR_VERBS))[:2])
    forms = (
        f"The {a} near the {b} had to {verb} before the {c} could {other}.",
        f"When we saw the {a}, it {past(verb)} and the {b} {past(other)}.",
        f"Nobody knows why a {a} would {verb} without a {b} and a {c}.",
        f"In the evening she {past(verb)} the {a}, then {past(other)} her {b}.",
    )
    return forms[int(rng.integers(len(forms)))]


def _key(model: Model, splits: Sequence[Split], recipe: Recipe) -> str:
    content = [model.fingerprint, asdict(recipe), [[each.task, each.shots, each.fit] for each in splits]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]
