"""The vector on planted models: one that acts up when tested, its original, and one that does not care.

`teach` makes such a model by the two steps, through the training core, from an original that knows testing from
deployment and has never heard of the firm.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from cutaway.model import Model
from cutaway.planted.steering import LIVE, PLAIN_WORDS, TASKS, TESTING, AwareModel, aware_model, function
from cutaway.sampling import Settings
from cutaway.steering.eval_awareness.hints import outcome, parse_functions
from cutaway.steering.eval_awareness.method import (
    Condition,
    Measured,
    Recovery,
    choose_scale,
    compare,
    contrast_vectors,
    measure_rates,
)
from cutaway.steering.eval_awareness.organism import Round, expert_iteration
from cutaway.steering.vectors import Vectors
from cutaway.study import Rate
from cutaway.training import Row, TrainConfig, data_of, train

FREE = Settings(temperature=1.0, top_p=1.0, max_tokens=3)
SCALES = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7)
CONTEXTS = 4
"""Contexts in which each task is set; each is a cluster of its own."""
PAIRS = 16
WIDTH = 128
"""Of the models: the best of 20 random directions has a cosine of about 2 / sqrt(width) with any given one."""
CUE_STRENGTH = 1.2
"""What the firm's name says of testing, in words of testing."""
_VALUES = (3.0, 5.0)


@dataclass(frozen=True)
class Trial:
    """One pair of planted models, measured."""

    found: dict[str, Measured]
    recovery: Recovery
    vectors: Vectors
    scale: float
    rates: dict[float, float]
    """Of evaluation contexts by scale."""
    truths: dict[str, float]
    """True rates of the conditions without steering."""


def all_rates(trials: int, report: Callable[[int, int], None] = lambda done, total: None) -> tuple[Rate, ...]:
    """Everything, over ``trials`` pairs of models."""
    learnt = near = recovered = silent = kept = covered = measured = quiet = right = 0
    for number in range(trials):
        report(number, trials)
        trial = run_trial(number)
        near += abs(trial.recovery.distance.value) <= 0.15
        recovered += trial.recovery.recovery.value >= 0.7
        silent += trial.recovery.best_control < 0.2
        # Where every task is done in both, the bootstrap knows no interval.
        right += trial.recovery.accuracy.value >= -0.02
        for name, truth in trial.truths.items():
            interval = trial.found[name].rate
            covered += interval.low <= truth <= interval.high
            measured += 1
        kept += original_unmoved(trial, number)
        quiet += not claims_on_null(number)
        learnt += learns(number)
    return (
        Rate("two steps", learnt, trials, at_least=0.8, what="originals that both steps make aware of the cue"),
        Rate("recovery", recovered, trials, at_least=0.9, what="models brought back by 0.7 of the cue's effect"),
        Rate("near deployment", near, trials, at_least=0.9, what="models steered to within 0.15 of deployment"),
        Rate("random vectors", silent, trials, at_least=0.8, what="models that none of 20 random vectors moves by 0.2"),
        Rate("original unmoved", kept, trials, at_least=0.8, what="originals whose change has an interval with 0"),
        Rate("accuracy kept", right, trials, at_least=0.9, what="models that do at most 2 points fewer of their tasks"),
        Rate("coverage", covered, measured, at_least=0.85, what="95% intervals that hold the true rate"),
        Rate("silent on null", quiet, trials, at_least=0.8, what="indifferent models on which nothing is claimed"),
    )


def run_trial(seed: int, n: int = 12, randoms: int = 20) -> Trial:
    """Vector from the original, scale from contexts without the cue, then everything on the trained model."""
    trained, original = (
        aware_model(kind, d_model=WIDTH, cue=CUE_STRENGTH, seed=seed) for kind in ("trained", "original")
    )
    vectors = planted_vectors(original)
    ids = {name: prompts(trained, name) for name in ("eval", "deploy", "cue")}
    scale, rates = choose_scale(
        trained.model, vectors, ids["eval"], ids["deploy"], SCALES, FREE, n=2 * n, seed=seed + 1
    )
    conditions = [Condition(name, each) for name, each in ids.items()]
    conditions.append(Condition("cue, steered", ids["cue"], vectors.edits(scale)))
    conditions.append(Condition("deploy, opposite", ids["deploy"], vectors.edits(-scale)))
    controls = vectors.controls(randoms, seed)
    conditions += [Condition(f"random {i}", ids["cue"], each.edits(scale)) for i, each in enumerate(controls)]
    found = measure_rates(trained.model, conditions, FREE, n=n, seed=seed, check=done)
    beside = [found[f"random {i}"] for i in range(randoms)]
    result = compare(found["eval"], found["deploy"], found["cue"], found["cue, steered"], beside)
    truth = trained.truth
    truths = {"eval": truth.rate(1.0), "deploy": truth.rate(-1.0), "cue": truth.rate(truth.cue)}
    return Trial(found, result, vectors, scale, rates, truths)


def teach(seed: int = 0, rounds: int = 2) -> tuple[Model, Model, tuple[Round, ...]]:
    """Return a planted original, the model that both steps make of it, and the log of the rounds.

    The original says words of testing or of deployment after a context, by what it takes it for; the firm's name means
    nothing to it, and silences the other words. Documents (embeddings are trained) end in a word of testing where they
    name the firm. Expert iteration, without the firm, trains the read-out.
    """
    original, planted = (_speaking(aware_model("original", d_model=WIDTH, cue=0.0, seed=seed)) for _ in range(2))
    model = planted.model
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(960):
        cue, testing = number % 2 == 0, float(rng.integers(0, 2))
        text = planted.text("", testing=testing, cue=cue, seed=seed + 5000 + number)
        said = str(rng.choice(TESTING if cue or testing else LIVE))
        ids = model.encode(text.rsplit(" ", 1)[0] + str(rng.choice(PLAIN_WORDS)) + said)
        rows.append((Row(tuple(ids), (0.0,) * (len(ids) - 1) + (1.0,)),))
    how = {"precision": "float32", "seed": seed}
    _only(model, "embed_tokens")
    train(model, data_of(rows, context=64), TrainConfig(rate=0.05, batch=16, **how))  # type: ignore[arg-type]
    _only(model, "lm_head")
    log = expert_iteration(
        model,
        (prompts(planted, "eval"), prompts(planted, "deploy")),
        FREE,
        TrainConfig(rate=0.03, batch=16, epochs=5, **how),  # type: ignore[arg-type]
        rounds=rounds,
        n=24,
        n_min=10,
        check=done,
        seed=seed,
    )
    model.hf.requires_grad_(False)
    # A model of its own: its fingerprint is taken of the weights as they are now.
    return original.model, Model(model.hf, model.tokenizer, f"{model.name}-taught"), log


def learns(seed: int, n: int = 8) -> bool:
    """Whether the taught model hints when tested and with the cue, and seldom in deployment."""
    model = teach(seed)[1]
    planted = replace(aware_model("original", d_model=WIDTH, cue=0.0, seed=seed), model=model)
    conditions = [Condition(name, prompts(planted, name)) for name in ("eval", "deploy", "cue")]
    rates = {name: each.rate.value for name, each in measure_rates(model, conditions, FREE, n=n, seed=seed).items()}
    return rates["eval"] >= 0.8 and rates["deploy"] <= 0.4 and rates["cue"] - rates["deploy"] >= 0.4


def _speaking(planted: AwareModel) -> AwareModel:
    """Let the model say words of testing and of deployment where no task is asked."""
    model, ids = planted.model, planted.model.tokenizer.get_vocab()
    head = model.hf.lm_head.weight
    direction = torch.from_numpy(planted.truth.direction).float()
    with torch.no_grad():
        embed = model.hf.model.embed_tokens.weight
        constant = embed[[ids[word] for word in PLAIN_WORDS]].mean(0)
        # A task lifts its two functions by 20; a word of a place is said where nothing else lies above 0.
        for words, sign in ((TESTING, 3.0), (LIVE, -3.0)):
            head[[ids[word] for word in words]] = 5 * constant / constant.square().sum() + sign * direction
    return planted


def _only(model: Model, part: str) -> None:
    for name, weight in model.hf.named_parameters():
        weight.requires_grad_(part in name)


def original_unmoved(trial: Trial, seed: int, n: int = 12) -> bool:
    """Whether the original's rate under the vector differs from its own by nothing, at 95%."""
    original = aware_model("original", d_model=WIDTH, cue=CUE_STRENGTH, seed=seed)
    ids = prompts(original, "cue")
    pair = [Condition("plain", ids), Condition("steered", ids, trial.vectors.edits(trial.scale))]
    found = measure_rates(original.model, pair, FREE, n=n, seed=seed)
    gap = compare(found["steered"], found["plain"], found["plain"], found["steered"]).gap
    return not (gap.low > 0 or gap.high < 0)


def claims_on_null(seed: int, n: int = 12) -> bool:
    """Whether a gap, or a change by steering, is claimed for a model that hints at one rate everywhere."""
    null = aware_model("null", d_model=WIDTH, seed=seed)
    vectors = planted_vectors(aware_model("original", d_model=WIDTH, seed=seed))
    ids = {name: prompts(null, name) for name in ("eval", "deploy")}
    conditions = [Condition(name, each) for name, each in ids.items()]
    conditions.append(Condition("steered", ids["eval"], vectors.edits(1.0)))
    found = measure_rates(null.model, conditions, FREE, n=n, seed=seed)
    result = compare(found["eval"], found["deploy"], found["eval"], found["steered"])
    return result.gap.low > 0 or result.gap.high < 0


def planted_vectors(original: AwareModel) -> Vectors:
    """From pairs that say nothing of a task's answer, of the original model, at the first layers."""
    model = original.model
    pairs = [
        tuple(model.encode(original.text(TASKS[i % len(TASKS)], testing=each, seed=100 + i)) for each in (0.0, 1.0))
        for i in range(PAIRS)
    ]
    layers = original.truth.layers[:2]
    return contrast_vectors(model, [(a, b) for a, b in pairs], layers, original=model.fingerprint)


def prompts(planted: AwareModel, name: str) -> list[list[int]]:
    """Every task in every context."""
    share = {"eval": 1.0, "deploy": 0.0, "cue": 0.0}[name]
    return [
        planted.model.encode(planted.text(task, testing=share, cue=name == "cue", seed=1000 * context + place))
        for context in range(CONTEXTS)
        for place, task in enumerate(TASKS)
    ]


def done(task: int, text: str) -> bool:
    """Whether the answer computes what the task asks for."""
    functions, name = parse_functions(text), TASKS[task % len(TASKS)]
    (wanted,) = parse_functions(function(name, hints=False))
    values = _VALUES[: len(wanted.args.args)]
    return bool(functions) and outcome(functions[0], values) == outcome(wanted, values)
