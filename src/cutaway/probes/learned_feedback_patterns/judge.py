"""A gate for whoever explains latents: does a judge choose the explanations that people chose?

The fixture: 31 latents, each with the tokens it was shown on, four explanations and "none of these", and one or two
people's choices. Source: card learned-feedback-patterns, Metrics.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.stats import Interval, mean_interval

CHANCE, HUMAN = 0.2, 0.875
"""Five options; agreement of two annotators over all 62 items, of which the fixture holds 31."""


@dataclass(frozen=True)
class Choice:
    """One latent with explanations to choose among."""

    tokens: tuple[str, ...]
    activations: tuple[int, ...]
    options: tuple[str, ...]
    people: tuple[int, ...]
    """What each annotator chose, counted from 1; one more than the options means none of them."""


@dataclass(frozen=True)
class JudgeGate:
    """How a judge does beside people and chance."""

    agreement: Interval
    """Mean over items of the share of people who chose as the judge did."""
    people: float | None
    """The same for pairs of people, in this fixture."""

    @property
    def trusted(self) -> bool:
        """Whether the judge is two standard errors above chance."""
        error = (self.agreement.high - self.agreement.low) / 2 / 1.96
        return bool(self.agreement.value >= CHANCE + 2 * error)

    def __repr__(self) -> str:
        return f"JudgeGate(agreement {self.agreement}, chance {CHANCE}, {'trusted' if self.trusted else 'untrusted'})"


def read_choices(path: str | Path) -> list[Choice]:
    """Read the fixture; UsageError for a file that is none."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path.name}: no such file; give JSON lines of explanation choices")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not rows or not {"tokens", "activation_0_5", "options", "annotator_choice"} <= rows[0].keys():
        raise UsageError(f"{path.name}: tokens, activation_0_5, options and annotator_choice are needed")
    return [
        Choice(
            tuple(r["tokens"]), tuple(r["activation_0_5"]), tuple(r["options"]), tuple(r["annotator_choice"].values())
        )
        for r in rows
    ]


def gate(items: Sequence[Choice], judge: Callable[[Choice], int]) -> JudgeGate:
    """Let a judge choose for every item. UsageError for a choice that is not on offer."""
    shares = []
    for number, item in enumerate(items):
        said = judge(item)
        if not 1 <= said <= len(item.options) + 1:
            raise UsageError(f"item {number}: the judge chose {said}; 1 to {len(item.options) + 1} are on offer")
        shares.append(float(np.mean([said == other for other in item.people])))
    twice = [len(set(item.people)) == 1 for item in items if len(item.people) == 2]
    return JudgeGate(mean_interval(shares), float(np.mean(twice)) if twice else None)


def likelihood_judge(model: Model) -> Callable[[Choice], int]:
    """Return a judge that takes the explanation which the model finds likeliest after the marked text, per token."""

    @torch.no_grad()
    def judge(item: Choice) -> int:
        marked = " ".join(f"<<{t}>>" if a else t for t, a in zip(item.tokens, item.activations, strict=True))
        start = model.encode(
            f"Some tokens of this text are marked: {marked}\nWhat the marked tokens share:", special=True
        )
        rows = [[*start, *model.encode(f" {option}")] for option in item.options]
        batch = model.batch(rows)
        logits = model.logits(batch)[:, len(start) - 1 : -1].float()
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.ids[:, len(start) :], reduction="none")
        inside = batch.mask[:, len(start) :]
        return 1 + int(((each * inside).sum(1) / inside.sum(1)).argmin())

    return judge
