"""Read back from activations what a tuned model was paid for, and say what the tuning added.

1. `word_features`: each word at the end of several texts; the activation at its last token, averaged over the texts
   (no padding and no position gets in).
2. `read_out`: ridge regression from features to the true reward, cross-fitted by word: every estimate is of a word that
   the probe has not seen. The penalty is chosen on the training words alone.
3. `compare`: the same for the base model. The gain (tau tuned - tau base, paired by word) is what tuning added; what
   both share is in the language already. Controls: shuffled rewards, and where given a model of random weights.
4. `implicit_reward`: log-probability of a word under the tuned model less under the base model: a read-out without a
   probe, and a strong one.
5. `self_referential`: says whether a probe's target changes with the probe's input (the released target does).
6. `ablate`: take the latents that follow the reward out of the residual, in latent space, and look at the reward of
   what the model would say next, against random latents as active as they.

Source: Marks et al. 2024 (2310.08164), card learned-feedback-patterns and its list of defects.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.features import Dictionary
from cutaway.model import Model, Patch
from cutaway.probes.learned_feedback_patterns.lexicon import Values, check_rewards, paired, tau, tau_gain, tau_interval
from cutaway.probes.pooled import activations
from cutaway.stats import Interval

PENALTIES = tuple(float(each) for each in np.logspace(-2, 4, 13))
FOLDS = 5


@dataclass(frozen=True)
class ReadOut:
    """Estimates of held-out words at one site."""

    site: str
    estimates: dict[str, float]
    agreement: Interval
    """Tau with the true reward."""

    def __repr__(self) -> str:
        return f"ReadOut({self.site}, tau {self.agreement}, {len(self.estimates)} words)"


@dataclass(frozen=True)
class FeedbackReport:
    """Tuned against base at one site."""

    tuned: ReadOut
    base: ReadOut
    gain: Interval
    shuffled: Interval
    """Gain where the rewards were shuffled."""
    difference: ReadOut
    """From what tuning changed in the features (tuned less base on the same text): blind to what both know."""
    random: ReadOut | None = None
    """Of a model of random weights."""

    def __repr__(self) -> str:
        both = f"tuned {self.tuned.agreement}, base {self.base.agreement}"
        return f"FeedbackReport({self.tuned.site}, gain {self.gain}, {both})"


@dataclass(frozen=True)
class Ablation:
    """Reward of what the model would say next, with latents taken out."""

    latents: tuple[int, ...]
    before: float
    after: float
    random: tuple[float, ...] = field(repr=False)
    """The same with random latents."""
    surprise_before: float
    """Mean negative log-probability of the prompts, in nats."""
    surprise_after: float

    @property
    def drop(self) -> float:
        return self.before - self.after

    @property
    def beats(self) -> float:
        """Share of random sets that lower the reward less."""
        return float(np.mean([self.before - each < self.drop for each in self.random]))

    def __repr__(self) -> str:
        return (
            f"Ablation(reward {self.before:.2f} to {self.after:.2f}, more than {100 * self.beats:.0f}% of random sets)"
        )


def word_features(
    model: Model, words: Sequence[str], templates: Sequence[str], sites: Sequence[str], folder: Path | None = None
) -> dict[str, Float[Tensor, "word d"]]:
    """Return the features of each word at each site; a template has ``{}`` where the word stands, at its end.

    All sites come from one forward. UsageError for a template that goes on behind the word, or none.
    """
    if not templates or any(not each.endswith("{}") or each.count("{}") != 1 for each in templates):
        raise UsageError("templates: at least one, each with a single {} at its very end")
    if not words or len(set(words)) < len(words):
        raise UsageError(f"{len(words)} words: at least one, each once")
    texts = [each.format(word) for word in words for each in templates]
    found = activations(model, texts, list(sites), "last", folder=folder)
    shape = (len(words), len(templates), -1)
    return {site: found[site, "last"].reshape(shape).mean(1) for site in sites}


def check_pair(base: Model | None, tuned: Model) -> None:
    """UsageError where the two cannot be compared: no base model, or other tokens."""
    if base is None:
        raise UsageError("no base model; what tuning added is the difference to it")
    if base.tokenizer is None or tuned.tokenizer is None or base.tokenizer.get_vocab() != tuned.tokenizer.get_vocab():
        raise UsageError(f"{base.name!r} and {tuned.name!r} have different tokenizers; give a model and its own base")


def read_out(
    features: Float[Tensor, "word d"], rewards: Values, site: str = "", *, seed: int = 0, interval: bool = True
) -> ReadOut:
    """Estimate every word's reward by a ridge fitted on other words; rows are in the order of ``rewards``."""
    from sklearn.linear_model import RidgeCV

    check_rewards(rewards)
    if len(features) != len(rewards) or not bool(torch.isfinite(features).all()):
        raise UsageError(f"{len(features)} rows for {len(rewards)} words, all finite: one row a word")
    x, y = features.double().cpu().numpy(), np.array(list(rewards.values()))
    place = np.random.default_rng(seed).permutation(len(y)) % FOLDS
    estimates = np.zeros(len(y))
    for fold in range(FOLDS):
        held = place == fold
        centre, scale = x[~held].mean(0), x[~held].std(0)
        scale[scale == 0] = 1.0
        fit = RidgeCV(PENALTIES).fit((x[~held] - centre) / scale, y[~held])
        estimates[held] = fit.predict((x[held] - centre) / scale)
    found = dict(zip(rewards, estimates.tolist(), strict=True))
    agreement = (
        tau_interval(found, rewards, seed) if interval else Interval(tau(found, rewards), -1.0, 1.0, len(y), 0.95)
    )
    return ReadOut(site, found, agreement)


def compare(
    tuned: Float[Tensor, "word d"],
    base: Float[Tensor, "word d"],
    rewards: Values,
    site: str = "",
    *,
    random: Float[Tensor, "word d"] | None = None,
    seed: int = 0,
) -> FeedbackReport:
    """Return read-outs of both models and what tuning added, with the same on shuffled rewards."""
    ours, other = read_out(tuned, rewards, site, seed=seed), read_out(base, rewards, site, seed=seed)
    drawn = np.random.default_rng((seed, 6)).permutation(list(rewards.values())).tolist()
    mixed = dict(zip(rewards, drawn, strict=True))
    pair = [read_out(each, mixed, site, seed=seed, interval=False).estimates for each in (tuned, base)]
    return FeedbackReport(
        ours,
        other,
        tau_gain(ours.estimates, other.estimates, rewards, seed),
        tau_gain(pair[0], pair[1], mixed, seed),
        read_out(tuned - base, rewards, site, seed=seed),
        None if random is None else read_out(random, rewards, site, seed=seed),
    )


@torch.no_grad()
def implicit_reward(tuned: Model, base: Model, words: Sequence[str], templates: Sequence[str]) -> dict[str, float]:
    """Log-probability of each word under ``tuned`` less under ``base``, averaged over templates, in nats."""
    check_pair(base, tuned)
    total = dict.fromkeys(words, 0.0)
    for template in templates:
        start = tuned.encode(template.format(""), special=True)
        rows = [tuned.encode(template.format(word), special=True) for word in words]
        if any(row[: len(start)] != start or len(row) == len(start) for row in rows):
            raise UsageError(
                f"template {template!r}: the word's tokens do not follow the template's; end it before a blank"
            )
        for first in range(0, len(rows), 64):
            batch = tuned.batch(rows[first : first + 64])
            gained = [_word_logp(model, batch, len(start)) for model in (tuned, base)]
            for word, value in zip(words[first : first + 64], (gained[0] - gained[1]).tolist(), strict=True):
                total[word] += value / len(templates)
    return total


def self_referential(
    target: Callable[[Float[Tensor, "word d"], np.ndarray], np.ndarray],
    features: Float[Tensor, "word d"],
    rewards: np.ndarray,
    seed: int = 0,
) -> bool:
    """Say whether ``target(features, rewards)`` changes when the words' features are exchanged: it must not."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(features)))
    return not np.allclose(target(features, rewards), target(features[order], rewards))


def reward_latents(
    dictionary: Dictionary, features: Float[Tensor, "word d"], rewards: Values, k: int
) -> tuple[int, ...]:
    """Return the ``k`` latents whose value follows the reward most closely over words, by correlation."""
    with torch.no_grad():
        dense = dictionary.encode(features).dense().double()
    y = torch.tensor(list(rewards.values()), dtype=torch.float64)
    centred, goal = dense - dense.mean(0), y - y.mean()
    norm = centred.norm(dim=0) * goal.norm()
    correlation = torch.where(norm > 0, (centred.T @ goal) / norm.clamp(min=1e-12), 0.0)
    return tuple(correlation.abs().topk(min(k, dense.shape[1])).indices.tolist())


def without(dictionary: Dictionary, x: Float[Tensor, "row d"], latents: Sequence[int]) -> Float[Tensor, "row d"]:
    """Return rows less what the given latents add to them; UsageError for a latent that is not there."""
    if bad := [latent for latent in latents if not 0 <= latent < dictionary.n_latents]:
        raise UsageError(f"latent {bad[0]}: the dictionary has 0 to {dictionary.n_latents - 1}")
    codes = dictionary.encode(x).keep(torch.tensor(list(latents), dtype=torch.long))
    return x - codes.dense().to(x.dtype) @ dictionary.atoms.to(x.dtype)


@torch.no_grad()
def ablate(
    model: Model,
    prompts: Sequence[str],
    rewards: Values,
    site: str,
    dictionary: Dictionary,
    latents: Sequence[int],
    *,
    draws: int = 50,
    seed: int = 0,
) -> Ablation:
    """Measure the expected reward of the next word with ``latents`` taken out, and with as many random ones.

    The reward is over the first tokens of the rewarded words, their probabilities made to sum to 1; words whose first
    token is shared are left out. Random latents are drawn among those active on these prompts. UsageError where fewer
    than two words can be told apart, or nothing is active.
    """
    tokens, values = _first_tokens(model, rewards)
    batch = model.batch(list(prompts))
    resid = model.capture(batch, site, special=True)[site]
    flat = resid[batch.mask]
    codes = dictionary.encode(flat)
    active = sorted(set(codes.indices[codes.values != 0].tolist()) - set(latents))
    if len(active) < len(latents):
        raise UsageError(
            f"{len(active)} other latents are active on these prompts; {len(latents)} are needed for a control"
        )

    def measured(chosen: Sequence[int] | None) -> tuple[float, float]:
        if chosen is None:
            return _next_reward(model.logits(batch), batch, tokens, values)
        source = resid.clone()
        source[batch.mask] = without(dictionary, flat, chosen)
        if torch.equal(source, resid):
            return before
        with model.edited(Patch(site, source)):
            return _next_reward(model.logits(batch), batch, tokens, values)

    before = measured(None)
    after = measured(latents)
    rng = np.random.default_rng(seed)
    random = tuple(measured(rng.choice(active, len(latents), replace=False).tolist())[0] for _ in range(draws))
    return Ablation(tuple(latents), before[0], after[0], random, before[1], after[1])


def report_frame(found: FeedbackReport, rewards: Values) -> Any:
    """One row a word: reward and both estimates, as a data frame."""
    import pandas as pd

    ours, truth = paired(found.tuned.estimates, rewards)
    other, _ = paired(found.base.estimates, rewards)
    return pd.DataFrame({"word": list(rewards), "reward": truth, "tuned": ours, "base": other})


def _word_logp(model: Model, batch: Any, start: int) -> Float[Tensor, " row"]:
    logits = model.logits(batch)[:, start - 1 : -1].float()
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.ids[:, start:], reduction="none")
    return -(each * batch.mask[:, start:]).sum(1)


def _first_tokens(model: Model, rewards: Mapping[str, float]) -> tuple[list[int], Float[Tensor, " word"]]:
    by_token: dict[int, list[float]] = {}
    for word, value in rewards.items():
        text = word if word.startswith(" ") else f" {word}"
        by_token.setdefault(model.encode(text)[0], []).append(value)
    alone = {token: values[0] for token, values in by_token.items() if len(values) == 1}
    if len(alone) < 2:
        raise UsageError(
            f"{len(alone)} of {len(rewards)} words have a first token of their own; two or more are needed"
        )
    return list(alone), torch.tensor(list(alone.values()))


def _next_reward(logits: Tensor, batch: Any, tokens: Sequence[int], values: Tensor) -> tuple[float, float]:
    last = batch.mask.sum(1) - 1
    at_end = logits[torch.arange(len(logits)), last][:, list(tokens)].float().softmax(-1)
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), batch.ids[:, 1:], reduction="none")
    inside = batch.mask[:, 1:]
    return float((at_end @ values).mean()), float((nll * inside).sum() / inside.sum().clamp(min=1))
