"""A trace: text that a model wrote after a prompt, as token ids with sentence spans."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cutaway.errors import UsageError
from cutaway.sampling.sentences import split_tokens
from cutaway.sampling.types import Rollout, Settings


@dataclass(frozen=True)
class Trace:
    """Prompt and continuation; sentences are token spans that cover the continuation."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of ``ids``, at temperature 1, in nats; empty when the text did not come from sampling."""
    spans: tuple[tuple[int, int], ...]
    """[start, end) of each sentence, counted from the first token of ``ids``."""
    settings: Settings

    @property
    def n_sentences(self) -> int:
        return len(self.spans)

    def prefix(self, boundary: int) -> tuple[int, ...]:
        """Prompt and everything before sentence ``boundary``; ``n_sentences`` gives the whole text."""
        end = self.spans[boundary][0] if boundary < len(self.spans) else len(self.ids)
        return (*self.prompt, *self.ids[:end])

    def texts(self, decode: Callable[[Sequence[int]], str]) -> tuple[str, ...]:
        """Text of each sentence; joined they are the trace's text.

        Decoded with growing context, because a token can hold part of a character and some tokenizers drop the
        blank in front of the first token they decode.
        """
        cuts = [len(decode(self.ids[:end])) for _, end in self.spans]
        text = decode(self.ids)
        return tuple(text[a:b] for a, b in zip([0, *cuts], [*cuts[:-1], len(text)], strict=False))


def make_trace(
    prompt: Sequence[int], rollout: Rollout, settings: Settings, decode: Callable[[Sequence[int]], str]
) -> Trace:
    """The trace of one sampled continuation; UsageError when it is empty."""
    if not rollout.ids:
        raise UsageError("the trace is empty: the model ended at once; choose another seed or prompt")
    spans = tuple(split_tokens(rollout.ids, decode))
    return Trace(tuple(prompt), rollout.ids, rollout.logprobs, spans, settings)
