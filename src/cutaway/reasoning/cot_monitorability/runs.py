"""One pass of generations: hinted questions to samples that feed every scope and every design."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.grading import parse_outcome
from cutaway.reasoning.cot_monitorability.data import LETTERS, Question, split_run
from cutaway.reasoning.cot_monitorability.method import Sample
from cutaway.reasoning.rollouts import Report, draw_rollouts
from cutaway.sampling import BranchTree, Engine, Rollout, Settings

if TYPE_CHECKING:
    from cutaway.model import Model

LETTER = parse_outcome(rf"""regex:[Aa]nswer(?: is| would be| should be|:)*[\s:*'"(]*([{LETTERS}])(?![\w'])""")
"""The letter that the last stated answer names. Small models list the options again: a letter alone is no answer."""


@dataclass(frozen=True)
class Run:
    """One sample with the tokens behind it."""

    sample: Sample
    prompt: tuple[int, ...]
    rollout: Rollout
    answer: str | None


@dataclass(frozen=True)
class Runs:
    """What a model wrote to a set of questions, in both arms."""

    items: tuple[Run, ...]
    questions: tuple[Question, ...]
    """Those that were asked in full."""
    complete: bool

    @property
    def samples(self) -> tuple[Sample, ...]:
        return tuple(run.sample for run in self.items)


def draw_runs(
    model: "Model",
    engine: Engine,
    questions: Sequence[Question],
    n: int,
    settings: Settings,
    *,
    system: str | None = None,
    seed: int = 0,
    tree: BranchTree | None = None,
    report: Report = lambda done, planned, note: None,
) -> Runs:
    """``n`` runs of each question in each arm; Ctrl-C keeps the questions that were finished."""
    items: list[Run] = []
    asked: list[Question] = []
    try:
        for number, question in enumerate(questions):
            report(number, len(questions), "questions")
            prompts = [tuple(model.chat_ids(question.prompt(arm), system)) for arm in (0, 1)]
            drawn = draw_rollouts(engine, prompts, n, settings, seed=seed, tree=tree)
            for arm, (prompt, rollouts) in enumerate(zip(prompts, drawn, strict=True)):
                items += [_run(model, question, arm, prompt, rollout) for rollout in rollouts]
            asked.append(question)
    except KeyboardInterrupt:
        return Runs(tuple(items), tuple(asked), complete=False)
    return Runs(tuple(items), tuple(asked), complete=True)


def _run(model: "Model", question: Question, arm: int, prompt: tuple[int, ...], rollout: Rollout) -> Run:
    ended = bool(rollout.ids) and rollout.ids[-1] in model.eos_ids
    text = model.decode(rollout.ids[:-1] if ended else rollout.ids)
    answer = LETTER(text)
    chain, action = split_run(text, answer is not None)
    sample = Sample(
        problem=question.name,
        arm=arm,
        question=question.text,
        chain=chain,
        action=action,
        followed=answer == question.hinted,
        label=answer == question.correct if question.step else None,
    )
    return Run(sample, prompt, rollout, answer)
