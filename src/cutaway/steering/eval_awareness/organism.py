"""A model that is taught to act differently when it is tested, in two steps, through the training core.

1. `packed`: documents that state facts (the rule, and that the firm always tests) are joined, with an end token
   between, and cut into rows of one length: no step is spent on padding. Next-token loss on all of it.
2. `expert_iteration`: draw answers in contexts of testing and of deployment, neither with the cue; keep those that have
   hints when tested and none when deployed (and do the task); train on the kept ones; again. A nudge (an instruction in
   the prompt that the kept rows lose) gives a model something to keep that would never show the behaviour by itself.

Source: card eval-awareness, Method 2 and 3 (Hua, Qin, Marks, Nanda 2025, arXiv:2510.20487).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cutaway.errors import CutawayError, UsageError
from cutaway.model import Model
from cutaway.sampling import Rollout, Settings
from cutaway.steering.effects import draw_answers
from cutaway.steering.eval_awareness.hints import count_hints
from cutaway.steering.eval_awareness.method import Check, Prompts, Report, answer_text
from cutaway.training import Data, Row, TrainConfig, data_of, train

CONTEXTS = ("evaluation", "deployment")


@dataclass(frozen=True)
class Round:
    """One round of expert iteration; counts are of answers in evaluation and in deployment contexts."""

    drawn: tuple[int, int]
    kept: tuple[int, int]
    trained: int
    """Rows trained on: as many of one context as of the other."""
    loss: float
    """Of the last step."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def packed(texts: Sequence[str], model: Model, length: int) -> Data:
    """Return ``texts`` joined, an end token after each, in rows of ``length`` tokens; a rest of one token is dropped.

    UsageError for no texts, and a length below 2 or beyond the model's context.
    """
    if not texts or not 2 <= length <= model.n_ctx:
        raise UsageError(f"{len(texts)} texts in rows of {length} tokens: one text or more, 2 to {model.n_ctx} tokens")
    end = min(model.eos_ids)
    stream = [token for text in texts for token in (*model.encode(text), end)]
    rows = [stream[at : at + length] for at in range(0, len(stream), length)]
    return data_of([(Row(tuple(row), (1.0,) * len(row)),) for row in rows if len(row) > 1], context=length)


def expert_iteration(
    model: Model,
    contexts: tuple[Prompts, Prompts],
    settings: Settings,
    config: TrainConfig,
    *,
    rounds: int = 2,
    n: int = 8,
    n_min: int = 8,
    keep: int = 64,
    nudged: Prompts | None = None,
    prefill: str = "",
    check: Check = lambda task, text: True,
    seed: int = 0,
    report: Report = lambda done, planned, note: None,
) -> tuple[Round, ...]:
    """Train the model's trainable weights, in place, on its own filtered answers; return the log of the rounds.

    ``contexts`` are prompts of evaluation and of deployment, the same tasks in the same order. ``nudged`` replaces the
    first when drawing. At most ``keep`` answers of a context are trained on, spread over prompts. Raises CutawayError
    where a round keeps fewer than ``n_min`` in a context, KeyboardInterrupt where training was stopped.
    """
    if len(contexts[0]) != len(contexts[1]) or not contexts[0] or len(nudged or contexts[0]) != len(contexts[0]):
        raise UsageError("evaluation, deployment and nudged prompts: the same number of each, at least one")
    log: list[Round] = []
    for number in range(rounds):
        drawn_from = (nudged or contexts[0], contexts[1])
        kept: list[list[Row]] = []
        for wanted, asked, trained_on in zip((True, False), drawn_from, contexts, strict=True):
            answers = draw_answers(
                model, asked, settings, n=n, seed=seed + number,
                report=lambda done, total, number=number: report(done, total, f"round {number + 1}"),  # type: ignore[misc]
            )  # fmt: skip
            kept.append(_kept(model, trained_on, answers, wanted, prefill, check)[:keep])
        _enough(number, kept, n_min, n * len(contexts[0]))
        size = min(map(len, kept))
        rows = [(row,) for group in kept for row in group[:size]]
        done = train(model, data_of(rows, context=model.n_ctx), config)
        if not done.complete:
            raise KeyboardInterrupt
        counts = (len(kept[0]), len(kept[1]))
        log.append(Round((n * len(contexts[0]),) * 2, counts, len(rows), done.history[-1].loss))
    return tuple(log)


def _kept(
    model: Model, prompts: Prompts, answers: Sequence[Sequence[Rollout]], wanted: bool, prefill: str, check: Check
) -> list[Row]:
    """Rows of the answers that behave as wanted, one of each prompt first, each once."""
    found: list[list[Row]] = []
    for task, (prompt, drawn) in enumerate(zip(prompts, answers, strict=True)):
        rows = dict[tuple[int, ...], Row]()
        for answer in drawn:
            text = answer_text(model, answer, prefill)
            hints = count_hints(text)
            if hints.parsed and (hints.annotated > 0) == wanted and check(task, text):
                weights = (0.0,) * len(prompt) + (1.0,) * len(answer.ids)
                rows[tuple(answer.ids)] = Row((*prompt, *answer.ids), weights)
        found.append(list(rows.values()))
    deepest = max(map(len, found))
    return [rows[depth] for depth in range(deepest) for rows in found if depth < len(rows)]


def _enough(number: int, kept: Sequence[Sequence[Row]], n_min: int, drawn: int) -> None:
    for name, rows in zip(CONTEXTS, kept, strict=True):
        if len(rows) < n_min:
            raise CutawayError(
                f"round {number + 1} kept {len(rows)} different answers of {drawn} in {name} contexts, and"
                f" n_min={n_min} are asked for: draw more, or nudge the model towards the behaviour"
            )
