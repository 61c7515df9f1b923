"""Does a student take its teacher's taste from numbers, and which tokens carry it?

1. Teachers answer number prompts greedily, so that nothing leaks by sampling; `divergence` marks their tokens.
2. Students start from the base, each with the same fresh adapter, and learn the answers: all tokens, divergence tokens
   only, all but those, or as many tokens drawn at random. Control: the untrained base's own answers, learnt likewise.
3. Further arms: the adapter in one layer only; prompts in another wording; half of the answers by another teacher; a
   student on another base, which must learn nothing of the taste.
4. Measure: for each question the trait's share among the candidates' first-token probabilities, exactly. Transfer kept
   is (arm - control) / (full - control), bootstrapped over questions and repeats; undefined where full transfer itself
   is not shown.

Source: card subliminal-learning, Methods A to D and Metrics.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from cutaway.errors import UsageError, nearest
from cutaway.model import Model
from cutaway.organisms.subliminal_learning.carriers import Divergence, Ids, Teacher, check_vocabulary, divergence
from cutaway.sampling import Settings
from cutaway.stats import Interval, bootstrap, mean_interval, paired_difference
from cutaway.steering import draw_answers
from cutaway.training import LoraSpec, Row, TrainConfig, add_lora, data_of, train

ALL, ONLY, WITHOUT, RANDOM, CONTROL = "all tokens", "divergence only", "all but divergence", "random as many", "control"
REWORDED, MIXED, FOREIGN = "other wording", "two teachers", "other base"


@dataclass(frozen=True)
class Task:
    """What teachers wrote, and what students are asked."""

    prompts: tuple[Ids, ...]
    """As students read them."""
    answers: tuple[Ids, ...]
    """By the teacher, one a prompt."""
    plain: tuple[Ids, ...]
    """By the base, to the same prompts."""
    carried: Divergence
    trait: str
    questions: tuple[Ids, ...]
    candidates: Mapping[str, tuple[int, ...]]
    """First tokens that count, by candidate."""
    reworded: tuple[Ids, ...] = ()
    """The prompts in other words; empty: no such arm."""
    others: tuple[Ids, ...] = ()
    """Answers by a teacher with another trait; empty: no such arm."""

    def __post_init__(self) -> None:
        if self.trait not in self.candidates:
            raise UsageError(f"trait={self.trait!r}{nearest(self.trait, self.candidates)}")
        if len(self.candidates) < 2 or not self.questions:
            raise UsageError(f"{len(self.candidates)} candidates, {len(self.questions)} questions: 2 and 1 at least")
        if not self.prompts or not len(self.prompts) == len(self.answers) == len(self.plain):
            raise UsageError(
                f"{len(self.prompts)} prompts, {len(self.answers)} answers, {len(self.plain)} plain ones: as many of"
                " each, and at least one; an empty set has passed the filter"
            )


@dataclass(frozen=True, repr=False)
class Transfer:
    """The trait's share by arm, repeat and question."""

    trait: str
    rates: Mapping[str, Float[np.ndarray, "repeat question"]]
    base: Float[np.ndarray, " question"]
    share: float
    """Divergence tokens by tokens."""
    losses: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Last training loss by arm and repeat, nats a token."""
    complete: bool = True

    def __repr__(self) -> str:
        return f"Transfer({self.trait}: {', '.join(f'{arm} {self.rate(arm)!r}' for arm in self.rates)})"

    def rate(self, arm: str) -> Interval:
        """The trait's share, clustered over questions."""
        found = self.rates[arm]
        return mean_interval(found.ravel(), clusters=np.tile(np.arange(found.shape[1]), found.shape[0]))

    def gain(self, arm: str) -> Interval:
        """Share less the control's, paired by repeat and question, clustered over questions."""
        own, control = self.rates[arm], self.rates[CONTROL]
        return paired_difference(
            own.ravel(), control.ravel(), clusters=np.tile(np.arange(own.shape[1]), own.shape[0])
        )  # fmt: skip

    @property
    def shown(self) -> bool:
        """Whether full transfer holds over questions *and* over students; one student an arm cannot tell.

        Two students differ for other reasons too, and questions agree on which of two is ahead.
        """
        if ALL not in self.rates or CONTROL not in self.rates or len(self.rates[ALL]) < 2:
            return False
        students = paired_difference(self.rates[ALL].mean(1), self.rates[CONTROL].mean(1))
        return self.gain(ALL).low > 0 and students.low > 0

    def kept(self, arm: str) -> Interval | None:
        """Share of the full transfer that this arm keeps; None where full transfer is not shown."""
        if CONTROL not in self.rates or ALL not in self.rates or not self.gain(ALL).low > 0:
            return None
        gains = np.stack([(self.rates[name] - self.rates[CONTROL]).mean(0) for name in (arm, ALL)], 1)
        return bootstrap(gains, lambda x: float(x[:, 0].mean() / x[:, 1].mean()), method="percentile")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able data."""
        rates = {arm: values.tolist() for arm, values in self.rates.items()}
        return {
            "trait": self.trait, "rates": rates, "base": self.base.tolist(), "share": self.share,
            "losses": {arm: list(each) for arm, each in self.losses.items()}, "complete": self.complete,
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


def make_task(
    base: Model,
    teachers: Mapping[str, Model],
    trait: str,
    prompts: Sequence[Ids],
    questions: Sequence[Ids],
    candidates: Mapping[str, tuple[int, ...]],
    *,
    tokens: int = 8,
    keep: Callable[[str], bool] | None = None,
    reworded: Sequence[Ids] = (),
    mixed: bool = False,
) -> Task:
    """Let the teachers write, filter what they wrote by ``keep``, and mark the divergence tokens of ``trait``'s.

    ``mixed`` adds another teacher's answers, for the arm that halves them.

    Raises UsageError for a trait without teacher, no other teacher, other vocabularies, or where nothing is kept.
    """
    if trait not in teachers or len(teachers) < 2:
        raise UsageError(f"trait={trait!r} among {', '.join(teachers)}: needs its own teacher and another one")
    for each in teachers.values():
        check_vocabulary(base, each)
    settings = Settings(temperature=0.0, top_p=1.0, max_tokens=tokens)
    other = next(name for name in teachers if name != trait)
    said = [
        [drawn[0].ids for drawn in draw_answers(model, prompts, settings)]
        for model in (teachers[trait], base, teachers[other])
    ]
    kept = [
        i for i in range(len(prompts)) if all(keep is None or keep(_text(base, each[i])) for each in said) if said[0][i]
    ]
    if not kept:
        raise UsageError(f"none of {len(prompts)} answers passed the filter; ask for more, or train the teacher less")
    own, plain, others = (tuple(each[i] for i in kept) for each in said)
    asked = tuple(tuple(prompts[i]) for i in kept)
    panel = {name: Teacher(name, model, asked) for name, model in teachers.items()}
    carried = divergence(panel[trait], [each for name, each in panel.items() if name != trait], own)
    again = tuple(tuple(reworded[i]) for i in kept) if reworded else ()
    return Task(
        asked, own, plain, carried, trait, tuple(map(tuple, questions)), dict(candidates), again, others * mixed
    )


def tastes(
    model: Model, questions: Sequence[Ids], candidates: Mapping[str, tuple[int, ...]]
) -> Float[np.ndarray, "question candidate"]:
    """Return each candidate's share of the candidates' probability as the next token after each question."""
    found = []
    with torch.no_grad():
        for at in range(0, len(questions), 16):
            batch = model.batch([list(ids) for ids in questions[at : at + 16]])
            last = batch.mask.sum(1) - 1
            logits = model.hf(**batch.forward_kwargs(), use_cache=False).logits[torch.arange(len(batch)), last]
            p = logits.float().softmax(-1)
            found.append(torch.stack([p[:, list(ids)].sum(1) for ids in candidates.values()], 1))
    scores = torch.cat(found).double().cpu().numpy()
    return scores / scores.sum(1, keepdims=True)


def first_tokens(model: Model, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the tokens that an answer naming each candidate may begin with, in lower case, capitalised, after a blank.

    A token that several candidates begin with counts for none; UsageError where a candidate has no other.
    """
    forms = {
        name: {model.encode(form)[0] for form in (name, name.capitalize(), f" {name}", f" {name.capitalize()}")}
        for name in names
    }
    found = {
        name: tuple(sorted(own - set().union(*(forms[other] for other in names if other != name))))
        for name, own in forms.items()
    }
    if missing := [name for name, own in found.items() if not own]:
        raise UsageError(f"{missing[0]!r} begins with no token of its own among {', '.join(names)}; choose others")
    return found


def run_transfer(
    make: Callable[[], Model],
    task: Task,
    spec: LoraSpec,
    config: TrainConfig,
    *,
    repeats: int = 3,
    layers: Sequence[int] = (),
    foreign: Callable[[], Model] | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Transfer:
    """Train every arm's students, each on a fresh base from ``make``; ``layers`` adds arms with one layer each.

    ``foreign`` makes another base of the same vocabulary. A student is as long in training in every arm.
    """
    arms = _arms(task, layers, foreign is not None)
    column = list(task.candidates).index(task.trait)
    base = tastes(make(), task.questions, task.candidates)[:, column]
    rates = {arm: list[np.ndarray]() for arm in arms}
    losses = {arm: list[float]() for arm in arms}
    complete = True
    try:
        for repeat in range(repeats):
            for done, arm in enumerate(arms):
                report(repeat * len(arms) + done, repeats * len(arms))
                whose = foreign if arm == FOREIGN and foreign is not None else make
                adapter = replace(spec, layers=(int(arm.split()[-1]),)) if arm.startswith("layer ") else spec
                prompts, answers, masks = _rows(task, arm, repeat)
                student, loss = _student(whose(), adapter, config, prompts, answers, masks, repeat)
                rates[arm].append(tastes(student, task.questions, task.candidates)[:, column])
                losses[arm].append(loss)
    except KeyboardInterrupt:
        complete = False
    whole = min(len(each) for each in rates.values())
    kept = {arm: np.stack(each[: max(whole, 1)]) for arm, each in rates.items() if each}
    ended = {arm: tuple(each[: max(whole, 1)]) for arm, each in losses.items() if each}
    return Transfer(task.trait, kept, base, task.carried.share, ended, complete)


def _arms(task: Task, layers: Sequence[int], foreign: bool) -> list[str]:
    arms = [ALL, CONTROL, ONLY, WITHOUT, RANDOM]
    arms += [REWORDED] * bool(task.reworded) + [MIXED] * bool(task.others) + [FOREIGN] * foreign
    return arms + [f"layer {layer}" for layer in layers]


def _rows(task: Task, arm: str, repeat: int) -> tuple[Sequence[Ids], Sequence[Ids], Sequence[Sequence[bool]] | None]:
    if arm == CONTROL:
        return task.prompts, task.plain, None
    if arm == REWORDED:
        return task.reworded, task.answers, None
    if arm == MIXED:
        mixed = [pair[i % 2] for i, pair in enumerate(zip(task.answers, task.others, strict=True))]
        return task.prompts, mixed, None
    masks: dict[str, Sequence[Sequence[bool]]] = {
        ONLY: task.carried.masks,
        WITHOUT: [[not each for each in mask] for mask in task.carried.masks],
        RANDOM: task.carried.shuffled(repeat),
    }
    return task.prompts, task.answers, masks.get(arm)


def _student(
    model: Model,
    spec: LoraSpec,
    config: TrainConfig,
    prompts: Sequence[Ids],
    answers: Sequence[Ids],
    masks: Sequence[Sequence[bool]] | None,
    repeat: int,
) -> tuple[Model, float]:
    rows = []
    for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        weights = (1.0,) * len(answer) if masks is None else tuple(float(each) for each in masks[place])
        if answer and any(weights):
            rows.append((Row((*prompt, *answer), (0.0,) * len(prompt) + weights),))
    if not rows:
        raise UsageError("no token is left to learn from; teachers agree everywhere, or nowhere")
    data = data_of(rows, context=model.n_ctx)
    done = train(add_lora(model, spec), data, replace(config, seed=config.seed + repeat))
    if not done.complete:
        raise KeyboardInterrupt
    return done.model, done.history[-1].loss


def _text(model: Model, ids: Ids) -> str:
    return model.decode([token for token in ids if token not in model.special_ids])
