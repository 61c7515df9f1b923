"""Dialogues: chat templates checked for what they keep, answers from an engine, many dialogues side by side.

Prompts are token ids. Every message given must be found in them: a template that silently drops the system text (or
any other) is an error that names it.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cutaway.errors import UsageError
from cutaway.reasoning.history_echoes.data import Item
from cutaway.reasoning.history_echoes.markov import Outcomes
from cutaway.reasoning.history_echoes.phenomena import Phenomenon
from cutaway.sampling.tree import sample
from cutaway.sampling.types import Engine, Request, Rollout, Settings

if TYPE_CHECKING:
    from cutaway.model import Model
    from cutaway.sampling.tree import BranchTree

Turn = tuple[str, str]
"""What the user said, what was answered."""
UNKNOWN = -1


@dataclass(frozen=True)
class Asked:
    """A question after a history."""

    history: tuple[Turn, ...]
    question: str


@dataclass(frozen=True)
class Reply:
    """An answer, or the reason why there is none."""

    text: str
    prompt: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()
    """The answer's tokens as drawn, end tokens left out."""
    undefined: str = ""

    def outcome(self, phenomenon: Phenomenon, item: Item) -> int:
        """1 where the behaviour is present, 0 where not, -1 where there is no answer."""
        return UNKNOWN if self.undefined else int(phenomenon.present(self.text, item))


@dataclass(frozen=True)
class Chat:
    """A chat model ready to answer: ``replies`` are drawn from ``engine`` under one system text."""

    model: "Model"
    engine: Engine
    settings: Settings
    system: str | None = None
    seed: int = 0
    tree: "BranchTree | None" = None
    """Keeps every answer on disk as soon as it is drawn; what it holds is not drawn again."""

    def replies(self, asked: Sequence[Asked]) -> list[Reply]:
        """One answer to each question, drawn independently; greedy settings give the model's own answer."""
        found: dict[int, Reply] = {}
        prompts = [chat_tokens(self.model, each.history, each.question, self.system) for each in asked]
        fits = [i for i, prompt in enumerate(prompts) if len(prompt) + self.settings.max_tokens <= self.model.n_ctx]
        # Greedy answers to one prompt are one answer, wherever it stands among the others.
        place = 0 if self.settings.temperature == 0 else 1
        requests = [Request(prompts[i], (_seed(self.seed, place * i, prompts[i]),), self.settings) for i in fits]
        stream = self.engine.stream(requests) if self.tree is None else sample(self.tree, self.engine, requests)
        for at, rollout in stream:
            found[fits[at]] = self._reply(prompts[fits[at]], rollout)
        too_long = Reply("", undefined=f"context overflow: more than {self.model.n_ctx} tokens")
        return [found.get(i, too_long) for i in range(len(asked))]

    def _reply(self, prompt: tuple[int, ...], rollout: Rollout) -> Reply:
        ends = self.model.eos_ids
        ids = tuple(token for token in rollout.ids if token not in ends)
        text = self.model.decode(ids).strip()
        return Reply(text, prompt, ids, "" if text else "empty answer")


def chat_tokens(model: "Model", history: Sequence[Turn], question: str, system: str | None = None) -> tuple[int, ...]:
    """The ids of a dialogue under the model's chat template, up to where the next answer starts.

    Raises UsageError when a message cannot be found in the ids, in order; the message names it.
    """
    tokenizer: Any = model.tokenizer
    if tokenizer is None or tokenizer.chat_template is None:
        raise UsageError(f"model {model.name!r} has no chat template; dialogues need one")
    from jinja2 import TemplateError

    messages = [("system", system)] if system is not None else []
    for asked, answered in history:
        messages += [("user", asked), ("assistant", answered)]
    messages.append(("user", question))
    given = [{"role": role, "content": text} for role, text in messages]
    try:
        ids = tokenizer.apply_chat_template(given, add_generation_prompt=True, tokenize=True, return_dict=False)
    except TemplateError as error:
        raise UsageError(f"the chat template of {model.name!r} refuses this dialogue: {error}") from error
    text, at = model.decode(ids), 0
    for role, content in messages:
        start = text.find(content.strip(), at)
        if start < 0:
            raise UsageError(f"the chat template of {model.name!r} drops the {role} text {content.strip()[:60]!r}")
        at = start + len(content.strip())
    return tuple(int(token) for token in ids)


@dataclass(frozen=True)
class Dialogue:
    """One dialogue: its items, the answers given, and what they showed."""

    items: tuple[Item, ...]
    replies: tuple[Reply | None, ...]
    """None for the demonstration and for turns after the dialogue ended."""
    outcomes: tuple[int, ...]
    ended: str = ""
    """Why it ended early, if it did."""


@dataclass(frozen=True)
class Dialogues:
    """Dialogues of one run."""

    dialogues: tuple[Dialogue, ...]
    phenomenon: str
    complete: bool = True

    @property
    def outcomes(self) -> Outcomes:
        """[dialogue, turn] without the demonstration's turn; -1 where there was no answer."""
        return np.array([dialogue.outcomes[1:] for dialogue in self.dialogues])

    def __repr__(self) -> str:
        known = self.outcomes >= 0
        return f"Dialogues({len(self.dialogues)} of {self.phenomenon}, {int(known.sum())} answers)"


@dataclass
class _Open:
    items: tuple[Item, ...]
    history: list[Turn]
    replies: list[Reply | None] = field(default_factory=lambda: [None])
    outcomes: list[int] = field(default_factory=lambda: [UNKNOWN])
    ended: str = ""

    def close(self) -> Dialogue:
        missing = len(self.items) - len(self.replies)
        replies, outcomes = self.replies + [None] * missing, self.outcomes + [UNKNOWN] * missing
        return Dialogue(self.items, tuple(replies), tuple(outcomes), self.ended)


def run_dialogues(
    chat: Chat,
    plan: Sequence[Sequence[Item]],
    phenomenon: Phenomenon,
    *,
    width: int = 16,
    report: Callable[[int, int, str], None] = lambda done, planned, note: None,
) -> Dialogues:
    """Ask each dialogue's items in turn, every answer joining the history. Item 1 is a demonstration without it.

    ``width`` dialogues advance together: the engine's number of slots. A dialogue ends at an empty answer or a full
    context, and says so. Ctrl-C returns what is known, ``complete=False``.
    """
    done: list[Dialogue] = []
    for at in range(0, len(plan), width):
        group = [
            _Open(tuple(items), [(phenomenon.ask(items[0]), phenomenon.minus(items[0]))])
            for items in plan[at : at + width]
        ]
        try:
            for turn in range(1, max(len(each.items) for each in group)):
                running = [each for each in group if not each.ended and turn < len(each.items)]
                if running:
                    _advance(chat, running, phenomenon, turn)
                report(at + len(group), len(plan), f"dialogues, turn {turn + 1}")
        except KeyboardInterrupt:
            done += [each.close() for each in group if len(each.replies) > 1]
            return Dialogues(tuple(done), phenomenon.name, complete=False)
        done += [each.close() for each in group]
    return Dialogues(tuple(done), phenomenon.name)


def _advance(chat: Chat, running: Sequence[_Open], phenomenon: Phenomenon, turn: int) -> None:
    asked = [Asked(tuple(each.history), phenomenon.ask(each.items[turn])) for each in running]
    for each, question, reply in zip(running, asked, chat.replies(asked), strict=True):
        each.replies.append(reply)
        each.outcomes.append(reply.outcome(phenomenon, each.items[turn]))
        each.ended = reply.undefined and f"turn {turn + 1}: {reply.undefined}"
        each.history.append((question.question, reply.text))


@dataclass(frozen=True)
class States:
    """Hidden states at the first content token of each answer, and what each answer showed."""

    states: dict[str, np.ndarray]
    """Site to [answer, d_model]."""
    labels: np.ndarray
    dialogue: np.ndarray
    turn: np.ndarray
    ease: np.ndarray


def capture_answers(model: "Model", dialogues: Dialogues, sites: Sequence[str]) -> States:
    """Capture ``sites`` at the first content token of every known answer; one forward a dialogue.

    Raises UsageError for a chat template that rewrites earlier turns, because then no one text holds them all.
    """
    import torch

    kept: dict[str, list[np.ndarray]] = {site: [] for site in sites}
    rows: list[tuple[int, int, int, float]] = []
    for d, dialogue in enumerate(dialogues.dialogues):
        known = [t for t, y in enumerate(dialogue.outcomes) if y >= 0]
        if not known:
            continue
        replies = {t: dialogue.replies[t] for t in known}
        last = replies[known[-1]]
        assert last is not None
        text, places = (*last.prompt, *last.ids), []
        for reply in replies.values():
            assert reply is not None
            if text[: len(reply.prompt)] != reply.prompt:
                raise UsageError(f"the chat template of {model.name!r} rewrites earlier turns; states cannot be paired")
            places.append(len(reply.prompt) + _first_content(model, reply.ids))
        with torch.inference_mode():
            seen = model.capture([list(text)], list(sites), positions=places, special=True)
        for site in sites:
            kept[site].append(seen[site][0].float().cpu().numpy())
        rows += [(dialogue.outcomes[t], d, t, dialogue.items[t].ease) for t in known]
    labels, home, turn, ease = (np.array(column) for column in zip(*rows, strict=True)) if rows else [np.zeros(0)] * 4
    states = {site: np.concatenate(parts) if parts else np.zeros((0, model.d_model)) for site, parts in kept.items()}
    return States(states, labels.astype(int), home.astype(int), turn.astype(int), ease.astype(float))


def _first_content(model: "Model", ids: Sequence[int]) -> int:
    return next((i for i, token in enumerate(ids) if model.decode([token]).strip()), 0)


def _seed(seed: int, index: int, prompt: tuple[int, ...]) -> int:
    digest = hashlib.blake2b(repr((seed, index, prompt)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
