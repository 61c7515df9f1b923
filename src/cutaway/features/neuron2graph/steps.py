"""The steps of `method` one by one: settings, pruning, saliency, augmentation, and patterns into a trie."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UsageError, nearest
from cutaway.features.neuron2graph.graph import Matching, Trie, path_of
from cutaway.features.neuron2graph.tokens import Spell, normalise
from cutaway.features.neuron2graph.variants import vary
from cutaway.features.unit import Unit, read_rows

Propose = Callable[[Sequence[int], int], Sequence[int]]
"""``(ids, position)`` to token ids that could stand there, best first."""
_SENTENCE_END = re.compile(r"[.!\n]")
PUBLISHED_LENGTHS = {
    "2304.12918": (*range(1, 21), *range(30, 1021, 10)),
    "2305.19911": tuple(range(5, 31, 5)),
}


@dataclass(frozen=True)
class Settings:
    """How a graph is made. ``fillers`` and ``start`` have no default: they depend on the tokenizer."""

    fillers: tuple[int, ...]
    """Tokens that masked ones are replaced by, in turn; importance is the mean over them."""
    start: tuple[int, ...]
    """Tokens in front of every window, such as a start of text; never part of a pattern. Empty for none."""
    lengths: tuple[int, ...] = PUBLISHED_LENGTHS["2305.19911"]
    """Windows tried, in tokens up to the peak."""
    after: int = 5
    """Tokens kept behind the peak."""
    keep: float = 0.5
    """Share of the peak's value that a window must keep."""
    fires: float = 0.5
    """A token fires above this share of the largest known value."""
    important: float = 0.75
    augmented: float = 0.8
    """Importance from which a token is replaced by candidates."""
    per_token: int = 5
    """Candidates for each."""
    remeasure: bool = False
    """Measure importance again on every variant; otherwise a variant keeps what was important in the original."""
    sufficient: bool = True
    """Complete patterns whose kept tokens alone do not fire."""
    rounds: int = 3
    """Of refinement on other text."""
    per_round: int = 24
    """Misses, and false alarms, looked at in a round."""
    matching: Matching = "all"
    merge: bool = False
    """The papers' rule: what stands behind a token also holds behind an IGNORE beside it."""
    first: bool = False
    """An END keeps its first sample's value; otherwise the mean."""
    reuse: bool = True
    """Do not read again what comes before a masked token."""

    def __post_init__(self) -> None:
        if not self.fillers:
            raise UsageError("fillers: name at least one token to mask with (see mask_tokens)")
        if not self.lengths or min(self.lengths) < 1 or list(self.lengths) != sorted(set(self.lengths)):
            raise UsageError(f"lengths={self.lengths}: rising numbers of tokens, 1 or more")
        for name in ("keep", "fires", "important", "augmented"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"{name}={getattr(self, name)}: above 0, at most 1")


def published(paper: str, *, filler: int, start: tuple[int, ...]) -> Settings:
    """Return a paper's settings: "2304.12918" or "2305.19911". Their filler was token 1 of the tokenizer at hand.

    The earlier tries every window up to 20 tokens and then every tenth, and keeps nothing behind the peak; the later
    tries 5, 10, ... 30 and keeps 5 tokens. Both measure importance on every variant, merge, and match greedily.
    """
    if paper not in PUBLISHED_LENGTHS:
        raise UsageError(f"paper={paper!r}{nearest(paper, PUBLISHED_LENGTHS)}")
    return Settings(
        fillers=(filler,),
        start=start,
        lengths=PUBLISHED_LENGTHS[paper],
        after=0 if paper == "2304.12918" else 5,
        remeasure=True,
        sufficient=False,
        rounds=0,
        matching="greedy",
        merge=True,
        first=True,
    )


@dataclass(frozen=True)
class Snippet:
    """A text and the token that matters in it."""

    ids: tuple[int, ...]
    """Without start tokens."""
    position: int
    value: float
    """Of the feature at ``position`` in the whole text."""


@dataclass(frozen=True)
class Pruned:
    """The part of a snippet that is enough."""

    ids: tuple[int, ...]
    """Start tokens, window, tokens behind."""
    position: int
    """Of the peak, in ``ids``."""
    scale: float
    """Value in the snippet over value in the window."""
    kept: bool
    """False where no window kept the peak and its share, and the longest was taken."""


@dataclass(frozen=True)
class Saliency:
    """How much of each token's value is lost when another is masked."""

    values: Float[Tensor, " pos"]
    importance: Float[Tensor, "pos pos"]
    """[masked, target]; nan where the target's value is not above 0."""
    sd: Float[Tensor, "pos pos"]
    """Between fillers; 0 where there is one."""


def prune(
    unit: Unit, snippets: Sequence[Snippet], *, spell: Spell, settings: Settings, peak: bool = True
) -> list[Pruned | None]:
    """Step 1; None where even the longest window has no value above 0. ``peak=False``: the token need not lead."""
    start, rows, owners = settings.start, [], []
    for number, each in enumerate(snippets):
        for length in settings.lengths:
            begin = max(0, each.position + 1 - length)
            rows.append((*start, *each.ids[begin : each.position + 1]))
            owners.append((number, begin))
            if begin == 0:
                break
    values = {i: found[:, 0] for i, found in read_rows([unit], rows)}
    chosen: list[tuple[int, float, bool] | None] = [None] * len(snippets)
    for i, (number, begin) in enumerate(owners):
        if (already := chosen[number]) is not None and already[2]:
            continue
        here = values[i][len(start) :]
        at, original = float(here[-1]), snippets[number].value
        leads = not peak or int(here.argmax()) == len(here) - 1
        chosen[number] = (begin, at, leads and at >= settings.keep * original)
    return _with_following(unit, snippets, chosen, spell, settings)


def _with_following(
    unit: Unit,
    snippets: Sequence[Snippet],
    chosen: Sequence[tuple[int, float, bool] | None],
    spell: Spell,
    settings: Settings,
) -> list[Pruned | None]:
    """Add the tokens behind the peak, as long as none of them takes the lead from it."""
    out: list[Pruned | None] = [None] * len(snippets)
    rows: dict[int, tuple[int, ...]] = {}
    for number, (each, found) in enumerate(zip(snippets, chosen, strict=True)):
        if found is None or found[1] <= 0:
            continue
        behind: list[int] = []
        if not _SENTENCE_END.search(spell(each.ids[each.position])):
            for token in each.ids[each.position + 1 :][: settings.after]:
                behind.append(token)
                if _SENTENCE_END.search(spell(token)):
                    break
        rows[number] = (*settings.start, *each.ids[found[0] : each.position + 1], *behind)
    if not rows:
        return out
    values = {i: read[:, 0] for i, read in read_rows([unit], list(rows.values()))}
    for i, (number, row) in enumerate(rows.items()):
        begin, at, kept = chosen[number] or (0, 0.0, False)
        position = len(settings.start) + snippets[number].position - begin
        louder = (values[i][position + 1 :] > values[i][position]).nonzero()
        end = position + 1 + int(louder[0]) if kept and len(louder) else len(row)
        out[number] = Pruned(row[:end], position, snippets[number].value / at, kept)
    return out


def saliency(
    unit: Unit, texts: Sequence[Sequence[int]], *, settings: Settings, known: int | None = None
) -> list[Saliency]:
    """Step 2, for several texts at once; start tokens are not masked (``known``: how many there are)."""
    skip = len(settings.start) if known is None else known
    variants = [
        (number, (*ids[:i], filler, *ids[i + 1 :]))
        for number, ids in enumerate(texts)
        for i in range(skip, len(ids))
        for filler in settings.fillers
    ]
    read = vary(unit, texts, variants, reuse=settings.reuse)
    out, at, many = [], 0, len(settings.fillers)
    for ids, values in zip(texts, read.texts, strict=True):
        masked = torch.stack(read.variants[at : at + (len(ids) - skip) * many]).unflatten(0, (-1, many))
        at += (len(ids) - skip) * many
        share = 1 - masked / torch.where(values > 0, values, torch.nan)
        mean = torch.zeros(len(ids), len(ids)).index_fill(1, (values <= 0).nonzero()[:, 0], torch.nan)
        sd = mean.clone()
        mean[skip:], sd[skip:] = share.mean(1), share.std(1, correction=0)
        out.append(Saliency(values, mean, sd))
    return out


def insert(
    trie: Trie,
    unit: Unit,
    found: Sequence[Pruned],
    *,
    largest: float,
    spell: Spell,
    settings: Settings,
    propose: Propose | None,
    only: bool = False,
) -> int:
    """Steps 2 to 4 for pruned snippets; return the number of texts read. ``only``: patterns of the peak alone."""
    if not found:
        return 0
    texts = [each.ids for each in found]
    measured = saliency(unit, texts, settings=settings)
    kept = [_kept(each, one, largest, settings, only) for each, one in zip(found, measured, strict=True)]
    if settings.sufficient:
        _complete(unit, texts, measured, kept, settings)
    for each, one, positions in zip(found, measured, kept, strict=True):
        _add(trie, each.ids, one, positions, each.scale / largest, spell, settings)
    if propose is None:
        return len(texts)
    variants = augment(found, measured, propose=propose, spell=spell, settings=settings)
    read = vary(unit, texts, variants, reuse=settings.reuse)
    again: list[tuple[int, tuple[int, ...]]] = []
    for (number, ids), values in zip(variants, read.variants, strict=True):
        scale, known = found[number].scale / largest, kept[number]
        firing = [j for j in range(len(settings.start), len(ids)) if float(values[j]) * scale > settings.fires]
        if settings.remeasure or any(j not in known for j in firing):
            again += [(number, ids)] if firing else []
        else:
            one = replace(measured[number], values=values)
            _add(trie, ids, one, {j: known[j] for j in firing}, scale, spell, settings)
    for (number, ids), one in zip(again, saliency(unit, [ids for _, ids in again], settings=settings), strict=True):
        own = _kept(replace(found[number], ids=ids), one, largest, settings, only)
        # What was important in the original at the same place stays so.
        joined = {j: positions | kept[number].get(j, set()) for j, positions in own.items()}
        _add(trie, ids, one, joined, found[number].scale / largest, spell, settings)
    return len(texts) + len(variants)


def augment(
    found: Sequence[Pruned], measured: Sequence[Saliency], *, propose: Propose, spell: Spell, settings: Settings
) -> list[tuple[int, tuple[int, ...]]]:
    """Step 3: variants ``(index of the snippet, ids)``; a candidate equal to the token itself is none."""
    out = []
    for number, (each, one) in enumerate(zip(found, measured, strict=True)):
        for i in range(len(settings.start), each.position + 1):
            original = spell(each.ids[i])
            if not float(one.importance[i, each.position]) >= settings.augmented or not original.strip().isalpha():
                continue
            seen = {normalise(original)}
            for token in propose(each.ids, i):
                text = spell(token)
                if text.strip().isalpha() and normalise(text) not in seen and _same_form(text, original):
                    seen.add(normalise(text))
                    out.append((number, (*each.ids[:i], token, *each.ids[i + 1 :])))
                if len(seen) > settings.per_token:
                    break
    return out


def _same_form(text: str, original: str) -> bool:
    """A substitute has the original's leading blank and its capital."""
    return text[:1].isspace() == original[:1].isspace() and text.strip().istitle() == original.strip().istitle()


def _kept(found: Pruned, one: Saliency, largest: float, settings: Settings, only: bool) -> dict[int, set[int]]:
    """Return for each firing token the tokens kept."""
    out = {}
    for j in range(len(settings.start), len(found.ids)):
        if float(one.values[j]) * found.scale / largest > settings.fires and (not only or j == found.position):
            important = (one.importance[:, j] > settings.important).nonzero()[:, 0].tolist()
            out[j] = {i for i in important if len(settings.start) <= i <= j} | {j}
    return out


def _complete(
    unit: Unit,
    texts: Sequence[Sequence[int]],
    measured: Sequence[Saliency],
    kept: Sequence[dict[int, set[int]]],
    settings: Settings,
) -> None:
    """Add tokens to patterns that do not fire on their own, nearest sufficient set first.

    Where masking all tokens but the kept ones loses half of the value, they are given back one by one from the firing
    token on; the one that brings it back joins. Two tokens of which either would do leave each other unimportant;
    this finds the nearer.
    """
    skip, filler = len(settings.start), settings.fillers[0]

    def row(t: int, j: int, edge: int) -> tuple[int, list[int]]:
        held = kept[t][j] | set(range(edge, len(texts[t])))
        return t, [x if i < skip or i in held else filler for i, x in enumerate(texts[t])]

    open_ = [(t, j) for t, patterns in enumerate(kept) for j in patterns]
    for _ in range(3):
        if not open_:
            return
        alone = vary(unit, texts, [row(t, j, j) for t, j in open_], reuse=False).variants
        enough = {(t, j): settings.keep * float(measured[t].values[j]) for t, j in open_}
        open_ = [(t, j) for (t, j), values in zip(open_, alone, strict=True) if float(values[j]) < enough[t, j]]
        tries = [(t, j, edge) for t, j in open_ for edge in range(j - 1, skip - 1, -1) if edge not in kept[t][j]]
        back: dict[tuple[int, int], int] = {}
        read = vary(unit, texts, [row(*each) for each in tries], reuse=False).variants if tries else []
        for (t, j, edge), values in zip(tries, read, strict=True):
            if float(values[j]) >= enough[t, j]:
                back.setdefault((t, j), edge)
        for (t, j), edge in back.items():
            kept[t][j].add(edge)
        open_ = list(back)


def _add(
    trie: Trie,
    ids: Sequence[int],
    one: Saliency,
    kept: dict[int, set[int]],
    scale: float,
    spell: Spell,
    settings: Settings,
) -> None:
    tokens = [spell(token) for token in ids]
    for j, positions in kept.items():
        path = path_of(tokens, j, positions)
        weights = np.nan_to_num([float(one.importance[j - step, j]) for step in range(len(path))])
        trie.insert(path, float(one.values[j]) * scale, [float(weight) for weight in weights])
