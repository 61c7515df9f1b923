"""Where a trace comes from: one question put to one model, the same for every study of this room.

Studies that are given the same question, weights, sampling and seed examine the same trace and share one branch tree.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from cutaway.errors import CutawayError, UsageError
from cutaway.grading import auto_outcome, parse_outcome
from cutaway.sampling import Engine, Request, Rollout, Settings, Trace, make_trace, sample
from cutaway.study import StudyConfig

if TYPE_CHECKING:
    from cutaway.model import Model
    from cutaway.sampling import BranchTree, LocalEngine


class TraceConfig(StudyConfig):
    """The settings that decide which trace is examined."""

    prompt: str = Field(min_length=1)
    """What the model is asked."""
    model: str = "smollm2-135m-instruct"
    """Catalogue name, Hugging Face id, local directory or GGUF file."""
    outcome: str = "auto"
    """number, letter[:A,B], choice:x,y, boxed, regex:PATTERN; auto reads it off the prompt."""
    raw: bool = False
    """Take the prompt as it is, without the chat template."""
    temperature: float = 0.6
    """Sampling temperature."""
    top_p: float = 0.95
    """Nucleus mass."""
    max_tokens: int = Field(200, ge=8)
    """Longest trace, in tokens."""
    stop: str = ""
    """A text at which a trace ends, such as a blank line in a list of worked examples; empty: the model decides."""
    seed: int = Field(0, ge=0)
    """Of the trace and of every rollout."""
    dtype: str = "auto"
    """Weights' precision: auto, float32 or bfloat16."""
    embedder: str = "all-minilm-l6-v2"
    """Sentence embedder that says which sentences mean the same; empty: identical wordings only."""

    def settings(self) -> Settings:
        """How tokens are drawn."""
        return Settings(self.temperature, self.top_p, 0, self.max_tokens, (self.stop,) if self.stop else ())


def prompt_ids(model: "Model", prompt: str, raw: bool = False) -> tuple[int, ...]:
    """The question as token ids, in the chat template unless ``raw``. UsageError when it is empty."""
    if not prompt.strip():
        raise UsageError("the prompt is empty; ask the model something")
    return tuple(model.encode(prompt, special=True) if raw else model.chat_ids(prompt))


def tree_key(model: "Model", prompt: str, raw: bool = False) -> str:
    """Name of the branch tree of one question under one model."""
    return hashlib.sha256(repr((model.fingerprint, prompt, raw)).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Asked:
    """A question's trace, and what reads the answer off a text."""

    trace: Trace
    outcome: Callable[[str], str | None]


def ask(
    engine: "LocalEngine",
    prompt: str,
    outcome: str | Callable[[str], str | None] = "auto",
    *,
    settings: Settings,
    raw: bool = False,
    seed: int = 0,
    tree: "BranchTree | None" = None,
) -> Asked:
    """Put a question to the engine's model; ``outcome`` is a spec (`cutaway.grading`) or any function of a text."""
    ids = prompt_ids(engine.model, prompt, raw)
    if outcome == "auto":
        outcome = auto_outcome(prompt)
    extract = parse_outcome(outcome) if isinstance(outcome, str) else outcome
    return Asked(sample_trace(engine, ids, extract, engine.model.decode, settings, seed, tree=tree), extract)


def sample_trace(
    engine: Engine,
    prompt: Sequence[int],
    outcome: Callable[[str], str | None],
    decode: Callable[[Sequence[int]], str],
    settings: Settings,
    seed: int = 0,
    tries: int = 12,
    tree: "BranchTree | None" = None,
) -> Trace:
    """The first of up to ``tries`` sampled continuations that ends by itself and has an answer.

    CutawayError when none does, with the end of one of them.
    """
    last = ""
    for first in range(0, tries, 4):
        for each in draw_candidates(engine, prompt, settings, range(first, min(first + 4, tries)), seed, tree):
            last = decode(each.ids)
            if each.finish == "stop" and outcome(last) is not None:
                return make_trace(prompt, each, settings, decode)
    raise CutawayError(
        f"no answer in {tries} sampled traces (max_tokens={settings.max_tokens}); ask for the answer in the "
        f"prompt, choose another outcome or raise max_tokens. One trace ended: {last[-80:]!r}"
    )


def draw_candidates(
    engine: Engine,
    prompt: Sequence[int],
    settings: Settings,
    numbers: Sequence[int],
    seed: int = 0,
    tree: "BranchTree | None" = None,
) -> list[Rollout]:
    """The continuations of a prompt with these draw numbers, from which the trace to examine is chosen.

    They are drawn apart from the rollouts that the trace is compared with (`rollouts.draw_rollouts`).
    """
    seeds = tuple(seed * 1000 + k for k in numbers)
    requests = [Request(tuple(prompt), seeds, settings)]
    stream = sample(tree, engine, requests) if tree is not None else engine.stream(requests)
    found = {rollout.seed: rollout for _, rollout in stream}
    return [found[s] for s in seeds]
