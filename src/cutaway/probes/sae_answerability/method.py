"""Does a probe for "the passage answers the question" work on other questions? Table, shortcuts, honest selection.

1. Read the last prompt token's activation at each site, for every item of every set (each in a template, dealt in
   turn). 2. Encode it with a dictionary of the site: one given, or one trained on the tokens of the first set's
   prompts (never on a test set). 3. `transfer` for every site; `nested` selection and what the search finds in shuffled
   labels; agreement of latents' rank at home and away; latents that are strong at home and nothing elsewhere.
4. Beside it the scores that need no model: shared words, length, words.

Source: Heindrich, Torr, Barez, Thost 2025 (2502.19964), card sae-answerability. Limit: latents of a small dictionary
trained on few tokens are coarse; a large published one can be given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.features import Dictionary, Provenance, SparseDictionary, TrainConfig, train_dictionary
from cutaway.model import Model
from cutaway.probes.pooled import activations
from cutaway.probes.sae_answerability.data import TEMPLATES, Item, render, texts_of
from cutaway.probes.scoring import auroc
from cutaway.probes.selection import Nested, nested, screen, strongest
from cutaway.probes.shortcuts import length_scores, overlap, word_scores
from cutaway.probes.transfer import SMALLEST, Cell, Family, Labelled, Transfer, agreement, shortcuts_of, transfer
from cutaway.stats import Interval


@dataclass(frozen=True)
class SiteReport:
    """One site's table and what its latents are."""

    site: str
    table: Transfer
    selection: Nested
    """On the first set."""
    agreement: Mapping[str, Interval]
    """By other set: Kendall's tau of latents' AUROC with the first set's."""
    verdicts: Mapping[int, str]
    """Latents strong on the first set: transfers, transfers in part, shortcut."""
    dictionary: str = ""


@dataclass(frozen=True)
class Answerability:
    """All sites, and what needs no model."""

    sites: tuple[SiteReport, ...]
    shortcuts: Mapping[tuple[str, str], Interval]
    """By set and score: AUROC of shared words (no fit), length and words (fitted on the first set)."""
    sets: tuple[str, ...]
    complete: bool = True
    control: Transfer | None = field(default=None, repr=False)
    """The last site's table on a model of random weights, or on shuffled labels."""

    def __repr__(self) -> str:
        return f"Answerability({len(self.sites)} sites, {self.sites[0].table!r})" if self.sites else "Answerability()"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain types."""
        shortcuts = [{"set": s, "score": name, **vars(found)} for (s, name), found in self.shortcuts.items()]
        control = None if self.control is None else asdict(self.control)
        sites = [asdict(site) for site in self.sites]
        return {
            "sites": sites,
            "shortcuts": shortcuts,
            "sets": self.sets,
            "complete": self.complete,
            "control": control,
        }


def measure(
    model: Model,
    sets: Mapping[str, Sequence[Item]],
    sites: Sequence[str],
    families: Sequence[Family | str] = ("logistic", "mean difference", "1 latent", "k latents"),
    *,
    templates: Sequence[str] = TEMPLATES,
    dictionaries: Mapping[str, Dictionary] | None = None,
    latents: int = 2048,
    k: int = 5,
    resamples: int = 20,
    folder: Path | None = None,
    seed: int = 0,
    report: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> Answerability:
    """Measure every site; the first set is home to selection. On Ctrl-C the sites that are done, ``complete=False``."""
    check_items(sets)
    names, found, control = list(sets), [], None
    shortcuts = {
        (name, score): area for name in names for score, area in plain_scores(sets[names[0]], sets[name]).items()
    }
    complete = True
    try:
        prompts = {name: prompts_of(model, items, templates) for name, items in sets.items()}
        every = [prompt for name in names for prompt in prompts[name]]
        if long := [len(prompt) for prompt in every if len(prompt) > model.n_ctx]:
            raise UsageError(
                f"{len(long)} prompts are longer than {model.n_ctx} tokens; their last token would be lost"
            )
        read = activations(
            model, every, list(sites), "last", folder=folder, report=lambda a, b: report(a, b, "prompts read")
        )
        for number, site in enumerate(sites):
            report(number, len(sites), site)
            given = (dictionaries or {}).get(site)
            made = given or small_dictionary(model, prompts[names[0]], site, latents, folder, seed)
            rows = labelled(sets, read[site, "last"], made)
            done, verdicts, agrees = _table(rows, families, site, k, resamples, seed)
            found.append(
                SiteReport(
                    site,
                    done,
                    nested(_codes(rows[0]), rows[0].y, rows[0].groups, seed=seed),
                    agrees,
                    verdicts,
                    repr(made),
                )
            )
            if not done.complete:
                raise KeyboardInterrupt
            control = transfer(
                [_shuffled(each, seed) for each in rows], families, site=site, k=k, resamples=0, seed=seed
            )
    except KeyboardInterrupt:
        complete = False
    return Answerability(tuple(found), shortcuts, tuple(names), complete, control)


def prompts_of(model: Model, items: Sequence[Item], templates: Sequence[str]) -> list[list[int]]:
    """Return token ids of each item, templates dealt in turn by group, so that a pair shares its template."""
    order = {group: i for i, group in enumerate(dict.fromkeys(item.group for item in items))}
    rows = []
    for item in items:
        made = render(item, templates[order[item.group] % len(templates)], model)
        rows.append(model.encode(made, special=True) if isinstance(made, str) else made)
    return rows


def small_dictionary(
    model: Model, prompts: Sequence[Sequence[int]], site: str, latents: int, folder: Path | None, seed: int
) -> SparseDictionary:
    """Train a dictionary on every token of some prompts."""
    read = activations(model, list(prompts), site, "tokens", folder=folder)
    (key,) = read.values
    rows = read[key]
    batch = max(64, min(1024, len(rows) // 4))
    config = TrainConfig(
        n_latents=latents, k=min(32, latents), batch=batch, rate=1e-3, warm_up=20, dead_after=20_000, seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    passes = max(1, min(12, 300 * batch // max(1, len(rows))))
    mixed = (rows[torch.randperm(len(rows), generator=generator)] for _ in range(passes))
    about = Provenance(model=model.name, fingerprint=model.fingerprint, site=site)
    return train_dictionary(mixed, config, provenance=about).dictionary


def labelled(
    sets: Mapping[str, Sequence[Item]], rows: Float[Tensor, "row d"], dictionary: Dictionary
) -> list[Labelled]:
    """Return activations of all sets, one set below the other, as sets with codes; UsageError for another width."""
    out, start = [], 0
    for name, items in sets.items():
        part = rows[start : start + len(items)]
        start += len(items)
        y = np.array([item.answerable for item in items])
        with torch.no_grad():
            codes = dictionary.encode(part)
        out.append(Labelled(name, part, y, tuple(item.group for item in items), codes))
    return out


def plain_scores(home: Sequence[Item], test: Sequence[Item]) -> dict[str, Interval]:
    """AUROC of scores that need no model; length and words are fitted on ``home`` (crosswise where it is the test)."""
    labels = np.array([item.answerable for item in test])
    groups = np.array([item.group for item in test])
    shared = np.array([overlap(item.question, item.context) for item in test])
    found = {"shared words": auroc(labels, shared, clusters=groups)}
    for name, fit in (("length", length_scores), ("words", word_scores)):
        scores = _fitted(home, test, fit)
        found[name] = auroc(labels, scores, clusters=groups)
    return found


def check_items(sets: Mapping[str, Sequence[Item]]) -> None:
    """UsageError for ids with two labels, no items, or an empty question or passage."""
    if not sets:
        raise UsageError("no sets; give at least one")
    for name, items in sets.items():
        if len(items) < SMALLEST:
            raise UsageError(f"{name}: {len(items)} items; {SMALLEST} or more")
        seen: dict[str, bool] = {}
        for item in items:
            if not item.question.strip() or not item.context.strip():
                raise UsageError(f"{name}: item {item.id!r} has an empty question or passage")
            if seen.setdefault(item.id, item.answerable) != item.answerable:
                raise UsageError(f"{name}: id {item.id!r} has both labels")


def _table(
    rows: list[Labelled], families: Sequence[Family | str], site: str, k: int, resamples: int, seed: int
) -> tuple[Transfer, dict[int, str], dict[str, Interval]]:
    done = transfer(rows, families, site=site, k=k, resamples=resamples, seed=seed)
    best = strongest(screen(_codes(rows[0]), rows[0].y), 10)
    verdicts = shortcuts_of(rows[0], rows[1:], best, strong=0.6) if len(rows) > 1 else {}
    return done, verdicts, {other.name: agreement(rows[0], other)[0] for other in rows[1:]}


def _fitted(home: Sequence[Item], test: Sequence[Item], fit: Callable[..., np.ndarray]) -> Float[np.ndarray, " row"]:
    from cutaway.probes.selection import grouped_folds

    def one(train: Sequence[Item], other: Sequence[Item]) -> np.ndarray:
        return fit(texts_of(train), np.array([item.answerable for item in train]), texts_of(other))

    if test is not home:
        return one(home, test)
    scores = np.zeros(len(home))
    for held in grouped_folds([item.group for item in home], 5, 0):
        inside, outside = ([item for item, h in zip(home, held, strict=True) if h == side] for side in (True, False))
        scores[held] = one(outside, inside)
    return scores


def _shuffled(rows: Labelled, seed: int) -> Labelled:
    order: Bool[np.ndarray, " row"] = np.random.default_rng((seed, 5)).permutation(rows.y)
    return Labelled(rows.name, rows.x, order, rows.groups, rows.codes)


def _codes(rows: Labelled) -> Any:
    assert rows.codes is not None
    return rows.codes


def cells_of(found: Answerability, site: str) -> tuple[Cell, ...]:
    """Return the cells of one site."""
    for each in found.sites:
        if each.site == site:
            return each.table.cells
    raise UsageError(f"no site {site!r}; there are {', '.join(each.site for each in found.sites)}")
