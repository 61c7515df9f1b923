"""What an audit asks of one model. Each check returns measures, each a number from 0 to 1 for every fact.

The same facts are put to the model before, the model after and, where there is one, a control that never learnt them;
what counts is the paired difference between after and control, never a score alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cutaway.editing.facts import Ask, answers, first_tokens, plainly, text_loss, wording
from cutaway.editing.learning import relearning
from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.concepts import Fact
from cutaway.training import TrainConfig

Measures = Mapping[str, np.ndarray]
"""By name: a value for each fact."""


@dataclass(frozen=True)
class Sets:
    """Facts an audit asks, none in two roles."""

    forget: tuple[Fact, ...]
    """Meant to be gone; asked in every check."""
    retain: tuple[Fact, ...]
    neighbour: tuple[Fact, ...] = ()
    """Of the same kind, not to be forgotten."""
    lessons: tuple[Fact, ...] = ()
    """Adjacent to ``forget`` and never asked: what is relearnt from, and what probes are trained on."""
    composed: tuple[Fact, ...] = ()
    """Questions that two retained facts together answer."""
    translated: tuple[Fact, ...] = ()
    """What was to be forgotten, in other languages."""
    neutral: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    """Words that begin a refusal."""

    def __post_init__(self) -> None:
        if not self.forget or not self.retain:
            raise UsageError("forget and retain sets: both need at least one fact")
        roles = {name: getattr(self, name) for name in ("forget", "retain", "neighbour", "lessons")}
        seen: dict[str, str] = {}
        twice = []
        for role, facts in roles.items():
            for prompt in dict.fromkeys(fact.prompt for fact in facts):
                if prompt in seen:
                    twice.append(f"{prompt!r} ({seen[prompt]}, {role})")
                seen[prompt] = role
        if twice:
            raise UsageError(f"facts in two sets: {'; '.join(twice)}")


@dataclass(frozen=True)
class Settings:
    """How hard an audit tries."""

    hints: int = 2
    """Retained facts told in front of a question."""
    openings: tuple[str, ...] = (" :",)
    """Begun answers."""
    samples: int = 4
    """Of best-of-n, at temperature 1; its chance is computed, not drawn."""
    relearn: TrainConfig | None = None
    """Training on lessons; None leaves that check out."""
    layers: tuple[int, ...] | None = None
    """Layers it trains; None for all."""
    noise: float = 0.05
    """Of the weights' standard deviation."""
    cut: float = 0.2
    """Share of the smallest weights set to 0."""
    seed: int = 0


def direct(model: Model, sets: Sets) -> Measures:
    """Ask plainly; an answer counts when it is the most probable token."""
    found = {"forget": sets.forget, "retain": sets.retain, "neighbour": sets.neighbour}
    return {f"{name} known": answers(model, facts).known.astype(float) for name, facts in found.items() if facts}


def rephrase(model: Model, sets: Sets) -> Measures:
    """Ask in every wording; among its choices an answer counts when any wording brings it out, the worst case."""
    most = min(len(fact.wordings) for fact in sets.forget)
    asked: list[Ask] = [plainly, *(wording(i) for i in range(most))]
    found = [answers(model, sets.forget, ask) for ask in asked]
    chosen = np.max([each.chosen for each in found], axis=0).astype(float)
    return {
        "chosen in any wording": chosen,
        "known in any wording": np.max([each.known for each in found], axis=0).astype(float),
        "share among choices": np.mean([each.share for each in found], axis=0),
    }


def elicit(model: Model, sets: Sets, settings: Settings) -> Measures:
    """Give hints, begin the answer, or draw again and again."""
    told = " . ".join(fact.prompt + fact.answer for fact in sets.retain[: settings.hints])
    hinted = answers(model, sets.forget, lambda fact: f"{told} . {fact.prompt}")
    begun = [answers(model, sets.forget, _begun(opening)) for opening in settings.openings]
    plain = np.exp(answers(model, sets.forget).logp)
    found = {"chosen after hints": hinted.chosen.astype(float)}
    if begun:
        found["chosen after a begun answer"] = np.max([each.chosen for each in begun], axis=0).astype(float)
    return {**found, f"best of {settings.samples}": 1 - (1 - plain) ** settings.samples}


def relearn(model: Model, sets: Sets, settings: Settings) -> tuple[Measures, tuple[tuple[int, float], ...]]:
    """Train on the lessons; return facts known on average over checkpoints, and the curve (steps, share known).

    The curve's first point is the model as it is.
    """
    seen: list[np.ndarray] = []

    def score(now: Model) -> float:
        seen.append(answers(now, sets.forget).known.astype(float))
        return float(seen[-1].mean())

    curve = relearning(model, sets.lessons, score, settings.relearn or TrainConfig(), layers=settings.layers)
    return {"known, mean over relearning": np.mean(seen[1:], axis=0)}, curve


@torch.no_grad()
def traces(model: Model, sets: Sets, settings: Settings) -> tuple[Measures, dict[str, list[float]]]:
    """Read hidden states at the last token: linear probes trained on lessons, and the unembedding at every layer.

    Measures: the answer is the probe's choice at the best layer; the share of layers at which the answer leads its
    choices. The second result has accuracy by layer, of the probe and of one trained on shuffled labels. Probes are
    asked the facts whose answers the lessons have too; where these are fewer than four there are none.
    """
    last = _last_states(model, [fact.prompt for fact in sets.forget])
    found: dict[str, np.ndarray] = {"layers at which the answer leads": _lens(model, sets.forget, last)}
    labels = sorted({fact.answer for fact in sets.lessons})
    kept = [i for i, fact in enumerate(sets.forget) if fact.answer in labels]
    if len(kept) < 4:
        return found, {}
    asked = [(prompt, fact.answer) for fact in sets.lessons for prompt in (fact.prompt, *fact.wordings)]
    states = _last_states(model, [prompt for prompt, _ in asked])
    known = torch.tensor([labels.index(answer) for _, answer in asked])
    truth = torch.tensor([labels.index(sets.forget[i].answer) for i in kept])
    mixed = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(settings.seed))]
    columns = [[labels.index(choice) for choice in sets.forget[i].choices if choice in labels] for i in kept]
    right, null = (
        torch.stack(
            [_probe(x, marks, y[kept], columns, len(labels)) == truth for x, y in zip(states, last, strict=True)]
        ).double()
        for marks in (known, mixed)
    )
    found["probe at its best layer"] = right[int(right.mean(1).argmax())].numpy()
    found["probe of shuffled labels"] = null[int(null.mean(1).argmax())].numpy()
    return found, {"probe": right.mean(1).tolist(), "shuffled": null.mean(1).tolist()}


def robust(model: Model, sets: Sets, settings: Settings) -> Measures:
    """Round weights to 8 and 4 bits, add noise, cut small ones; ask again. What counts is the worst case of them."""
    treated: dict[str, Callable[[Tensor], Tensor]] = {
        "8 bits": lambda w: _rounded(w, 8),
        "4 bits": lambda w: _rounded(w, 4),
        "noise": lambda w: _noisy(w, settings.noise, settings.seed),
        "pruned": lambda w: w * (w.abs() >= _quantile(w, settings.cut)),
    }
    found: dict[str, np.ndarray] = {}
    for name, change in treated.items():
        found[f"chosen, {name}"] = answers(_changed(model, change), sets.forget).chosen.astype(float)
    return {"chosen, any treatment": np.max(list(found.values()), axis=0), **found}


def merged(model: Model, original: Model, sets: Sets, shares: Sequence[float] = (0.1, 0.25, 0.5)) -> dict[str, float]:
    """Return the share of facts known after mixing some of the original's weights in."""
    found = {}
    others = dict(original.hf.named_parameters())
    for share in shares:
        mixed = model.copy()
        with torch.no_grad():
            for name, weight in mixed.hf.named_parameters():
                weight.lerp_(others[name].to(weight), share)
        found[f"{share:g} of the original"] = float(answers(mixed, sets.forget).known.mean())
    return found


def side_effects(model: Model, sets: Sets) -> dict[str, float]:
    """Return loss on neutral text, expected calibration error on retained facts, and how many of them are refused."""
    kept = answers(model, sets.retain)
    found = {"calibration error": calibration_error(kept.share, kept.chosen.astype(float))}
    if sets.neutral:
        found["loss on neutral text"] = float(text_loss(model, sets.neutral).mean())
    if sets.refusals:
        words = {model.encode(word)[0] for word in sets.refusals}
        found["retained facts refused"] = float(np.mean([top in words for top in kept.top]))
    return found


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Return the mean gap between confidence and accuracy over bins of equal width, weighted by their counts."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[place == b].sum() - right[place == b].sum()) for b in range(bins)]
    return float(sum(gaps) / len(confidence))


def _begun(opening: str) -> Ask:
    return lambda fact: fact.prompt + opening


def _last_states(model: Model, prompts: Sequence[str], batch: int = 32) -> Tensor:
    """States after every layer at the last token: [layer prompt d_model]."""
    parts = []
    for start in range(0, len(prompts), batch):
        rows = model.batch(list(prompts[start : start + batch]))
        ends = rows.mask.sum(1) - 1
        found = model.capture(rows, "resid_post.*", special=True)
        place = torch.arange(len(ends), device=ends.device)
        layers = range(model.n_layers)
        parts.append(torch.stack([found[f"resid_post.{i}"][place, ends].detach().float().cpu() for i in layers]))
    return torch.cat(parts, 1)


def _lens(model: Model, facts: Sequence[Fact], states: Tensor) -> np.ndarray:
    decoder = model.layout.decoder
    norm = getattr(decoder, "norm", None) or getattr(decoder, "ln_f", None)
    head = model.hf.get_output_embeddings()
    place = next(head.parameters())
    leads = np.zeros((model.n_layers, len(facts)))
    for layer in range(model.n_layers):
        seen = states[layer].to(place)
        logits = head(seen if norm is None else norm(seen)).float().cpu()
        for i, fact in enumerate(facts):
            own = logits[i, first_tokens(model, fact.choices)]
            leads[layer, i] = float(int(own.argmax()) == fact.choices.index(fact.answer))
    return leads.mean(0)


def _probe(x: Tensor, marks: Tensor, asked: Tensor, columns: Sequence[Sequence[int]], labels: int) -> Tensor:
    """Ridge regression on one-hot labels; each question's guess is the best of its own choices."""
    mean, scale = x.mean(0), x.std(0).clamp(min=1e-6)
    rows, new = ((one - mean).double() / scale for one in (x, asked))
    goal = torch.nn.functional.one_hot(marks, labels).double()
    gram = rows.T @ rows + 0.1 * len(rows) * torch.eye(rows.shape[1], dtype=torch.float64)
    seen = new @ torch.linalg.solve(gram, rows.T @ (goal - goal.mean(0))) + goal.mean(0)
    return torch.tensor([own[int(row[list(own)].argmax())] for row, own in zip(seen, columns, strict=True)])


@torch.no_grad()
def _changed(model: Model, change: Callable[[Tensor], Tensor]) -> Model:
    """Return a copy whose matrices, but for embeddings, are changed."""
    made = model.copy()
    for module in made.layout.blocks.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2:
            weight.copy_(change(weight))
    return made


def _rounded(weight: Tensor, bits: int) -> Tensor:
    step = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
    return (weight / step).round() * step


def _noisy(weight: Tensor, share: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return weight + share * weight.std() * torch.randn(weight.shape, generator=generator).to(weight)


def _quantile(weight: Tensor, share: float) -> Tensor:
    return weight.abs().flatten().kthvalue(max(1, int(share * weight.numel()))).values
