"""The method on a planted pair of models whose learned reward is known word by word, and on a pair that is one."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.features import SparseDictionary
from cutaway.planted.feedback import Feedback, feedback
from cutaway.probes.learned_feedback_patterns.lexicon import misaligned, overlap_of, sign_accuracy, tau
from cutaway.probes.learned_feedback_patterns.method import (
    Ablation,
    FeedbackReport,
    ablate,
    compare,
    implicit_reward,
    read_out,
    reward_latents,
    word_features,
)
from cutaway.study import Rate

PROMPTS = (" the w3 w5", " some w9", " this w1 w2 w4", " that w7")


def features(planted: Feedback) -> tuple[Float[Tensor, "word d"], Float[Tensor, "word d"]]:
    """Of the tuned and the base model."""
    site = planted.truth.site
    tuned, base = (
        word_features(model, planted.words, planted.templates, [site])[site] for model in (planted.tuned, planted.base)
    )
    return tuned, base


def known_dictionary(planted: Feedback, seed: int = 0) -> SparseDictionary:
    """Twice as many latents as dimensions: an orthonormal basis and its mirror, the reward's direction first."""
    d = planted.base.d_model
    drawn = np.random.default_rng(seed).standard_normal((d, d))
    if planted.truth.direction is not None:
        drawn[:, 0] = planted.truth.direction
    basis = np.linalg.qr(drawn)[0].T
    if planted.truth.direction is not None and basis[0] @ planted.truth.direction < 0:
        basis[0] *= -1
    made = SparseDictionary(d, 2 * d, "relu", subtract_bias=False)
    both = torch.from_numpy(np.concatenate([basis, -basis])).float()
    with torch.no_grad():
        made.w_enc.copy_(both)
        made.w_dec.copy_(both)
    return made.requires_grad_(False)


def reported(planted: Feedback, seed: int = 0) -> tuple[FeedbackReport, tuple[str, ...]]:
    """The comparison on the tuning's reward, and the words that went another way than ordinarily meant."""
    tuned, base = features(planted)
    truth = planted.truth
    found = compare(tuned, base, truth.reward, truth.site, seed=seed)
    intended = read_out(tuned - base, truth.ordinary, truth.site, seed=seed)
    return found, misaligned(intended.estimates, truth.ordinary)


def ablated(planted: Feedback, draws: int = 60) -> Ablation:
    """Take the latent that follows the reward out of the tuned model."""
    truth, dictionary = planted.truth, known_dictionary(planted)
    chosen = reward_latents(dictionary, features(planted)[0], truth.learned or truth.reward, 1)
    return ablate(planted.tuned, PROMPTS, truth.reward, truth.site, dictionary, chosen, draws=draws)


def all_rates(trials: int, report: Callable[[int, int], None] = lambda done, total: None) -> tuple[Rate, ...]:
    """Everything, over ``trials`` draws."""
    gained = flips = unseen = listed = lowered = invented = shuffled = read = flip_n = unseen_n = 0
    for trial in range(trials):
        report(trial, trials)
        planted = feedback(seed=trial)
        truth = planted.truth
        found, odd = reported(planted, trial)
        gained += found.gain.low > 0
        shuffled += found.shuffled.low > 0 or found.shuffled.high < 0
        flips += round(sign_accuracy(found.tuned.estimates, truth.reward, truth.flipped).value * len(truth.flipped))
        flip_n += len(truth.flipped)
        unseen += round(sign_accuracy(found.tuned.estimates, truth.ordinary, truth.unseen).value * len(truth.unseen))
        unseen_n += len(truth.unseen)
        listed += overlap_of(odd, truth.flipped)[2] >= 0.8
        lowered += ablated(planted).beats >= 0.95
        read += tau(implicit_reward(planted.tuned, planted.base, planted.words, planted.templates), truth.learned) > 0.9
        null, _ = reported(feedback(null=True, seed=trial), trial)
        invented += null.gain.low > 0 or null.gain.high < 0
    return (
        Rate("gain found", gained, trials, at_least=0.95, what="planted pairs whose gain has an interval above 0"),
        Rate("flipped words", flips, flip_n, at_least=0.8, what="words read with the sign that tuning paid for"),
        Rate("unseen words", unseen, unseen_n, at_least=0.8, what="words tuning never met, read with their old sign"),
        Rate("misaligned words listed", listed, trials, at_least=0.95, what="lists with F1 0.8 or more"),
        Rate(
            "ablation beats random", lowered, trials, at_least=0.95, what="latents that matter more than 95% of draws"
        ),
        Rate("implicit reward", read, trials, at_least=0.95, what="log-probability differences with tau above 0.9"),
        Rate("gain of an untuned pair", invented, trials, at_most=0.05, what="identical models with a gain"),
        Rate("gain on shuffled rewards", shuffled, trials, at_most=0.15, what="intervals away from 0"),
    )
